//! Picture formats, supported or not, by the first bytes of a file and by the extension of its name.
//!
//! Sources use both lists, so that a skipped picture can be counted by the name of its format.

/// Extensions of the formats that [`decode()`](super::decode()) reads, in lower case. They only select files: the bytes
/// decide the format.
pub const READABLE_EXTENSIONS: [&str; 15] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];

/// Extensions of picture formats that are not read, in lower case, with the name of the format.
pub const UNREADABLE_EXTENSIONS: [(&str, &str); 91] = [
    ("heic", "HEIC"),
    ("heif", "HEIC"),
    ("hif", "HEIC"),
    ("heics", "HEIC"),
    ("heifs", "HEIC"),
    ("avif", "AVIF"),
    ("avifs", "AVIF"),
    ("jxl", "JPEG XL"),
    ("jp2", "JPEG 2000"),
    ("j2k", "JPEG 2000"),
    ("j2c", "JPEG 2000"),
    ("jpc", "JPEG 2000"),
    ("jpf", "JPEG 2000"),
    ("jpx", "JPEG 2000"),
    ("jxr", "JPEG XR"),
    ("wdp", "JPEG XR"),
    ("hdp", "JPEG XR"),
    ("jls", "JPEG-LS"),
    ("psd", "Photoshop"),
    ("psb", "Photoshop"),
    ("xcf", "GIMP"),
    ("svg", "SVG"),
    ("ico", "icon"),
    ("cur", "icon"),
    ("tga", "Targa"),
    ("qoi", "QOI"),
    ("exr", "OpenEXR"),
    ("hdr", "Radiance HDR"),
    ("pfm", "PFM"),
    ("pam", "PAM"),
    ("dds", "DDS"),
    ("dcm", "DICOM"),
    ("fits", "FITS"),
    ("dng", "camera raw"),
    ("cr2", "camera raw"),
    ("cr3", "camera raw"),
    ("nef", "camera raw"),
    ("arw", "camera raw"),
    ("orf", "camera raw"),
    ("raf", "camera raw"),
    ("rw2", "camera raw"),
    ("pcx", "PCX"),
    ("sgi", "SGI"),
    ("rgb", "SGI"),
    ("rgba", "SGI"),
    ("bw", "SGI"),
    ("icns", "icon"),
    ("dib", "bare BMP"),
    ("eps", "EPS"),
    ("im", "IM"),
    ("spi", "SPIDER"),
    ("xbm", "XBM"),
    ("xpm", "XPM"),
    ("blp", "BLP"),
    ("bpg", "BPG"),
    ("flif", "FLIF"),
    ("wmf", "Windows metafile"),
    ("emf", "Windows metafile"),
    ("ras", "Sun raster"),
    ("fli", "FLI"),
    ("flc", "FLI"),
    ("vtf", "VTF"),
    ("ktx", "KTX"),
    ("ktx2", "KTX"),
    ("basis", "Basis"),
    ("cin", "Cineon"),
    ("dpx", "DPX"),
    ("nii", "NIfTI"),
    ("nrrd", "NRRD"),
    ("mha", "MetaImage"),
    ("mhd", "MetaImage"),
    ("mrc", "MRC"),
    ("czi", "microscope image"),
    ("nd2", "microscope image"),
    ("lif", "microscope image"),
    ("svs", "whole-slide image"),
    ("ndpi", "whole-slide image"),
    ("ai", "Illustrator"),
    ("srw", "camera raw"),
    ("pef", "camera raw"),
    ("nrw", "camera raw"),
    ("3fr", "camera raw"),
    ("erf", "camera raw"),
    ("kdc", "camera raw"),
    ("mef", "camera raw"),
    ("mos", "camera raw"),
    ("mrw", "camera raw"),
    ("x3f", "camera raw"),
    ("sr2", "camera raw"),
    ("srf", "camera raw"),
    ("iiq", "camera raw"),
];

/// First bytes of a file that [`picture_format`] looks at.
pub const SNIFF_BYTES: usize = 132;

/// A picture format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureFormat {
    /// The format's name, `JPEG` or `HEIC`.
    pub name: &'static str,
    /// Whether [`decode()`](super::decode()) reads it.
    pub is_read: bool,
}

/// The format of the picture whose file begins with `start`, the first [`SNIFF_BYTES`] or all of a shorter file. `None` for a file
/// that is not a picture of a known format.
pub fn picture_format(start: &[u8]) -> Option<PictureFormat> {
    if let Some(name) = unread(start) {
        return Some(PictureFormat { name, is_read: false });
    }
    let format = Format::sniff(start)?;
    // Two letters are the whole signature of a BMP, and many texts begin with them, so the length of its second header has to be a valid one.
    let is_chance =
        format == Format::Bmp && !matches!(start.get(14..18), Some([12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]));
    (!is_chance).then_some(PictureFormat { name: format.name(), is_read: true })
}

/// The name of the unsupported picture format whose signature a file has.
pub(super) fn unread(start: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| start.starts_with(magic);
    if let (Some(b"ftyp"), Some(brand)) = (start.get(4..8), start.get(8..12)) {
        return match brand {
            b"avif" | b"avis" => Some("AVIF"),
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" => Some("HEIC"),
            // A general brand; the codec of the picture is among the compatible brands.
            b"mif1" | b"msf1" => {
                let compatible = start.get(16..).unwrap_or_default().as_chunks::<4>().0;
                let is_avif = compatible.iter().any(|brand| brand == b"avif" || brand == b"avis");
                Some(if is_avif { "AVIF" } else { "HEIC" })
            }
            b"crx " => Some("camera raw"),
            _ => None,
        };
    }
    let by_magic: [(&[u8], &str); 29] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"II\xbc\x01", "JPEG XR"),
        (b"\xff\xd8\xff\xf7", "JPEG-LS"),
        (b"8BPS", "Photoshop"),
        (b"gimp xcf ", "GIMP"),
        (b"qoif", "QOI"),
        (b"v/1\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"#?RGBE", "Radiance HDR"),
        (b"PF\n", "PFM"),
        (b"Pf\n", "PFM"),
        (b"P7\n", "PAM"),
        (b"DDS \x7c\0\0\0", "DDS"),
        (b"FUJIFILMCCD-RAW", "camera raw"),
        (b"SIMPLE  =", "FITS"),
        (b"icns", "icon"),
        (b"%!PS-Adobe", "EPS"),
        (b"/* XPM */", "XPM"),
        (b"BLP1", "BLP"),
        (b"BLP2", "BLP"),
        (b"BPG\xfb", "BPG"),
        (b"FLIF", "FLIF"),
        (b"\xd7\xcd\xc6\x9a", "Windows metafile"),
        (b"\x01\xda\0\x01", "SGI"),
        (b"\x01\xda\x01\x01", "SGI"),
        (b"\x59\xa6\x6a\x95", "Sun raster"),
    ];
    if let Some((_, name)) = by_magic.iter().find(|(magic, _)| begins(magic)) {
        return Some(name);
    }
    let is_raw_tiff = (begins(b"II*\0") && start.get(8..10) == Some(b"CR")) || begins(b"IIRO") || begins(b"IIU\0");
    if is_raw_tiff {
        return Some("camera raw");
    }
    if start.get(128..132) == Some(b"DICM") {
        return Some("DICOM");
    }
    // Reserved, type, count: the first entry's reserved byte, too, has to be 0.
    if let [0, 0, 1 | 2, 0, 1..=64, 0, _, _, _, 0, ..] = start {
        return Some("icon");
    }
    None
}

/// A supported format, recognized by how its files begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Pnm,
}

impl Format {
    pub(super) fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Format::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Format::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'B', b'M', ..] => Some(Format::Bmp),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Format::Tiff),
            [b'P', b'1'..=b'6', b' ' | b'\t'..=b'\r', ..] => Some(Format::Pnm),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::WebP => "WebP",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
            Format::Pnm => "PNM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_extension_is_in_both_lists_or_twice_in_one() {
        let mut all = READABLE_EXTENSIONS.to_vec();
        all.extend(UNREADABLE_EXTENSIONS.map(|(extension, _)| extension));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn pictures_are_recognized_by_content() {
        let name = |start: &[u8]| picture_format(start).map(|format| (format.name, format.is_read));
        assert_eq!(name(b"\xff\xd8\xff\xe1...."), Some(("JPEG", true)));
        assert_eq!(name(b"P5 4 4 255\n"), Some(("PNM", true)));
        assert_eq!(name(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), Some(("HEIC", false)));
        assert_eq!(name(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"), Some(("AVIF", false)));
        assert_eq!(name(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf"), Some(("HEIC", false)));
        assert_eq!(name(b"\xff\x0a\x4c"), Some(("JPEG XL", false)));
        assert_eq!(name(b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0"), Some(("icon", false)));
        assert_eq!(name(b"II*\0\x10\0\0\0CR\x02\0"), Some(("camera raw", false)));
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM");
        assert_eq!(name(&dicom), Some(("DICOM", false)));
    }

    #[test]
    fn other_files_are_no_pictures() {
        for start in [
            &b""[..],
            b"BMW is a car maker, and this is a text",
            b"P1000 of the report",
            b"Paper",
            b"RIFF\0\0\0\0WAVEfmt ",
            b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
            b"{\"a\": 1}",
            b"PAR1",
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(picture_format(start), None, "{start:?}");
        }
    }
}
