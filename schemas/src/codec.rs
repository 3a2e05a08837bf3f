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
        bytes.resize(before + values.len() * self.bytes_per_value(), 0);
        let blocks = bytes[before..].chunks_mut(BLOCK * self.bytes_per_value());
        let bad = values
            .chunks(BLOCK)
            .zip(blocks)
            .enumerate()
            .find_map(|(i, (values, bytes))| {
                self.encode_block(values, bytes);
                self.first_non_finite(bytes)
                    .map(|within| i * BLOCK + within)
            });
        let Some(position) = bad else { return Ok(()) };
        bytes.truncate(before);
        Err(Error::Unstorable {
            codec: self,
            position,
            value: values[position],
        })
    }

    /// Encodes up to [`BLOCK`] values into exactly their bytes.
    fn encode_block(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Codec::F32 => {
                for (word, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *word = value.to_le_bytes();
                }
            }
            Codec::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                for (word, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                    *word = half.to_le_bytes();
                }
            }
        }
    }

    /// Position of the first encoded value that is not finite. A whole number of values is looked at.
    pub(crate) fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Codec::F32 => first_word(bytes, |word: &[u8; 4]| {
                u32::from_le_bytes(*word) & 0x7f80_0000 == 0x7f80_0000
            }),
            Codec::F16 => first_word(bytes, |word: &[u8; 2]| {
                u16::from_le_bytes(*word) & 0x7c00 == 0x7c00
            }),
        }
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

/// Position of the first word that `bad` holds for. Whole blocks are tested without an early exit, which the compiler makes
/// vector code of; nearly always there is nothing to find.
fn first_word<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    let words = bytes.as_chunks::<N>().0;
    let block = words
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |any, word| any | bad(word)))?;
    let within = words[BLOCK * block..].iter().position(bad)?;
    Some(BLOCK * block + within)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(codec: Codec, values: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0xee];
        codec.encode(values, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 1 + values.len() * codec.bytes_per_value());
        let mut decoded = vec![f32::NAN; 3];
        codec.decode(&bytes[1..], &mut decoded).unwrap();
        decoded
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn f32_is_exact(values in proptest::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 0..3000)) {
            prop_assert_eq!(bits(&round_trip(Codec::F32, &values)), bits(&values));
        }

        #[test]
        fn f16_rounds_to_nearest(values in proptest::collection::vec(-65504.0f32..=65504.0, 0..3000)) {
            for (value, decoded) in values.iter().zip(round_trip(Codec::F16, &values)) {
                // Half a unit in the last of 11 significant bits; below the normal range the unit is 2^-24.
                let bound = (value.abs() / 2048.0).max(f32::powi(2.0, -25));
                prop_assert!((value - decoded).abs() <= bound, "{} became {}", value, decoded);
            }
        }
    }

    #[test]
    fn every_finite_f16_survives() {
        let values: Vec<f32> = (0..=u16::MAX)
            .map(f16::from_bits)
            .filter(|half| half.is_finite())
            .map(f32::from)
            .collect();
        assert_eq!(bits(&round_trip(Codec::F16, &values)), bits(&values));
    }

    #[test]
    fn ties_go_to_even_and_bytes_are_little_endian() {
        let mut bytes = Vec::new();
        // 2049 and 2051 lie half-way between neighbours 2 apart.
        Codec::F16
            .encode(&[2049.0, 2051.0, 1.0], &mut bytes)
            .unwrap();
        assert_eq!(round_trip(Codec::F16, &[2049.0, 2051.0]), [2048.0, 2052.0]);
        assert_eq!(bytes[4..], [0x00, 0x3c]);
    }

    #[test]
    fn what_cannot_be_stored_is_named_by_position() {
        let check = |codec: Codec, at: usize, bad: f32| {
            let mut values = vec![1.0; 2500];
            values[at] = bad;
            let mut bytes = vec![7];
            match codec.encode(&values, &mut bytes) {
                Err(Error::Unstorable {
                    codec: c,
                    position,
                    value,
                }) => {
                    assert_eq!((c, position, value.to_bits()), (codec, at, bad.to_bits()));
                }
                other => panic!("{codec} {bad}: {other:?}"),
            }
            assert_eq!(bytes, [7], "nothing is left behind");
        };
        for codec in Codec::ALL {
            check(codec, 0, f32::NAN);
            check(codec, 2499, f32::INFINITY);
            check(codec, 1024, f32::NEG_INFINITY);
        }
        check(Codec::F16, 1500, 65520.0);
        check(Codec::F16, 3, -1e6);
        assert_eq!(round_trip(Codec::F16, &[65519.0]), [65504.0]);
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        for (codec, infinity) in [
            (Codec::F32, &f32::INFINITY.to_le_bytes()[..]),
            (Codec::F16, &[0x00, 0xfc]),
        ] {
            for position in [0, 1023, 1024, 2499] {
                let mut bytes = Vec::new();
                codec.encode(&vec![-65504.0; 2500], &mut bytes).unwrap();
                assert_eq!(codec.first_non_finite(&bytes), None);
                bytes[position * infinity.len()..][..infinity.len()].copy_from_slice(infinity);
                assert_eq!(codec.first_non_finite(&bytes), Some(position));
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        assert!(matches!(
            Codec::F16.decode(&[0; 3], &mut Vec::new()),
            Err(Error::CodecLength {
                found: 3,
                expected: 1,
                ..
            })
        ));
        assert!(matches!(
            Codec::F32.decode_into(&[0; 8], &mut [0.0; 3]),
            Err(Error::CodecLength {
                found: 8,
                expected: 3,
                ..
            })
        ));
    }

    #[test]
    fn names_are_read_back() {
        for codec in Codec::ALL {
            assert_eq!(codec.name().parse(), Ok(codec));
            assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
        }
        assert_eq!(
            "f64".parse::<Codec>(),
            Err("no codec \"f64\"; there are f32, f16".to_string())
        );
    }
}
