//! Pretrained models as files: found by path or by Hugging Face id (`openai/clip-vit-base-patch16`, `org/name@revision`), and
//! their [`weights`] read as named tensors. No tensor library: who reads weights says how a tensor is made.
//!
//! [`resolve`] looks, in this order, at
//!
//! 1. the file system: an existing path is what was meant, and where only the folder before the slash exists, a mistyped one
//!    (`org/name@main` is always an id);
//! 2. the local cache in huggingface_hub's layout, which other tools fill too: `models--org--name/{blobs,refs,snapshots}`;
//! 3. the hub, unless that is forbidden, and stores what it fetches in that cache.
//!
//! The weights ([`weights::weights_file`] says which file) and the configurations beside them are fetched by commit. A download that breaks is resumed, by this program or another, and a file becomes visible when its hash is the one
//! the hub states. What the cache knows of a branch is used without asking whether the branch has moved: a build that resumes
//! must see the weights it began with. To follow a branch, name the new commit or refresh the cache with `hf download`.
//!
//! The client is ureq with rustls: 13 crates in each program, no async runtime. hf-hub 1.0 brings more than 230, and its
//! version 0.4 neither resumes nor checks hashes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod cache;
mod client;
mod download;
mod error;
mod settings;
pub mod weights;

use cache::Repo;
pub use error::Error;
pub use settings::{HubSettings, Secret};

#[cfg(test)]
mod tests;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a text stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// An existing file or folder; for an id, the snapshot's folder in the cache.
    pub path: PathBuf,
    /// For the record: the path as it was given, or `org/name@<commit>`.
    pub source: String,
}

/// What a download is doing. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The hub is asked about a model.
    Asking {
        /// `org/name@revision`.
        model: &'a str,
        /// The hub's host.
        host: &'a str,
    },
    /// Another process is fetching the same file.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// Bytes of a file are here. Said at its beginning, at least every few hundred kilobytes, and when all are here.
    Bytes {
        /// The file.
        file: &'a str,
        /// How many; more than none at the beginning of a download that is resumed.
        done: u64,
        /// Of how many.
        size: u64,
    },
    /// A request failed and will be made again.
    Retrying {
        /// Why.
        reason: &'a str,
        /// After which time.
        pause: Duration,
    },
    /// The hub cannot be asked; weights of the cache are used, though files beside them may be missing there.
    Unconfirmed {
        /// `org/name@commit`.
        model: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// Receives the progress, and may ask to stop.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// The file or folder that `text` stands for: a path, or a model's id with or without a revision (a branch, tag or commit;
/// `main` without). Blocks while it fetches, and while another process fetches the same file.
///
/// # Errors
/// See [`Error`]. What has arrived of an unfinished file stays in the cache.
pub fn resolve(text: &str, settings: &HubSettings, progress: &mut OnProgress<'_>) -> Result<Resolved> {
    if Path::new(text).exists() {
        return Ok(Resolved { path: text.into(), source: text.to_owned() });
    }
    let Some(id) = ModelId::parse(text) else {
        return Err(Error::NoSuchPath { text: text.to_owned() });
    };
    // A folder of that name makes a slip of the pen likelier than an id; what the cache has was fetched on purpose.
    let parent = Path::new(text).parent().filter(|parent| parent.is_dir());
    let is_cached = || {
        let repo = settings.cache.as_ref().map(|cache| Repo::new(cache, &id));
        repo.is_some_and(|repo| repo.commit_of(&id.revision).is_some())
    };
    if let Some(parent) = parent.filter(|_| !text.contains('@') && !is_cached()) {
        return Err(Error::NotInFolder { text: text.to_owned(), parent: format!("{}/", parent.display()) });
    }
    if looks_like_a_path(text) && !is_cached() {
        return Err(Error::PathLike { text: text.to_owned() });
    }
    let Some(cache) = &settings.cache else {
        return Err(Error::NoCacheFolder { text: text.to_owned() });
    };
    let repo = Repo::new(cache, &id);
    let resolved = |commit: &str| Resolved { path: repo.snapshot(commit), source: format!("{}@{commit}", id.name) };

    let known = repo.commit_of(&id.revision);
    if let Some(commit) = known.as_deref().filter(|commit| repo.is_complete(commit)) {
        return Ok(resolved(commit));
    }
    // Other tools fetch less than is needed to be sure; without a hub that is better than nothing.
    let usable = known.as_deref().filter(|commit| repo.has_weights(commit));
    match (fetch(&repo, &id, known.as_deref(), settings, progress), usable) {
        (Ok(commit), _) => Ok(resolved(&commit)),
        (Err(error), Some(commit)) => {
            let reason = match &error {
                Error::Offline { .. } => "nothing may be fetched",
                Error::Unreachable { reason, .. } => reason,
                _ => return Err(error),
            };
            let found = resolved(commit);
            let model = &found.source;
            match progress(Progress::Unconfirmed { model, reason }) {
                ControlFlow::Continue(()) => Ok(found),
                ControlFlow::Break(()) => Err(Error::Interrupted { id: id.name }),
            }
        }
        (Err(error), None) => Err(error),
    }
}

/// Fetches what the cache lacks and returns the commit; `known` is the one that the cache knows the revision by.
fn fetch(
    repo: &Repo,
    id: &ModelId,
    known: Option<&str>,
    settings: &HubSettings,
    progress: &mut OnProgress<'_>,
) -> Result<String> {
    if settings.offline {
        return Err(Error::Offline {
            id: id.name.clone(),
            revision: id.revision.clone(),
            cache: repo.cache().to_path_buf(),
        });
    }
    download::fetch(repo, id, known, settings, progress)
}

/// A model on a hub, in a form that is safe in paths and URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelId {
    /// `org/name`.
    name: String,
    /// Branch, tag or commit.
    revision: String,
}

impl ModelId {
    /// `org/name` or `org/name@revision`, by the hub's rules for names; `None` for what cannot be one.
    fn parse(text: &str) -> Option<ModelId> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, model) = name.split_once('/')?;
        let plain = |part: &str| {
            (1..=96).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                // `--` stands for the slash in the cache's folder names.
                && !part.contains("--")
                && !part.contains("..")
        };
        let of_revision = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
                && !part.starts_with('.')
                && !part.contains("..")
        };
        let fits = plain(org) && plain(model) && revision.len() <= 200 && revision.split('/').all(of_revision);
        fits.then(|| ModelId { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// Whether `text`, which might be a model's id, rather names a file or something in a folder of runs or weights.
fn looks_like_a_path(text: &str) -> bool {
    const FILES: [&str; 9] = ["safetensors", "pth", "pt", "ckpt", "bin", "json", "toml", "npz", "onnx"];
    const FOLDERS: [&str; 8] = ["runs", "checkpoints", "teachers", "models", "weights", "out", "output", "outputs"];
    let path = Path::new(text);
    let extension = path.extension().and_then(|extension| extension.to_str());
    let folder = text.split('/').next();
    !text.contains('@')
        && (extension.is_some_and(|of| FILES.iter().any(|file| of.eq_ignore_ascii_case(file)))
            || folder.is_some_and(|of| FOLDERS.contains(&of)))
}

/// Whether `text` is a commit's full name: 40 digits of lower-case hexadecimal.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
