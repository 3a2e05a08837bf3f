use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::testing::{self, identity, places, rejects, sample_row, teacher_row, teachers};
use crate::{Cache, add_teacher, create_cache};

/// Every file of a folder with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    testing::build(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(cache.identity(), &identity());
    assert_eq!(
        cache.teachers().values().cloned().collect::<Vec<_>>(),
        teachers()
    );
    assert!(cache.missing_parts().unwrap().is_empty());
    for part in 0..3 {
        let samples: Vec<_> = places(part)
            .into_iter()
            .map(|(id, view)| sample_row(id, view))
            .collect();
        assert_eq!(cache.samples(part).unwrap(), samples);
        assert_eq!(cache.rejects(part).unwrap(), rejects(part));
        for teacher in &teachers() {
            let features = cache.teacher_part(&teacher.id, part).unwrap();
            let expected: Vec<_> = places(part)
                .into_iter()
                .map(|(id, view)| teacher_row(id, view, teacher))
                .collect();
            assert_eq!(
                features.iter().collect::<Result<Vec<_>>>().unwrap(),
                expected
            );
            for (row, sample) in samples.iter().enumerate().rev() {
                let found = features.read_row(row).unwrap();
                features.check_join(row, &found, sample).unwrap();
                assert_eq!(
                    features.key(row).unwrap(),
                    (sample.sample_id, sample.view.index, sample.content_hash)
                );
            }
        }
    }
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        testing::build(&dir.path().join(name));
    }
    let relative = |name: &str| -> Vec<(PathBuf, Vec<u8>)> {
        let root = dir.path().join(name);
        files(&root)
            .into_iter()
            .map(|(path, bytes)| (path.strip_prefix(&root).unwrap().to_path_buf(), bytes))
            .collect()
    };
    let one = relative("one");
    assert_eq!(one.len(), 1 + 3 * 3 + 2 * (1 + 3 * 2));
    assert!(one == relative("two"));
}
