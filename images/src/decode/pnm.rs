//! Portable bitmaps, graymaps and pixmaps (PBM, PGM, PPM), plain and raw: P1 to P6, as Pillow reads them.
//!
//! Samples are scaled by the file's own largest value, which is white: to 8 bits where that is at most 255, else to 16.

use image::ColorType;

use super::color::Alpha;
use super::{Stored, check_pixels};
use crate::DecodeError;

const FORMAT: &str = "PNM";

/// Longest number in characters, as in Pillow.
const MAX_TOKEN: usize = 10;

/// `scale_color_to` is 8 or 16: the bits that color samples of more than 8 bits are scaled to. Pillow scales those of a PPM to 8 bits.
pub(super) fn decode(bytes: &[u8], scale_color_to: u8) -> Result<Stored, DecodeError> {
    let kind = bytes.get(1).copied().unwrap_or_default();
    let mut rest = bytes.get(2..).unwrap_or_default();
    let width = header_number(&mut rest)?;
    let height = header_number(&mut rest)?;
    check_pixels(width, height)?;
    if width == 0 || height == 0 {
        return Err(corrupt(format!("{width} x {height} pixels")));
    }
    let (width_, height_) = (width as usize, height as usize);
    let channels = if matches!(kind, b'3' | b'6') { 3 } else { 1 };
    let count = width_ * height_ * channels;
    if matches!(kind, b'1' | b'4') {
        let samples = if kind == b'1' { plain_bits(rest, count)? } else { raw_bits(rest, width_, height_)? };
        return Ok(Stored {
            width,
            height,
            color: ColorType::L8,
            samples,
            alpha: Alpha::Unassociated,
            scaled_from: None,
        });
    }
    let white = header_number(&mut rest)?;
    let white = u16::try_from(white)
        .ok()
        .filter(|&white| white > 0)
        .ok_or_else(|| corrupt(format!("the greatest value is {white}; it is 1 to 65535")))?;
    let values: Vec<u16> = match kind {
        b'2' | b'3' => plain(rest, count, white)?,
        _ if white < 256 => enough(rest, count)?.iter().map(|&v| v.into()).collect(),
        _ => enough(rest, 2 * count)?.as_chunks::<2>().0.iter().map(|&pair| u16::from_be_bytes(pair)).collect(),
    };
    let is_deep = white > 255 && (channels == 1 || scale_color_to == 16);
    let scale = |value: u16, full: u16| {
        let scaled = f64::from(value) / f64::from(white) * f64::from(full);
        scaled.round_ties_even().min(f64::from(full)) as u16
    };
    let range = (values.iter().min()).zip(values.iter().max());
    let scaled_from = (range.filter(|_| white > 255 && !is_deep))
        .map(|(&least, &greatest)| (scale(least, u16::MAX), scale(greatest, u16::MAX)));
    let samples = if is_deep {
        let deep = values.iter().flat_map(|&v| scale(v, u16::MAX).to_ne_bytes());
        deep.collect()
    } else {
        values.iter().map(|&v| scale(v, 255) as u8).collect()
    };
    let color = match (channels, is_deep) {
        (1, false) => ColorType::L8,
        (1, true) => ColorType::L16,
        (_, false) => ColorType::Rgb8,
        (_, true) => ColorType::Rgb16,
    };
    Ok(Stored { width, height, color, samples, alpha: Alpha::Unassociated, scaled_from })
}

/// A number of the header and the one white space after it. A comment runs from `#` to the end of its line.
fn header_number(rest: &mut &[u8]) -> Result<u32, DecodeError> {
    let mut token = Vec::new();
    while let Some((&byte, tail)) = rest.split_first() {
        *rest = tail;
        match byte {
            b'#' => {
                let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'));
                *rest = end.map_or(&[], |end| &rest[end + 1..]);
            }
            _ if is_space(byte) => {
                if !token.is_empty() {
                    return number(&token);
                }
            }
            _ => {
                token.push(byte);
                if token.len() > MAX_TOKEN {
                    return number(&token);
                }
            }
        }
    }
    Err(truncated("the header has no end".to_owned()))
}

fn number(token: &[u8]) -> Result<u32, DecodeError> {
    std::str::from_utf8(token)
        .ok()
        .filter(|text| text.len() <= MAX_TOKEN && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt(format!("`{}` is not a number", String::from_utf8_lossy(token))))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// The data of the plain kinds without comments.
fn without_comments(data: &[u8]) -> impl Iterator<Item = u8> {
    let mut in_comment = false;
    data.iter().copied().filter(move |&byte| {
        let was_in_comment = in_comment;
        in_comment = if in_comment { !matches!(byte, b'\r' | b'\n') } else { byte == b'#' };
        !(was_in_comment || in_comment)
    })
}

fn plain(data: &[u8], count: usize, white: u16) -> Result<Vec<u16>, DecodeError> {
    let mut values = Vec::new();
    let mut token = Vec::new();
    // The space at the end ends the last number.
    for byte in without_comments(data).chain([b' ']) {
        if !is_space(byte) {
            token.push(byte);
            if token.len() > MAX_TOKEN {
                number(&token)?;
            }
            continue;
        }
        if token.is_empty() {
            continue;
        }
        let value = number(&token)?;
        token.clear();
        let value = u16::try_from(value)
            .ok()
            .filter(|&value| value <= white)
            .ok_or_else(|| corrupt(format!("sample {value} is over the greatest value {white}")))?;
        values.push(value);
        if values.len() == count {
            return Ok(values);
        }
    }
    Err(truncated(format!("{} samples of {count}", values.len())))
}

/// Digits may stand without spaces between them. 1 is black.
fn plain_bits(data: &[u8], count: usize) -> Result<Vec<u8>, DecodeError> {
    let mut levels = Vec::new();
    for byte in without_comments(data).filter(|&byte| !is_space(byte)) {
        levels.push(match byte {
            b'0' => 255,
            b'1' => 0,
            other => {
                return Err(corrupt(format!("`{}` is not a bit (0 or 1)", other as char)));
            }
        });
        if levels.len() == count {
            return Ok(levels);
        }
    }
    Err(truncated(format!("{} samples of {count}", levels.len())))
}

/// Rows fill whole bytes; the first pixel is the highest bit. 1 is black.
fn raw_bits(data: &[u8], width: usize, height: usize) -> Result<Vec<u8>, DecodeError> {
    let row_bytes = width.div_ceil(8);
    let rows = enough(data, row_bytes * height)?.chunks_exact(row_bytes);
    let level = |row: &[u8], x: usize| {
        if row[x / 8] >> (7 - x % 8) & 1 == 1 { 0 } else { 255 }
    };
    Ok(rows.flat_map(|row| (0..width).map(move |x| level(row, x))).collect())
}

fn enough(data: &[u8], bytes: usize) -> Result<&[u8], DecodeError> {
    data.get(..bytes).ok_or_else(|| truncated(format!("{} bytes of samples of {bytes}", data.len())))
}

fn corrupt(detail: String) -> DecodeError {
    DecodeError::Corrupt { format: FORMAT, detail }
}

fn truncated(detail: String) -> DecodeError {
    DecodeError::Truncated { format: FORMAT, detail }
}
