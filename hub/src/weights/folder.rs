//! Which file of a folder holds the weights.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// Names in the order in which they are looked for. Safetensors come first: reading them is checked more strictly, and hubs
/// keep the older pickles beside them with the same weights.
const SAFETENSORS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];
const OPEN_CLIP: &str = "open_clip_model.safetensors";
const PICKLES: [&str; 3] = ["pytorch_model.bin", "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"];

/// The weights file that `path` stands for: itself, or the first of these in the folder `path`:
///
/// 1. `model.safetensors`, `model.safetensors.index.json`,
/// 2. the only `*.safetensors`, `open_clip_model.safetensors`,
/// 3. `pytorch_model.bin`, `pytorch_model.bin.index.json`, `open_clip_pytorch_model.bin`,
/// 4. the only `*.pth`, `*.pt`, `*.ckpt` or `*.bin`.
///
/// # Errors
/// [`Error::NoWeightsFile`] when there is none, or when several could be meant; it lists them.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let io_error = |source| Error::ReadWeights { path: path.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        // A link, as in a hub's cache, is what it leads to.
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.push(name);
        }
    }
    match preferred(names.iter().map(String::as_str)) {
        Ok(name) => Ok(path.join(name)),
        Err(found) => {
            const UNREAD: [&str; 11] =
                ["h5", "keras", "msgpack", "onnx", "gguf", "ggml", "npz", "npy", "pkl", "tflite", "pb"];
            let is_unread = |name: &&String| {
                let extension = Path::new(name).extension().and_then(|e| e.to_str());
                extension.is_some_and(|e| UNREAD.contains(&e))
            };
            let mut unread: Vec<PathBuf> = (names.iter().filter(is_unread)).map(|name| path.join(name)).collect();
            unread.sort();
            Err(Error::NoWeightsFile {
                folder: path.to_path_buf(),
                found: found.into_iter().map(|name| path.join(name)).collect(),
                unread,
            })
        }
    }
}

/// Which of the files of one folder holds the weights, in the order of [`weights_file`]. Where none does, or several could be
/// meant, those that could, sorted.
pub(crate) fn preferred<'n>(names: impl Iterator<Item = &'n str>) -> Result<&'n str, Vec<&'n str>> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let usual = |name: &&str| names.iter().find(|found| *found == name).copied();
    let with_extension = |extensions: &[&str]| -> Vec<&'n str> {
        let of = |name: &&&str| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str());
            extension.is_some_and(|e| extensions.contains(&e))
        };
        names.iter().filter(of).copied().collect()
    };
    if let Some(name) = SAFETENSORS.iter().find_map(usual) {
        return Ok(name);
    }
    let safetensors = with_extension(&["safetensors"]);
    if let [name] = safetensors[..] {
        return Ok(name);
    }
    if let Some(name) = usual(&OPEN_CLIP) {
        return Ok(name);
    }
    if !safetensors.is_empty() {
        return Err(safetensors);
    }
    if let Some(name) = PICKLES.iter().find_map(usual) {
        return Ok(name);
    }
    let pickles = with_extension(&["pth", "pt", "bin", "ckpt"]);
    match pickles[..] {
        [name] => Ok(name),
        _ => Err(pickles),
    }
}

/// The file that holds the content of `path`, if that is a file of a snapshot in a hub's cache.
pub(super) fn cached_blob(path: &Path) -> Option<PathBuf> {
    let snapshots = path.parent()?.parent()?;
    let model = snapshots.parent()?.file_name()?.to_str()?;
    let cached = snapshots.file_name()? == "snapshots" && model.starts_with("models--");
    // On a system without links the cache holds the file itself in this place.
    cached.then(|| path.canonicalize().ok()).flatten()
}
