//! The corpus of odd inputs, through the library: images give Pillow's pixels or a refusal, sources their images and labels. What is
//! on disk and what has an outcome is compared both ways. Weights are `models/tests/corpus.rs`'s.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use images::{ImageSource, RgbImage, decode};
use sha2::{Digest, Sha256};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus")
}

/// Entry -> outcome.
fn outcomes() -> BTreeMap<String, String> {
    let table = std::fs::read_to_string(corpus().join("outcomes.tsv")).unwrap();
    let mut rows = BTreeMap::new();
    for line in table.lines().skip(1) {
        let (entry, outcome) = line.split_once('\t').unwrap();
        let twin = rows.insert(entry.to_owned(), outcome.to_owned());
        assert!(twin.is_none(), "{entry} has two outcomes");
    }
    rows
}

fn of_kind(kind: &str) -> Vec<(String, String)> {
    let found: Vec<_> = outcomes().into_iter().filter(|(entry, _)| entry.starts_with(kind)).collect();
    assert!(found.len() > 5, "{kind}: only {} entries", found.len());
    found
}

fn digest(img: &RgbImage) -> String {
    let digest = Sha256::digest(&img.data);
    digest[..16].iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_entry_has_an_outcome_and_every_outcome_an_entry() {
    let mut on_disk = BTreeSet::new();
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let folder = entry.unwrap().path();
        let kind = folder.file_name().unwrap().to_str().unwrap().to_owned();
        if ["outcomes.tsv", "README.md"].contains(&kind.as_str()) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            on_disk.insert(format!("{kind}/{name}"));
        }
    }
    let listed: BTreeSet<String> = outcomes().into_keys().collect();
    assert_eq!(on_disk, listed);
}

#[test]
fn images_give_pillows_pixels_or_a_refusal() {
    let mut wrong = Vec::new();
    for (entry, expected) in of_kind("images/") {
        let found = match decode(&std::fs::read(corpus().join(&entry)).unwrap()) {
            Ok(img) => format!("pixels {} x {} {}", img.width, img.height, digest(&img)),
            Err(error) => format!("refused {}", error.reason()),
        };
        if found != expected {
            wrong.push(format!("{entry}: {found} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sources_give_their_images_and_labels_or_a_refusal() {
    let mut wrong = Vec::new();
    for (entry, outcome) in of_kind("sources/") {
        let path = corpus().join(&entry);
        let (spec, expected) = match outcome.strip_prefix("given ") {
            Some(given) => {
                let (pattern, expected) = given.split_once(": ").unwrap();
                (path.join(pattern), expected)
            }
            None => (path, outcome.as_str()),
        };
        let found = match ImageSource::open(spec.to_str().unwrap()) {
            Ok(source) => describe(&source, expected.contains("labels")),
            Err(_) => "refused".to_owned(),
        };
        if found != expected {
            wrong.push(format!("{entry}: {found} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn describe(source: &ImageSource, with_labels: bool) -> String {
    for i in 0..source.len() {
        let bytes = source.read(i).unwrap();
        decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", source.key(i)));
    }
    let mut text = format!("images {}", source.len());
    if with_labels {
        let labels = (0..source.len()).map(|i| {
            let label = source.label(i);
            label.map_or("none".to_owned(), |label| label.to_string())
        });
        text += &format!(", labels {}", labels.collect::<Vec<_>>().join(" "));
    }
    text
}
