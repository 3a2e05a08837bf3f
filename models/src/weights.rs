//! Weights files as libtorch's tensors: read through [`hub::weights`], written as safetensors alone.
//!
//! [`Weights::require`] compares every name and shape with what a network needs and reports all differences at once: one line
//! per tensor tells a wrong file from a half-copied one.
//!
//! Format: <https://github.com/huggingface/safetensors>, header length (u64, little endian), JSON header, data.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

pub use hub::weights::weights_file;
use hub::weights::{Backend, Error as FileError, WeightsFile};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Mismatch, Misshaped, Result};

#[cfg(test)]
mod tests;

/// Refuses tensors of the file `path`, each with its name there, that hold NaN or infinities: nothing could be computed with them, and
/// what is would blame the data.
///
/// # Errors
/// [`FileError::NotFinite`] names the first and counts the others.
pub(crate) fn require_finite<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    let mut bad = tensors.into_iter().filter(|(_, t)| !is_finite(t));
    let Some((first, _)) = bad.next() else {
        return Ok(());
    };
    Err(FileError::NotFinite { path: path.to_path_buf(), tensor: first.to_owned(), others: bad.count() }.into())
}

/// Makes tensors of libtorch, on the CPU.
struct Torch;

impl Backend for Torch {
    type Tensor = Tensor;

    fn empty(dtype: Dtype, shape: &[i64]) -> Result<Tensor, String> {
        let kind = kind_of(dtype).ok_or_else(|| format!("type {dtype:?} is not read"))?;
        Tensor::f_empty(shape, (kind, Device::Cpu)).map_err(first_line)
    }

    // Values come as bytes, because tch takes bf16 slices for f16.
    fn bytes(tensor: &mut Tensor) -> Result<&mut [u8], String> {
        torch_ext::tensor_bytes_mut(tensor).map_err(|e| e.to_string())
    }

    fn view(storage: &Tensor, shape: &[i64], strides: &[i64], offset: i64) -> Result<Tensor, String> {
        storage.f_as_strided(shape, strides, offset).map_err(first_line)
    }
}

/// An error of libtorch carries its C++ stack; the first line says what is wrong.
fn first_line(error: tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The tensors of a weights file or a sharded set, on the CPU and in the types of the file.
#[derive(Debug)]
pub struct Weights(WeightsFile<Tensor>);

impl Weights {
    /// Reads the weights `path`: a file, or the one that a folder stands for (see [`weights_file`]).
    ///
    /// # Errors
    /// Those of [`WeightsFile::read`].
    pub fn read(path: &Path) -> Result<Weights> {
        Ok(Weights(WeightsFile::read::<Torch>(path)?))
    }

    /// The file that was read (never the folder); the index of a sharded set.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// SHA-256 of the whole file, in hexadecimal; for a sharded set see [`WeightsFile::sha256`].
    pub fn sha256(&self) -> &str {
        &self.0.sha256
    }

    /// The free-text entries of a safetensors header; empty for other files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// Names in bytewise order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.tensors.keys().map(String::as_str)
    }

    /// How many tensors the file holds.
    pub fn len(&self) -> usize {
        self.0.tensors.len()
    }

    /// Whether the file holds no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.0.tensors.is_empty()
    }

    /// Names of the tensors that were passed over, since their type is not read.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.0.unread.keys().map(String::as_str)
    }

    /// Refuses the file if a tensor that `is_needed` was passed over.
    pub(crate) fn require_read(&self, is_needed: impl Fn(&str) -> bool) -> Result<()> {
        Ok(self.0.require_read(is_needed)?)
    }

    /// A tensor by name, in the type of the file.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.tensors.get(name)
    }

    /// All tensors by name, for [`ParamStore::load`](crate::params::ParamStore::load).
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.0.tensors
    }

    /// Checks that the file holds exactly the `expected` names and shapes, apart from names for which `ignored` is true.
    ///
    /// All differences are reported in one [`Error::WeightsMismatch`]. A tensor that is expected and of a type that is not read is
    /// a [`FileError::UnsupportedType`].
    pub fn require(&self, expected: &BTreeMap<String, Vec<i64>>, ignored: impl Fn(&str) -> bool) -> Result<()> {
        self.require_read(|name| expected.contains_key(name))?;
        let mut mismatch = Mismatch::default();
        for (name, shape) in expected {
            match self.0.tensors.get(name) {
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
        let unexpected = self.0.tensors.iter().filter(|(name, _)| !expected.contains_key(*name) && !ignored(name));
        mismatch.unexpected = unexpected.map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsMismatch { origin: self.0.path.display().to_string(), mismatch })
    }
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

/// The types that both libtorch and the file format have.
const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F64, Kind::Double),
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == dtype).map(|(_, kind)| *kind)
}

fn dtype_of(name: &str, tensor: &Tensor) -> Result<Dtype> {
    let kind = tensor.kind();
    // Booleans are not written: safetensors files of ours hold numbers.
    let dtype = KINDS.iter().find(|(_, known)| *known == kind && kind != Kind::Bool).map(|(dtype, _)| *dtype);
    dtype.ok_or_else(|| {
        let reason = format!("tensor {name} is of type {kind:?}, which the file format lacks here");
        Error::WriteWeights { source: io::Error::other(reason) }
    })
}
