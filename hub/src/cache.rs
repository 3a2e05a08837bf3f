//! The cache's layout, as huggingface_hub has it:
//!
//! ```text
//! CACHE/models--org--name/blobs/<etag>                    contents, under the hash that the hub states; `<etag>.incomplete` grows
//!                         snapshots/<commit>/<file>       links to ../../blobs/<etag>
//!                         refs/<revision>                 the commit of a branch or tag
//!                         .no_exist/<commit>/<file>       empty: the commit has no such file
//! CACHE/.locks/models--org--name/<etag>.lock              locked while a blob is fetched
//! ```
//!
//! Names of the hub reach this file checked: commits and etags are hexadecimal, files are plain names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{ModelId, is_commit};
use crate::weights::{read_index, weights_file};

/// The files beside the weights that say something about a tower.
pub(super) const CONFIGS: [&str; 4] =
    ["config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json"];

/// A model's folder in the cache, which need not exist.
#[derive(Debug)]
pub(super) struct Repo {
    cache: PathBuf,
    folder: String,
}

impl Repo {
    pub(super) fn new(cache: &Path, id: &ModelId) -> Repo {
        Repo { cache: cache.to_path_buf(), folder: format!("models--{}", id.name.replace('/', "--")) }
    }

    /// The cache's folder.
    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    fn root(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    fn ref_file(&self, revision: &str) -> PathBuf {
        self.root().join("refs").join(revision)
    }

    fn absence_mark(&self, commit: &str, file: &str) -> PathBuf {
        self.root().join(".no_exist").join(commit).join(file)
    }

    /// The commit that the cache knows a revision by.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let mut text = String::new();
        // Whatever is wrong with the record, the hub is asked instead.
        let file = File::open(self.ref_file(revision)).ok()?;
        file.take(64).read_to_string(&mut text).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Whether a commit's weights are here, all shards of them.
    pub(super) fn has_weights(&self, commit: &str) -> bool {
        let snapshot = self.snapshot(commit);
        if !snapshot.is_dir() {
            return false;
        }
        let Ok(file) = weights_file(&snapshot) else {
            return false;
        };
        if file.extension().is_none_or(|e| e != "json") {
            return true;
        }
        read_index(&file).is_ok_and(|map| map.values().all(|shard| snapshot.join(shard).is_file()))
    }

    /// Whether nothing that a teacher is made of can be missing: the weights are here, and of each configuration it is known
    /// that it is here or that the commit has none.
    ///
    /// Other tools fetch what they need, often no preprocessor; a teacher without it would get the pixels of a default, or
    /// other features than where the cache was filled by this program.
    pub(super) fn is_complete(&self, commit: &str) -> bool {
        let snapshot = self.snapshot(commit);
        let has = |file: &str| snapshot.join(file).is_file();
        let settled = |file: &&str| has(file) || self.absence_mark(commit, file).is_file();
        self.has_weights(commit) && CONFIGS.iter().all(settled)
    }
}

mod publish;
pub(super) use publish::disk;
