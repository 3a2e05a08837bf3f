//! Weights files as named tensors: strict in what is accepted, deterministic in what is written.
//!
//! | file | read by |
//! |---|---|
//! | one safetensors file | `safetensors_file.rs` |
//! | a sharded set with its index, `model.safetensors.index.json` | `sharded.rs` |
//! | a zip archive of `torch.save` (`.pth`, `.pt`, `.bin`) | `torch_zip.rs`, `pickle.rs` |
//!
//! Tensors of types that are not read (booleans in safetensors, 8-bit floats, quantized, sparse or complex ones) are passed over, and
//! refused by name and type where one is needed. Other formats are told by their first bytes.
//!
//! Written is safetensors alone. A file from outside may be anything: cut short, hostile, another model's. Reading checks what a
//! file claims against its length before a byte of data is allocated, and [`Weights::require`] compares every name and shape with what a network
//! needs and reports all differences at once: one line per tensor tells a wrong file from a half-copied one.
//!
//! Format: <https://github.com/huggingface/safetensors>, header length (u64, little endian), JSON header, data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::error::{Error, Mismatch, Misshaped, Result, convert_in_python};
use crate::hub;

mod files;
mod pickle;
mod safetensors_file;
mod sharded;
mod torch_zip;

use files::Format;
#[cfg(feature = "hub")]
pub(crate) use files::preferred;
pub use files::weights_file;
pub(crate) use sharded::read_index;

/// Refuses tensors of the file `path`, each with its name there, that hold NaN or infinities: nothing could be computed with them, and
/// what is would blame the data.
///
/// # Errors
/// [`Error::NotFinite`] names the first and counts the others.
pub(crate) fn require_finite<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    let mut bad = tensors.into_iter().filter(|(_, t)| !is_finite(t));
    let Some((first, _)) = bad.next() else {
        return Ok(());
    };
    Err(Error::NotFinite { path: path.to_path_buf(), tensor: first.to_owned(), others: bad.count() })
}

#[cfg(test)]
mod tests;

/// The tensors of a weights file or a sharded set, on the CPU and in the types of the file.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    sha256: String,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors of types that are not read, with the file's word for the type.
    unread: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the weights `path`: a file, or the one that a folder stands for (see [`weights_file`]).
    ///
    /// What a file is shows in its content and not in its name: safetensors, the index of a sharded set (a JSON object with
    /// `weight_map`), or a zip archive of `torch.save`. Tensors of an archive are named by the dictionary keys on the way to
    /// them, joined by dots; nothing in it is run.
    ///
    /// # Errors
    /// Files that cannot be read, that are damaged or that contradict each other, and formats that are not read, with the way to
    /// convert them.
    pub fn read(path: &Path) -> Result<Weights> {
        let path = files::weights_file(path)?;
        let read = Format::of(&path).and_then(|format| match format {
            Format::Safetensors => safetensors_file::read(&path),
            Format::Torch => archive(path),
            Format::Index => sharded::read(&path),
        });
        read.map(Weights::unwrapped).map_err(in_hub_cache)
    }

    /// Takes the parts out of the names that `torch.compile`, sharding and checkpointing of activations put there, anywhere. Where
    /// two names would become one, all stay as they are.
    fn unwrapped(self) -> Weights {
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
        Weights {
            tensors: tensors.map(|(name, t)| (bare(&name), t)).collect(),
            unread: unread.map(|(name, dtype)| (bare(&name), dtype)).collect(),
            ..self
        }
    }

    /// The file that was read (never the folder); the index of a sharded set.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// Of a sharded set it is the SHA-256 over one line per shard, `<name>  <SHA-256>` and a line feed, sorted by name: the lines
    /// of `sha256sum` with the columns exchanged. The index has no part in it, since it holds no weights.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The free-text entries of a safetensors header; empty for other files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names in bytewise order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors the file holds.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the file holds no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names of the tensors that were passed over, since their type is not read.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.keys().map(String::as_str)
    }

    /// Refuses the file if a tensor that `is_needed` was passed over.
    ///
    /// # Errors
    /// [`Error::UnsupportedType`] names the first and counts the others.
    pub(crate) fn require_read(&self, is_needed: impl Fn(&str) -> bool) -> Result<()> {
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

    /// A tensor by name, in the type of the file.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All tensors by name, for [`ParamStore::load`](crate::params::ParamStore::load).
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Checks that the file holds exactly the `expected` names and shapes, apart from names for which `ignored` is true.
    ///
    /// All differences are reported in one [`Error::WeightsMismatch`]. A tensor that is expected and of a type that is not read is
    /// an [`Error::UnsupportedType`].
    pub fn require(&self, expected: &BTreeMap<String, Vec<i64>>, ignored: impl Fn(&str) -> bool) -> Result<()> {
        self.require_read(|name| expected.contains_key(name))?;
        let mut mismatch = Mismatch::default();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => mismatch.missing.push((name.clone(), shape.clone())),
                Some(tensor) if tensor.size() != *shape => mismatch.misshaped.push(Misshaped {
                    name: name.clone(),
                    found: tensor.size(),
                    expected: shape.clone(),
                }),
                Some(tensor) if !tensor.is_floating_point() => mismatch.not_float.push((name.clone(), tensor.kind())),
                Some(_) => {}
            }
        }
        let unexpected = self.tensors.iter().filter(|(name, _)| !expected.contains_key(*name) && !ignored(name));
        mismatch.unexpected = unexpected.map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsMismatch { origin: self.path.display().to_string(), mismatch })
    }
}

/// Says of a damaged file in a hub's cache how to have it fetched again.
fn in_hub_cache(error: Error) -> Error {
    let (Error::BadSafetensors { path, .. }
    | Error::BadTorchFile { path, .. }
    | Error::NotWeights { path, .. }
    | Error::BadIndex { path, .. }) = &error
    else {
        return error;
    };
    match hub::cached_blob(path) {
        Some(blob) => Error::DamagedDownload { blob, damage: Box::new(error) },
        None => error,
    }
}

/// An archive of `torch.save`, hashed and then read.
fn archive(path: PathBuf) -> Result<Weights> {
    let io_error = |source| Error::ReadWeights { path: path.clone(), source };
    let mut file = File::open(&path).map_err(io_error)?;
    let sha256 = sha256_of(&mut file).map_err(io_error)?;
    let (tensors, unread) = torch_zip::read(file).map_err(|refusal| match refusal {
        pickle::Refusal::Unsupported(what) => {
            Error::UnreadFormat { next_step: convert_in_python(&path), path: path.clone(), what }
        }
        pickle::Refusal::Foreign(what) => {
            Error::UnreadFormat { path: path.clone(), what, next_step: files::GET_SAFETENSORS.to_owned() }
        }
        pickle::Refusal::Damaged(reason) => Error::BadTorchFile { path: path.clone(), reason },
        pickle::Refusal::Harmful(function) => Error::HarmfulTorchFile { path: path.clone(), function },
    })?;
    Ok(Weights { path, sha256, tensors, unread, metadata: BTreeMap::new() })
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

/// Writes tensors as a safetensors file, streaming: at most one tensor is copied at a time.
///
/// The bytes depend only on the arguments: tensors go by descending element size, then name (which aligns each one for
/// readers that map the file), and there is at most one `metadata` entry (key, text), since readers keep those in a hash map.
pub fn write(out: &mut dyn Write, tensors: &BTreeMap<String, Tensor>, metadata: Option<(&str, &str)>) -> Result<()> {
    let mut order = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        order.push((dtype_of(name, tensor)?, name, tensor));
    }
    order.sort_by_key(|(dtype, name, _)| (std::cmp::Reverse(dtype.bitsize()), *name));

    let mut infos = Vec::with_capacity(order.len());
    let mut offset = 0;
    for (dtype, name, tensor) in &order {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        let end = offset + tensor.numel() * dtype.bitsize() / 8;
        infos.push(((*name).clone(), TensorInfo { dtype: *dtype, shape, data_offsets: (offset, end) }));
        offset = end;
    }
    let metadata = metadata.map(|(key, text)| [(key.to_string(), text.to_string())].into());
    let header = Metadata::new(metadata, infos).map_err(io::Error::other);
    let header = header.and_then(|header| serde_json::to_vec(&header).map_err(io::Error::other));
    let mut header = header.map_err(|source| Error::WriteWeights { source })?;
    // The data begins at a multiple of 8 bytes; the format allows trailing spaces in the header.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    out.write_all(&bytes).map_err(|source| Error::WriteWeights { source })?;
    for (dtype, _, tensor) in order {
        bytes.clear();
        bytes.resize(tensor.numel() * dtype.bitsize() / 8, 0);
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        out.write_all(&bytes).map_err(|source| Error::WriteWeights { source })?;
    }
    Ok(())
}

/// [`write()`] into memory, for small sets of tensors.
pub fn to_bytes(tensors: &BTreeMap<String, Tensor>, metadata: Option<(&str, &str)>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}

fn dtype_of(name: &str, tensor: &Tensor) -> Result<Dtype> {
    Ok(match tensor.kind() {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        other => {
            let source =
                io::Error::other(format!("tensor {name} is of type {other:?}, which the file format lacks here"));
            return Err(Error::WriteWeights { source });
        }
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
