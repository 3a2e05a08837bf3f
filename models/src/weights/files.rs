//! Which file of a folder holds the weights, and what kind of file it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names in the order in which they are looked for. Safetensors come first: reading them is checked more strictly, and hubs
/// keep the older pickles beside them with the same weights.
const SAFETENSORS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];
const OPEN_CLIP: &str = "open_clip_model.safetensors";
const PICKLES: [&str; 3] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
];

/// The weights file that `path` stands for: itself, or the first of these in the folder `path`:
///
/// 1. `model.safetensors`, `model.safetensors.index.json`,
/// 2. the only `*.safetensors`, `open_clip_model.safetensors`,
/// 3. `pytorch_model.bin`, `pytorch_model.bin.index.json`, `open_clip_pytorch_model.bin`,
/// 4. the only `*.pth`, `*.pt` or `*.bin`.
///
/// # Errors
/// [`Error::NoWeightsFile`] when there is none, or when several could be meant; it lists them.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let usual = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
    if let Some(file) = SAFETENSORS.into_iter().find_map(usual) {
        return Ok(file);
    }
    let safetensors = with_extension(path, &["safetensors"])?;
    if let [file] = &safetensors[..] {
        return Ok(file.clone());
    }
    if let Some(file) = usual(OPEN_CLIP) {
        return Ok(file);
    }
    let ambiguous = |found| Error::NoWeightsFile {
        folder: path.to_path_buf(),
        found,
    };
    if !safetensors.is_empty() {
        return Err(ambiguous(safetensors));
    }
    if let Some(file) = PICKLES.into_iter().find_map(usual) {
        return Ok(file);
    }
    let pickles = with_extension(path, &["pth", "pt", "bin"])?;
    match &pickles[..] {
        [file] => Ok(file.clone()),
        _ => Err(ambiguous(pickles)),
    }
}

/// The files of a folder with one of these extensions, sorted.
fn with_extension(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let io_error = |source| Error::ReadWeights {
        path: folder.to_path_buf(),
        source,
    };
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(io_error)? {
        let file = entry.map_err(io_error)?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| extensions.contains(&extension)) && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// Kinds of files that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One safetensors file, or what calls itself so.
    Safetensors,
    /// A zip archive.
    Torch,
    /// The JSON index of a sharded set.
    Index,
}

impl Format {
    /// Looks at the first bytes of `path`.
    ///
    /// # Errors
    /// [`Error::UnreadFormat`] for what torch wrote before its version 1.6.
    pub(super) fn of(path: &Path) -> Result<Format> {
        // The pickle of 0x1950a86a20f9469cfc6c, in protocol 2 and in those that begin with a frame or not.
        const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(512).read_to_end(&mut head))
            .map_err(|source| Error::ReadWeights {
                path: path.to_path_buf(),
                source,
            })?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        let unread = |what| {
            Err(Error::UnreadFormat {
                path: path.to_path_buf(),
                what,
            })
        };
        let legacy = head.first() == Some(&0x80)
            && head
                .windows(LEGACY.len())
                .take(16)
                .any(|bytes| bytes == LEGACY);
        match extension {
            _ if head.starts_with(b"PK\x03\x04") => Ok(Format::Torch),
            Some("json") => Ok(Format::Index),
            Some("safetensors") => Ok(Format::Safetensors),
            _ if legacy => unread("in the format that torch.save wrote before version 1.6"),
            _ if head.get(257..262) == Some(b"ustar") => {
                unread("a tar archive, as the first versions of torch.save wrote")
            }
            Some("pth" | "pt" | "bin" | "ckpt" | "pkl") => {
                unread("no zip archive, unlike the files of torch.save since version 1.6")
            }
            _ => Ok(Format::Safetensors),
        }
    }
}
