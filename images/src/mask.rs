//! Segmentation masks: an image of class numbers, one for each pixel.
//!
//! A mask is a PNG with one channel, as ADE20K's (`annotations`), PASCAL VOC's (`SegmentationClass`) and Cityscapes' (`labelIds`) are:
//! gray of 1 to 16 bits, or a palette. The stored number is the class; a palette's colors are for viewers, and its index is the class.
//! Nothing is scaled: gray of 2 bits has the classes 0 to 3. An orientation in EXIF is ignored, because it says how to show a
//! picture, and a mask belongs to the upright image.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Limits, Transformations};
use schemas::CropBox;

use crate::decode::{MAX_FILE_BYTES, MAX_PIXELS};
use crate::guard::catch_panics;
use crate::{CropError, DecodeError, MaskError};

/// The format's name in messages.
const PNG: &str = "PNG";

/// A class number for each pixel: row-major `[H, W]`, at least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct ClassMask {
    /// Columns, `W`.
    pub width: u32,
    /// Rows, `H`.
    pub height: u32,
    /// `H * W` class numbers.
    pub data: Vec<u16>,
}

impl std::fmt::Debug for ClassMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClassMask {{ {} x {} }}", self.width, self.height)
    }
}

impl ClassMask {
    /// Decodes a PNG of class numbers. Never panics, as [`decode`](crate::decode()).
    ///
    /// # Errors
    /// [`MaskError`] for another format, for more than one channel, and for what [`DecodeError`] lists.
    pub fn decode(bytes: &[u8]) -> Result<ClassMask, MaskError> {
        let len = bytes.len() as u64;
        if len > MAX_FILE_BYTES {
            return Err(DecodeError::FileTooLarge { bytes: len, limit: MAX_FILE_BYTES }.into());
        }
        if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Err(MaskError::NotPng);
        }
        catch_panics(|| read(bytes))
            .unwrap_or_else(|detail| Err(DecodeError::DecoderPanic { format: PNG, detail }.into()))
    }

    /// The classes in a box.
    ///
    /// # Errors
    /// If the box is empty or not inside the mask.
    pub fn crop(&self, crop: CropBox) -> Result<ClassMask, CropError> {
        let fits = |start: u32, len: u32, size: u32| len >= 1 && start.checked_add(len).is_some_and(|end| end <= size);
        if !fits(crop.x, crop.w, self.width) || !fits(crop.y, crop.h, self.height) {
            return Err(CropError::Outside { crop, width: self.width, height: self.height });
        }
        let rows = self.data.chunks_exact(self.width as usize).skip(crop.y as usize).take(crop.h as usize);
        let columns = crop.x as usize..(crop.x + crop.w) as usize;
        Ok(ClassMask {
            width: crop.w,
            height: crop.h,
            data: rows.flat_map(|row| &row[columns.clone()]).copied().collect(),
        })
    }
}

fn read(bytes: &[u8]) -> Result<ClassMask, MaskError> {
    let limits = Limits { bytes: usize::try_from(4 * MAX_PIXELS).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    let (width, height, color, depth) = {
        let info = decoder.read_header_info().map_err(explain)?;
        (info.width, info.height, info.color_type, info.bit_depth)
    };
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(DecodeError::TooManyPixels { width, height, limit: MAX_PIXELS }.into());
    }
    let bits = match depth {
        BitDepth::One => 1,
        BitDepth::Two => 2,
        BitDepth::Four => 4,
        BitDepth::Eight => 8,
        BitDepth::Sixteen => 16usize,
    };
    let found = match color {
        ColorType::Grayscale | ColorType::Indexed => None,
        ColorType::Rgb => Some("RGB"),
        ColorType::GrayscaleAlpha => Some("gray with alpha"),
        ColorType::Rgba => Some("RGB with alpha"),
    };
    if let Some(found) = found {
        return Err(MaskError::Channels { found });
    }
    let mut reader = decoder.read_info().map_err(explain)?;
    let size = reader.output_buffer_size().ok_or_else(|| corrupt("its size overflows"))?;
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(explain)?;
    // Up to the end mark: a file without it was cut off.
    reader.finish().map_err(explain)?;
    if (frame.width, frame.height) != (width, height) {
        return Err(corrupt("its first frame has another size").into());
    }
    let mut data = Vec::with_capacity(width as usize * height as usize);
    for row in samples.chunks_exact(frame.line_size) {
        match bits {
            16 => data.extend(row.as_chunks::<2>().0.iter().map(|&sample| u16::from_be_bytes(sample))),
            8 => data.extend(row.iter().map(|&sample| u16::from(sample))),
            _ => data.extend((0..width as usize).map(|x| {
                let bit = x * bits;
                u16::from((row[bit / 8] >> (8 - bits - bit % 8)) & ((1 << bits) - 1))
            })),
        }
    }
    Ok(ClassMask { width, height, data })
}

fn corrupt(detail: &str) -> DecodeError {
    DecodeError::Corrupt { format: PNG, detail: detail.to_owned() }
}

fn explain(error: DecodingError) -> MaskError {
    let detail = error.to_string();
    let is_cut = matches!(&error, DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof);
    MaskError::Decode(match is_cut {
        true => DecodeError::Truncated { format: PNG, detail },
        false => DecodeError::Corrupt { format: PNG, detail },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of samples as they are packed in its rows.
    fn png(width: u32, height: u32, color: ColorType, depth: BitDepth, rows: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette([0u8, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0].repeat(4));
        }
        encoder.write_header().unwrap().write_image_data(rows).unwrap();
        bytes
    }

    #[test]
    fn the_stored_numbers_are_the_classes() {
        let decode = |bytes: &[u8]| ClassMask::decode(bytes).unwrap().data;
        let gray = ColorType::Grayscale;
        assert_eq!(decode(&png(3, 2, gray, BitDepth::Eight, &[0, 1, 255, 7, 8, 9])), [0, 1, 255, 7, 8, 9]);
        assert_eq!(decode(&png(2, 1, gray, BitDepth::Sixteen, &[1, 2, 255, 254])), [258, 65_534]);
        // Rows end within a byte.
        assert_eq!(decode(&png(3, 2, gray, BitDepth::Two, &[0b00_01_10_11, 0b11_00_01_00])), [0, 1, 2, 3, 0, 1]);
        assert_eq!(decode(&png(3, 1, gray, BitDepth::One, &[0b1010_0000])), [1, 0, 1]);
        assert_eq!(decode(&png(3, 1, ColorType::Indexed, BitDepth::Four, &[0x12, 0xf0])), [1, 2, 15]);
        // Colors of a palette play no part.
        assert_eq!(decode(&png(2, 1, ColorType::Indexed, BitDepth::Eight, &[4, 0])), [4, 0]);
    }

    #[test]
    fn a_box_is_cut_out() {
        let mask = ClassMask { width: 4, height: 3, data: (0..12).collect() };
        let cut = mask.crop(CropBox { x: 1, y: 1, w: 2, h: 2 }).unwrap();
        assert_eq!((cut.width, cut.height, &*cut.data), (2, 2, &[5, 6, 9, 10][..]));
        for outside in [(3, 0, 2, 1), (0, 2, 1, 2), (0, 0, 0, 1), (u32::MAX, 0, 2, 1)] {
            let (x, y, w, h) = outside;
            assert!(matches!(mask.crop(CropBox { x, y, w, h }), Err(CropError::Outside { .. })), "{outside:?}");
        }
    }

    #[test]
    fn what_has_no_class_numbers_is_refused() {
        let refused = |bytes: &[u8]| ClassMask::decode(bytes).unwrap_err();
        let rgb = png(1, 1, ColorType::Rgb, BitDepth::Eight, &[1, 2, 3]);
        let error = refused(&rgb);
        assert!(matches!(error, MaskError::Channels { found: "RGB" }), "{error}");
        assert!(error.to_string().contains("palette"), "{error}");
        let alpha = png(1, 1, ColorType::GrayscaleAlpha, BitDepth::Eight, &[1, 2]);
        assert!(matches!(refused(&alpha), MaskError::Channels { found: "gray with alpha" }));
        assert!(matches!(refused(b"\xff\xd8\xff\xe0 a JPEG"), MaskError::NotPng));
        assert!(matches!(refused(b""), MaskError::NotPng));
    }

    /// Cut anywhere or changed anywhere, a file gives its own numbers or an error, and no panic.
    #[test]
    fn damage_is_an_error() {
        let whole = png(5, 4, ColorType::Grayscale, BitDepth::Eight, &(0..20).collect::<Vec<u8>>());
        let expected = ClassMask::decode(&whole).unwrap();
        for end in 0..whole.len() {
            assert!(ClassMask::decode(&whole[..end]).is_err(), "cut to {end} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x41;
            if let Ok(found) = ClassMask::decode(&damaged) {
                assert_eq!(found, expected, "byte {at}");
            }
        }
        // A header of 2^31 columns: refused before memory is allocated for them.
        let mut large = whole;
        large[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        let crc = crc32(&large[12..29]);
        large[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = ClassMask::decode(&large).unwrap_err();
        assert!(matches!(error, MaskError::Decode(DecodeError::TooManyPixels { .. })), "{error}");
    }

    /// The checksum of a PNG's chunk.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        })
    }
}
