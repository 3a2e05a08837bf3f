//! Numbers stored one by one: `f32`, `f16`, `bf16`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::FeatureCodec;
use crate::{Error, Result};

/// How one number is stored, little-endian, so that `numpy.frombuffer` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scalar {
    /// IEEE 754 binary32: what the teacher computed, bit for bit.
    F32,
    /// IEEE 754 binary16, rounded to nearest, ties to even.
    F16,
    /// The upper half of a binary32, rounded to nearest, ties to even: the range of f32 with 8 significant bits.
    Bf16,
}

/// Values converted at a time: large enough for the vector instructions, small enough for the stack and the first cache.
const BLOCK: usize = 1024;

impl Scalar {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Scalar::F32 => "f32",
            Scalar::F16 => "f16",
            Scalar::Bf16 => "bf16",
        }
    }

    /// Bytes that one value takes.
    pub fn bytes_per_value(self) -> usize {
        match self {
            Scalar::F32 => 4,
            Scalar::F16 | Scalar::Bf16 => 2,
        }
    }

    /// Encodes up to [`BLOCK`] values into exactly their bytes.
    fn encode_block(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Scalar::F32 => {
                for (word, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *word = value.to_le_bytes();
                }
            }
            Scalar::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                for (word, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                    *word = half.to_le_bytes();
                }
            }
            Scalar::Bf16 => {
                for (word, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *word = bf16::from_f32(*value).to_le_bytes();
                }
            }
        }
    }

    /// Position of the first encoded value that is not finite. A whole number of values is looked at.
    pub(crate) fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Scalar::F32 => first_word(bytes, |word: &[u8; 4]| u32::from_le_bytes(*word) & 0x7f80_0000 == 0x7f80_0000),
            Scalar::F16 => first_word(bytes, |word: &[u8; 2]| u16::from_le_bytes(*word) & 0x7c00 == 0x7c00),
            Scalar::Bf16 => first_word(bytes, |word: &[u8; 2]| u16::from_le_bytes(*word) & 0x7f80 == 0x7f80),
        }
    }
}

impl FeatureCodec for Scalar {
    fn name(&self) -> &'static str {
        Scalar::name(*self)
    }

    fn is_exact(&self) -> bool {
        *self == Scalar::F32
    }

    fn bytes(&self, n: usize, width: usize) -> usize {
        n * width * self.bytes_per_value()
    }

    fn encode(&self, values: &[f32], _width: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let before = bytes.len();
        bytes.resize(before + values.len() * self.bytes_per_value(), 0);
        let blocks = bytes[before..].chunks_mut(BLOCK * self.bytes_per_value());
        let bad = values.chunks(BLOCK).zip(blocks).enumerate().find_map(|(i, (values, bytes))| {
            self.encode_block(values, bytes);
            self.first_non_finite(bytes).map(|within| i * BLOCK + within)
        });
        let Some(position) = bad else { return Ok(()) };
        bytes.truncate(before);
        Err(Error::Unstorable { codec: self.name(), position, value: values[position] })
    }

    fn decode_into(&self, bytes: &[u8], _width: usize, values: &mut [f32]) -> Result<()> {
        if values.len().checked_mul(self.bytes_per_value()) != Some(bytes.len()) {
            return Err(Error::CodecLength { codec: self.name(), found: bytes.len(), expected: values.len() });
        }
        match self {
            Scalar::F32 => {
                for (value, word) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*word);
                }
            }
            Scalar::F16 => {
                let mut halves = [f16::ZERO; BLOCK];
                for (values, bytes) in values.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                    let halves = &mut halves[..values.len()];
                    for (half, word) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *half = f16::from_le_bytes(*word);
                    }
                    halves.convert_to_f32_slice(values);
                }
            }
            Scalar::Bf16 => {
                for (value, word) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = bf16::from_le_bytes(*word).to_f32();
                }
            }
        }
        Ok(())
    }

    fn first_bad(&self, bytes: &[u8], _width: usize) -> Option<usize> {
        self.first_non_finite(bytes)
    }
}

/// Position of the first word that `bad` holds for. Whole blocks are tested without an early exit, which the compiler makes
/// vector code of; nearly always there is nothing to find.
pub(super) fn first_word<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    let words = bytes.as_chunks::<N>().0;
    let block = words.chunks(BLOCK).position(|block| block.iter().fold(false, |any, word| any | bad(word)))?;
    let within = words[BLOCK * block..].iter().position(bad)?;
    Some(BLOCK * block + within)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(codec: Scalar, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        codec.encode(values, 1, &mut bytes).unwrap();
        let mut decoded = vec![f32::NAN; values.len()];
        codec.decode_into(&bytes, 1, &mut decoded).unwrap();
        decoded
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn f32_is_exact(values in proptest::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 0..3000)) {
            prop_assert_eq!(bits(&round_trip(Scalar::F32, &values)), bits(&values));
        }

        #[test]
        fn f16_rounds_to_nearest(values in proptest::collection::vec(-65504.0f32..=65504.0, 0..3000)) {
            for (value, decoded) in values.iter().zip(round_trip(Scalar::F16, &values)) {
                // Half a unit in the last of 11 significant bits; below the normal range the unit is 2^-24.
                let bound = (value.abs() / 2048.0).max(f32::powi(2.0, -25));
                prop_assert!((value - decoded).abs() <= bound, "{} became {}", value, decoded);
            }
        }

        #[test]
        fn bf16_rounds_to_nearest(values in proptest::collection::vec(-1e30f32..=1e30, 0..3000)) {
            for (value, decoded) in values.iter().zip(round_trip(Scalar::Bf16, &values)) {
                prop_assert!((value - decoded).abs() <= value.abs() / 256.0, "{} became {}", value, decoded);
            }
        }
    }

    #[test]
    fn every_finite_half_survives() {
        let halves: Vec<f32> =
            (0..=u16::MAX).map(|bits| f32::from(f16::from_bits(bits))).filter(|value| value.is_finite()).collect();
        assert_eq!(bits(&round_trip(Scalar::F16, &halves)), bits(&halves));
        let brains: Vec<f32> =
            (0..=u16::MAX).map(|bits| f32::from(bf16::from_bits(bits))).filter(|value| value.is_finite()).collect();
        assert_eq!(bits(&round_trip(Scalar::Bf16, &brains)), bits(&brains));
    }

    #[test]
    fn ties_go_to_even_and_bytes_are_little_endian() {
        let mut bytes = Vec::new();
        // 2049 and 2051 lie half-way between neighbors 2 apart.
        Scalar::F16.encode(&[2049.0, 2051.0, 1.0], 1, &mut bytes).unwrap();
        assert_eq!(round_trip(Scalar::F16, &[2049.0, 2051.0]), [2048.0, 2052.0]);
        assert_eq!(bytes[4..], [0x00, 0x3c]);
        assert_eq!(round_trip(Scalar::Bf16, &[257.0, 259.0]), [256.0, 260.0]);
    }

    #[test]
    fn f16_ends_at_65504() {
        assert_eq!(round_trip(Scalar::F16, &[65519.0]), [65504.0]);
        assert!(Scalar::F16.encode(&[65520.0], 1, &mut Vec::new()).is_err());
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        for (codec, infinity) in [
            (Scalar::F32, &f32::INFINITY.to_le_bytes()[..]),
            (Scalar::F16, &[0x00, 0xfc]),
            (Scalar::Bf16, &[0x80, 0x7f]),
        ] {
            for position in [0, 1023, 1024, 2499] {
                let mut bytes = Vec::new();
                codec.encode(&vec![-65504.0; 2500], 1, &mut bytes).unwrap();
                assert_eq!(codec.first_non_finite(&bytes), None);
                bytes[position * infinity.len()..][..infinity.len()].copy_from_slice(infinity);
                assert_eq!(codec.first_non_finite(&bytes), Some(position));
            }
        }
    }
}
