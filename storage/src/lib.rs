//! Files by path or URL, behind one blocking interface.
//!
//! A path whose text begins with a scheme and `://` names an object of an object store; any other path is a local file, for which these
//! functions do what `std::fs` does. Callers keep to [`Path`]: `join`, `parent` and `file_name` work on URLs too.
//!
//! | scheme | store | settings |
//! |---|---|---|
//! | `s3` | Amazon S3 and what speaks its protocol | `AWS_*`, and the profile of `~/.aws/config` and `~/.aws/credentials` |
//! | `gs` | Google Cloud Storage | `GOOGLE_*`, and the application default credentials |
//! | `az` | Azure Blob Storage, `az://CONTAINER/KEY` | `AZURE_*` |
//! | `http`, `https` | any web server, to read whole names only | |
//!
//! What differs from a disk:
//!
//! - There are no folders: a folder exists if an object lies below it. Nothing is renamed: an object appears whole when its upload ends.
//! - [`put_new`] and [`replace`] are atomic among all machines, where a disk has exclusive creation and locks.
//! - A request that fails in a way that may pass is repeated, with pauses that grow and vary, for about a minute. What fails then is an
//!   [`io::Error`] of kind [`TimedOut`](io::ErrorKind::TimedOut), however it failed.
//! - Bytes are not checked here: formats that carry hashes check them, and ask [`File::read_again_at`] for another copy.

mod ahead;
mod aws_profile;
mod blocks;
mod client;
mod error;
mod file;
mod list;
mod memory;
mod place;
mod retry;
mod scan;
mod settings;
mod stores;
mod write;

pub use ahead::{in_parallel, prefetch};
pub use blocks::BlockCache;
pub use file::File;
pub use list::{Entry, Listed, list, walk};
pub use memory::new_bucket;
pub use place::{is_url, parent_url};
pub use scan::{Scan, Scanner};
pub use settings::{CacheFolder, Settings};
pub use stores::{configure, scratch, temporary};
pub use write::{Version, put, put_new, read_versioned, remove, remove_tree, replace, upload};

use std::io;
use std::path::Path;
use std::time::SystemTime;

use place::Place;

/// How often bytes that turn out to be damaged are fetched again before they count as what the store has.
pub const COPIES: usize = 5;

/// What is known of a file without reading it.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// Bytes.
    pub len: u64,
    /// When it was written, by the clock of what stores it.
    pub modified: Option<SystemTime>,
    /// A folder, on a local disk alone.
    pub is_dir: bool,
}

/// Length and time of a file.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is none; what keeps it from being asked.
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    match Place::of(path)? {
        Place::Local(path) => {
            let found = std::fs::metadata(path)?;
            Ok(Metadata { len: found.len(), modified: found.modified().ok(), is_dir: found.is_dir() })
        }
        Place::Remote(place) => {
            let found = place.head()?;
            Ok(Metadata { len: found.size, modified: Some(found.last_modified.into()), is_dir: false })
        }
    }
}

/// Whether there is a file, or on a local disk a folder, of this name.
///
/// # Errors
/// What keeps it from being asked.
pub fn exists(path: &Path) -> io::Result<bool> {
    match Place::of(path)? {
        Place::Local(path) => path.try_exists(),
        Place::Remote(place) => match place.head() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        },
    }
}

/// Opens a file to read it.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if there is none; what keeps it from being read.
pub fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// All bytes of a file.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    match Place::of(path)? {
        Place::Local(path) => std::fs::read(path),
        Place::Remote(place) => match ahead::take_whole(path) {
            Some(bytes) => Ok(bytes.into()),
            None => Ok(place.get()?.0.into()),
        },
    }
}
