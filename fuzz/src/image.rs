//! Image files of every format. The CRCs of PNG chunks are computed, since its decoder refuses a file for one that is wrong.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat};
use images::{ClassMask, Decoder, IMAGE_CODE_COLOR_1, RgbImage};
use schemas::DepthWindow;

use crate::scratch;

fn with_crcs(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return bytes;
    }
    let mut at = 8;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = at + 8 + length;
        let Some(crc) = bytes.get(at + 4..end).map(crc32fast::hash) else {
            break;
        };
        match bytes.get_mut(end..end + 4) {
            Some(place) => place.copy_from_slice(&crc.to_be_bytes()),
            None => break,
        }
        at = end + 4;
    }
    bytes
}

pub fn files(input: &[u8], dir: &Path) {
    scratch::write(&dir.join("image"), &with_crcs(input));
}

pub fn run(input: &[u8]) {
    let bytes = with_crcs(input);
    let decoders = [
        Decoder::default(),
        Decoder::new(DepthWindow::FullRange),
        Decoder::of_cache(IMAGE_CODE_COLOR_1, DepthWindow::HighByte).expect("rules that are known"),
    ];
    // Mostly the default; the length of an input decides, so that it stays the same for an input.
    let decoder = &decoders[[0, 0, 0, 1, 2][bytes.len() % 5]];
    match decoder.decode(&bytes) {
        Ok(RgbImage { width, height, data }) => {
            assert!(width > 0 && height > 0);
            assert_eq!(data.len(), width as usize * height as usize * 3);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match ClassMask::decode(&bytes) {
        Ok(ClassMask { width, height, data }) => {
            assert!(width > 0 && height > 0);
            assert_eq!(data.len(), width as usize * height as usize);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What encoders make of a small picture; and the golden files of the tests, which a script of this repository makes.
pub fn seeds() -> Vec<Vec<u8>> {
    let picture =
        image::RgbaImage::from_fn(9, 7, |x, y| image::Rgba([x as u8 * 20, y as u8 * 30, 99, 255 - x as u8 * 9]));
    let rgba = DynamicImage::ImageRgba8(picture);
    let kinds = [
        (rgba.clone(), ImageFormat::Png),
        (DynamicImage::ImageRgb16(rgba.to_rgb16()), ImageFormat::Png),
        (DynamicImage::ImageLuma8(rgba.to_luma8()), ImageFormat::Png),
        (DynamicImage::ImageRgb8(rgba.to_rgb8()), ImageFormat::Jpeg),
        (DynamicImage::ImageLuma8(rgba.to_luma8()), ImageFormat::Jpeg),
        (rgba.clone(), ImageFormat::WebP),
        (rgba.clone(), ImageFormat::Gif),
        (DynamicImage::ImageRgb8(rgba.to_rgb8()), ImageFormat::Bmp),
        (rgba.clone(), ImageFormat::Tiff),
        (DynamicImage::ImageLuma16(rgba.to_luma16()), ImageFormat::Tiff),
        (DynamicImage::ImageRgb8(rgba.to_rgb8()), ImageFormat::Pnm),
    ];
    let mut seeds: Vec<Vec<u8>> = kinds
        .into_iter()
        .map(|(picture, format)| {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, format).expect("a file");
            bytes.into_inner()
        })
        .collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/files");
    let mut paths: Vec<_> =
        std::fs::read_dir(golden).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let golden = paths.iter().filter_map(|path| std::fs::read(path).ok());
    seeds.extend(golden.filter(|bytes| bytes.len() <= 4096));
    seeds
}
