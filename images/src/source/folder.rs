//! A folder of class folders, as torchvision's `ImageFolder` has them.
//!
//! Every first-level folder is a class, with or without images, and a label is the folder's place among them, sorted bytewise. So
//! training and validation folders with the same classes have the same labels. Images may lie at any depth below. Images beside the class
//! folders have no label. Links are followed.
//!
//! Only files with an image's extension are images. Other files that are pictures by their first bytes, or have the extension of an
//! unsupported format, are skipped and listed in the [`Findings`]; so are pictures and folders whose names begin
//! with a dot, and archives. A pattern after `::` selects the images instead: the files that it matches and that are pictures
//! by name or content.
//!
//! Folders with names like `train` and `val` in one folder are splits of a data set and not classes, and the user has to choose one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::Pattern;

use storage::{Listed, is_url};

use super::findings::{Candidate, Findings, extension, is_image_extension, is_readable, picture_reason, starts_of};
use super::splits::{self, Splits};
use super::{Listing, Sample, Store, check_length, in_parallel, io_error};
use crate::SourceError;

pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Begins to fetch an object.
    pub(super) fn prefetch(&self, key: &str) {
        storage::prefetch(&self.path(key));
    }

    pub(super) fn read(&self, key: &str) -> Result<Vec<u8>, SourceError> {
        let path = self.path(key);
        if is_url(&path) {
            let data = storage::read(&path).map_err(io_error(&path))?;
            check_length(&path, || "the object".to_owned(), data.len() as u64)?;
            return Ok(data);
        }
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let bytes = file.metadata().map_err(io_error(&path))?.len();
        check_length(&path, || "the file".to_owned(), bytes)?;
        let mut data = Vec::with_capacity(bytes as usize);
        file.read_to_end(&mut data).map_err(io_error(&path))?;
        Ok(data)
    }
}

pub(super) fn open(root: &Path, pattern: Option<&Pattern>) -> Result<Listing, SourceError> {
    let mut walk = Walk {
        pattern,
        classes: Vec::new(),
        keys: Vec::new(),
        candidates: Vec::new(),
        findings: Findings::default(),
        splits: Vec::new(),
        bad: Vec::new(),
        bad_count: 0,
    };
    let listed = match is_url(root) {
        true => {
            let listed = storage::walk(root).map_err(io_error(root))?;
            walk.objects(&listed, "");
            Some(listed)
        }
        false => {
            walk.folder(root, "", &mut vec![identity(root)?])?;
            None
        }
    };
    let Walk { mut classes, mut keys, candidates, mut findings, splits, bad, bad_count, .. } = walk;
    if bad_count > 0 {
        return Err(SourceError::BadEntries { root: root.to_path_buf(), count: bad_count, first: bad });
    }
    if let Some((prefix, splits)) = splits.first() {
        let spec = root.display().to_string();
        // If every class has splits of its own, one pattern selects the same split of each.
        let choices = match prefix.matches('/').count() {
            0 => splits.patterns(spec.trim_end_matches('/')),
            depth => splits
                .patterns(&format!("{spec}::{}", vec!["*"; depth].join("/")))
                .into_iter()
                .map(|choice| choice + "/*")
                .collect(),
        };
        return Err(SourceError::Splits {
            place: root.join(prefix).display().to_string(),
            splits: splits.list("folder"),
            choices: choices.join("`, `"),
            all: format!("{spec}::*"),
        });
    }
    for (candidate, start) in candidates.iter().zip(starts_of(&candidates)) {
        match pattern {
            Some(pattern) if pattern.matches(&candidate.key) && is_readable(&candidate.key, &start) => {
                keys.push(candidate.key.clone())
            }
            _ => findings.file(candidate.key.clone(), picture_reason(&candidate.key, &start)),
        }
    }
    findings.skipped.sort_by(|a, b| a.key.cmp(&b.key));
    classes.sort_unstable();
    keys.sort_unstable();

    let lengths = match listed {
        Some(listed) => {
            let lengths: HashMap<String, u64> = listed.into_iter().map(|listed| (listed.key, listed.len)).collect();
            keys.iter().map(|key| lengths.get(key).copied().unwrap_or_default()).collect()
        }
        None => lengths(root, &keys)?,
    };
    let label = |key: &str| {
        let (class, _) = key.split_once('/')?;
        let label =
            classes.binary_search_by(|name| name.as_str().cmp(class)).expect("the walk lists every first-level folder");
        Some(i32::try_from(label).expect("fewer than 2^31 folders"))
    };
    let samples = keys.into_iter().zip(lengths).map(|(key, bytes)| Sample {
        label: label(&key),
        key: key.into_boxed_str(),
        bytes,
    });
    Ok(Listing {
        samples: samples.collect(),
        label_names: classes,
        findings,
        store: Store::Folder(Folder { root: root.to_path_buf() }),
    })
}

struct Walk<'a> {
    /// The pattern of images, instead of their extensions.
    pattern: Option<&'a Pattern>,
    /// Files whose content decides whether they are pictures.
    candidates: Vec<Candidate>,
    findings: Findings,
    /// Folders with more than one split in them, by the key of the folder around them.
    splits: Vec<(String, Splits)>,
    /// Names of the first-level folders.
    classes: Vec<String>,
    /// Paths of the images, below the root.
    keys: Vec<String>,
    /// The first of the unusable entries and their number, so that the user sees all of them at once.
    bad: Vec<SourceError>,
    bad_count: usize,
}

/// Largest number of bad entries in a message.
const LISTED: usize = 10;

impl Walk<'_> {
    /// Collects the images below `folder`, whose key is `prefix`. `around` are the identities of the folder and of its ancestors.
    fn folder(&mut self, folder: &Path, prefix: &str, around: &mut Vec<(u64, u64)>) -> Result<(), SourceError> {
        let mut splits = Splits::default();
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let entry = entry.map_err(io_error(folder))?;
            let name = entry.file_name();
            let path = entry.path();
            let is_hidden = name.as_encoded_bytes().starts_with(b".");
            let key = format!("{prefix}{}", name.to_string_lossy());
            let is_image = !is_hidden
                && extension(&key).is_some_and(is_image_extension)
                && self.pattern.is_none_or(|pattern| pattern.matches(&key));
            let file_type = match followed_type(&entry, is_image) {
                Ok(Some(file_type)) => file_type,
                Ok(None) => continue,
                Err(_) if is_hidden => continue,
                Err(error) => {
                    self.bad(io_error(&path)(error));
                    continue;
                }
            };
            if is_hidden && file_type.is_dir() {
                self.findings.skip(key, "hidden folder, not searched");
                continue;
            }
            if file_type.is_file() && !is_image {
                // The user's pattern leaves these out on purpose.
                let wanted = self.pattern.is_none_or(|pattern| pattern.matches(&key));
                if wanted {
                    self.candidates.push(Candidate { key, path });
                }
                continue;
            }
            if !(file_type.is_dir() || file_type.is_file()) {
                continue;
            }
            let Some(name) = name.to_str() else {
                self.bad(SourceError::NotUtf8 { path });
                continue;
            };
            if file_type.is_file() {
                self.keys.push(format!("{prefix}{name}"));
                continue;
            }
            let identity = match identity(&path) {
                Ok(identity) if around.contains(&identity) => {
                    self.bad(SourceError::LinkLoop { path });
                    continue;
                }
                Ok(identity) => identity,
                Err(error) => {
                    self.bad(error);
                    continue;
                }
            };
            if prefix.is_empty() {
                self.classes.push(name.to_owned());
            }
            around.push(identity);
            let before = self.keys.len();
            if let Err(error) = self.folder(&path, &format!("{prefix}{name}/"), around) {
                self.bad(error);
            }
            around.pop();
            if self.keys.len() > before
                && let Some(split) = splits::of_folder(name)
            {
                splits.add(split, name);
            }
        }
        if splits.is_choice() && self.pattern.is_none() {
            self.splits.push((prefix.to_owned(), splits));
        }
        Ok(())
    }

    /// The same for objects whose keys begin with `prefix`, in order. A store has no folders, no links and nothing that cannot be listed.
    fn objects(&mut self, listed: &[Listed], prefix: &str) {
        let mut splits = Splits::default();
        let name = |listed: &Listed| listed.key[prefix.len()..].split('/').next().unwrap_or_default().to_owned();
        for group in listed.chunk_by(|a, b| name(a) == name(b)) {
            let name = name(&group[0]);
            let key = format!("{prefix}{name}");
            let is_hidden = name.starts_with('.');
            // An object may have the name of a folder, too, and then comes first.
            let (files, below) = group.split_at(group.partition_point(|listed| listed.key == key));
            if let [file] = files {
                let is_wanted = self.pattern.is_none_or(|pattern| pattern.matches(&key));
                let is_image = !is_hidden && extension(&key).is_some_and(is_image_extension);
                match is_wanted && is_image {
                    true => self.keys.push(key.clone()),
                    false if is_wanted => self.candidates.push(Candidate { key: key.clone(), path: file.path.clone() }),
                    false => {}
                }
            }
            if below.is_empty() {
                continue;
            }
            if is_hidden {
                self.findings.skip(key, "hidden folder, not searched");
                continue;
            }
            if prefix.is_empty() {
                self.classes.push(name.clone());
            }
            let before = self.keys.len();
            self.objects(below, &format!("{key}/"));
            if self.keys.len() > before
                && let Some(split) = splits::of_folder(&name)
            {
                splits.add(split, &*name);
            }
        }
        if splits.is_choice() && self.pattern.is_none() {
            self.splits.push((prefix.to_owned(), splits));
        }
    }

    fn bad(&mut self, error: SourceError) {
        self.bad_count += 1;
        if self.bad.len() < LISTED {
            self.bad.push(error);
        }
    }
}

/// The kind of an entry, or of its link's target. `None` for a broken link, unless it has an image's name: then the image is
/// missing.
fn followed_type(entry: &fs::DirEntry, is_image: bool) -> io::Result<Option<fs::FileType>> {
    let file_type = entry.file_type()?;
    if !file_type.is_symlink() {
        return Ok(Some(file_type));
    }
    match fs::metadata(entry.path()) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_image => Ok(None),
        Err(e) => Err(e),
    }
}

/// Device and inode: the same for a folder and for every link to it.
fn identity(folder: &Path) -> Result<(u64, u64), SourceError> {
    fs::metadata(folder).map(|metadata| (metadata.dev(), metadata.ino())).map_err(io_error(folder))
}

/// Lengths of all files in bytes.
fn lengths(root: &Path, keys: &[String]) -> Result<Vec<u64>, SourceError> {
    let length = |key: &String| {
        let path = root.join(key);
        fs::metadata(&path).map(|metadata| metadata.len()).map_err(io_error(&path))
    };
    in_parallel(keys, length).into_iter().collect()
}
