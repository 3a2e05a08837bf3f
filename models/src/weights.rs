//! Safetensors files as named tensors: strict in what is accepted, deterministic in what is written.
//!
//! A file from outside may be anything: cut short, hostile, another model's. Reading checks the header against the length of
//! the file before a byte of data is allocated, and [`Weights::require`] compares every name and shape with what a network
//! needs and reports all differences at once: one line per tensor tells a wrong file from a half-copied one.
//!
//! Format: <https://github.com/huggingface/safetensors>, header length (u64, little endian), JSON header, data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Mismatch, Misshaped, Result};

#[cfg(test)]
mod tests;

/// Longest header that is parsed: a thousand times that of a ViT-L, and small enough to parse from an unknown file.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// The tensors of one safetensors file, on the CPU and in the types of the file.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    sha256: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the safetensors file `path`, or the one in the folder `path` (see [`weights_file`]).
    ///
    /// The file is read once, front to back; its SHA-256 is taken from the same bytes that become the tensors.
    pub fn read(path: &Path) -> Result<Weights> {
        let path = weights_file(path)?;
        let io_error = |source| Error::ReadWeights {
            path: path.clone(),
            source,
        };
        let malformed = |reason: String| Error::BadSafetensors {
            path: path.clone(),
            reason,
        };

        let file = File::open(&path).map_err(io_error)?;
        let file_len = file.metadata().map_err(io_error)?.len();
        let mut reader = HashingReader {
            inner: BufReader::with_capacity(1 << 20, file),
            sha256: Sha256::new(),
        };

        let mut header_len = [0; 8];
        if file_len < 8 {
            return Err(malformed(format!(
                "the file has {file_len} bytes, too few for a header"
            )));
        }
        reader.read_exact(&mut header_len).map_err(io_error)?;
        let header_len = u64::from_le_bytes(header_len);
        if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
            return Err(malformed(format!(
                "the header claims {header_len} bytes in a file of {file_len}"
            )));
        }
        let mut header = vec![0; header_len as usize];
        reader.read_exact(&mut header).map_err(io_error)?;
        // Deserializing validates: offsets without gaps or overlaps, each span as long as its shape and type say.
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| malformed(format!("the header is damaged: {e}")))?;
        let expected_len = (header.data_len() as u64).checked_add(8 + header_len);
        if expected_len != Some(file_len) {
            return Err(malformed(match expected_len {
                Some(len) => {
                    format!("the header describes {len} bytes but the file has {file_len}")
                }
                None => "the header describes more bytes than any file can have".to_string(),
            }));
        }

        let mut tensors = BTreeMap::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else {
                continue;
            };
            // Bounded by the length of the file, checked above.
            let mut tensor = empty_tensor(info)
                .map_err(|reason| malformed(format!("tensor {name}: {reason}")))?;
            let bytes = torch_ext::tensor_bytes_mut(&mut tensor)?;
            reader.read_exact(bytes).map_err(io_error)?;
            tensors.insert(name, tensor);
        }
        let sha256 = hex(&reader.sha256.finalize());
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        Ok(Weights {
            path,
            sha256,
            tensors,
            metadata,
        })
    }

    /// The file that was read (never the folder).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the whole file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The header's free-text entries.
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
    /// All differences are reported in one [`Error::WeightsMismatch`].
    pub fn require(
        &self,
        expected: &BTreeMap<String, Vec<i64>>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let mut mismatch = Mismatch::default();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => mismatch.missing.push((name.clone(), shape.clone())),
                Some(tensor) if tensor.size() != *shape => mismatch.misshaped.push(Misshaped {
                    name: name.clone(),
                    found: tensor.size(),
                    expected: shape.clone(),
                }),
                Some(tensor) if !tensor.is_floating_point() => {
                    mismatch.not_float.push((name.clone(), tensor.kind()))
                }
                Some(_) => {}
            }
        }
        let unexpected = self
            .tensors
            .iter()
            .filter(|(name, _)| !expected.contains_key(*name) && !ignored(name));
        mismatch.unexpected = unexpected
            .map(|(name, tensor)| (name.clone(), tensor.size()))
            .collect();
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsMismatch {
            origin: self.path.display().to_string(),
            mismatch,
        })
    }
}

/// The safetensors file that `path` stands for: itself, or `model.safetensors` in it, or the only `*.safetensors` in it.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let usual = path.join("model.safetensors");
    if usual.is_file() {
        return Ok(usual);
    }
    let io_error = |source| Error::ReadWeights {
        path: path.to_path_buf(),
        source,
    };
    let mut found = BTreeSet::new();
    for entry in path.read_dir().map_err(io_error)? {
        let file = entry.map_err(io_error)?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            found.insert(file);
        }
    }
    match found.first() {
        Some(file) if found.len() == 1 => Ok(file.clone()),
        _ => Err(Error::NoWeightsFile {
            folder: path.to_path_buf(),
            found: found.into_iter().collect(),
        }),
    }
}

/// Writes tensors as a safetensors file, streaming: at most one tensor is copied at a time.
///
/// The bytes depend only on the arguments: tensors go by descending element size, then name (which aligns each one for
/// readers that map the file), and there is at most one `metadata` entry (key, text), since readers keep those in a hash map.
pub fn write(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<(&str, &str)>,
) -> Result<()> {
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
        infos.push((
            (*name).clone(),
            TensorInfo {
                dtype: *dtype,
                shape,
                data_offsets: (offset, end),
            },
        ));
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
    out.write_all(&bytes)
        .map_err(|source| Error::WriteWeights { source })?;
    for (dtype, _, tensor) in order {
        bytes.clear();
        bytes.resize(tensor.numel() * dtype.bitsize() / 8, 0);
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        out.write_all(&bytes)
            .map_err(|source| Error::WriteWeights { source })?;
    }
    Ok(())
}

/// [`write()`] into memory, for small sets of tensors.
pub fn to_bytes(
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<(&str, &str)>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes, tensors, metadata)?;
    Ok(bytes)
}

/// A tensor to fill, of the file's type. Values come as bytes, because tch takes bf16 slices for f16.
fn empty_tensor(info: &TensorInfo) -> std::result::Result<Tensor, String> {
    let kind = match info.dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        other => return Err(format!("the type {other} is not one this program reads")),
    };
    let mut shape = Vec::with_capacity(info.shape.len());
    for &dim in &info.shape {
        shape.push(
            i64::try_from(dim).map_err(|_| format!("the shape {:?} is impossible", info.shape))?,
        );
    }
    // An error of libtorch carries its C++ stack; the first line says what is wrong.
    Tensor::f_empty(&shape, (kind, Device::Cpu))
        .map_err(|e| e.to_string().lines().next().unwrap_or_default().to_string())
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
            let source = io::Error::other(format!(
                "tensor {name} is of type {other:?}, which the file format lacks here"
            ));
            return Err(Error::WriteWeights { source });
        }
    })
}

struct HashingReader<R> {
    inner: R,
    sha256: Sha256,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.sha256.update(&buf[..n]);
        Ok(n)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
