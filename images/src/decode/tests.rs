//! Robustness. What pixels come out is shown by tests/pillow.rs.

use std::path::Path;

use proptest::prelude::*;

use super::*;

fn golden(name: &str) -> Vec<u8> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/files");
    std::fs::read(files.join(name)).unwrap()
}

/// One small file per decoder and way through it.
const SEEDS: [&str; 22] = [
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
    "turn-xmp.webp",
    "turn-profile-ztxt.png",
    "turn-exif-and-xmp.jpg",
    "associated16-mm.tif",
    "p3-255.ppm",
    "p5-1023.pgm",
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
        Err(DecodeError::DecoderPanic { format: "GIF", detail }) => assert_eq!(detail, "index out of bounds"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_over_the_limit_is_refused_by_its_length() {
    let bytes = vec![0xFF; MAX_FILE_BYTES as usize + 1];
    match decode(&bytes) {
        Err(e @ DecodeError::FileTooLarge { bytes: found, limit: MAX_FILE_BYTES }) => {
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
            Err(DecodeError::TooManyPixels { width, height, limit: MAX_PIXELS }) => {
                assert!(width >= 60_000 && height >= 60_000)
            }
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
        "not an image of a known format: it starts with 3c 68 74 6d 6c 3e 34 30; JPEG, PNG, WebP, GIF, BMP, TIFF and PNM (PPM, PGM, PBM) are read"
    );
    assert!(message("empty").contains("it starts with nothing (the file is empty)"));
    assert!(message("truncated.jpg").starts_with("JPEG file is truncated: "));
    assert!(message("damaged.png").starts_with("PNG file is corrupt: "));
    assert!(message("float.tif").ends_with("; convert it to 8-bit RGB"));
}

/// Caches of the earlier rules are read by these: what their students see is what their teachers saw.
#[test]
fn the_earlier_rules_differ_only_where_they_say() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/files");
    let earlier = Decoder::of_cache(IMAGE_CODE_COLOR_1, DepthWindow::HighByte).unwrap();
    let mut different = Vec::new();
    for entry in std::fs::read_dir(files).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let bytes = golden(&name);
        if let Ok(img) = decode(&bytes)
            && earlier.decode(&bytes).ok() != Some(img)
        {
            different.push(name);
        }
    }
    for name in &different {
        let is_told = ["turn-", "associated", "unspecified"].iter().any(|kind| name.starts_with(kind));
        let is_pnm = [".ppm", ".pgm", ".pbm"].iter().any(|kind| name.ends_with(kind));
        assert!(is_told || is_pnm, "{name}");
    }
    for name in
        ["turn-xmp-attribute.jpg", "turn-prefix.webp", "turn-profile-ztxt.png", "associated-ii.tif", "p6-255.ppm"]
    {
        assert!(different.iter().any(|other| other == name), "{name}");
    }
    let size = |decoder: &Decoder| {
        let img = decoder.decode(&golden("turn-xmp-attribute.jpg")).unwrap();
        (img.width, img.height)
    };
    assert_eq!(size(&earlier), (16, 11));
    assert_eq!(size(&Decoder::default()), (11, 16));
}

#[test]
fn the_committed_cache_of_version_1_names_rules_that_are_known() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat/v1/cache/cache.json");
    let cache: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(cache).unwrap()).unwrap();
    assert_eq!(cache["image_code"], IMAGE_CODE_COLOR_1);
}

#[test]
fn a_cache_of_unknown_rules_has_no_decoder() {
    let window = DepthWindow::FullRange;
    assert_eq!(Decoder::of_cache("pillow 13", window), None);
    let decoder = Decoder::of_cache(IMAGE_CODE, window).unwrap();
    assert_eq!(decoder, Decoder::new(window));
    assert_eq!((decoder.image_code(), decoder.earlier_rules()), (IMAGE_CODE, None));
}

/// The window reaches every format that has samples of more than 8 bits, and none that has not.
#[test]
fn the_window_is_that_of_deep_images_alone() {
    let stretched = Decoder::new("0,4095".parse().unwrap());
    let mut deep = Vec::new();
    for name in [
        "gray16.png",
        "rgb16.png",
        "gray-alpha16.png",
        "rgba16.png",
        "gray16.tif",
        "associated16-ii.tif",
        "unassociated16.tif",
        "p5-65535.pgm",
        "p2-1023.pgm",
        "p6-4095.ppm",
        "gray8.png",
        "rgb.png",
        "p6-255.ppm",
        "unassociated.tif",
        "photo-0-420.jpg",
        "palette.gif",
        "rgb24.bmp",
    ] {
        let bytes = golden(name);
        let decoded = Decoder::default().decode_noting(&bytes).unwrap();
        let other = stretched.decode_noting(&bytes).unwrap();
        assert_eq!(decoded.image != other.image, other.deep.is_some(), "{name}");
        if other.deep.is_some() {
            deep.push(name);
        }
    }
    assert_eq!(deep.len(), 10, "{deep:?}");
}

/// A frame of 12 bits in 16, as an inspection camera stores it.
#[test]
fn images_that_use_a_fraction_of_their_scale_are_noticed() {
    let noted = |levels: [u16; 4]| {
        let body: Vec<u8> = levels.iter().flat_map(|level| level.to_be_bytes()).collect();
        let bytes = [b"P5 2 2 65535\n".as_slice(), &body].concat();
        Decoder::default().decode_noting(&bytes).unwrap()
    };
    let is_noticed = |decoded: &Decoded| {
        let deep = DeepImages::default();
        deep.count("frame.pgm", decoded, &Decoder::default());
        deep.narrow().0 == 1
    };
    assert!(is_noticed(&noted([0, 100, 4095, 7])));
    // In color, where Pillow scales to 8 bits, and in the plain kinds.
    let decode = |bytes: &[u8]| Decoder::default().decode_noting(bytes).unwrap();
    let body: Vec<u8> = [0u16, 1023, 7].iter().flat_map(|v| v.to_be_bytes()).collect();
    let color = decode(&[b"P6 1 1 65535\n".as_slice(), &body].concat());
    assert_eq!((color.deep, is_noticed(&color)), (Some((0, 1023)), true));
    for plain in ["P3 1 1 65535 0 1023 7", "P2 2 1 65535 0 1023"] {
        assert!(is_noticed(&decode(plain.as_bytes())), "{plain}");
    }
    let full = decode(b"P3 1 1 1023 0 1023 7");
    assert_eq!((full.deep, is_noticed(&full)), (Some((0, 65_535)), false));
    assert_eq!(decode(b"P3 1 1 255 0 3 7").deep, None);
    assert!(is_noticed(&noted([20_000, 30_000, 25_000, 20_001])));
    assert!(is_noticed(&noted([9; 4])));
    assert!(!is_noticed(&noted([0; 4])));
    assert!(!is_noticed(&noted([50_000; 4])));
    assert!(!is_noticed(&noted([0, 65_535, 3, 3])));
    assert_eq!(noted([5, 9, 7, 6]).deep, Some((5, 9)));
    let shallow = Decoder::default().decode_noting(&golden("gray8.png")).unwrap();
    assert!(shallow.deep.is_none() && !is_noticed(&shallow));
}

/// Pillow fails on an EXIF block that is none; here the XMP packet counts then.
#[test]
fn exif_that_is_none_is_passed_by() {
    for exif in [&b"garbage!"[..], b"", b"II", b"II*\0\xff\xff\xff\xff"] {
        let xmp = b"<a tiff:Orientation=\"6\"/>".to_vec();
        let orientation = |xmp| {
            let exif = Some(exif.to_vec());
            orientation::Metadata { exif, xmp }.orientation()
        };
        assert_eq!(orientation(Some(xmp)), Orientation::Rotate90);
        assert_eq!(orientation(None), Orientation::NoTransforms);
    }
}

#[test]
fn the_name_of_a_file_does_not_matter() {
    assert_eq!(Format::sniff(&golden("rgb.png")), Some(Format::Png));
    assert_eq!(Format::sniff(b"MM\0*rest"), Some(Format::Tiff));
    assert_eq!(Format::sniff(b"RIFF\0\0\0\0WAVE"), None);
    assert_eq!(Format::sniff(b""), None);
}
