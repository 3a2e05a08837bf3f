#![allow(clippy::disallowed_methods, reason = "tests make sources to be read, and nothing is published")]

mod classes;
mod folder;
mod label_choice;
mod parquet;
mod shards;
mod skipped;
mod tar;
mod tar_names;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A folder that goes away.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn spec(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn open(path: impl AsRef<Path>) -> Result<ImageSource, SourceError> {
    ImageSource::open(spec(path.as_ref()))
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn keys(source: &ImageSource) -> Vec<&str> {
    (0..source.len()).map(|i| source.key(i)).collect()
}

fn labels(source: &ImageSource) -> Vec<Option<i32>> {
    (0..source.len()).map(|i| source.label(i)).collect()
}

/// What holds for every source: keys find their samples, reading from many threads at once gives what reading in order gives.
fn check_reading(source: &ImageSource, expected: &[&[u8]]) {
    assert_eq!(source.len(), expected.len());
    for i in 0..source.len() {
        assert_eq!(source.find(source.key(i)), Some(i));
    }
    assert_eq!(source.find("nothing of this name"), None);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for k in 0..expected.len() {
                    // Forwards, backwards and in leaps.
                    let i = [k, expected.len() - 1 - k, k * 7 % expected.len(), k][thread];
                    assert_eq!(source.read(i).unwrap(), expected[i], "{}", source.key(i));
                }
            });
        }
    });
}

#[test]
fn the_identity_covers_keys_lengths_and_labels_in_order() {
    let identity = |files: &[(&str, &str)]| {
        let root = scratch();
        for (name, bytes) in files {
            write(root.path().join(name), bytes);
        }
        open(root.path()).unwrap().identity()
    };
    let base = identity(&[("a/1.jpg", "xx"), ("b/2.jpg", "y")]);
    assert_eq!(base, identity(&[("b/2.jpg", "z"), ("a/1.jpg", "xx"), ("b/notes.txt", "not an image")]));
    assert_eq!((base.kind.as_str(), base.samples, base.digest.len()), ("folder", 2, 64));
    let others = [
        identity(&[("a/1.jpg", "xx"), ("b/3.jpg", "y")]),
        identity(&[("a/1.jpg", "xx"), ("b/2.jpg", "yy")]),
        identity(&[("a/1.jpg", "xx"), ("b/2.jpg", "y"), ("b/3.jpg", "y")]),
        // A new class before the second moves its label.
        identity(&[("a/1.jpg", "xx"), ("b/2.jpg", "y"), ("aa/notes.txt", "")]),
    ];
    assert!(others.iter().all(|other| other.digest != base.digest));
}

#[test]
fn a_limit_keeps_the_first_samples_and_changes_the_identity() {
    let root = scratch();
    for name in ["c", "a", "b"] {
        write(root.path().join(format!("{name}/1.png")), name);
    }
    let whole = open(root.path()).unwrap().identity();
    let limited = open(root.path()).unwrap().limit(2);
    assert_eq!(keys(&limited), ["a/1.png", "b/1.png"]);
    assert_eq!((limited.find("b/1.png"), limited.find("c/1.png")), (Some(1), None));
    assert_eq!(limited.label_names(), ["a", "b", "c"]);
    assert_eq!(limited.identity().samples, 2);
    assert_ne!(limited.identity().digest, whole.digest);
    assert_eq!(limited.limit(99).identity().samples, 2);
    assert!(open(root.path()).unwrap().limit(0).is_empty());
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let root = scratch();
    let missing = |spec: &str| match ImageSource::open(spec) {
        Err(SourceError::NotFound { .. }) => {}
        other => panic!("{spec}: {other:?}"),
    };
    missing(spec(&root.path().join("nothing")));
    missing(spec(&root.path().join("*.tar")));
    missing(spec(&root.path().join("{1..2}.tar")));
    let pattern = root.path().join("{1..x}.tar");
    assert!(matches!(open(&pattern), Err(SourceError::BadPattern { detail, .. }) if detail.contains("`x`")));
    assert!(matches!(open(root.path().join("[.tar")), Err(SourceError::BadPattern { .. })));

    let text = write(root.path().join("list.txt"), "");
    assert!(matches!(open(&text), Err(SourceError::UnknownKind { path, .. }) if path == text));
    write(root.path().join("a.tar"), "");
    let table = write(root.path().join("b.parquet"), "");
    match open(root.path().join("?.*")) {
        Err(SourceError::UnknownKind { path, expected: "a .tar file", .. }) => assert_eq!(path, table),
        other => panic!("{other:?}"),
    }
}

/// Any real collection, named by the environment variable `MR_MAE_TEST_SOURCE`, opens, and images spread over it decode.
#[test]
fn a_real_collection_opens_and_decodes() {
    let Ok(spec) = std::env::var("MR_MAE_TEST_SOURCE") else {
        eprintln!("skipped: MR_MAE_TEST_SOURCE names no image source");
        return;
    };
    let source = ImageSource::open(&spec).unwrap();
    for i in (0..source.len()).step_by(source.len().div_ceil(50)) {
        let bytes = source.read(i).unwrap();
        crate::decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", source.key(i)));
    }
}
