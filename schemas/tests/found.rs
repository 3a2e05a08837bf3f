//! Caches that fuzzing has kept: small ones that reach most of the readers' code.
//!
//! A folder `NAME.over-BASE` of `found/` holds the files in which a cache differs from `found/BASE`; other folders are whole caches.

#![allow(clippy::unwrap_used, reason = "tests unwrap")]

use std::fs;
use std::path::{Path, PathBuf};

use schemas::{Cache, Error, TeacherRow, read_skipped, verify};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// The first error that reading everything in a cache meets.
fn read(dir: &Path) -> Result<(), Error> {
    let cache = Cache::open(dir)?;
    assert!(cache.identity().plan.parts() <= 1, "kept caches are small");
    for part in 0..cache.identity().plan.parts() {
        cache.part_state(part)?;
        cache.rejects(part)?;
        let samples = cache.samples_part(part)?;
        for row in 0..samples.rows().len() {
            samples.read_image(row)?;
        }
        for (id, teacher) in cache.teachers() {
            let features = cache.teacher_part(id, part)?;
            let (mut row, mut values) = (TeacherRow::default(), Vec::new());
            for i in 0..features.rows() {
                features.read_row_into(i, &mut row)?;
                teacher.decode_tokens(&row.tokens, &mut values)?;
            }
        }
    }
    Ok(())
}

/// What is wrong with a cache shows in reading it and in verifying it; `verify` also looks at what readers do not need.
#[test]
fn kept_caches_are_read_or_refused() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found");
    let mut folders: Vec<PathBuf> = fs::read_dir(&found).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut sound, mut refused) = (0, 0);
    for folder in &folders {
        let dir = tempfile::tempdir().unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        if let Some((_, base)) = name.split_once(".over-") {
            copy(&found.join(base), dir.path());
        }
        copy(folder, dir.path());
        let skipped = read_skipped(dir.path());
        assert!(skipped.is_ok() || matches!(skipped, Err(Error::RejectLine { .. })), "{name}: {skipped:?}");
        match (verify(dir.path(), &mut |_| {}), read(dir.path())) {
            (Ok(report), Err(error)) => {
                assert!(!report.problems.is_empty(), "{name}: {error}");
                refused += 1;
            }
            (Ok(report), Ok(())) if report.problems.is_empty() => sound += usize::from(skipped.is_ok()),
            (Ok(_), Ok(())) | (Err(_), Err(_)) => refused += 1,
            (Err(error), Ok(())) => panic!("{name}: {error}"),
        }
    }
    assert!(sound > 0 && refused > 0, "{sound} sound, {refused} refused");
}
