//! One file's bytes to RGB8.
//!
//! The format is recognized by content, never by name. libjpeg-turbo decodes JPEG to Pillow's pixels; PNM is read here; the `image`
//! crate decodes the rest. One table, the color policy, defines how samples become RGB8:
//!
//! | stored as | becomes | Pillow 13 |
//! |---|---|---|
//! | gray, 1 to 8 bits | R = G = B, scaled to 0..255 | `convert("RGB")`, equal |
//! | gray, 16 bits | each sample through the [`DepthWindow`]; by default its high byte | `convert("RGB")` clips: all but the darkest 1/256 of the scale becomes white |
//! | RGB, 8 bits | itself | equal |
//! | RGB, 16 bits | through the window, by default the high byte | equal with the default |
//! | palette | the palette's color | `convert("RGB")`, equal |
//! | transparency of any kind: an alpha channel, a transparent palette entry or color key | composited over white | `alpha_composite` over white, equal; `convert("RGB")` would show the invisible colors |
//! | gray or RGB with 16 bits and alpha | colors through the window, alpha's high byte, then composited over white | equal with the default |
//! | TIFF with associated (premultiplied) alpha, ExtraSamples 1 | divided by alpha, then composited over white | equal |
//! | TIFF with an extra sample of unspecified meaning, ExtraSamples 0 | the extra sample is dropped | equal |
//! | CMYK and YCCK JPEG, with or without Adobe's marker | inverted as Adobe stores it, then `R = (255 - C) (255 - K) / 255`, rounded | `convert("RGB")`, equal |
//! | PBM, PGM, PPM (P1 to P6) | scaled by the file's own largest value | equal; a PGM of more than 8 bits is scaled to 16 and goes through the window. With a window other than the default, a PPM of more than 8 bits is, too |
//! | animation (GIF, WebP, PNG) | the first image, on a transparent canvas of the animation's size | equal where the image fills the canvas; a GIF's margin is the background color in Pillow |
//! | several pages (TIFF) | the first | equal |
//! | orientation 2 to 8, in EXIF or XMP | turned and mirrored upright; `orientation.rs` lists where it is stored | `ImageOps.exif_transpose`, equal |
//! | ICC profile, gamma, cICP | ignored: no converted pixel would be the one that teachers were trained on | ignored, equal |
//! | BMP with 16 bits a pixel | scaled to 0..255, rounded | within 1 level |
//! | TIFF with 16 bits per sample in planes | decoded correctly | Pillow mixes its bytes up |
//! | CMYK and JPEG inside TIFF | RGB by the `image` crate's arithmetic | within 1 level |
//! | TIFF, white is 0 | inverted | equal with 8 bits; Pillow leaves 16 bits as they are |
//! | TIFF with floating-point, signed or more than 16 bits, a palette, YCbCr, L\*a\*b\*, gray with alpha, more extra samples that mean alpha, FillOrder 2 | an error that says which | some are read by Pillow |
//! | HEIC, AVIF, JPEG XL and other formats listed in `format.rs` | an error that names the format | |
//!
//! Equality was measured over `tests/golden/images`, 500 photos as JPEG and 80 as lossy WebP.
//!
//! Nothing is repaired or filled in. A file that ends early or whose decoder reports damage is an error. That includes every warning of
//! libjpeg about the compressed data, which Pillow ignores, and an incomplete PNG, even if only its end mark is missing. A file over the
//! limits is an error, too; they are checked on the header, before anything of the image's size is allocated. One kind of truncation
//! cannot be detected: a plain PNM that ends within its last number.

mod color;
mod deep;
mod format;
mod ifd;
mod jpeg;
mod orientation;
mod pnm;
mod tiff;

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, Limits};
use schemas::DepthWindow;

use self::color::Alpha;
pub use self::deep::DeepImages;
use self::format::Format;
pub(crate) use self::format::{READABLE_EXTENSIONS, SNIFF_BYTES, UNREADABLE_EXTENSIONS, picture_format};
use crate::guard::catch_panics;
use crate::{DecodeError, IMAGE_CODE, IMAGE_CODE_COLOR_1, RgbImage};

/// Largest image file in bytes: 256 MiB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// Largest image in pixels: 178,956,970, Pillow's limit for its decompression bomb error. A fuzzer gets less, because a few bytes may stand
/// for millions of pixels, and a second for each such input leaves no time for others.
pub const MAX_PIXELS: u64 = if cfg!(fuzzing) { 1 << 20 } else { 2 * ((1 << 30) / 4 / 3) };

/// Largest allocation of a decoder in bytes: the pixels of the largest image, with four channels of 16 bits.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8;

/// Decodes a file of any supported format into upright RGB8, by today's rules and with the window `high-byte`.
///
/// Never panics: a panic inside a decoder is caught (the panic hook still reports it) and becomes
/// [`DecodeError::DecoderPanic`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    Decoder::default().decode(bytes)
}

/// The version of the color rules and the window of samples of more than 8 bits: with the bytes of a file they decide its pixels.
///
/// The features in a cache belong to one such decoder, which its identity names; see [`Decoder::of_cache`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decoder {
    rules: Rules,
    window: DepthWindow,
}

/// Versions of the color rules. All are supported, so that a cache's images are decoded as they were for its teachers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rules {
    /// Orientation only from EXIF, in WebP only without a prefix; every alpha channel counts as unassociated.
    Color1,
    #[default]
    Color2,
}

/// An image and the range of its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The upright image.
    pub image: RgbImage,
    /// Smallest and largest color sample (0 to 65535) of an image with more than 8 bits per sample; `None` for other images.
    pub deep: Option<(u16, u16)>,
}

impl Decoded {}

impl Decoder {
    /// Today's rules with a window.
    pub fn new(window: DepthWindow) -> Self {
        Self { rules: Rules::default(), window }
    }

    /// The decoder of a cache's images, from its fields `image_code` and `depth_window`. `None` if this program does not have
    /// that code.
    pub fn of_cache(image_code: &str, window: DepthWindow) -> Option<Self> {
        let rules = match image_code {
            IMAGE_CODE => Rules::Color2,
            IMAGE_CODE_COLOR_1 => Rules::Color1,
            _ => return None,
        };
        Some(Self { rules, window })
    }

    /// The name of the image code for caches: [`IMAGE_CODE`] or an older one.
    pub fn image_code(&self) -> &'static str {
        match self.rules {
            Rules::Color1 => IMAGE_CODE_COLOR_1,
            Rules::Color2 => IMAGE_CODE,
        }
    }

    /// The window of samples of more than 8 bits.
    pub fn window(&self) -> DepthWindow {
        self.window
    }

    /// For the rules of an earlier version, what they leave out.
    pub fn earlier_rules(&self) -> Option<&'static str> {
        (self.rules == Rules::Color1).then_some(
            "orientation in XMP, in text chunks of PNG and in WebP's EXIF with a prefix is not applied, alpha channels of TIFF count as \
             unassociated, and PNM is not read",
        )
    }

    /// Decodes a file, as [`decode()`] does.
    pub fn decode(&self, bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        self.decode_noting(bytes).map(|decoded| decoded.image)
    }

    /// Decodes a file and returns the range of its samples, too.
    pub fn decode_noting(&self, bytes: &[u8]) -> Result<Decoded, DecodeError> {
        let len = bytes.len() as u64;
        if len > MAX_FILE_BYTES {
            return Err(DecodeError::FileTooLarge { bytes: len, limit: MAX_FILE_BYTES });
        }
        // The earlier rules took a camera's raw file for a TIFF, which it resembles.
        if let (Rules::Color2, Some(format)) = (self.rules, format::unread(bytes)) {
            return Err(DecodeError::Unsupported { format, detail: "no decoder here reads this format".to_owned() });
        }
        let format = Format::sniff(bytes)
            .filter(|&format| self.rules != Rules::Color1 || format != Format::Pnm)
            .ok_or_else(|| DecodeError::UnknownFormat { start: first_bytes(bytes) })?;
        let (stored, orientation) = guarded(format, || self.read(bytes, format))?;
        let Stored { width, height, color, samples, alpha, scaled_from } = stored;
        let deep = color::range(color, &samples).or(scaled_from);
        let data = color::to_rgb8(color, samples, alpha, self.window)
            .ok_or_else(|| DecodeError::Unsupported { format: format.name(), detail: format!("{color:?} samples") })?;
        let image = RgbImage { width, height, data };
        Ok(Decoded { image: upright(image, orientation), deep })
    }

    fn read(&self, bytes: &[u8], format: Format) -> Result<(Stored, Orientation), DecodeError> {
        match format {
            Format::Jpeg => jpeg::decode(bytes, self.rules),
            Format::Pnm => {
                // Pillow scales the samples of a PPM to 8 bits, which defines the default here.
                let color_bits = if self.window.is_high_byte() { 8 } else { 16 };
                let stored = pnm::decode(bytes, color_bits)?;
                Ok((stored, Orientation::NoTransforms))
            }
            other => decode_with_image(bytes, other, self.rules),
        }
    }
}

/// An image as stored in its file.
struct Stored {
    width: u32,
    height: u32,
    color: ColorType,
    /// Interleaved, rows without padding; 16-bit ones in the machine's byte order.
    samples: Vec<u8>,
    alpha: Alpha,
    /// Smallest and largest color sample, 0 to 65535, of samples of more than 8 bits that have been scaled to 8 already.
    scaled_from: Option<(u16, u16)>,
}

fn guarded<T>(format: Format, decoder: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    catch_panics(decoder).unwrap_or_else(|detail| Err(DecodeError::DecoderPanic { format: format.name(), detail }))
}

fn first_bytes(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(8)];
    if shown.is_empty() {
        "nothing (the file is empty)".to_owned()
    } else {
        shown.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
    }
}

/// Refuses an image over the limit, given what its header declares.
fn check_pixels(width: u32, height: u32) -> Result<(), DecodeError> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(DecodeError::TooManyPixels { width, height, limit: MAX_PIXELS });
    }
    Ok(())
}

fn decode_with_image(bytes: &[u8], format: Format, rules: Rules) -> Result<(Stored, Orientation), DecodeError> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    if format == Format::WebP {
        check_riff_length(bytes)?;
    }
    // Its decoder reports a side beyond 2^31 as out of memory, before it reports the size.
    if let (Format::Png, Some((width, height))) = (format, png_size(bytes)) {
        check_pixels(width, height)?;
    }
    let alpha =
        if format == Format::Tiff && rules == Rules::Color2 { tiff::check(bytes)? } else { Alpha::Unassociated };
    let reader = Cursor::new(bytes);
    // Each of these reads the header and no pixel.
    let decoder: Result<Box<dyn ImageDecoder>, ImageError> = match format {
        Format::Png => PngDecoder::with_limits(reader, limits.clone()).map(|d| Box::new(d) as _),
        Format::WebP => WebPDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Gif => GifDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Bmp => BmpDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Tiff => TiffDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Jpeg | Format::Pnm => unreachable!("{} has its own decoder", format.name()),
    };
    let explain = |error| explain(format.name(), error);
    let mut decoder = decoder.map_err(explain)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height)?;
    if width == 0 || height == 0 {
        return Err(DecodeError::Corrupt { format: format.name(), detail: format!("{width} x {height} pixels") });
    }
    decoder.set_limits(limits).map_err(explain)?;
    let orientation = match (rules, format) {
        (Rules::Color1, _) => decoder.orientation().map_err(explain)?,
        (_, Format::Png) => orientation::of_png(bytes),
        (_, Format::WebP) => orientation::of_webp(bytes),
        (_, Format::Tiff) => orientation::of_tiff(bytes),
        _ => Orientation::NoTransforms,
    };
    let color = decoder.color_type();
    let total = usize::try_from(decoder.total_bytes()).expect("at most 2^28 pixels of 16 bytes fit the address space");
    let mut samples = vec![0; total];
    decoder.read_image(&mut samples).map_err(explain)?;
    Ok((Stored { width, height, color, samples, alpha, scaled_from: None }, orientation))
}

/// Width and height in a PNG's first chunk, which follows the signature of 8 bytes.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.get(12..16)? == b"IHDR").then_some((side(16)?, side(20)?))
}

/// A WebP file states its length; a truncated one may still have everything that the decoder needs for an animation's first image.
fn check_riff_length(bytes: &[u8]) -> Result<(), DecodeError> {
    let declared = bytes.get(4..8).and_then(|size| size.try_into().ok()).map_or(0, u32::from_le_bytes);
    if u64::from(declared) + 8 > bytes.len() as u64 {
        let detail = format!("{} bytes of {}", bytes.len(), u64::from(declared) + 8);
        return Err(DecodeError::Truncated { format: Format::WebP.name(), detail });
    }
    Ok(())
}

/// Converts the decoders' errors to ours.
fn explain(format: &'static str, error: ImageError) -> DecodeError {
    let detail = error.to_string();
    match error {
        ImageError::Unsupported(_) => DecodeError::Unsupported { format, detail },
        // Only the message tells a truncated file; decoders use the words of `std::io` or their own.
        _ if ["end of file", "fill whole buffer"].iter().any(|words| detail.to_lowercase().contains(words)) => {
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
    let buffer = image::RgbImage::from_raw(img.width, img.height, img.data).expect("the buffer has the image's size");
    let mut turned = DynamicImage::ImageRgb8(buffer);
    turned.apply_orientation(orientation);
    let (width, height) = (turned.width(), turned.height());
    RgbImage { width, height, data: turned.into_rgb8().into_raw() }
}

#[cfg(test)]
mod tests;
