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
    let io_error = |source| Error::ReadWeights {
        path: path.to_path_buf(),
        source,
    };
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
        Err(found) => Err(Error::NoWeightsFile {
            folder: path.to_path_buf(),
            found: found.into_iter().map(|name| path.join(name)).collect(),
        }),
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
    let pickles = with_extension(&["pth", "pt", "bin"]);
    match pickles[..] {
        [name] => Ok(name),
        _ => Err(pickles),
    }
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
    /// [`Error::UnreadFormat`] for what torch wrote before its version 1.6, [`Error::NotWeights`] for what downloads leave in the
    /// place of weights.
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
        if let Some((what, next_step)) = no_weights(&head) {
            return Err(Error::NotWeights {
                path: path.to_path_buf(),
                what,
                next_step,
            });
        }
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

/// What a file is that a download left in the place of weights, going by its first bytes, and the next step.
fn no_weights(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start();
    let begins = |with: &[u8]| {
        text.get(..with.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(with))
    };
    if begins(b"version https://git-lfs.github.com/spec/") {
        return Some((
            "a pointer of Git LFS",
            "fetch the file that it stands for with `git lfs pull` in its repository, or download it from the hub",
        ));
    }
    let page = begins(b"<!doctype html") || begins(b"<html") || begins(b"<?xml");
    page.then_some((
        "a web page",
        "the download was answered by an error or a login instead of the file. Download it again",
    ))
}
