//! Many shards, few open files.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::io_error;
use crate::SourceError;

/// Most shards that are held open: sources have thousands, and a process may often open only 1024 files.
const MAX_OPEN: usize = 64;

/// Files by number, of which the last used are open.
pub(super) struct ShardFiles {
    paths: Vec<PathBuf>,
    /// The last used at the front.
    open: Mutex<VecDeque<(usize, Arc<File>)>>,
}

impl ShardFiles {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            open: Mutex::default(),
        }
    }

    pub(super) fn path(&self, shard: usize) -> &PathBuf {
        &self.paths[shard]
    }

    /// The file, to be read by position only: it is shared.
    pub(super) fn get(&self, shard: usize) -> Result<Arc<File>, SourceError> {
        // A poisoned lock guards nothing worse than a shorter list.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match open.iter().position(|(number, _)| *number == shard) {
            Some(at) => open.remove(at).expect("the position was just found").1,
            None => Arc::new(File::open(&self.paths[shard]).map_err(io_error(&self.paths[shard]))?),
        };
        open.push_front((shard, file.clone()));
        open.truncate(MAX_OPEN);
        Ok(file)
    }
}
