//! JSON records and lines of JSON: `cache.json`, `teacher.json`, commit records, rejects and skipped pictures.
//!
//! The first byte says which of them the rest of an input replaces in a sound cache, and whether its digest or checksums are computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use schemas::Pack;
use serde_json::json;

use crate::{caches, scratch, seal};

const FILES: [&str; 6] = [
    "cache.json",
    "teachers/clip/teacher.json",
    "samples/part-00000.commit.json",
    "teachers/clip/part-00000.commit.json",
    "rejects/part-00000.jsonl",
    "rejects/skipped.jsonl",
];

/// Set in the first byte of an input whose checksums stay as they are.
const AS_IT_IS: u8 = 0x80;

static SOUND: LazyLock<BTreeMap<PathBuf, Vec<u8>>> = LazyLock::new(|| {
    let folder = scratch::folder();
    caches::build(folder.path(), &caches::identity(1, Pack::None), &caches::teacher(caches::affine()));
    caches::files(folder.path())
});

/// The files that differ from those of the sound cache.
fn changed(input: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let Some((&first, rest)) = input.split_first() else {
        return Vec::new();
    };
    let name = FILES[usize::from(first & !AS_IT_IS) % FILES.len()];
    if first & AS_IT_IS != 0 {
        return vec![(name, rest.to_vec())];
    }
    match name {
        "rejects/part-00000.jsonl" => {
            let text = seal::lines(rest, "mr-mae reject v1");
            let lines = text.iter().filter(|&&byte| byte == b'\n').count();
            let stamp = json!({"rows": lines, "bytes": text.len(), "sha256": seal::sha256(&text)});
            let commit = FILES[2];
            let commit_bytes =
                seal::with_fields(&SOUND[Path::new(commit)], |fields| drop(fields.insert("rejects".to_owned(), stamp)));
            vec![(name, text), (commit, commit_bytes)]
        }
        "rejects/skipped.jsonl" => vec![(name, seal::lines(rest, "mr-mae skipped v1"))],
        _ => vec![(name, seal::record(rest))],
    }
}

pub fn files(input: &[u8], dir: &Path) {
    SOUND.iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
    changed(input).iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
}

pub fn run(input: &[u8]) {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = scratch::folder();
        files(&[], folder.path());
        folder
    });
    let dir = FOLDER.path();
    let changed = changed(input);
    changed.iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
    caches::read(dir, input);
    changed.iter().for_each(|(name, _)| scratch::write(&dir.join(name), &SOUND[Path::new(name)]));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (number, name) in FILES.iter().enumerate() {
        for flag in [0, AS_IT_IS] {
            let mut seed = vec![number as u8 | flag];
            seed.extend(&SOUND[Path::new(name)]);
            seeds.push(seed);
        }
    }
    for pack in [r#"{"jpeg":{"quality":90,"short_side":256}}"#, r#""original""#] {
        let packed = seal::with_fields(&SOUND[Path::new("cache.json")], |fields| {
            fields.insert("pack".to_owned(), serde_json::from_str(pack).expect("JSON"));
            fields.insert("depth_window".to_owned(), "percentile:1,99".into());
            fields.insert("views".to_owned(), json!({"filter": "bicubic", "policy": "center", "seed": 1, "views": 1}));
        });
        seeds.push([vec![0], packed].concat());
    }
    seeds
}
