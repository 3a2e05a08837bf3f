//! Robustness. What pixels come out is shown by tests/pillow.rs.

use std::path::Path;

use proptest::prelude::*;

use super::*;

fn golden(name: &str) -> Vec<u8> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/files");
    std::fs::read(files.join(name)).unwrap()
}

/// One small file per decoder and way through it.
const SEEDS: [&str; 16] = [
    "gray.jpg",
    "cmyk.jpg",
    "orientation-6.jpg",
    "photo-2-other.jpg",
    "comment.jpg",
    "rgb.png",
    "palette-alpha.png",
    "rgb-interlaced.png",
    "animation.png",
    "interlaced.gif",
    "lossless.webp",
    "lossy-alpha.webp",
    "palette8.bmp",
    "rgb-lzw.tif",
    "gray1-group4.tif",
    "orientation-8.tif",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever a few bytes are changed to, there is an image or an error.
    #[test]
    fn damage_never_panics(seed in prop::sample::select(SEEDS.to_vec()), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = golden(seed);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(img) = decode(&bytes) {
            prop_assert_eq!(img.data.len(), img.width as usize * img.height as usize * 3);
            prop_assert!(img.width > 0 && img.height > 0);
        }
    }

    #[test]
    fn any_bytes_after_a_signature_are_handled(seed in prop::sample::select(SEEDS.to_vec()), tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = golden(seed)[..12].to_vec();
        bytes.extend(tail);
        prop_assert!(decode(&bytes).is_err());
    }
}

#[test]
fn a_panicking_decoder_is_an_error() {
    let refused = guarded::<()>(Format::Gif, || panic!("index out of bounds"));
    match refused {
        Err(DecodeError::DecoderPanic {
            format: "GIF",
            detail,
        }) => assert_eq!(detail, "index out of bounds"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_over_the_limit_is_refused_by_its_length() {
    let bytes = vec![0xFF; MAX_FILE_BYTES as usize + 1];
    match decode(&bytes) {
        Err(
            e @ DecodeError::FileTooLarge {
                bytes: found,
                limit: MAX_FILE_BYTES,
            },
        ) => {
            assert_eq!(found, MAX_FILE_BYTES + 1);
            assert_eq!(e.reason(), "file-too-large");
        }
        other => panic!("{other:?}"),
    }
}

/// The limit is checked on the header: no gigabytes are allocated, and a file of a few hundred bytes cannot take seconds.
#[test]
fn bombs_are_refused_by_their_header() {
    for name in ["bomb.jpg", "bomb.png", "bomb.gif"] {
        match decode(&golden(name)) {
            Err(DecodeError::TooManyPixels {
                width,
                height,
                limit: MAX_PIXELS,
            }) => assert!(width >= 60_000 && height >= 60_000),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_png_of_any_side_is_refused_by_its_size() {
    for side in [1 << 20, i32::MAX as u32, 1 << 31, u32::MAX] {
        let mut bytes = golden("rgb.png");
        bytes[16..20].copy_from_slice(&side.to_be_bytes());
        bytes[20..24].copy_from_slice(&side.to_be_bytes());
        match decode(&bytes) {
            Err(DecodeError::TooManyPixels { width, .. }) => assert_eq!(width, side),
            other => panic!("{side}: {other:?}"),
        }
    }
}

#[test]
fn errors_say_what_and_what_next() {
    let message = |name: &str| decode(&golden(name)).unwrap_err().to_string();
    assert_eq!(
        message("text.jpg"),
        "not an image of a known format: it starts with 3c 68 74 6d 6c 3e 34 30; JPEG, PNG, WebP, GIF, BMP and TIFF are read"
    );
    assert!(message("empty").contains("it starts with nothing, being empty"));
    assert!(message("truncated.jpg").starts_with("JPEG file is truncated: "));
    assert!(message("damaged.png").starts_with("PNG file is corrupt: "));
    assert!(message("float.tif").ends_with("; convert it to 8-bit RGB"));
}

#[test]
fn the_name_of_a_file_does_not_matter() {
    assert_eq!(Format::sniff(&golden("rgb.png")), Some(Format::Png));
    assert_eq!(Format::sniff(b"MM\0*rest"), Some(Format::Tiff));
    assert_eq!(Format::sniff(b"RIFF\0\0\0\0WAVE"), None);
    assert_eq!(Format::sniff(b""), None);
}
