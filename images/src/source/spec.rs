//! From the user's specification of a source to its files.

mod url;

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::findings::{Candidate, Findings, extension, is_image_extension, picture_reason, starts_of};
use storage::is_url;

use super::io_error;
use super::splits::{self, Splits};
use crate::SourceError;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    Folder(PathBuf),
    Tar(Vec<PathBuf>),
    Parquet(Vec<PathBuf>),
}

/// Whether there is a file or folder of this name on a disk: a URL is never the name of one.
fn exists(spec: &str) -> bool {
    !is_url(Path::new(spec)) && Path::new(spec).exists()
}

/// The files of a source, findings beside them, and the text after `::`, which selects images and labels.
pub(super) fn resolve(spec: &str) -> Result<(Resolved, Findings, Option<&str>), SourceError> {
    // An existing path is used literally, even if it has characters of a pattern.
    let (files, within) = match spec.rsplit_once("::") {
        Some((files, within)) if !exists(spec) => (files, Some(within)),
        _ => (spec, None),
    };
    let mut findings = Findings::default();
    let resolved = resolve_files(files, &mut findings)?;
    Ok((resolved, findings, within))
}

/// Whether `path`, which need not exist, lies in the folder that `spec` names: files written there would become part of the source.
pub fn lies_in(path: &Path, spec: &str) -> bool {
    let folder = match spec.rsplit_once("::") {
        Some((folder, _)) if !exists(spec) => folder,
        _ => spec,
    };
    if is_url(path) || is_url(Path::new(folder)) {
        let folder = folder.trim_end_matches('/');
        let below = path.to_str().and_then(|path| path.strip_prefix(folder));
        return below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    }
    let (Ok(folder), Ok(path)) = (Path::new(folder).canonicalize(), std::path::absolute(path)) else {
        return false;
    };
    if !folder.is_dir() {
        return false;
    }
    // The existing part of the path, with links resolved.
    let existing = path.ancestors().find_map(|part| {
        let real = part.canonicalize().ok()?;
        Some(real.join(path.strip_prefix(part).ok()?))
    });
    existing.unwrap_or(path).starts_with(folder)
}

/// The text after `::` of shards, which selects images and labels, as in `::label=species` and `::*.seg.png,label=target`.
pub(super) fn split_label(within: Option<&str>) -> (Option<&str>, Option<&str>) {
    let Some(text) = within else {
        return (None, None);
    };
    if let Some(label) = text.strip_prefix("label=") {
        return (None, Some(label));
    }
    match text.rsplit_once(",label=") {
        Some((images, label)) => (Some(images), Some(label)),
        None => (Some(text), None),
    }
}

/// An existing path is used literally; otherwise braces are expanded, then globs.
///
/// Shards keep the order of the braces, and within one glob are sorted bytewise.
fn resolve_files(spec: &str, findings: &mut Findings) -> Result<Resolved, SourceError> {
    let path = Path::new(spec);
    if is_url(path) {
        return url::resolve(spec, findings);
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return resolve_folder(path, findings),
        Ok(_) => return shards(spec, vec![path.to_path_buf()]),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(e) => return Err(io_error(path)(e)),
    }
    let bad_pattern = |detail: String| SourceError::BadPattern { spec: spec.to_owned(), detail };
    let mut paths = Vec::new();
    for pattern in expand_braces(spec).map_err(bad_pattern)? {
        if pattern.contains(['*', '?', '[']) {
            let found = glob::glob(&pattern).map_err(|e| bad_pattern(e.to_string()))?;
            let mut found: Vec<PathBuf> = found
                .collect::<Result<_, _>>()
                .map_err(|e| SourceError::Io { path: e.path().to_path_buf(), source: e.into() })?;
            if found.is_empty() {
                return Err(SourceError::NotFound { spec: pattern });
            }
            found.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
            paths.append(&mut found);
        } else if Path::new(&pattern).exists() {
            paths.push(pattern.into());
        } else {
            return Err(SourceError::NotFound { spec: pattern });
        }
    }
    note_splits(&paths, findings);
    shards(spec, paths)
}

/// Notes that files of several splits are read as one data set.
fn note_splits(paths: &[PathBuf], findings: &mut Findings) {
    let mut splits = Splits::default();
    for path in paths {
        if let Some(split) = split_of(path) {
            splits.add(split, path.display().to_string());
        }
    }
    if splits.is_choice() {
        findings.note(format!("reads the files of several splits as one data set: {}", splits.list("file")));
    }
}

/// The split of a shard, by its name, else by the name of its folder.
fn split_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let of_parent = || splits::of_folder(path.parent()?.file_name()?.to_str()?);
    splits::of_shard(name).or_else(|| of_parent().map(str::to_owned))
}

/// A folder of files without subfolders that has shards and no images is a folder of shards.
fn resolve_folder(root: &Path, findings: &mut Findings) -> Result<Resolved, SourceError> {
    let (mut tars, mut tables, mut is_image_folder) = (Vec::new(), Vec::new(), false);
    let (mut beside, mut hidden_folders) = (Vec::new(), Vec::new());
    for entry in root.read_dir().map_err(io_error(root))? {
        let entry = entry.map_err(io_error(root))?;
        let path = entry.path();
        let name = entry.file_name();
        let key = name.to_string_lossy().into_owned();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        match Shard::of(&path) {
            _ if is_hidden && path.is_dir() => hidden_folders.push(key),
            _ if is_hidden => beside.push(Candidate { key, path }),
            _ if path.is_dir() => is_image_folder = true,
            Some(Shard::Tar) => tars.push(path),
            Some(Shard::Parquet) => tables.push(path),
            None if extension(&key).is_some_and(is_image_extension) => is_image_folder = true,
            None => beside.push(Candidate { key, path }),
        }
    }
    let shard_count = tars.len() + tables.len();
    if is_image_folder || shard_count == 0 {
        if shard_count > 0 {
            findings.note(format!(
                "has images or class folders and {shard_count} .tar or .parquet files beside them: the images are the data set, and what \
                 is in those files is not. Give `{0}/*.tar` or `{0}/*.parquet` for it",
                root.display()
            ));
        }
        return Ok(Resolved::Folder(root.to_path_buf()));
    }
    for folder in hidden_folders {
        findings.skip(folder, "hidden folder, not searched");
    }
    beside.retain(|candidate| candidate.path.is_file());
    for (candidate, start) in beside.iter().zip(starts_of(&beside)) {
        findings.file(candidate.key.clone(), picture_reason(&candidate.key, &start));
    }
    findings.skipped.sort_by(|a, b| a.key.cmp(&b.key));

    let mut paths = tables;
    paths.append(&mut tars);
    paths.sort_unstable();
    shards_of_one_split(root, paths)
}

/// The shards of a folder, unless they are of several splits.
fn shards_of_one_split(root: &Path, paths: Vec<PathBuf>) -> Result<Resolved, SourceError> {
    let folder = root.display().to_string();
    let mut splits = Splits::default();
    for name in paths.iter().filter_map(|path| path.file_name()?.to_str()) {
        if let Some(split) = splits::of_shard(name) {
            splits.add(split, name);
        }
    }
    if splits.is_choice() {
        return Err(SourceError::Splits {
            splits: splits.list("file"),
            choices: splits.patterns(folder.trim_end_matches('/')).join("`, `"),
            all: format!("{}/*.{}", folder.trim_end_matches('/'), paths[0].extension().unwrap_or_default().display()),
            place: folder,
        });
    }
    shards(&folder, paths)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shard {
    Tar,
    Parquet,
}

impl Shard {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        if extension.eq_ignore_ascii_case("tar") {
            Some(Shard::Tar)
        } else if extension.eq_ignore_ascii_case("parquet") {
            Some(Shard::Parquet)
        } else {
            None
        }
    }
}

/// Shards of one kind.
fn shards(spec: &str, paths: Vec<PathBuf>) -> Result<Resolved, SourceError> {
    let unlike = |expected| {
        let kind = if expected == Shard::Tar { "a .tar file" } else { "a .parquet file" };
        let path = paths.iter().find(|path| Shard::of(path) != Some(expected)).cloned();
        path.map(|path| SourceError::UnknownKind { spec: spec.to_owned(), path, expected: kind })
    };
    match Shard::of(&paths[0]) {
        Some(kind) => match (unlike(kind), kind) {
            (Some(error), _) => Err(error),
            (None, Shard::Tar) => Ok(Resolved::Tar(paths)),
            (None, Shard::Parquet) => Ok(Resolved::Parquet(paths)),
        },
        None => Err(SourceError::UnknownKind {
            spec: spec.to_owned(),
            path: paths[0].clone(),
            expected: "a .tar or .parquet file",
        }),
    }
}

/// All expansions of a pattern with braces, as in a shell: `{a,b}` lists, `{008..011}` counts with its zeros kept.
fn expand_braces(pattern: &str) -> Result<Vec<String>, String> {
    let Some(open) = pattern.find('{') else {
        return if pattern.contains('}') {
            Err("a `}` without a `{`".to_owned())
        } else {
            Ok(vec![pattern.to_owned()])
        };
    };
    let close = pattern[open..].find('}').ok_or("a `{` without a `}`")? + open;
    let (head, inner, tail) = (&pattern[..open], &pattern[open + 1..close], &pattern[close + 1..]);
    if inner.contains('{') || head.contains('}') {
        return Err("braces inside braces".to_owned());
    }
    let choices = match inner.split_once("..") {
        Some((first, last)) => count(first, last)?,
        None => inner.split(',').map(str::to_owned).collect(),
    };
    let tails = expand_braces(tail)?;
    Ok(choices.iter().flat_map(|choice| tails.iter().map(move |tail| format!("{head}{choice}{tail}"))).collect())
}

fn count(first: &str, last: &str) -> Result<Vec<String>, String> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain
            .then(|| digits.parse::<u32>().ok())
            .flatten()
            .ok_or_else(|| format!("`{digits}` in braces is not a number"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("`{{{first}..{last}}}` counts down"));
    }
    // As in a shell, numbers are padded with zeros if one of the ends is.
    let padded = [first, last].iter().any(|digits| digits.len() > 1 && digits.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|i| format!("{i:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_a_shell() {
        let check =
            |pattern: &str, expected: &[&str]| assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        check("plain.tar", &["plain.tar"]);
        check("{8..11}", &["8", "9", "10", "11"]);
        check("a-{008..010}.tar", &["a-008.tar", "a-009.tar", "a-010.tar"]);
        check("{00..1}", &["00", "01"]);
        check("{b,a}-{0..1}x", &["b-0x", "b-1x", "a-0x", "a-1x"]);
        check("{one}", &["one"]);
    }

    #[test]
    fn braces_that_mean_nothing_are_refused() {
        for pattern in ["a{", "a}", "{a{b}}", "{1..x}", "{3..2}", "{..2}", "{-1..2}", "{0..99999999999}", "a}{b"] {
            assert!(expand_braces(pattern).is_err(), "{pattern}");
        }
    }
}
