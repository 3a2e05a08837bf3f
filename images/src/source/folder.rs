//! A folder of class folders, as torchvision's `ImageFolder` has them.
//!
//! Every first-level folder is a class, with or without images, and a label is the folder's place among them, sorted bytewise; so
//! a training and a validation folder with the same classes agree. Images may lie at any depth below. Images beside the class
//! folders have no label. Links are followed, names that begin with a dot are passed by.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Listing, Sample, Store, check_length, io_error, is_image_extension};
use crate::SourceError;

pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    pub(super) fn read(&self, key: &str) -> Result<Vec<u8>, SourceError> {
        let path = self.path(key);
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let bytes = file.metadata().map_err(io_error(&path))?.len();
        check_length(&path, || "the file".to_owned(), bytes)?;
        let mut data = Vec::with_capacity(bytes as usize);
        file.read_to_end(&mut data).map_err(io_error(&path))?;
        Ok(data)
    }
}

pub(super) fn open(root: &Path) -> Result<Listing, SourceError> {
    let mut walk = Walk {
        classes: Vec::new(),
        keys: Vec::new(),
        bad: Vec::new(),
        bad_count: 0,
    };
    walk.folder(root, "", &mut vec![identity(root)?])?;
    let Walk {
        mut classes,
        mut keys,
        bad,
        bad_count,
    } = walk;
    if bad_count > 0 {
        return Err(SourceError::BadEntries {
            root: root.to_path_buf(),
            count: bad_count,
            first: bad,
        });
    }
    classes.sort_unstable();
    keys.sort_unstable();

    let lengths = lengths(root, &keys)?;
    let label = |key: &str| {
        let (class, _) = key.split_once('/')?;
        let label = classes
            .binary_search_by(|name| name.as_str().cmp(class))
            .expect("the walk lists every first-level folder");
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
        store: Store::Folder(Folder {
            root: root.to_path_buf(),
        }),
    })
}

struct Walk {
    /// Names of the first-level folders.
    classes: Vec<String>,
    /// Paths of the images, below the root.
    keys: Vec<String>,
    /// The first of the entries that cannot be used, and how many there are: whoever has to mend them sees all at once.
    bad: Vec<SourceError>,
    bad_count: usize,
}

/// Bad entries that a message lists.
const LISTED: usize = 10;

impl Walk {
    /// Collects what is below `folder`, whose key is `prefix`. `around` are the identities of the folder and of all around it.
    fn folder(
        &mut self,
        folder: &Path,
        prefix: &str,
        around: &mut Vec<(u64, u64)>,
    ) -> Result<(), SourceError> {
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let entry = entry.map_err(io_error(folder))?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            let is_image = path
                .extension()
                .and_then(|e| e.to_str())
                .is_some_and(is_image_extension);
            let file_type = match followed_type(&entry, is_image) {
                Ok(Some(file_type)) => file_type,
                Ok(None) => continue,
                Err(error) => {
                    self.bad(io_error(&path)(error));
                    continue;
                }
            };
            let wanted = file_type.is_dir() || (file_type.is_file() && is_image);
            if !wanted {
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
            if let Err(error) = self.folder(&path, &format!("{prefix}{name}/"), around) {
                self.bad(error);
            }
            around.pop();
        }
        Ok(())
    }

    fn bad(&mut self, error: SourceError) {
        self.bad_count += 1;
        if self.bad.len() < LISTED {
            self.bad.push(error);
        }
    }
}

/// What an entry is, or what its link leads to. `None` for a link that leads nowhere, unless it is named like an image: then
/// something is missing.
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
    fs::metadata(folder)
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .map_err(io_error(folder))
}

/// The lengths of all files. Asked by several threads, since on a network file system each answer takes a round trip.
fn lengths(root: &Path, keys: &[String]) -> Result<Vec<u64>, SourceError> {
    const THREADS: usize = 16;
    let length = |key: &String| {
        let path = root.join(key);
        fs::metadata(&path)
            .map(|metadata| metadata.len())
            .map_err(io_error(&path))
    };
    let chunk = keys.len().div_ceil(THREADS).max(1000);
    let answers: Vec<Result<Vec<u64>, SourceError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = keys
            .chunks(chunk)
            .map(|keys| scope.spawn(move || keys.iter().map(length).collect()))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("asking for lengths does not panic"))
            .collect()
    });
    answers
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map(|chunks| chunks.concat())
}
