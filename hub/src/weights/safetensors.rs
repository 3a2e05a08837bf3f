//! Safetensors files: header length (u64, little endian), JSON header, data.
//!
//! Format: <https://github.com/huggingface/safetensors>.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use schemas::hex;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::{Backend, WeightsFile};

/// Longest header that is parsed, as the format has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the file `path` once, front to back; its SHA-256 is taken from the same bytes that become the tensors.
pub(super) fn read<B: Backend>(path: &Path) -> Result<WeightsFile<B::Tensor>> {
    let io_error = |source| Error::ReadWeights { path: path.to_path_buf(), source };
    let malformed = |reason: String| Error::BadSafetensors { path: path.to_path_buf(), reason };

    let file = File::open(path).map_err(io_error)?;
    let file_len = file.metadata().map_err(io_error)?.len();
    let mut reader = HashingReader { inner: BufReader::with_capacity(1 << 20, file), sha256: Sha256::new() };

    let mut header_len = [0; 8];
    if file_len < 8 {
        return Err(malformed(format!("the file has {file_len} bytes, too few for a header")));
    }
    reader.read_exact(&mut header_len).map_err(io_error)?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > MAX_HEADER_BYTES || header_len > file_len - 8 {
        return Err(malformed(format!("the header claims {header_len} bytes in a file of {file_len}")));
    }
    let mut header = vec![0; header_len as usize];
    reader.read_exact(&mut header).map_err(io_error)?;
    // Deserializing validates: offsets without gaps or overlaps, each span as long as its shape and type say.
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| match unknown_type(&header) {
        Some((tensor, dtype)) => Error::UnsupportedType { path: path.to_path_buf(), tensor, dtype, others: 0 },
        None => malformed(format!("the header is damaged: {e}")),
    })?;
    let expected_len = (header.data_len() as u64).checked_add(8 + header_len);
    if expected_len != Some(file_len) {
        return Err(malformed(match expected_len {
            Some(len) => {
                format!("the header describes {len} bytes but the file has {file_len}")
            }
            None => "the header describes more bytes than any file can have".to_string(),
        }));
    }

    let (mut tensors, mut unread) = (BTreeMap::new(), BTreeMap::new());
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else {
            continue;
        };
        if !is_read(info.dtype) {
            let (start, end) = info.data_offsets;
            let len = (end - start) as u64;
            io::copy(&mut reader.by_ref().take(len), &mut io::sink()).map_err(io_error)?;
            unread.insert(name, info.dtype.to_string());
            continue;
        }
        let named = |reason: String| malformed(format!("tensor {name}: {reason}"));
        // Bounded by the length of the file, checked above.
        let mut tensor = B::empty(info.dtype, &shape(info).map_err(named)?).map_err(named)?;
        reader.read_exact(B::bytes(&mut tensor).map_err(named)?).map_err(io_error)?;
        tensors.insert(name, tensor);
    }
    let sha256 = hex(&reader.sha256.finalize());
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok(WeightsFile { path: path.to_path_buf(), sha256, tensors, unread, metadata })
}

/// A tensor whose type no version of the format that is known here has, with the type. `header` is JSON, or there is none.
fn unknown_type(header: &[u8]) -> Option<(String, String)> {
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.into_iter().find_map(|(tensor, info)| {
        let dtype = info.get("dtype")?;
        let is_known = serde_json::from_value::<Dtype>(dtype.clone()).is_ok();
        (!is_known).then(|| (tensor, dtype.as_str().unwrap_or_default().to_owned()))
    })
}

fn is_read(dtype: Dtype) -> bool {
    use Dtype::{BF16, F16, F32, F64, I8, I16, I32, I64, U8};
    matches!(dtype, F64 | F32 | F16 | BF16 | I64 | I32 | I16 | I8 | U8)
}

fn shape(info: &TensorInfo) -> Result<Vec<i64>, String> {
    let dims = info.shape.iter().map(|&dim| i64::try_from(dim));
    dims.collect::<Result<_, _>>().map_err(|_| format!("the shape {:?} is impossible", info.shape))
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
