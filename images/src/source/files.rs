//! Many shards, few open files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use storage::{File, is_url};

use super::{Sample, file_name, io_error};
use crate::SourceError;

/// Largest number of open shards: sources have thousands, and a process may often open only 1024 files.
const MAX_OPEN: usize = 64;

/// Files by number, the last used of which are open.
pub(super) struct ShardFiles {
    paths: Vec<PathBuf>,
    /// Open files, the last used first.
    open: Mutex<VecDeque<(usize, Arc<File>)>>,
}

impl ShardFiles {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, open: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    pub(super) fn is_remote(&self) -> bool {
        self.paths.iter().any(|path| is_url(path))
    }

    pub(super) fn path(&self, shard: usize) -> &PathBuf {
        &self.paths[shard]
    }

    /// The file. It is shared, so it may only be read by position.
    pub(super) fn get(&self, shard: usize) -> Result<Arc<File>, SourceError> {
        // After a panic elsewhere the list is at worst shorter.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match open.iter().position(|(number, _)| *number == shard) {
            Some(at) => open.remove(at).expect("the position was just found").1,
            None => Arc::new(storage::open(&self.paths[shard]).map_err(io_error(&self.paths[shard]))?),
        };
        open.push_front((shard, file.clone()));
        // An open object takes none of this process's open files, and opening it again takes a round trip.
        if !is_url(&self.paths[shard]) {
            open.truncate(MAX_OPEN);
        }
        Ok(file)
    }
}

/// Makes equal keys in shards of equal names unique: they begin with the shard's path below the longest folder that all shards have in
/// common, instead of with its name.
///
/// Unique keys never change, because caches are joined by them, and a shard that is given twice does not become two. `ranges` are the
/// sample numbers of every shard.
pub(super) fn qualify(paths: &[PathBuf], ranges: &[Range<usize>], samples: &mut [Sample]) -> Result<(), SourceError> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (shard, path) in paths.iter().enumerate() {
        by_name.entry(file_name(path)?).or_default().push(shard);
    }
    let mut files = HashSet::new();
    let mut common: Option<PathBuf> = None;
    let mut twins = Vec::new();
    for shards in by_name.into_values().filter(|shards| shards.len() > 1) {
        files.clear();
        let mut keys = HashSet::new();
        let clash =
            shards.iter().flat_map(|&shard| &samples[ranges[shard].clone()]).any(|sample| !keys.insert(&*sample.key));
        for &shard in &shards {
            files.insert(real(&paths[shard]).map_err(io_error(&paths[shard]))?);
        }
        if clash && files.len() == shards.len() {
            twins.extend(shards);
        }
    }
    if twins.is_empty() {
        return Ok(());
    }
    let absolute: Vec<PathBuf> =
        paths.iter().map(|path| absolute(path).map_err(io_error(path))).collect::<Result<_, _>>()?;
    for path in &absolute {
        let folder = path.parent().unwrap_or(path);
        common = Some(match common {
            Some(common) => common_folder(&common, folder),
            None => folder.to_path_buf(),
        });
    }
    let common = common.unwrap_or_default();
    for shard in twins {
        let path = absolute[shard].strip_prefix(&common).unwrap_or(&absolute[shard]);
        let path = path.to_str().ok_or_else(|| SourceError::NotUtf8 { path: paths[shard].clone() })?;
        let name = file_name(&paths[shard])?;
        for sample in &mut samples[ranges[shard].clone()] {
            sample.key = format!("{path}{}", &sample.key[name.len()..]).into_boxed_str();
        }
    }
    Ok(())
}

/// The one path among all that lead to a file. An object has one name.
fn real(path: &Path) -> std::io::Result<PathBuf> {
    if is_url(path) { Ok(path.to_path_buf()) } else { path.canonicalize() }
}

fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    if is_url(path) { Ok(path.to_path_buf()) } else { std::path::absolute(path) }
}

fn common_folder(one: &Path, other: &Path) -> PathBuf {
    one.components().zip(other.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}
