//! Sources in object stores: files by name, braces and globs, and all that lies below a URL.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use storage::Listed;

use super::{Resolved, Shard, expand_braces, note_splits, shards, shards_of_one_split};
use crate::SourceError;
use crate::source::findings::{Findings, extension, is_image_extension};
use crate::source::io_error;

/// As in a shell: `*` stops at a slash.
const LIKE_A_SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Characters that make a name a pattern.
const OF_PATTERNS: [char; 3] = ['*', '?', '['];

/// A URL with a shard's ending names a file; one with characters of a pattern several; any other a folder, whose objects lie below it.
pub(super) fn resolve(spec: &str, findings: &mut Findings) -> Result<Resolved, SourceError> {
    let bad_pattern = |detail: String| SourceError::BadPattern { spec: spec.to_owned(), detail };
    let patterns = expand_braces(spec).map_err(bad_pattern)?;
    if let [only] = &*patterns
        && only == spec
        && !spec.contains(OF_PATTERNS)
        && Shard::of(Path::new(spec)).is_none()
    {
        return folder(Path::new(spec), findings);
    }
    let mut paths = Vec::new();
    for pattern in patterns {
        if !pattern.contains(OF_PATTERNS) {
            // Whether it is there shows when it is opened, with many others at once.
            paths.push(PathBuf::from(pattern));
            continue;
        }
        let compiled = Pattern::new(&pattern).map_err(|e| bad_pattern(e.to_string()))?;
        // Only what lies below the last slash before the pattern is listed.
        let literal = &pattern[..pattern.find(OF_PATTERNS).unwrap_or(pattern.len())];
        let root = PathBuf::from(literal.rsplit_once('/').map_or(literal, |(root, _)| root));
        let listed = storage::walk(&root).map_err(io_error(&root))?.into_iter().map(|listed| listed.path);
        let mut found: Vec<_> =
            listed.filter(|path| path.to_str().is_some_and(|text| compiled.matches_with(text, LIKE_A_SHELL))).collect();
        if found.is_empty() {
            return Err(SourceError::NotFound { spec: pattern });
        }
        found.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
        paths.extend(found);
    }
    note_splits(&paths, findings);
    shards(spec, paths)
}

/// What lies below a URL: shards if there are some and no images or folders beside them, else images.
fn folder(root: &Path, findings: &mut Findings) -> Result<Resolved, SourceError> {
    let listed = storage::walk(root).map_err(io_error(root))?;
    if listed.is_empty() {
        return Err(SourceError::NotFound { spec: root.display().to_string() });
    }
    let is_hidden = |listed: &&Listed| listed.key.split('/').any(|name| name.starts_with('.'));
    let seen: Vec<&Listed> = listed.iter().filter(|listed| !is_hidden(listed)).collect();
    let is_image = |listed: &&Listed| extension(&listed.key).is_some_and(is_image_extension);
    let has_images = seen.iter().any(is_image);
    let mut found: Vec<PathBuf> = seen
        .iter()
        .filter(|listed| !listed.key.contains('/') && Shard::of(&listed.path).is_some())
        .map(|listed| listed.path.clone())
        .collect();
    if has_images || found.is_empty() {
        if !found.is_empty() {
            findings.note(format!(
                "has images and {} .tar or .parquet files beside them: the images are the data set, and what is in those files is not. Give \
                 `{1}/*.tar` or `{1}/*.parquet` for it",
                found.len(),
                root.display()
            ));
        }
        return Ok(Resolved::Folder(root.to_path_buf()));
    }
    found.sort_unstable();
    shards_of_one_split(root, found)
}
