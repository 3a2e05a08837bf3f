//! Removing a teacher.

use std::path::Path;

use crate::files::{list, remove};
use crate::{Result, TeacherId, atomic, layout};

/// Removes a teacher's features and identity from a cache, and the folder unless something else is in it. Returns the bytes freed. Commit records go first, so
/// that whatever is left when the program is killed is a teacher without these parts. Only for a process that has the cache to itself.
///
/// # Errors
/// I/O.
pub fn drop_teacher(dir: &Path, id: &TeacherId) -> Result<u64> {
    let identity = layout::teacher_json(dir, id);
    let folder = identity.parent().unwrap_or(dir);
    let (mut commits, mut files) = (Vec::new(), Vec::new());
    for entry in list(folder)? {
        if layout::part_number(&entry.name, ".commit.json").is_some() {
            commits.push(entry.path);
        } else if layout::part_number(&entry.name, ".parquet").is_some() || atomic::target_name(&entry.name).is_some() {
            files.push(entry.path);
        }
    }
    let mut freed = 0;
    for path in commits.iter().chain(&files).chain([&identity]) {
        freed += storage::metadata(path).map_or(0, |metadata| metadata.len);
        remove(path)?;
    }
    // Only if nothing else is in it; a bucket has no folders.
    let _ = std::fs::remove_dir(folder);
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Tiny;
    use crate::{Cache, verify};

    #[test]
    fn the_other_teachers_and_strange_files_stay() {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
        tiny.build(dir.path());
        let id = &tiny.teachers[0].id;
        let folder = layout::teacher_json(dir.path(), id).with_file_name("");
        atomic::write(&folder.join("notes.txt"), b"mine").unwrap();
        let part = std::fs::metadata(layout::teacher_file(dir.path(), id, 0)).unwrap().len();
        assert!(drop_teacher(dir.path(), id).unwrap() > part);
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        let cache = Cache::open(dir.path()).unwrap();
        assert!(!cache.teachers().contains_key(id));
        assert_eq!(cache.teachers().len(), tiny.teachers.len() - 1);
        let report = verify(dir.path(), &mut |_| {}).unwrap();
        assert!(report.problems.is_empty() && report.missing.is_empty(), "{report:?}");
    }
}
