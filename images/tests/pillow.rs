//! Our pixels beside Pillow's: every file of tests/golden/images, decoded, cropped and resampled.
//!
//! The expectations come from `scripts/golden/images.py`; their README says how. Nothing here needs Python but the last test, which
//! says that it was skipped where there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use images::{Filter, RgbImage, decode, resample};
use schemas::CropBox;
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    root().join("tests/golden/images")
}

/// The rows of a table, without its header.
fn table<const COLUMNS: usize>(name: &str) -> Vec<[String; COLUMNS]> {
    let text = std::fs::read_to_string(golden().join(name)).expect("the tables are part of the repository");
    let row = |line: &str| -> [String; COLUMNS] {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        fields.try_into().unwrap_or_else(|fields| panic!("{name}: {fields:?} should have {COLUMNS} columns"))
    };
    text.lines().skip(1).map(row).collect()
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(golden().join("files").join(name)).expect("a table lists only files that are there")
}

/// As the script writes it: the first 128 bits of the pixels' SHA-256.
fn digest(img: &RgbImage) -> String {
    Sha256::digest(&img.data)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_kind_of_file_decodes_to_pillows_pixels() {
    let mut wrong = Vec::new();
    for [name, width, height, expected] in table("decoded.tsv") {
        match decode(&file(&name)) {
            Ok(img) if (img.width.to_string(), img.height.to_string(), digest(&img)) == (width, height, expected) => {}
            Ok(img) => wrong.push(format!("{name}: other pixels ({} x {})", img.width, img.height)),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crops_are_resampled_to_pillows_bytes() {
    let mut decoded: BTreeMap<String, RgbImage> = BTreeMap::new();
    let (mut wrong, mut crops) = (Vec::new(), 0);
    for row in table::<10>("crops.tsv") {
        let [x, y, w, h, out_w, out_h]: [u32; 6] = std::array::from_fn(|i| row[i + 1].parse().unwrap());
        let img = decoded.entry(row[0].clone()).or_insert_with(|| decode(&file(&row[0])).unwrap());
        for (filter, expected) in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos].into_iter().zip(&row[7..]) {
            let out = resample(img, CropBox { x, y, w, h }, out_w, out_h, filter).unwrap();
            assert_eq!((out.width, out.height), (out_w, out_h));
            crops += 1;
            if digest(&out) != *expected {
                wrong.push(format!("{}: {w} x {h} at ({x}, {y}) to {out_w} x {out_h}, {}", row[0], filter.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        decoded.len() >= 50 && crops >= 600,
        "{} images and {crops} crops are fewer than this test promises",
        decoded.len()
    );
}

#[test]
fn what_must_be_refused_is_refused_for_the_right_reason() {
    let mut wrong = Vec::new();
    for [name, reason, pillow] in table("refused.tsv") {
        match decode(&file(&name)) {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(e) if e.reason() != reason => wrong.push(format!("{name}: {} instead of {reason}: {e}", e.reason())),
            // Pillow refuses every truncated file of the collection, too.
            Err(_) if reason == "truncated" && pillow != "refused" => wrong.push(format!("{name}: Pillow accepts it")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Cut off at any byte, a file is refused, unless all that is missing follows the first image's data. Then the pixels are whole.
#[test]
fn no_cut_file_gives_other_pixels() {
    for [name, ..] in table::<4>("decoded.tsv") {
        let bytes = file(&name);
        // The last number of a plain file has no end of its own, and what follows the pixels decides how they are turned.
        if [b"P1", b"P2", b"P3"]
            .iter()
            .any(|kind| bytes.starts_with(*kind))
            || name.contains("behind-pixels")
            // Their packet comes after the pixels too.
            || (name.starts_with("turn-xmp") && name.ends_with(".tif"))
        {
            continue;
        }
        let whole = decode(&bytes).unwrap();
        let step = bytes.len() / 40 + 1;
        let ends = (0..bytes.len()).step_by(step).chain(bytes.len().saturating_sub(20)..bytes.len());
        for end in ends {
            if let Ok(img) = decode(&bytes[..end]) {
                assert_eq!(img, whole, "{name} cut to {end} of {} bytes", bytes.len());
                let may_lack_its_end = ["gif", "png", "tif"]
                    .iter()
                    .any(|extension| name.ends_with(extension))
                    // The mark of its end comes after the last pixel.
                    || name == "rle8.bmp"
                    || name == "bytes-after-end.jpg";
                assert!(may_lack_its_end, "{name} cut to {end} of {} bytes is accepted", bytes.len());
            }
        }
    }
}

#[test]
fn tables_and_folder_list_the_same_files() {
    let listed: Vec<String> = table::<4>("decoded.tsv").into_iter().map(|[name, ..]| name).collect();
    let refused: Vec<String> = table::<3>("refused.tsv").into_iter().map(|[name, ..]| name).collect();
    let in_tables: BTreeSet<String> = listed.iter().chain(&refused).cloned().collect();
    assert_eq!(in_tables.len(), listed.len() + refused.len(), "a file is listed twice");
    let entries = std::fs::read_dir(golden().join("files")).unwrap();
    let in_folder: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(in_tables, in_folder);
    let cropped: BTreeSet<String> = table::<10>("crops.tsv").into_iter().map(|[name, ..]| name).collect();
    assert_eq!(cropped, listed.into_iter().collect());
}

/// The expectations are what Pillow says today, not what it once said.
#[test]
fn pillow_still_says_the_same() {
    let python = Command::new(root().join("scripts/python-env"))
        .arg("--if-present")
        .output()
        .expect("scripts/python-env can be started");
    if !python.status.success() {
        eprintln!("skipped: scripts/python-env has not been run, so there is no Pillow to ask");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(String::from_utf8(python.stdout).unwrap().trim())
        .arg(root().join("scripts/golden/images.py"))
        .arg("--expect")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for name in ["decoded.tsv", "crops.tsv", "refused.tsv"] {
        let (fresh, committed) =
            (std::fs::read(out.path().join(name)).unwrap(), std::fs::read(golden().join(name)).unwrap());
        assert!(fresh == committed, "{name} differs; see what changed, then run scripts/golden/images.py on purpose");
    }
}
