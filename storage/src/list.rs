//! What lies in a folder, or below it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures_util::TryStreamExt;

use crate::error::explain;
use crate::place::{Place, Remote};
use crate::retry::patiently;

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name; on a local disk as far as it is UTF-8.
    pub name: String,
    /// The whole path or URL.
    pub path: PathBuf,
    /// A folder, or a link to one.
    pub is_dir: bool,
}

/// An object below a URL.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its URL.
    pub path: PathBuf,
    /// Its name below the URL that was walked.
    pub key: String,
    /// Bytes.
    pub len: u64,
    /// When it was written, by the clock of the store.
    pub modified: SystemTime,
}

/// The names in a folder, in no particular order.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is no such folder: in a bucket, if no object lies below it.
pub fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    let place = match Place::of(folder)? {
        Place::Local(folder) => return local(folder),
        Place::Remote(place) => place,
    };
    refuse_web_server(&place)?;
    let prefix = Some(&place.key).filter(|key| !key.as_ref().is_empty());
    let found = patiently(|| place.store.list_with_delimiter(prefix)).map_err(explain)?;
    let entry = |key: &object_store::path::Path, is_dir| {
        Some(Entry { name: key.filename()?.to_owned(), path: place.url_of(key), is_dir })
    };
    let folders = found.common_prefixes.iter().filter_map(|key| entry(key, true));
    // An object with the folder's own name lies beside it, and one without a name is what tools make to show an empty folder.
    let objects = found.objects.iter().filter(|object| object.location != place.key);
    let entries: Vec<_> = folders.chain(objects.filter_map(|object| entry(&object.location, false))).collect();
    if entries.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(entries) }
}

fn refuse_web_server(place: &Remote) -> io::Result<()> {
    match place.bucket.starts_with("http") {
        true => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a web server does not list its files: name them, with braces where they are numbered",
        )),
        false => Ok(()),
    }
}

fn local(folder: &Path) -> io::Result<Vec<Entry>> {
    let entry = |entry: io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        let path = entry.path();
        Ok(Entry { name: entry.file_name().to_string_lossy().into_owned(), is_dir: path.is_dir(), path })
    };
    std::fs::read_dir(folder)?.map(entry).collect()
}

/// Every object below a URL, sorted folder by folder; none if there is nothing.
///
/// # Errors
/// What keeps it from being listed. Web servers do not list.
pub fn walk(url: &Path) -> io::Result<Vec<Listed>> {
    let Place::Remote(place) = Place::of(url)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a URL"));
    };
    refuse_web_server(&place)?;
    let prefix = Some(&place.key).filter(|key| !key.as_ref().is_empty());
    let found: Vec<_> = patiently(|| place.store.list(prefix).try_collect()).map_err(explain)?;
    let below = |key: &str| match place.key.as_ref() {
        "" => Some(key.to_owned()),
        folder => Some(key.strip_prefix(folder)?.strip_prefix('/')?.to_owned()),
    };
    let mut listed: Vec<_> = found
        .into_iter()
        .filter_map(|object| {
            let key = below(object.location.as_ref())?;
            let modified = object.last_modified.into();
            Some(Listed { path: place.url_of(&object.location), key, len: object.size, modified })
        })
        .collect();
    // Folder by folder: what lies in one is together, and comes after an object of its name.
    listed.sort_unstable_by(|a, b| a.key.split('/').cmp(b.key.split('/')));
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_server_is_not_asked_for_a_list() {
        for url in ["http://127.0.0.1:1/data", "https://host/"] {
            let refused = [list(Path::new(url)).unwrap_err(), walk(Path::new(url)).unwrap_err()];
            assert!(refused.iter().all(|error| error.to_string().contains("with braces")), "{refused:?}");
        }
    }
}
