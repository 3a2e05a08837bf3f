//! Facts about a TIFF file's samples that the type of the decoded buffer does not show: the meaning of alpha, and kinds of
//! samples that the decoder would turn into plausible but wrong pixels, or refuse without a readable reason.

use super::color::Alpha;
use super::ifd::Ifd;
use crate::DecodeError;

const BITS_PER_SAMPLE: u16 = 258;
const PHOTOMETRIC: u16 = 262;
const FILL_ORDER: u16 = 266;
const SAMPLES_PER_PIXEL: u16 = 277;
const INK_SET: u16 = 332;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;

/// The meaning of alpha in this file, or the reason why the file cannot be read.
pub(super) fn check(bytes: &[u8]) -> Result<Alpha, DecodeError> {
    let Some(ifd) = Ifd::read(bytes) else {
        // The decoder reports it.
        return Ok(Alpha::Unassociated);
    };
    let first = |tag, default| ifd.numbers(tag).first().copied().unwrap_or(default);
    let unsupported = |detail: String| Err(DecodeError::Unsupported { format: "TIFF", detail });
    for format in ifd.numbers(SAMPLE_FORMAT) {
        match format {
            1 => {}
            2 => return unsupported("signed samples".to_owned()),
            3 => return unsupported("floating-point samples".to_owned()),
            other => return unsupported(format!("samples of format {other}")),
        }
    }
    // No decoder reverses the bits, and reversed bits would decode to a wrong picture.
    if first(FILL_ORDER, 1) != 1 {
        return unsupported("bits stored from the lowest (FillOrder 2)".to_owned());
    }
    let (bits, samples) = (first(BITS_PER_SAMPLE, 1), first(SAMPLES_PER_PIXEL, 1));
    let photometric = first(PHOTOMETRIC, u64::MAX);
    let extra = ifd.numbers(EXTRA_SAMPLES);
    let color_samples = samples.saturating_sub(extra.len() as u64);
    match photometric {
        0 | 1 if samples != 1 => unsupported(format!("gray with {} more samples", samples - 1)),
        0 | 1 if !matches!(bits, 1 | 8 | 16) => unsupported(format!("gray of {bits} bits")),
        2 if !matches!(bits, 8 | 16) => unsupported(format!("RGB of {bits} bits per sample")),
        2 => match (color_samples, extra.as_slice()) {
            // If the file has four samples and does not describe the fourth, it is alpha, in Pillow and in practice.
            (3, []) => Ok(Alpha::Opaque),
            (4, []) => Ok(Alpha::Unassociated),
            (3, [meaning, more @ ..]) if *meaning <= 2 && more.iter().all(|&more| more == 0) => Ok(match meaning {
                0 => Alpha::Opaque,
                1 => Alpha::Associated,
                _ => Alpha::Unassociated,
            }),
            _ => unsupported(format!("RGB of {samples} samples, the extra ones {extra:?}")),
        },
        3 => unsupported("a palette".to_owned()),
        5 if first(INK_SET, 1) != 1 => unsupported("inks other than CMYK".to_owned()),
        5 if samples != 4 => unsupported(format!("CMYK with {samples} samples")),
        6 => unsupported("YCbCr samples".to_owned()),
        8..=10 => unsupported("L*a*b* samples".to_owned()),
        _ => Ok(Alpha::Opaque),
    }
}
