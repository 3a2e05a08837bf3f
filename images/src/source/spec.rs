//! From what the user typed to the files it means.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{io_error, is_image_extension};
use crate::SourceError;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// With the number of shards beside the images, which are passed by.
    Folder(PathBuf, usize),
    Tar(Vec<PathBuf>),
    Parquet(Vec<PathBuf>),
}

/// A path that exists is taken as it is, whatever characters it has; otherwise braces are expanded, then globs.
///
/// Shards keep the order of the braces, and within one glob are sorted bytewise.
pub(super) fn resolve(spec: &str) -> Result<Resolved, SourceError> {
    let path = Path::new(spec);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return resolve_folder(path),
        Ok(_) => return shards(spec, vec![path.to_path_buf()]),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) => {}
        Err(e) => return Err(io_error(path)(e)),
    }
    let bad_pattern = |detail: String| SourceError::BadPattern {
        spec: spec.to_owned(),
        detail,
    };
    let mut paths = Vec::new();
    for pattern in expand_braces(spec).map_err(bad_pattern)? {
        if pattern.contains(['*', '?', '[']) {
            let found = glob::glob(&pattern).map_err(|e| bad_pattern(e.to_string()))?;
            let mut found: Vec<PathBuf> =
                found
                    .collect::<Result<_, _>>()
                    .map_err(|e| SourceError::Io {
                        path: e.path().to_path_buf(),
                        source: e.into(),
                    })?;
            if found.is_empty() {
                return Err(SourceError::NotFound { spec: pattern });
            }
            found.sort_unstable_by(|a, b| {
                a.as_os_str()
                    .as_encoded_bytes()
                    .cmp(b.as_os_str().as_encoded_bytes())
            });
            paths.append(&mut found);
        } else if Path::new(&pattern).exists() {
            paths.push(pattern.into());
        } else {
            return Err(SourceError::NotFound { spec: pattern });
        }
    }
    shards(spec, paths)
}

/// A folder of nothing but files, with shards and no images among them, is a folder of shards.
fn resolve_folder(root: &Path) -> Result<Resolved, SourceError> {
    let (mut tars, mut tables, mut is_image_folder) = (Vec::new(), Vec::new(), false);
    for entry in root.read_dir().map_err(io_error(root))? {
        let entry = entry.map_err(io_error(root))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        match Shard::of(&path) {
            _ if path.is_dir() => is_image_folder = true,
            Some(Shard::Tar) => tars.push(path),
            Some(Shard::Parquet) => tables.push(path),
            None => {
                is_image_folder |= path
                    .extension()
                    .and_then(|e| e.to_str())
                    .is_some_and(is_image_extension)
            }
        }
    }
    if is_image_folder || (tars.is_empty() && tables.is_empty()) {
        let beside = tars.len() + tables.len();
        return Ok(Resolved::Folder(root.to_path_buf(), beside));
    }
    let mut paths = tables;
    paths.append(&mut tars);
    paths.sort_unstable();
    shards(&root.display().to_string(), paths)
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
        let kind = if expected == Shard::Tar {
            "a .tar file"
        } else {
            "a .parquet file"
        };
        let path = paths
            .iter()
            .find(|path| Shard::of(path) != Some(expected))
            .cloned();
        path.map(|path| SourceError::UnknownKind {
            spec: spec.to_owned(),
            path,
            expected: kind,
        })
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

/// Every string that a pattern with braces stands for, as in a shell: `{a,b}` lists, `{008..011}` counts with its zeros kept.
fn expand_braces(pattern: &str) -> Result<Vec<String>, String> {
    let Some(open) = pattern.find('{') else {
        return if pattern.contains('}') {
            Err("a `}` without a `{`".to_owned())
        } else {
            Ok(vec![pattern.to_owned()])
        };
    };
    let close = pattern[open..].find('}').ok_or("a `{` without a `}`")? + open;
    let (head, inner, tail) = (
        &pattern[..open],
        &pattern[open + 1..close],
        &pattern[close + 1..],
    );
    if inner.contains('{') || head.contains('}') {
        return Err("braces inside braces".to_owned());
    }
    let choices = match inner.split_once("..") {
        Some((first, last)) => count(first, last)?,
        None => inner.split(',').map(str::to_owned).collect(),
    };
    let tails = expand_braces(tail)?;
    Ok(choices
        .iter()
        .flat_map(|choice| {
            tails
                .iter()
                .map(move |tail| format!("{head}{choice}{tail}"))
        })
        .collect())
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
    // As in a shell: zeros are kept when one of the ends has some to keep.
    let padded = [first, last]
        .iter()
        .any(|digits| digits.len() > 1 && digits.starts_with('0'));
    let width = if padded {
        first.len().max(last.len())
    } else {
        0
    };
    Ok((from..=to).map(|i| format!("{i:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_a_shell() {
        let check = |pattern: &str, expected: &[&str]| {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}")
        };
        check("plain.tar", &["plain.tar"]);
        check("{8..11}", &["8", "9", "10", "11"]);
        check("a-{008..010}.tar", &["a-008.tar", "a-009.tar", "a-010.tar"]);
        check("{00..1}", &["00", "01"]);
        check("{b,a}-{0..1}x", &["b-0x", "b-1x", "a-0x", "a-1x"]);
        check("{one}", &["one"]);
    }

    #[test]
    fn braces_that_mean_nothing_are_refused() {
        for pattern in [
            "a{",
            "a}",
            "{a{b}}",
            "{1..x}",
            "{3..2}",
            "{..2}",
            "{-1..2}",
            "{0..99999999999}",
            "a}{b",
        ] {
            assert!(expand_braces(pattern).is_err(), "{pattern}");
        }
    }
}
