//! Codecs: how feature values become bytes.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A named way to store values. All are little-endian and without header, so that `numpy.frombuffer` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// IEEE 754 binary32: what the teacher computed, bit for bit.
    F32,
    /// IEEE 754 binary16, rounded to nearest, ties to even.
    F16,
}

/// Values converted at a time: large enough for the vector instructions, small enough for the stack and the first cache.
const BLOCK: usize = 1024;

impl Codec {
    /// Every codec of this version.
    pub const ALL: [Codec; 2] = [Codec::F32, Codec::F16];

    /// Its name on the command line and in `teacher.json`.
    pub fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::F16 => "f16",
        }
    }

    /// Bytes that one value takes.
    pub fn bytes_per_value(self) -> usize {
        match self {
            Codec::F32 => 4,
            Codec::F16 => 2,
        }
    }

    /// The values it can hold, in words.
    pub fn range(self) -> &'static str {
        match self {
            Codec::F32 => "finite values only",
            Codec::F16 => "finite values up to 65504 only",
        }
    }

    /// Appends the encoded values to `bytes`.
    ///
    /// # Errors
    /// [`Error::Unstorable`] for the first value that is not finite or becomes infinite; `bytes` is then as before.
    pub fn encode(self, values: &[f32], bytes: &mut Vec<u8>) -> Result<()> {
        let before = bytes.len();
        bytes.reserve(values.len() * self.bytes_per_value());
        for (block, chunk) in values.chunks(BLOCK).enumerate() {
            let bad = match self {
                Codec::F32 => {
                    bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                    chunk.iter().position(|value| !value.is_finite())
                }
                Codec::F16 => {
                    let mut halves = [f16::ZERO; BLOCK];
                    let halves = &mut halves[..chunk.len()];
                    halves.convert_from_f32_slice(chunk);
                    bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
                    halves.iter().position(|half| !half.is_finite())
                }
            };
            if let Some(i) = bad {
                bytes.truncate(before);
                return Err(Error::Unstorable {
                    codec: self,
                    position: block * BLOCK + i,
                    value: chunk[i],
                });
            }
        }
        Ok(())
    }

    /// Replaces `values` by the decoded bytes.
    ///
    /// # Errors
    /// [`Error::CodecLength`] if the bytes are not a whole number of values.
    pub fn decode(self, bytes: &[u8], values: &mut Vec<f32>) -> Result<()> {
        values.clear();
        values.resize(bytes.len() / self.bytes_per_value(), 0.0);
        self.decode_into(bytes, values)
    }

    /// Decodes into a slice of exactly the right length, for callers that own the destination (a batch's memory).
    ///
    /// # Errors
    /// [`Error::CodecLength`] if the bytes do not hold exactly `values.len()` values.
    pub fn decode_into(self, bytes: &[u8], values: &mut [f32]) -> Result<()> {
        if values.len().checked_mul(self.bytes_per_value()) != Some(bytes.len()) {
            return Err(Error::CodecLength {
                codec: self,
                found: bytes.len(),
                expected: values.len(),
            });
        }
        match self {
            Codec::F32 => {
                for (value, word) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*word);
                }
            }
            Codec::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                for (values, bytes) in values.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                    let halves = &mut halves[..values.len()];
                    for (half, word) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*word);
                    }
                    halves.convert_to_f32_slice(values);
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Codec {
    type Err = String;
    fn from_str(name: &str) -> Result<Codec, String> {
        let known = || Codec::ALL.map(Codec::name).join(", ");
        Codec::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
            .ok_or_else(|| format!("no codec {name:?}; there are {}", known()))
    }
}
