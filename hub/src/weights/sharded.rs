//! Sharded sets: an index that says which file holds which tensor.
//!
//! `{"metadata": {..}, "weight_map": {"<tensor>": "<file beside the index>"}}`, as transformers and huggingface_hub write it.
//! The shards are safetensors files or archives of `torch.save`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use schemas::hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::{Backend, Format, WeightsFile, archive, safetensors};

/// A thousand tensors take about 100 kB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    #[serde(deserialize_with = "unique")]
    weight_map: BTreeMap<String, String>,
}

/// A map whose keys differ; a plain one would keep the last of two equal keys.
fn unique<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;
    impl<'de> serde::de::Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of tensor names and file names")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, file)) = from.next_entry::<String, String>()? {
                if let Some(other) = map.get(&name) {
                    let twice = format!("tensor {name} is claimed by {other} and {file}");
                    return Err(serde::de::Error::custom(twice));
                }
                map.insert(name, file);
            }
            Ok(map)
        }
    }
    from.deserialize_map(Unique)
}

/// Reads the set of the index `path`. Its shards lie in the same folder.
///
/// # Errors
/// [`Error::BadIndex`] for an index that is damaged or does not say exactly what the shards hold; the shards' own errors.
pub(super) fn read<B: Backend>(path: &Path) -> Result<WeightsFile<B::Tensor>> {
    let bad = |reason: String| Error::BadIndex { path: path.to_path_buf(), reason };
    let map = read_index(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let files: BTreeSet<&str> = map.values().map(String::as_str).collect();

    let (mut tensors, mut unread) = (BTreeMap::new(), BTreeMap::new());
    let mut hashes = Sha256::new();
    for file in files {
        let shard = folder.join(file);
        if !shard.is_file() {
            let count = map.values().filter(|other| *other == file).count();
            let first = map.iter().find(|(_, other)| *other == file);
            let first = first.map(|(name, _)| name.as_str()).unwrap_or_default();
            return Err(bad(format!("shard {file} is missing, with {count} tensors such as {first}")));
        }
        let shard = match Format::of(&shard)? {
            Format::Safetensors => safetensors::read::<B>(&shard)?,
            Format::Torch => archive::<B>(shard)?,
            Format::Index => return Err(bad(format!("shard {file} is an index"))),
        };
        hashes.update(format!("{file}  {}\n", shard.sha256));
        for name in shard.tensors.keys().chain(shard.unread.keys()) {
            match map.get(name) {
                Some(owner) if owner == file => {}
                Some(owner) => {
                    return Err(bad(format!("tensor {name} is in shard {file}, and the index places it in {owner}")));
                }
                None => {
                    return Err(bad(format!("tensor {name} in shard {file} is not in the index")));
                }
            }
        }
        tensors.extend(shard.tensors);
        unread.extend(shard.unread);
    }
    let is_there = |name: &String| tensors.contains_key(name) || unread.contains_key(name);
    if let Some((name, file)) = map.iter().find(|(name, _)| !is_there(name)) {
        return Err(bad(format!("shard {file} lacks tensor {name}")));
    }
    Ok(WeightsFile {
        path: path.to_path_buf(),
        sha256: hex(&hashes.finalize()),
        tensors,
        unread,
        metadata: BTreeMap::new(),
    })
}

/// Tensor names and the plain file names of their shards.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text))
        .map_err(|source| Error::ReadWeights { path: path.to_path_buf(), source })?;
    let bad = |reason: String| Error::BadIndex { path: path.to_path_buf(), reason };
    if text.len() as u64 > MAX_INDEX_BYTES {
        return Err(bad(format!("an index of more than {MAX_INDEX_BYTES} bytes")));
    }
    let keys = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text);
    if keys.is_ok_and(|keys| !keys.contains_key("weight_map")) {
        return Err(Error::NotWeights {
            path: path.to_path_buf(),
            what: "a JSON file without a weight_map, so no index of a sharded set,",
            next_step: "name the weights file, or the folder that holds it",
        });
    }
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| bad(format!("this is not the index of a sharded set: {e}")))?;
    for (name, file) in &index.weight_map {
        // Backslashes separate on other systems, where the same index may be read.
        if file.is_empty() || file == "." || file == ".." || file.contains(['/', '\\', '\0', ':']) {
            return Err(bad(format!("tensor {name} is placed in {file:?}, which is not a plain file name")));
        }
    }
    if index.weight_map.is_empty() {
        return Err(bad("the index lists no tensor".to_owned()));
    }
    Ok(index.weight_map)
}
