//! One file's bytes to RGB8.
//!
//! The format is recognised by content, never by name. JPEG goes to libjpeg-turbo, whose pixels are Pillow's; the rest goes to the
//! `image` crate's decoders. What is RGB8 in the end is decided by one table, the colour policy:
//!
//! | stored as | becomes | Pillow 13 |
//! |---|---|---|
//! | gray, 1 to 8 bits | R = G = B, scaled to 0..255 | `convert("RGB")`, equal |
//! | gray, 16 bits | the high byte of each sample | `convert("RGB")` clips: all but the darkest 1/256 of the scale becomes white |
//! | RGB, 8 bits | itself | equal |
//! | RGB, 16 bits | the high byte of each sample | equal |
//! | palette | the palette's colour | `convert("RGB")`, equal |
//! | transparency of any kind: an alpha channel, a transparent palette entry or colour key | composited over white | `alpha_composite` over white, equal; `convert("RGB")` would show the invisible colours |
//! | gray or RGB with 16 bits and alpha | the high bytes, then composited over white | equal |
//! | CMYK and YCCK JPEG | inverted as Adobe stores it, then `R = (255 - C) (255 - K) / 255`, rounded | `convert("RGB")`, equal |
//! | animation (GIF, WebP, PNG) | the first image, on a transparent canvas of the animation's size | equal where the image fills the canvas; a GIF's margin is the background colour in Pillow |
//! | several pages (TIFF) | the first | equal |
//! | EXIF or TIFF orientation 2 to 8 | turned and mirrored upright | `ImageOps.exif_transpose`, equal |
//! | ICC profile, gamma | ignored: no converted pixel would be the one that teachers were trained on | ignored, equal |
//! | CMYK and JPEG inside TIFF | RGB by the `image` crate's arithmetic | within 1 level |
//! | floating point, more than 16 bits; palette in TIFF | an error: no range says what is white; no decoder here | |
//!
//! Equality was measured over `tests/golden/images`, 500 photos as JPEG and 80 as lossy WebP.
//!
//! Nothing is repaired and nothing is filled in. A file that ends early or whose decoder reports damage is an error: whatever libjpeg
//! warns of in the compressed data, where Pillow keeps silent, and an incomplete PNG, even where only its end mark is missing. A file
//! over the limits is an error, too; they are checked on the header, before anything of the image's size is allocated.

mod colour;
mod format;
mod jpeg;

use std::io::Cursor;

use image::codecs::{
    bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};

pub use self::format::{
    PictureFormat, READABLE_EXTENSIONS, SNIFF_BYTES, UNREADABLE_EXTENSIONS, picture_format,
};
use crate::guard::catch_panics;
use crate::{DecodeError, RgbImage};

/// Most bytes that an image file may have: 256 MiB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Most pixels that an image may have: 178,956,970, at which Pillow, too, refuses with its decompression bomb error.
pub const MAX_PIXELS: u64 = 2 * ((1 << 30) / 4 / 3);

/// Most bytes that a decoder may allocate: the pixels of the largest image, with four channels of 16 bits.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8;

/// A file format, recognised by how its files begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Format::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'B', b'M', ..] => Some(Format::Bmp),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Format::Tiff),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::WebP => "WebP",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
        }
    }
}

/// Decodes a file of any supported format into upright RGB8, by the colour policy above.
///
/// Never panics, whatever the bytes are: a panic inside a decoder is caught (the panic hook still reports it) and becomes
/// [`DecodeError::DecoderPanic`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let len = bytes.len() as u64;
    if len > MAX_FILE_BYTES {
        return Err(DecodeError::FileTooLarge {
            bytes: len,
            limit: MAX_FILE_BYTES,
        });
    }
    let format = Format::sniff(bytes).ok_or_else(|| DecodeError::UnknownFormat {
        start: first_bytes(bytes),
    })?;
    let (img, orientation) = guarded(format, || match format {
        Format::Jpeg => jpeg::decode(bytes),
        other => decode_with_image(bytes, other),
    })?;
    Ok(upright(img, orientation))
}

fn guarded<T>(
    format: Format,
    decoder: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    catch_panics(decoder).unwrap_or_else(|detail| {
        Err(DecodeError::DecoderPanic {
            format: format.name(),
            detail,
        })
    })
}

fn first_bytes(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(8)];
    if shown.is_empty() {
        "nothing, being empty".to_owned()
    } else {
        shown
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Refuses an image over the limit, given what its header declares.
fn check_pixels(width: u32, height: u32) -> Result<(), DecodeError> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(DecodeError::TooManyPixels {
            width,
            height,
            limit: MAX_PIXELS,
        });
    }
    Ok(())
}

fn decode_with_image(bytes: &[u8], format: Format) -> Result<(RgbImage, Orientation), DecodeError> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    if format == Format::WebP {
        check_riff_length(bytes)?;
    }
    // Its decoder takes a side beyond 2^31 for a lack of memory, before it tells the size.
    if let (Format::Png, Some((width, height))) = (format, png_size(bytes)) {
        check_pixels(width, height)?;
    }
    let reader = Cursor::new(bytes);
    // Each of these reads the header and no pixel.
    let decoder: Result<Box<dyn ImageDecoder>, ImageError> = match format {
        Format::Png => PngDecoder::with_limits(reader, limits.clone()).map(|d| Box::new(d) as _),
        Format::WebP => WebPDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Gif => GifDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Bmp => BmpDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Tiff => TiffDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Jpeg => unreachable!("JPEG has its own decoder"),
    };
    let explain = |error| explain(format.name(), error);
    let mut decoder = decoder.map_err(explain)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height)?;
    if width == 0 || height == 0 {
        return Err(DecodeError::Corrupt {
            format: format.name(),
            detail: format!("{width} x {height} pixels"),
        });
    }
    decoder.set_limits(limits).map_err(explain)?;
    let orientation = decoder.orientation().map_err(explain)?;
    let color = decoder.color_type();
    let bytes = usize::try_from(decoder.total_bytes())
        .expect("at most 2^28 pixels of 16 bytes fit the address space");
    let mut samples = vec![0; bytes];
    decoder.read_image(&mut samples).map_err(explain)?;
    let data = colour::to_rgb8(color, samples).ok_or_else(|| DecodeError::Unsupported {
        format: format.name(),
        detail: format!("{color:?} samples"),
    })?;
    Ok((
        RgbImage {
            width,
            height,
            data,
        },
        orientation,
    ))
}

/// Width and height in a PNG's first chunk, which follows the signature of 8 bytes.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.get(12..16)? == b"IHDR").then_some((side(16)?, side(20)?))
}

/// A WebP file says how long it is; what the decoder needs for the first image of an animation may be there although the rest is not.
fn check_riff_length(bytes: &[u8]) -> Result<(), DecodeError> {
    let declared = bytes
        .get(4..8)
        .and_then(|size| size.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    if u64::from(declared) + 8 > bytes.len() as u64 {
        let detail = format!("{} bytes of {}", bytes.len(), u64::from(declared) + 8);
        return Err(DecodeError::Truncated {
            format: Format::WebP.name(),
            detail,
        });
    }
    Ok(())
}

/// Sorts the decoders' errors into ours.
fn explain(format: &'static str, error: ImageError) -> DecodeError {
    let detail = error.to_string();
    match error {
        ImageError::Unsupported(_) => DecodeError::Unsupported { format, detail },
        // The decoders have no common way to say it but words, which are those of `std::io` or their own.
        _ if ["end of file", "fill whole buffer"]
            .iter()
            .any(|words| detail.to_lowercase().contains(words)) =>
        {
            DecodeError::Truncated { format, detail }
        }
        _ => DecodeError::Corrupt { format, detail },
    }
}

/// Applies an orientation, so that rows run from the top and columns from the left.
fn upright(img: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return img;
    }
    let buffer = image::RgbImage::from_raw(img.width, img.height, img.data)
        .expect("the buffer has the image's size");
    let mut turned = DynamicImage::ImageRgb8(buffer);
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width(), turned.height());
    RgbImage {
        width,
        height,
        data: turned.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests;
