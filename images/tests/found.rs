//! Files that fuzzing has found or kept: small ones that reach most of the readers' code, and those that once did harm.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests unwrap, and write throw-away files")]

use std::fs;
use std::path::{Path, PathBuf};

use images::{DecodeError, Decoder, IMAGE_CODE_COLOR_1, ImageSource, SourceError};
use schemas::DepthWindow;

/// The files of a folder, sorted.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10);
    files
}

#[test]
fn kept_images_are_decoded_or_refused() {
    let decoders = [
        Decoder::default(),
        Decoder::new(DepthWindow::FullRange),
        Decoder::of_cache(IMAGE_CODE_COLOR_1, DepthWindow::HighByte).unwrap(),
    ];
    let (mut decoded, mut refused) = (0, 0);
    for path in files("image") {
        let bytes = fs::read(&path).unwrap();
        for decoder in &decoders {
            match decoder.decode(&bytes) {
                Ok(img) => {
                    assert!(img.width > 0 && img.height > 0);
                    assert_eq!(img.data.len(), img.width as usize * img.height as usize * 3);
                    decoded += 1;
                }
                Err(DecodeError::DecoderPanic { detail, .. }) => panic!("{}: {detail}", path.display()),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(decoded > 0 && refused > 0, "{decoded} decoded, {refused} refused");
}

/// Opens a source in every way, and reads all images; the number of those that were read.
fn read(path: &Path, specs: &[&str]) -> usize {
    let mut read = 0;
    for spec in specs {
        let source = match ImageSource::open(&format!("{}{spec}", path.display())) {
            Ok(source) => source,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        assert_eq!(source.identity().samples, source.len() as u64);
        for index in 0..source.len() {
            assert_eq!(source.find(source.key(index)), Some(index));
            match source.read(index) {
                Ok(_) => read += 1,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    read
}

#[test]
fn kept_archives_are_read_or_refused() {
    let specs = ["", "::*", "::*.left.*", "::label=json", "::*,label=txt"];
    let read: usize = files("tar").iter().map(|path| read(path, &specs)).sum();
    assert!(read > 0);
}

#[test]
fn kept_tables_are_read_or_refused() {
    let specs = ["", "::image", "::label=label", "::image,label=text"];
    let read: usize = files("parquet").iter().map(|path| read(path, &specs)).sum();
    assert!(read > 0);
}

fn detail(path: &Path) -> String {
    match ImageSource::open(path.to_str().unwrap()) {
        Err(SourceError::CorruptParquet { path: named, detail }) => {
            assert_eq!(named, path);
            detail
        }
        other => panic!("{other:?}"),
    }
}

/// 1315 bytes whose footer has a list of two billion values that take no byte: the Parquet library would go through all of them.
#[test]
fn a_footer_of_endless_lists_is_refused_at_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found/parquet/endless-list.parquet");
    let detail = detail(&path);
    assert!(detail.contains("values without bytes"), "{detail}");
}

/// The Parquet library builds the tree of columns by recursion: such a file would overflow the stack, which nothing can catch.
#[test]
fn columns_that_nest_without_end_are_refused() {
    let depth = 100_000u32;
    let mut footer = vec![0x29, 0xfc];
    let mut count = depth + 1;
    while count >= 0x80 {
        footer.push(count as u8 | 0x80);
        count >>= 7;
    }
    footer.push(count as u8);
    footer.extend([0x48, 1, b'a', 0x15, 2, 0].repeat(depth as usize));
    footer.extend([0x15, 12, 0x38, 1, b'b', 0, 0]);
    let length = (footer.len() as u32).to_le_bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.parquet");
    fs::write(&path, [b"PAR1", &footer[..], &length, b"PAR1"].concat()).unwrap();
    let detail = detail(&path);
    assert!(detail.contains("nest more than 64 deep"), "{detail}");
}
