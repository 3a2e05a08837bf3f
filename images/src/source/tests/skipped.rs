//! No picture is left out in silence: whatever a source does not take is named and counted, if name or content says that it is a picture.

use super::tar::archive;
use super::*;

const JPEG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
const HEIC: &[u8] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
const AVIF: &[u8] = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1";
const TIFF: &[u8] = b"II*\0\x08\0\0\0";

/// Name, content, and why it is skipped.
const PICTURES: [(&str, &[u8], &str); 28] = [
    ("IMG_1.HEIC", HEIC, "HEIC is not supported"),
    ("2.heif", b"", "HEIC is not supported"),
    ("3.avif", AVIF, "AVIF is not supported"),
    ("4.jxl", b"\xff\x0a", "JPEG XL is not supported"),
    ("5.jp2", b"damaged", "JPEG 2000 is not supported"),
    ("6.psd", b"8BPS", "Photoshop is not supported"),
    ("7.svg", b"<svg/>", "SVG is not supported"),
    ("8.NEF", TIFF, "camera raw is not supported"),
    ("9.dcm", b"", "DICOM is not supported"),
    ("10.pcx", b"\x0a\x05\x01\x08", "PCX is not supported"),
    ("11.bw", b"\x01\xda\0\x01", "SGI is not supported"),
    ("12.xpm", b"/* XPM */", "XPM is not supported"),
    ("13.dib", b"\x28\0\0\0", "bare BMP is not supported"),
    ("a figure", b"%!PS-Adobe-3.0 EPSF-3.0", "EPS is not supported"),
    ("n01440764_1", JPEG, "JPEG without an image's extension"),
    ("photo.jpg_large", JPEG, "JPEG without an image's extension"),
    ("photo.jpeg~", JPEG, "JPEG without an image's extension"),
    ("photo.v2.final", PNG, "PNG without an image's extension"),
    ("mislabeled.txt", PNG, "PNG without an image's extension"),
    ("really.heic", JPEG, "JPEG without an image's extension"),
    ("heic without extension", HEIC, "HEIC is not supported"),
    ("download.bin", AVIF, "AVIF is not supported"),
    ("cut.jpg.part", b"", "named like a copy of an image, but no picture by content"),
    ("cut.png?width=20", b"", "named like a copy of an image, but no picture by content"),
    (".trashed-1.jpg", JPEG, "hidden picture"),
    (".heic", HEIC, "hidden picture"),
    ("more.zip", b"PK\x03\x04", "archive, not opened"),
    ("more.tar.gz", b"\x1f\x8b", "archive, not opened"),
];

/// No pictures: what lies beside images in data sets of every kind.
const OTHERS: [(&str, &[u8]); 9] = [
    ("a.txt", b"a caption"),
    ("a.json", b"{}"),
    ("photo.jpg.json", b"{}"),
    ("photo.jpg.txt", b"BMW 3 series"),
    ("README", b"Pictures of fish"),
    ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
    ("clip.mp4", b"\0\0\0\x20ftypisom"),
    ("._photo.jpg", b"\0\x05\x16\x07\0\x02\0\0"),
    (".DS_Store", b"\0\0\0\x01Bud1"),
];

fn check(source: &ImageSource, prefix: &str) {
    let findings = source.findings();
    let mut found: Vec<_> =
        findings.skipped.iter().map(|skipped| (skipped.key.as_str(), skipped.reason.as_str())).collect();
    found.sort_unstable();
    let names: Vec<_> = PICTURES.iter().map(|(name, _, reason)| (format!("{prefix}{name}"), *reason)).collect();
    let mut expected: Vec<_> = names.iter().map(|(name, reason)| (name.as_str(), *reason)).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(findings.skipped_count(), PICTURES.len() as u64);
    assert_eq!(findings.others.values().sum::<u64>(), OTHERS.len() as u64);
    assert_eq!(findings.by_reason()[0].1, 4, "{:?}", findings.by_reason());
    let warnings = findings.warnings("photos").join("\n");
    assert!(
        warnings.contains("28: 4 JPEG without an image's extension") && warnings.contains("2 archive, not opened"),
        "{warnings}"
    );
}

#[test]
fn in_a_folder() {
    let root = scratch();
    write(root.path().join("a/taken.JPG"), JPEG);
    for (name, bytes) in PICTURES.iter().map(|(n, b, _)| (n, b)).chain(OTHERS.iter().map(|(n, b)| (n, b))) {
        write(root.path().join("a").join(name), bytes);
    }
    let source = open(root.path()).unwrap();
    assert_eq!(keys(&source), ["a/taken.JPG"]);
    check(&source, "a/");
    // A folder that is not searched is named, too.
    write(root.path().join("a/.thumbnails/b.jpg"), JPEG);
    let skipped = open(root.path()).unwrap().findings().skipped.clone();
    assert!(skipped.iter().any(|s| s.key == "a/.thumbnails" && s.reason == "hidden folder, not searched"));

    // Behind `::`, a pattern takes pictures of supported formats under any name.
    let source = open(root.path().join("a::*")).unwrap();
    assert_eq!(
        keys(&source),
        [
            "mislabeled.txt",
            "n01440764_1",
            "photo.jpeg~",
            "photo.jpg_large",
            "photo.v2.final",
            "really.heic",
            "taken.JPG"
        ]
    );
    let source = open(root.path().join("a::*large")).unwrap();
    assert_eq!((keys(&source), source.read(0).unwrap()), (vec!["photo.jpg_large"], JPEG.to_vec()));
    assert!(source.findings().skipped.iter().all(|s| s.reason.starts_with("hidden folder")));
}

#[test]
fn in_a_tar() {
    let root = scratch();
    let mut members = vec![("taken.JPG", JPEG)];
    members.extend(PICTURES.iter().map(|(name, bytes, _)| (*name, *bytes)));
    members.extend(OTHERS);
    let source = open(write(root.path().join("s.tar"), archive(&members))).unwrap();
    assert_eq!(keys(&source), ["s.tar/taken"]);
    check(&source, "s.tar/");
    let source = open(root.path().join("s.tar::n0*")).unwrap();
    assert_eq!((keys(&source), source.read(0).unwrap()), (vec!["s.tar/n01440764_1"], JPEG.to_vec()));
}

#[test]
fn beside_shards() {
    let root = scratch();
    write(root.path().join("s.tar"), archive(&[("a.jpg", JPEG)]));
    write(root.path().join("s.tar.gz"), b"\x1f\x8b");
    write(root.path().join("cover.heic"), HEIC);
    write(root.path().join("cover"), PNG);
    write(root.path().join("index.json"), "{}");
    let source = open(root.path()).unwrap();
    assert_eq!((source.kind(), source.len()), ("tar", 1));
    let found: Vec<_> = source.findings().skipped.iter().map(|s| s.key.as_str()).collect();
    assert_eq!(found, ["cover", "cover.heic", "s.tar.gz"]);
    assert_eq!(source.findings().others_line(), "1 .json");
}

/// A source of nothing but pictures that are not taken says which.
#[test]
fn a_source_without_images_says_what_it_holds() {
    let refused = |root: &Path| match open(root) {
        Err(e @ SourceError::NoImages { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    };
    let root = scratch();
    write(root.path().join("a/1.heic"), HEIC);
    write(root.path().join("a/2"), JPEG);
    write(root.path().join("a/3"), JPEG);
    let text = refused(root.path());
    assert!(text.contains("3: 2 JPEG without an image's extension, 1 HEIC is not supported"), "{text}");
    assert!(text.contains("a/1.heic") && text.contains("::*` takes pictures"), "{text}");

    // The root of a snapshot, whose shards lie deeper.
    let root = scratch();
    write(root.path().join("data/train-0.parquet"), "");
    write(root.path().join("data/test-0.parquet"), "");
    write(root.path().join("README.md"), "");
    let text = refused(root.path());
    let place = format!(
        "2 .tar or .parquet files, which a folder of images is not searched for: give `{}/data`",
        root.path().display()
    );
    assert!(text.contains(&place), "{text}");
}
