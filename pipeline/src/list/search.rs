//! Walking folders.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use schemas::layout;

/// Result of a search.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Folders with a `cache.json`, sorted.
    pub(super) caches: Vec<PathBuf>,
    /// Folders that could not be listed, with the reason.
    pub(super) unreadable: Vec<String>,
}

/// The caches in `dir` and below it, without searching inside a cache. Links to folders are followed after all real folders, and every
/// folder is visited once, even if it has several names. So a cache below `dir` is listed under its own path, and loops end.
pub(super) fn caches(dir: &Path) -> anyhow::Result<Found> {
    let mut found = Found::default();
    if storage::is_url(dir) {
        let listed = storage::walk(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let records =
            listed.into_iter().filter(|listed| listed.path.file_name().is_some_and(|name| name == "cache.json"));
        found.caches = records.filter_map(|listed| storage::parent_url(&listed.path)).collect();
        return Ok(found);
    }
    let mut visited = BTreeSet::new();
    fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut folders = VecDeque::from([dir.to_path_buf()]);
    let mut links = VecDeque::new();
    while let Some(folder) = folders.pop_front().or_else(|| links.pop_front()) {
        let canonical = match folder.canonicalize() {
            Ok(canonical) => canonical,
            // A broken link is not a folder.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => {
                found.unreadable.push(format!("{}: {e}", folder.display()));
                continue;
            }
        };
        if !visited.insert(canonical) {
            continue;
        }
        if layout::cache_json(&folder).is_file() {
            found.caches.push(folder);
            continue;
        }
        let entries = match entries(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                found.unreadable.push(format!("{}: {e}", folder.display()));
                continue;
            }
        };
        for (path, kind) in entries {
            if kind.is_dir() {
                folders.push_back(path);
            } else if kind.is_symlink() && path.is_dir() {
                links.push_back(path);
            }
        }
    }
    found.caches.sort();
    found.unreadable.sort();
    Ok(found)
}

/// Bytes of all files below `dir`, links not followed.
pub(super) fn size(dir: &Path, unreadable: &mut Vec<String>) -> u64 {
    let mut bytes: u64 = 0;
    if storage::is_url(dir) {
        return match storage::walk(dir) {
            Ok(listed) => listed.iter().map(|listed| listed.len).fold(0, u64::saturating_add),
            Err(e) => {
                unreadable.push(format!("{}: {e}", dir.display()));
                0
            }
        };
    }
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match entries(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                unreadable.push(format!("{}: {e}", folder.display()));
                continue;
            }
        };
        for (path, kind) in entries {
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                // A file that has just been removed has no size.
                let length = fs::symlink_metadata(&path).map_or(0, |file| file.len());
                bytes = bytes.saturating_add(length);
            }
        }
    }
    bytes
}

/// The entries of a folder, sorted.
fn entries(folder: &Path) -> std::io::Result<Vec<(PathBuf, fs::FileType)>> {
    let mut entries = fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.path(), entry.file_type()?))
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}
