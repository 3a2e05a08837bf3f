//! Where each file of a cache lies.

use std::path::{Path, PathBuf};

use crate::TeacherId;

/// `CACHE/cache.json`: the cache's identity.
pub fn cache_json(cache: &Path) -> PathBuf {
    cache.join("cache.json")
}

/// `CACHE/generations`: one record for each addition to the data set.
pub(crate) fn generations_dir(cache: &Path) -> PathBuf {
    cache.join("generations")
}

/// `CACHE/generations/00001.json`: the samples that were appended first.
pub fn generation_json(cache: &Path, generation: u32) -> PathBuf {
    generations_dir(cache).join(format!("{generation:05}.json"))
}

/// `Some(7)` for `00007.json`, in exactly this spelling.
pub(crate) fn generation_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".json")?;
    let number: u32 = digits.parse().ok()?;
    (format!("{number:05}") == digits && number > 0).then_some(number)
}

/// `CACHE/teachers`: one folder per teacher.
pub(crate) fn teachers_dir(cache: &Path) -> PathBuf {
    cache.join("teachers")
}

/// `CACHE/teachers/<id>/teacher.json`: the teacher's identity.
pub fn teacher_json(cache: &Path, id: &TeacherId) -> PathBuf {
    teachers_dir(cache).join(id.as_str()).join("teacher.json")
}

/// `CACHE/samples/part-00000.parquet`: one row per (sample, view).
pub fn samples_file(cache: &Path, part: u32) -> PathBuf {
    cache.join("samples").join(format!("part-{part:05}.parquet"))
}

/// `CACHE/samples/part-00000.commit.json`: declares the samples and rejects of the part complete.
pub(crate) fn samples_commit(cache: &Path, part: u32) -> PathBuf {
    cache.join("samples").join(format!("part-{part:05}.commit.json"))
}

/// `CACHE/rejects/part-00000.jsonl`: one line per image that could not be used.
pub fn rejects_file(cache: &Path, part: u32) -> PathBuf {
    cache.join("rejects").join(format!("part-{part:05}.jsonl"))
}

/// `CACHE/rejects/skipped.jsonl`: what the source holds and the data set does not.
pub(crate) fn skipped_file(cache: &Path) -> PathBuf {
    cache.join("rejects").join(SKIPPED)
}

/// Name of [`skipped_file`].
pub(crate) const SKIPPED: &str = "skipped.jsonl";

/// `CACHE/teachers/<id>/part-00000.parquet`: the teacher's features, row for row with the samples.
pub fn teacher_file(cache: &Path, id: &TeacherId, part: u32) -> PathBuf {
    teachers_dir(cache).join(id.as_str()).join(format!("part-{part:05}.parquet"))
}

/// `CACHE/teachers/<id>/part-00000.commit.json`: declares the teacher's part complete.
pub fn teacher_commit(cache: &Path, id: &TeacherId, part: u32) -> PathBuf {
    teachers_dir(cache).join(id.as_str()).join(format!("part-{part:05}.commit.json"))
}

/// `CACHE/work`: what builders keep for themselves and each other while they build. No part of the cache: readers ignore it.
pub fn work_dir(cache: &Path) -> PathBuf {
    cache.join("work")
}

/// The commit record that declares the part file, rejects file or commit record `path`; `None` for identity records.
pub fn commit_of(path: &Path) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_prefix("part-")?.split('.').next()?;
    let commit = format!("part-{stem}.commit.json");
    let folder = path.parent()?;
    match folder.file_name()?.to_str()? {
        "rejects" => Some(folder.parent()?.join("samples").join(commit)),
        _ => Some(folder.join(commit)),
    }
}

/// The files that the commit record `commit` declares.
pub(crate) fn declared_by(commit: &Path) -> Vec<PathBuf> {
    let Some(stem) = commit.file_name().and_then(|name| name.to_str()?.strip_suffix(".commit.json").map(str::to_owned))
    else {
        return Vec::new();
    };
    let folder = commit.parent().unwrap_or(Path::new(""));
    let mut files = vec![folder.join(format!("{stem}.parquet"))];
    if folder.ends_with("samples") && !folder.parent().is_some_and(|above| above.ends_with("teachers")) {
        files.push(folder.with_file_name("rejects").join(format!("{stem}.jsonl")));
    }
    files
}

/// `Some(7)` for a file name such as `part-00007.parquet` with the suffix `.parquet`, in exactly the spelling above.
pub(crate) fn part_number(name: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_prefix("part-")?.strip_suffix(suffix)?;
    let part: u32 = digits.parse().ok()?;
    (format!("{part:05}") == digits).then_some(part)
}
