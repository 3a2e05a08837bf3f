//! Files of a cache, on a disk or in an object store, with errors of this crate.

use std::io::ErrorKind;
use std::path::Path;

use storage::Entry;

use crate::{Error, Result};

/// Whether there is a file of this name.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    storage::exists(path).map_err(|e| Error::io("look for", path, e))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    storage::remove(path).map_err(|e| Error::io("remove", path, e))
}

/// What lies in a folder; nothing if there is no such folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<Entry>> {
    match storage::list(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io("list", folder, e)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::testing::Tiny;
    use crate::{Cache, verify};

    /// The same writers, readers and checks over a bucket as over a disk.
    #[test]
    fn a_cache_in_a_bucket_is_the_one_on_a_disk() {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::least());
        tiny.build(dir.path());
        let bucket = PathBuf::from(storage::new_bucket()).join("cache");
        tiny.build(&bucket);
        let objects = storage::walk(&bucket).unwrap();
        assert!(objects.len() > 4, "{objects:?}");
        for object in &objects {
            let found = storage::read(&object.path).unwrap();
            assert!(found == std::fs::read(dir.path().join(&object.key)).unwrap(), "{}", object.key);
        }
        let report = verify(&bucket, &mut |_| {}).unwrap();
        assert!(report.problems.is_empty() && report.missing.is_empty() && report.notes.is_empty(), "{report:?}");
        let [disk, remote] = [dir.path(), &bucket].map(|cache| Cache::open(cache).unwrap());
        assert_eq!(disk.samples(0).unwrap(), remote.samples(0).unwrap());
        let id = disk.teachers().keys().next().unwrap();
        let [one, other] = [&disk, &remote].map(|cache| cache.teacher_part(id, 0).unwrap());
        other.prefetch_row(0);
        assert_eq!(one.read_row(0).unwrap(), other.read_row(0).unwrap());

        // What is missing and what is damaged is found there too.
        let file = crate::layout::teacher_file(&bucket, id, 0);
        let mut bytes = storage::read(&file).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        storage::put(&file, &bytes).unwrap();
        assert!(!verify(&bucket, &mut |_| {}).unwrap().problems.is_empty());
        storage::remove(&file).unwrap();
        assert!(matches!(&remote.lost_files().unwrap()[..], [Error::FileMissing { path }] if *path == file));
    }
}
