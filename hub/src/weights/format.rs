//! What kind of file holds the weights, by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::{Error, Result, convert_in_python};

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

/// The next step for what nothing here or in torch converts.
pub(super) const GET_SAFETENSORS: &str =
    "Get the weights as safetensors, or save the network's state dict with torch.save";

/// Formats of weights and containers that begin with bytes of their own.
const FOREIGN: [(&[u8], &str); 17] = [
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write (.h5)"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"lmgg", "a GGML file"),
    (b"tjgg", "a GGML file"),
    (b"fmgg", "a GGML file"),
    (b"ftrt", "a TensorRT engine"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"PAR1", "a Parquet file"),
];

/// Whether the first bytes can be those of a safetensors file: a length, and JSON.
fn begins_as_safetensors(head: &[u8]) -> bool {
    matches!(head, [_, _, _, _, 0, 0, 0, 0, b'{' | b' ', ..])
}

/// ONNX's message begins with its version (field 1), and then its producer (2) or its graph (7).
fn begins_as_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, 1..=20, 0x12 | 0x3a, ..])
}

impl Format {
    /// Looks at the first bytes of `path`.
    ///
    /// # Errors
    /// [`Error::UnreadFormat`] for other formats, [`Error::NotWeights`] for what downloads leave in the place of weights.
    pub(super) fn of(path: &Path) -> Result<Format> {
        // The pickle of 0x1950a86a20f9469cfc6c, in protocol 2 and in those that begin with a frame or not.
        const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(512).read_to_end(&mut head))
            .map_err(|source| Error::ReadWeights { path: path.to_path_buf(), source })?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        if head.is_empty() && !matches!(extension, Some("safetensors" | "json")) {
            return Err(Error::NotWeights {
                path: path.to_path_buf(),
                what: "an empty file",
                next_step: "copy or download it again",
            });
        }
        let unread = |what: &str, next_step: String| {
            Err(Error::UnreadFormat { path: path.to_path_buf(), what: what.to_owned(), next_step })
        };
        let foreign = |what: &str| unread(what, GET_SAFETENSORS.to_owned());
        if head.starts_with(b"PK\x03\x04") {
            return Ok(Format::Torch);
        }
        if begins_as_safetensors(&head) {
            return Ok(Format::Safetensors);
        }
        if let Some((what, next_step)) = no_weights(&head) {
            return Err(Error::NotWeights { path: path.to_path_buf(), what, next_step });
        }
        if let Some((magic, what)) = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)) {
            return match *magic {
                b"\x1f\x8b" | b"\x28\xb5\x2f\xfd" | b"\xfd7zXZ\0" | b"BZh" | b"7z\xbc\xaf\x27\x1c" | b"Rar!" => {
                    unread(what, "Unpack it, and name what was in it".to_owned())
                }
                _ => foreign(what),
            };
        }
        let is_pickle = matches!(head[..], [0x80, 2..=5, ..]);
        let legacy = is_pickle && head.windows(LEGACY.len()).take(16).any(|bytes| bytes == LEGACY);
        let in_python = || convert_in_python(path);
        match extension {
            Some("json") => Ok(Format::Index),
            _ if legacy => unread(
                "in the format that torch.save wrote before version 1.6",
                in_python(),
            ),
            _ if head.get(257..262) == Some(b"ustar") => unread(
                "a tar archive",
                format!(
                    "If it was packed with tar, unpack it. If the first versions of torch.save wrote it: {}",
                    in_python()
                ),
            ),
            _ if is_pickle => unread(
                "a Python pickle that torch.save did not write",
                "Only what wrote it knows what is in it: load it there, and save the network's state dict with torch.save".to_owned(),
            ),
            _ if extension == Some("onnx") || begins_as_onnx(&head) => foreign("an ONNX graph"),
            _ if head.get(4..8) == Some(b"TFL3") => foreign("a TensorFlow Lite file"),
            Some("msgpack") => foreign("a msgpack file, as Flax writes"),
            Some("pb" | "index" | "data-00000-of-00001") => foreign("a file of TensorFlow"),
            Some("safetensors") => Ok(Format::Safetensors),
            Some("pth" | "pt" | "bin" | "ckpt" | "pkl") => unread(
                "no zip archive, unlike the files of torch.save since version 1.6",
                in_python(),
            ),
            _ if head.len() < 9 => Ok(Format::Safetensors),
            _ => foreign("neither safetensors nor an archive of torch.save"),
        }
    }
}

/// What a file is that a download left in the place of weights, going by its first bytes, and the next step.
fn no_weights(head: &[u8]) -> Option<(&'static str, &'static str)> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let text = text.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
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
