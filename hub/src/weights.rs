//! Weights files as named tensors: strict in what is accepted.
//!
//! | file | read by |
//! |---|---|
//! | one safetensors file | `safetensors.rs` |
//! | a sharded set with its index, `model.safetensors.index.json` | `sharded.rs` |
//! | a zip archive of `torch.save` (`.pth`, `.pt`, `.bin`) | `torch_zip.rs`, `pickle.rs` |
//!
//! Tensors of types that are not read (booleans in safetensors, 8-bit floats, quantized, sparse or complex ones) are passed over
//! and listed in [`WeightsFile::unread`]. Other formats are recognized by their first bytes.
//!
//! A file from outside may be anything: cut short, hostile, another model's. Reading checks what a file claims against its
//! length before a byte of data is allocated. The tensors themselves are made by the caller's [`Backend`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

pub use ::safetensors::Dtype;
use schemas::hex;
use sha2::{Digest, Sha256};

mod error;
mod folder;
mod format;
mod pickle;
mod safetensors;
mod sharded;
mod torch_zip;

pub use error::{Error, Result};
pub(crate) use folder::preferred;
pub use folder::weights_file;
use format::Format;
pub(crate) use sharded::read_index;

/// Makes the tensors that the bytes of a file fill. Errors are reasons, without the name of the tensor.
pub trait Backend {
    /// A tensor in the host's memory.
    type Tensor;

    /// A new row-major tensor. Every dimension comes from a file and may be absurd.
    fn empty(dtype: Dtype, shape: &[i64]) -> Result<Self::Tensor, String>;

    /// The bytes of a tensor that [`Backend::empty`] made, to be filled with little-endian elements.
    fn bytes(tensor: &mut Self::Tensor) -> Result<&mut [u8], String>;

    /// A view of a one-dimensional tensor, in elements. It was checked to lie within `storage`.
    fn view(storage: &Self::Tensor, shape: &[i64], strides: &[i64], offset: i64) -> Result<Self::Tensor, String>;
}

/// Contents of a weights file or a sharded set, with tensors in the types of the file.
#[derive(Debug)]
pub struct WeightsFile<T> {
    /// The file that was read (never the folder); the index of a sharded set.
    pub path: PathBuf,
    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// For a sharded set it is the SHA-256 over one line per shard, `<name>  <SHA-256>` and a line feed, sorted by name: the lines
    /// of `sha256sum` with the columns exchanged. The index has no part in it, since it holds no weights.
    pub sha256: String,
    /// Tensors by name.
    pub tensors: BTreeMap<String, T>,
    /// Tensors of types that are not read, with the file's word for the type.
    pub unread: BTreeMap<String, String>,
    /// The free-text entries of a safetensors header; empty for other files.
    pub metadata: BTreeMap<String, String>,
}

impl<T> WeightsFile<T> {
    /// Reads the weights `path`: a file, or the one that a folder stands for (see [`weights_file`]).
    ///
    /// The format is told from the content and not from the name: safetensors, the index of a sharded set (a JSON object with
    /// `weight_map`), or a zip archive of `torch.save`. Tensors of an archive are named by the dictionary keys on the way to
    /// them, joined by dots; nothing in it is run.
    ///
    /// # Errors
    /// Files that cannot be read, that are damaged or that contradict each other, and formats that are not read, with the way to
    /// convert them.
    pub fn read<B: Backend<Tensor = T>>(path: &Path) -> Result<WeightsFile<T>> {
        let path = weights_file(path)?;
        let read = Format::of(&path).and_then(|format| match format {
            Format::Safetensors => safetensors::read::<B>(&path),
            Format::Torch => archive::<B>(path),
            Format::Index => sharded::read::<B>(&path),
        });
        read.map(WeightsFile::unwrapped).map_err(in_hub_cache)
    }

    /// Takes the parts out of the names that `torch.compile`, sharding and checkpointing of activations put there, anywhere. Where
    /// two names would become one, all stay as they are.
    fn unwrapped(self) -> WeightsFile<T> {
        const WRAPPERS: [&str; 4] =
            ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];
        let bare = |name: &str| {
            let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
            parts.collect::<Vec<_>>().join(".")
        };
        let all = || self.tensors.keys().chain(self.unread.keys());
        let distinct: BTreeSet<String> = all().map(|name| bare(name)).collect();
        if distinct.len() != all().count() {
            return self;
        }
        let tensors = self.tensors.into_iter();
        let unread = self.unread.into_iter();
        WeightsFile {
            tensors: tensors.map(|(name, t)| (bare(&name), t)).collect(),
            unread: unread.map(|(name, dtype)| (bare(&name), dtype)).collect(),
            ..self
        }
    }

    /// Refuses the file if a tensor that `is_needed` was passed over.
    ///
    /// # Errors
    /// [`Error::UnsupportedType`] names the first and counts the others.
    pub fn require_read(&self, is_needed: impl Fn(&str) -> bool) -> Result<()> {
        let mut needed = self.unread.iter().filter(|(name, _)| is_needed(name));
        let Some((tensor, dtype)) = needed.next() else {
            return Ok(());
        };
        Err(Error::UnsupportedType {
            path: self.path.clone(),
            tensor: tensor.clone(),
            dtype: dtype.clone(),
            others: needed.count(),
        })
    }
}

/// Adds to a damaged file in a hub's cache how to have it fetched again.
fn in_hub_cache(error: Error) -> Error {
    let (Error::BadSafetensors { path, .. }
    | Error::BadTorchFile { path, .. }
    | Error::NotWeights { path, .. }
    | Error::BadIndex { path, .. }) = &error
    else {
        return error;
    };
    match folder::cached_blob(path) {
        Some(blob) => Error::DamagedDownload { blob, damage: Box::new(error) },
        None => error,
    }
}

/// Reads an archive of `torch.save`, hashed first.
fn archive<B: Backend>(path: PathBuf) -> Result<WeightsFile<B::Tensor>> {
    let io_error = |source| Error::ReadWeights { path: path.clone(), source };
    let mut file = File::open(&path).map_err(io_error)?;
    let sha256 = sha256_of(&mut file).map_err(io_error)?;
    let (tensors, unread) = torch_zip::read::<B>(file).map_err(|refusal| match refusal {
        pickle::Refusal::Unsupported(what) => {
            Error::UnreadFormat { next_step: error::convert_in_python(&path), path: path.clone(), what }
        }
        pickle::Refusal::Foreign(what) => {
            Error::UnreadFormat { path: path.clone(), what, next_step: format::GET_SAFETENSORS.to_owned() }
        }
        pickle::Refusal::Damaged(reason) => Error::BadTorchFile { path: path.clone(), reason },
        pickle::Refusal::Harmful(function) => Error::HarmfulTorchFile { path: path.clone(), function },
    })?;
    Ok(WeightsFile { path, sha256, tensors, unread, metadata: BTreeMap::new() })
}

/// SHA-256 of a file from its beginning, in hexadecimal; leaves it at its beginning.
fn sha256_of(file: &mut File) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => sha256.update(&buffer[..n]),
        }
    }
    file.rewind()?;
    Ok(hex(&sha256.finalize()))
}
