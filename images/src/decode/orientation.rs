//! Where each format stores the orientation of its picture, as Pillow's `ImageOps.exif_transpose` reads it.
//!
//! | format | EXIF | XMP, where EXIF has no orientation |
//! |---|---|---|
//! | JPEG | the APP1 segments that begin with `Exif\0\0`, joined | the last APP1 segment of Adobe's namespace |
//! | PNG | the last `eXIf` chunk or text `exif`; else the text `Raw profile type exif`, in hexadecimal | the last text `XML:com.adobe.xmp` |
//! | WebP | the first `EXIF` chunk, if the header's flag announces one | the first `XMP ` chunk, if its flag is set |
//! | TIFF | the tag 274 | the tag 700 |
//!
//! A text is a `tEXt`, `zTXt` or `iTXt` chunk, and chunks after the pixels count. An EXIF block may begin with `Exif\0\0`. Its tag
//! 274 may be of any numeric type but BYTE; a value other than 1 to 8 means upright, and then the XMP packet is not read. In an XMP
//! packet, the first `tiff:Orientation="N"` or `<tiff:Orientation>N` counts, in exactly this spelling.
//!
//! An EXIF block that is not a TIFF file is ignored, where Pillow fails.

use std::io::Read;

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;

use super::ifd::Ifd;

const TAG: u16 = 274;
const TAG_XMP: u16 = 700;

/// Longest decompressed text chunk that is read; Pillow's limit.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Metadata of one file that decides its orientation.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
}

impl Metadata {
    pub(super) fn orientation(&self) -> Orientation {
        self.exif
            .as_deref()
            .map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
            .and_then(Ifd::read)
            .and_then(|ifd| in_directory(&ifd))
            .or_else(|| self.xmp.as_deref().and_then(in_xmp))
            .unwrap_or(Orientation::NoTransforms)
    }
}

/// `None` where the directory has no such tag.
fn in_directory(ifd: &Ifd<'_>) -> Option<Orientation> {
    let value = ifd.value(TAG)?;
    let valid = (1..=8).find(|&n| value == Some(f64::from(n)));
    Some(valid.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms))
}

fn in_xmp(packet: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    packet
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, found)| *found == NAME)
        .find_map(|(at, _)| match &packet[at + NAME.len()..] {
            [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => Some(digit - b'0'),
            _ => None,
        })
        .map(|digit| Orientation::from_exif(digit).unwrap_or(Orientation::NoTransforms))
}

pub(super) fn of_tiff(bytes: &[u8]) -> Orientation {
    let Some(ifd) = Ifd::read(bytes) else {
        return Orientation::NoTransforms;
    };
    in_directory(&ifd).or_else(|| ifd.data(TAG_XMP).and_then(in_xmp)).unwrap_or(Orientation::NoTransforms)
}

pub(super) fn of_webp(bytes: &[u8]) -> Orientation {
    let mut found = Metadata::default();
    let mut rest = bytes.get(12..).unwrap_or_default();
    // A file without this chunk at the front is a simple one, in which only the picture counts.
    let Some((b"VP8X", &[flags, ..])) = riff_chunk(&mut rest) else {
        return Orientation::NoTransforms;
    };
    const EXIF_FLAG: u8 = 8;
    const XMP_FLAG: u8 = 4;
    while let Some((name, data)) = riff_chunk(&mut rest) {
        match name {
            b"EXIF" if found.exif.is_none() && flags & EXIF_FLAG != 0 => found.exif = Some(data.to_vec()),
            b"XMP " if found.xmp.is_none() && flags & XMP_FLAG != 0 => found.xmp = Some(data.to_vec()),
            _ => {}
        }
    }
    found.orientation()
}

fn riff_chunk<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8; 4], &'a [u8])> {
    let (name, tail) = rest.split_first_chunk::<4>()?;
    let (size, tail) = tail.split_first_chunk::<4>()?;
    let size = u32::from_le_bytes(*size) as usize;
    let data = tail.get(..size)?;
    *rest = tail.get(size + size % 2..).unwrap_or_default();
    Some((name, data))
}

pub(super) fn of_png(bytes: &[u8]) -> Orientation {
    let mut found = Metadata::default();
    let mut raw_profile = None;
    let mut rest = bytes.get(8..).unwrap_or_default();
    let (mut is_animated, mut had_pixels) = (false, false);
    while let Some((name, data)) = png_chunk(&mut rest) {
        match name {
            b"acTL" => is_animated = true,
            b"IDAT" => had_pixels = true,
            b"IEND" => break,
            // Pillow stops where the second picture begins.
            b"fcTL" if is_animated && had_pixels => break,
            b"eXIf" => found.exif = Some(data.to_vec()),
            b"tEXt" | b"zTXt" | b"iTXt" => match text(name, data) {
                Some((b"XML:com.adobe.xmp", text)) => found.xmp = Some(text),
                Some((b"Raw profile type exif", text)) => raw_profile = Some(text),
                Some((b"exif", text)) if name == b"tEXt" => found.exif = Some(text),
                _ => {}
            },
            _ => {}
        }
    }
    if found.exif.is_none() {
        found.exif = raw_profile.and_then(|text| from_hex(&text));
    }
    found.orientation()
}

fn png_chunk<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8; 4], &'a [u8])> {
    let (size, tail) = rest.split_first_chunk::<4>()?;
    let (name, tail) = tail.split_first_chunk::<4>()?;
    let size = u32::from_be_bytes(*size) as usize;
    let data = tail.get(..size)?;
    *rest = tail.get(size.checked_add(4)?..).unwrap_or_default();
    Some((name, data))
}

/// Keyword and text of a text chunk.
fn text<'a>(kind: &[u8; 4], data: &'a [u8]) -> Option<(&'a [u8], Vec<u8>)> {
    let until_zero = |data: &'a [u8]| -> Option<(&'a [u8], &'a [u8])> {
        let end = data.iter().position(|&byte| byte == 0)?;
        Some((&data[..end], &data[end + 1..]))
    };
    let (keyword, rest) = until_zero(data)?;
    let text = match kind {
        b"tEXt" => rest.to_vec(),
        b"zTXt" => inflate(rest.strip_prefix(b"\0")?)?,
        _ => {
            let (&[is_compressed, _method], rest) = rest.split_first_chunk::<2>()?;
            let (_language, rest) = until_zero(rest)?;
            let (_translated, text) = until_zero(rest)?;
            if is_compressed == 0 { text.to_vec() } else { inflate(text)? }
        }
    };
    Some((keyword, text))
}

fn inflate(data: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut reader = ZlibDecoder::new(data).take(MAX_TEXT_BYTES + 1);
    reader.read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_TEXT_BYTES).then_some(text)
}

/// ImageMagick's form: an empty line, the profile's name, its length, then lines of hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> = lines
        .flatten()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|&byte| (byte as char).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
