//! JPEG through libjpeg-turbo, with the accurate integer DCT and smooth chroma upsampling: its and Pillow's defaults.

use image::ColorType;
use image::metadata::Orientation;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use super::color::{self, Alpha};
use super::orientation::Metadata;
use super::{Rules, Stored, check_pixels};
use crate::DecodeError;

/// Most scans of a progressive file. Encoders write about ten; thousands of empty ones are a way to keep a decoder busy for minutes.
const MAX_SCANS: u32 = 500;

pub(super) fn decode(bytes: &[u8], rules: Rules) -> Result<(Stored, Orientation), DecodeError> {
    let Some(segments) = header_segments(bytes) else {
        return Err(DecodeError::Truncated { format: "JPEG", detail: "the header has no end".to_owned() });
    };
    let explain = |error| explain(error, has_end(&bytes[header_len(&segments)..]));
    let mut decompressor = Decompressor::new().map_err(explain)?;
    // libjpeg-turbo's TurboJPEG API fails on warnings, some of them about metadata that is ignored here anyway: a broken ICC
    // profile, an unknown JFIF version. Such files are common, so a failing header is tried again without metadata.
    let plain;
    let (bytes, header) = match decompressor.read_header(bytes) {
        Ok(header) => (bytes, header),
        Err(_) => {
            plain = without_metadata(bytes, &segments);
            // A failed header leaves the decompressor in the middle of it.
            decompressor = Decompressor::new().map_err(explain)?;
            (plain.as_slice(), decompressor.read_header(&plain).map_err(explain)?)
        }
    };
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (width, height) = (side(header.width), side(header.height));
    check_pixels(width, height)?;

    decompressor.set_scan_limit(MAX_SCANS).map_err(explain)?;
    let cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = header.width * format.size();
    let mut samples = vec![0; pitch * header.height];
    let output = Image { pixels: samples.as_mut_slice(), width: header.width, pitch, height: header.height, format };
    decompressor
        .decompress(bytes, output)
        .map_err(explain)
        .or_else(|error| if is_harmless(&error) { Ok(()) } else { Err(error) })?;
    let samples = if cmyk { color::inverted_cmyk_to_rgb(&samples) } else { samples };
    Ok((
        Stored { width, height, color: ColorType::Rgb8, samples, alpha: Alpha::Unassociated, scaled_from: None },
        orientation(&segments, rules),
    ))
}

/// A marker segment of the header.
struct Segment<'a> {
    marker: u8,
    /// From the byte after the previous segment to the last of this one.
    whole: &'a [u8],
    payload: &'a [u8],
}

const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const ADOBE: u8 = 0xEE;
const APP15: u8 = 0xEF;
const COMMENT: u8 = 0xFE;
const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: u8 = 0xD9;

/// The segments from the start of the file up to the first scan, or `None` when the bytes end before it.
fn header_segments(bytes: &[u8]) -> Option<Vec<Segment<'_>>> {
    let mut segments = Vec::new();
    let mut rest = bytes.get(2..)?;
    loop {
        // A marker is any number of 0xFF and a byte that is neither 0xFF nor 0; decoders pass over what stands before it.
        let start = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF))?;
        let marker = rest[start + 1];
        if matches!(marker, START_OF_SCAN | END_OF_IMAGE) {
            return Some(segments);
        }
        // Restart markers and the private 0x01 stand alone, without a length.
        let payload_len = match marker {
            0x01 | 0xD0..=0xD8 => None,
            _ => Some(usize::from(u16::from_be_bytes([*rest.get(start + 2)?, *rest.get(start + 3)?])).checked_sub(2)?),
        };
        let payload_start = start + if payload_len.is_some() { 4 } else { 2 };
        let end = payload_start + payload_len.unwrap_or(0);
        let whole = rest.get(..end)?;
        segments.push(Segment { marker, whole, payload: &whole[payload_start..] });
        rest = &rest[end..];
    }
}

/// Bytes up to the first scan.
fn header_len(segments: &[Segment<'_>]) -> usize {
    2 + segments.iter().map(|segment| segment.whole.len()).sum::<usize>()
}

/// Whether the end marker is among the scans. Compressed data cannot contain it.
fn has_end(scans: &[u8]) -> bool {
    scans.windows(2).any(|pair| pair == [0xFF, END_OF_IMAGE])
}

fn orientation(segments: &[Segment<'_>], rules: Rules) -> Orientation {
    let payloads = |prefix: &'static [u8]| {
        segments
            .iter()
            .filter(|segment| segment.marker == APP1)
            .filter_map(move |segment| segment.payload.strip_prefix(prefix))
    };
    if rules == Rules::Color1 {
        return payloads(b"Exif\0\0")
            .next()
            .and_then(Orientation::from_exif_chunk)
            .unwrap_or(Orientation::NoTransforms);
    }
    let exif: Vec<&[u8]> = payloads(b"Exif\0\0").collect();
    let metadata = Metadata {
        exif: (!exif.is_empty()).then(|| exif.concat()),
        xmp: payloads(b"http://ns.adobe.com/xap/1.0/\0").next_back().map(<[u8]>::to_vec),
    };
    metadata.orientation()
}

/// The file without comments and application data other than Adobe's, which says how colors are stored. Without JFIF's segment,
/// which serves a decoder for the same purpose, libjpeg reads the components' ids and assumes YCbCr unless they spell `RGB`.
fn without_metadata(bytes: &[u8], segments: &[Segment<'_>]) -> Vec<u8> {
    let dropped = |marker| matches!(marker, APP0..=APP15 | COMMENT) && marker != ADOBE;
    let kept = segments.iter().filter(|segment| !dropped(segment.marker)).flat_map(|segment| segment.whole);
    [0xFF, 0xD8].iter().chain(kept).chain(&bytes[header_len(segments)..]).copied().collect()
}

/// Whether the only thing wrong is bytes between the end of the data and the end marker, as some cameras and editors write them.
///
/// libjpeg keeps the first warning's text. If it is this one, all data before it was decoded without a warning, and the
/// end marker ends the image: the pixels are complete. Pillow accepts such files, too.
fn is_harmless(error: &DecodeError) -> bool {
    matches!(error, DecodeError::Corrupt { detail, .. } if detail.ends_with("extraneous bytes before marker 0xd9"))
}

/// Where the bytes end early, libjpeg pretends that an end marker follows, and then fails in many ways.
fn explain(error: turbojpeg::Error, has_end: bool) -> DecodeError {
    let format = "JPEG";
    let detail = match error {
        turbojpeg::Error::TurboJpegError(message) => message,
        other => other.to_string(),
    };
    if detail.contains("nsupported") || detail.contains("not supported") {
        DecodeError::Unsupported { format, detail }
    } else if has_end {
        DecodeError::Corrupt { format, detail }
    } else {
        DecodeError::Truncated { format, detail }
    }
}
