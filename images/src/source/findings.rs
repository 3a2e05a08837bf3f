//! Findings besides the images of a source: skipped pictures, archives that are not opened, and notes for the user.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::decode::{READABLE_EXTENSIONS, SNIFF_BYTES, UNREADABLE_EXTENSIONS, picture_format};

/// Everything in a source besides its images, so that no picture is left out of the data set silently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Skipped pictures, by name or by content, and containers that may hold more of them; sorted by key within a folder
    /// or shard.
    pub skipped: Vec<Skipped>,
    /// Sentences for the user about unexpected readings, with the setting that changes them.
    pub notes: Vec<String>,
    /// Counts of files, members or columns that are not pictures, by extension or name.
    pub others: BTreeMap<String, u64>,
}

/// Pictures of a source that are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Path below the folder, or `shard.tar/member`, or `file.parquet/column`.
    pub key: String,
    /// The reason, one of few sentences to count by.
    pub reason: String,
    /// Number of pictures: the rows of a column, else 1.
    pub count: u64,
}

impl Findings {
    /// Number of skipped pictures and containers.
    pub fn skipped_count(&self) -> u64 {
        self.skipped.iter().map(|skipped| skipped.count).sum()
    }

    /// Number of skipped pictures by reason, the most common first.
    pub fn by_reason(&self) -> Vec<(String, u64)> {
        let mut reasons = BTreeMap::<&str, u64>::new();
        for skipped in &self.skipped {
            *reasons.entry(&skipped.reason).or_default() += skipped.count;
        }
        let mut reasons: Vec<_> = reasons.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        // Stable: reasons of the same count stay in alphabetical order.
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons
    }

    /// The skipped pictures by reason, in one line: `3: 2 HEIC is not supported, 1 hidden file`. Empty if there are none.
    pub(crate) fn skipped_line(&self) -> String {
        if self.skipped.is_empty() {
            return String::new();
        }
        let reasons: Vec<_> = self.by_reason().into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        format!("{}: {}", self.skipped_count(), reasons.join(", "))
    }

    /// Other files, members or columns, in one line, the most common first. Empty if there are none.
    pub fn others_line(&self) -> String {
        let mut others: Vec<_> = self.others.iter().collect();
        others.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let rest = others.len().saturating_sub(LISTED);
        let mut names: Vec<_> =
            others.into_iter().take(LISTED).map(|(name, count)| format!("{count} {name}")).collect();
        if rest > 0 {
            names.push(format!("{rest} more kinds"));
        }
        names.join(", ")
    }

    /// Warnings for the user, a sentence each.
    pub fn warnings(&self, spec: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(first) = self.skipped.first() {
            warnings.push(format!(
                "{spec}: pictures or archives that are skipped and not in the data set, {}; the first is `{}`",
                self.skipped_line(),
                first.key
            ));
        }
        warnings.extend(self.notes.iter().map(|note| format!("{spec}: {note}")));
        warnings
    }

    pub(super) fn merge(&mut self, other: Findings) {
        self.skipped.extend(other.skipped);
        other.notes.into_iter().for_each(|note| self.note(note));
        for (kind, count) in other.others {
            *self.others.entry(kind).or_default() += count;
        }
    }

    /// The hint for a source without images: shards deeper inside it, and skipped pictures.
    pub(super) fn instead_of_images(&self, spec: &str) -> String {
        let mut shards = BTreeMap::<String, u64>::new();
        for skipped in &self.skipped {
            let is_shard = extension(&skipped.key)
                .is_some_and(|e| e.eq_ignore_ascii_case("tar") || e.eq_ignore_ascii_case("parquet"));
            if is_shard && skipped.reason == ARCHIVE {
                let (folder, name) = skipped.key.rsplit_once('/').unwrap_or(("", &skipped.key));
                let extension = extension(name).unwrap_or_default();
                let spec = spec.trim_end_matches('/');
                let place = match folder {
                    "" => format!("{spec}/*.{extension}"),
                    // Opened by itself, it asks for a split where it holds several.
                    folder => format!("{spec}/{folder}"),
                };
                *shards.entry(place).or_default() += 1;
            }
        }
        let mut text = String::new();
        if !shards.is_empty() {
            let count: u64 = shards.values().sum();
            let more = shards.len().saturating_sub(LISTED);
            let places: Vec<_> = shards.into_keys().take(LISTED).collect();
            text += &format!(
                ". It holds {count} .tar or .parquet files, which a folder of images is not searched for: give `{}`{}",
                places.join("` or `"),
                if more > 0 { ", and others" } else { "" }
            );
        }
        if let Some(first) = self.skipped.iter().find(|s| s.reason != ARCHIVE) {
            text += &format!(
                ". It holds {}; the first is `{}`. Convert or rename them; `{spec}::*` takes pictures of supported formats under any name",
                self.skipped_line(),
                first.key
            );
        }
        text
    }

    pub(super) fn skip(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push(Skipped { key: key.into(), reason: reason.into(), count: 1 });
    }

    /// Records an entry that is not an image under its kind.
    pub(super) fn file(&mut self, key: String, reason: Option<String>) {
        match reason {
            Some(reason) => self.skip(key, reason),
            None => *self.others.entry(kind_of_name(&key)).or_default() += 1,
        }
    }

    /// Adds a note that starts with a count.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// The reason of containers.
const ARCHIVE: &str = "archive, not opened";

/// Largest number of kinds of other files in a line.
const LISTED: usize = 8;

/// Extensions of containers that may hold images and are not opened inside a source.
const ARCHIVES: [&str; 20] = [
    "tar",
    "parquet",
    "zip",
    "tgz",
    "tbz2",
    "txz",
    "tzst",
    "gz",
    "bz2",
    "xz",
    "zst",
    "7z",
    "rar",
    "h5",
    "hdf5",
    "lmdb",
    "mdb",
    "tfrecord",
    "tfrecords",
    "arrow",
];

/// Text between an image's extension and the rest of a name in copies: `a.jpg_large`, `a.jpg~`, `a.jpg?size=2`, `a.jpg copy`.
const AFTER_EXTENSION: [char; 9] = ['_', '~', '?', '!', ':', '@', '&', '-', ' '];

/// Suffixes that programs append to a whole name when they keep or download a copy.
const COPY_EXTENSIONS: [&str; 8] = ["bak", "old", "orig", "tmp", "part", "partial", "crdownload", "download"];

/// Whether files with this extension are images.
pub(super) fn is_image_extension(extension: &str) -> bool {
    READABLE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Whether an extension belongs to a picture format, supported or not.
pub(super) fn is_picture_extension(extension: &str) -> bool {
    let mut unread = UNREADABLE_EXTENSIONS.iter();
    is_image_extension(extension) || unread.any(|(known, _)| extension.eq_ignore_ascii_case(known))
}

/// The text after the last dot of a file's own name; `None` without a dot, or if the dot begins the name.
pub(super) fn extension(name: &str) -> Option<&str> {
    let base = name.rsplit('/').next().unwrap_or(name);
    match base.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => Some(extension),
        _ => None,
    }
}

/// Why an entry whose name is not an image's is a picture or may hold some; `None` if it is neither. `start` is its first bytes.
pub(super) fn picture_reason(name: &str, start: &[u8]) -> Option<String> {
    // macOS writes these beside every file on other file systems, under the file's name.
    if start.starts_with(&[0, 5, 0x16, 7]) {
        return None;
    }
    let base = name.rsplit('/').next().unwrap_or(name);
    let is_hidden = base.starts_with('.');
    let extension = extension(name).unwrap_or_default().to_ascii_lowercase();
    let unread = unread_extension(name);
    let content = picture_format(start);
    if is_hidden {
        let by_name = unread.is_some() || is_image_extension(&extension);
        return (by_name || content.is_some()).then(|| "hidden picture".to_owned());
    }
    match (content, unread) {
        (Some(format), _) if is_readable(name, start) => Some(format!("{} without an image's extension", format.name)),
        (_, Some(format)) => Some(format!("{format} is not supported")),
        (Some(format), None) => Some(format!("{} is not supported", format.name)),
        (None, None) if ARCHIVES.contains(&&*extension) => Some(ARCHIVE.to_owned()),
        (None, None) if is_named_like_a_copy(base) => {
            Some("named like a copy of an image, but no picture by content".to_owned())
        }
        (None, None) => None,
    }
}

/// Whether this is a readable image by its content. Hidden files do not count, and camera raw files are TIFF files only by
/// their first bytes.
pub(super) fn is_readable(name: &str, start: &[u8]) -> bool {
    let is_hidden = name.rsplit('/').next().unwrap_or(name).starts_with('.');
    picture_format(start).is_some_and(|format| {
        format.is_read && !is_hidden && (format.name != "TIFF" || unread_extension(name).is_none())
    })
}

/// The name of an unsupported format, by the extension.
fn unread_extension(name: &str) -> Option<&'static str> {
    let extension = extension(name)?;
    UNREADABLE_EXTENSIONS.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known)).map(|(_, format)| *format)
}

fn is_named_like_a_copy(base: &str) -> bool {
    let mut parts = base.split('.').skip(1).peekable();
    while let Some(part) = parts.next() {
        let word = part.split(AFTER_EXTENSION).next().unwrap_or(part);
        if !is_image_extension(word) {
            continue;
        }
        if word.len() < part.len() {
            return true;
        }
        let last = parts.peek().is_some_and(|next| COPY_EXTENSIONS.iter().any(|copy| next.eq_ignore_ascii_case(copy)));
        if last {
            return true;
        }
    }
    false
}

/// `.txt`, `without extension` or `hidden`.
fn kind_of_name(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    if base.starts_with('.') {
        return "hidden".to_owned();
    }
    match extension(name) {
        Some(extension) => format!(".{}", extension.to_ascii_lowercase()),
        None => "without extension".to_owned(),
    }
}

/// The first bytes of a file, enough to recognize its format.
pub(super) fn start_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = storage::open(path)?;
    let mut start = vec![0; SNIFF_BYTES];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    start.truncate(filled);
    Ok(start)
}

/// An entry of a folder whose name is not an image's, and its format by content.
pub(super) struct Candidate {
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// The first bytes of each file, read by several threads because on a network file system each read takes a round trip. A file that cannot
/// be opened has an empty start and is judged by its name.
pub(super) fn starts_of(candidates: &[Candidate]) -> Vec<Vec<u8>> {
    super::in_parallel(candidates, |candidate| start_of(&candidate.path).unwrap_or_default())
}
