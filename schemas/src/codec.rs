//! Codecs: how feature values become bytes. One trait, and one test that each of them passes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;

mod affine;
mod measure;
mod scalar;

pub use affine::{Affine, Calibrator};
pub use measure::CodecError;
pub use scalar::Scalar;

use scalar::first_word;

/// Values `[n, D]` to bytes and back. Bytes are little-endian and without header, so that `numpy.frombuffer` reads them.
pub trait FeatureCodec {
    /// Its name on the command line and in `teacher.json`.
    fn name(&self) -> &'static str;

    /// Whether every finite value comes back bit for bit.
    fn is_exact(&self) -> bool;

    /// Bytes of `n` tokens of `width` channels.
    fn bytes(&self, n: usize, width: usize) -> usize;

    /// Appends the encoded values `[n, width]` to `bytes`.
    ///
    /// # Errors
    /// [`Unstorable`](crate::Error::Unstorable) for the first value that cannot be held; `bytes` is then as before.
    fn encode(&self, values: &[f32], width: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// Decodes into `values [n, width]`, for callers that own the destination.
    ///
    /// # Errors
    /// [`CodecLength`](crate::Error::CodecLength) if the bytes do not hold exactly these values.
    fn decode_into(&self, bytes: &[u8], width: usize, values: &mut [f32]) -> Result<()>;

    /// Position in `[n, width]` of the first encoded value that no encoder could have written, such as one that is not finite.
    fn first_bad(&self, bytes: &[u8], width: usize) -> Option<usize>;
}

/// How a teacher's features are stored: the field `codec` of `teacher.json`, a name or `{"i8": {...}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// [`Scalar::F32`].
    F32,
    /// [`Scalar::F16`].
    F16,
    /// [`Scalar::Bf16`].
    Bf16,
    /// Tokens as [`Affine`], CLS as f16: it is one token in hundreds, and its channels have ranges of their own.
    I8(Affine),
}

impl Codec {
    /// The names of all codecs of this version, the most exact first.
    pub const NAMES: [&str; 4] = ["f32", "f16", "bf16", "i8"];

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.tokens().name()
    }

    /// How much it keeps: features can be stored again in a codec of a lower rank.
    pub fn exactness(&self) -> usize {
        Codec::NAMES.iter().rev().position(|name| *name == self.name()).unwrap_or(0)
    }

    /// How tokens are stored.
    pub fn tokens(&self) -> &dyn FeatureCodec {
        match self {
            Codec::F32 => &Scalar::F32,
            Codec::F16 => &Scalar::F16,
            Codec::Bf16 => &Scalar::Bf16,
            Codec::I8(affine) => affine,
        }
    }

    /// How the CLS token is stored.
    pub fn cls(&self) -> Scalar {
        match self {
            Codec::F32 => Scalar::F32,
            Codec::F16 | Codec::I8(_) => Scalar::F16,
            Codec::Bf16 => Scalar::Bf16,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    const WIDTH: usize = 40;

    /// One of each, an `i8` with and one without outliers.
    fn all() -> Vec<Codec> {
        let affine = |outliers: &[u32]| {
            Codec::I8(Affine {
                scale: (0..WIDTH).map(|c| 0.25 + c as f32 / 8.0).collect(),
                offset: (0..WIDTH).map(|c| c as f32 - 20.0).collect(),
                outliers: outliers.to_vec(),
                images: 1,
            })
        };
        vec![Codec::F32, Codec::F16, Codec::Bf16, affine(&[]), affine(&[0, 7, 39])]
    }

    fn values(n: usize) -> Vec<f32> {
        (0..n * WIDTH).map(|i| ((i * 7919) % 2003) as f32 * 0.0123 - 12.3).collect()
    }

    /// What every codec promises.
    #[test]
    fn every_codec_conforms() {
        for codec in all() {
            let tokens = codec.tokens();
            for n in [0, 1, 3, 100] {
                let values = values(n);
                let mut bytes = vec![0xee];
                tokens.encode(&values, WIDTH, &mut bytes).unwrap();
                assert_eq!(bytes[0], 0xee, "{codec}: what was there stays");
                assert_eq!(bytes.len(), 1 + tokens.bytes(n, WIDTH), "{codec}: bytes");
                let mut once = vec![f32::NAN; n * WIDTH];
                tokens.decode_into(&bytes[1..], WIDTH, &mut once).unwrap();
                assert!(once.iter().all(|value| value.is_finite()), "{codec}");
                assert_eq!(tokens.first_bad(&bytes[1..], WIDTH), None, "{codec}");
                assert_eq!(once == values, tokens.is_exact() || n == 0, "{codec}");
                // What has been stored once is stored again without further loss.
                let mut again = Vec::new();
                tokens.encode(&once, WIDTH, &mut again).unwrap();
                assert_eq!(again, bytes[1..], "{codec}: encoding is idempotent");
            }
        }
    }

    #[test]
    fn what_cannot_be_stored_is_named_by_position() {
        for codec in all() {
            for (at, bad) in [(0, f32::NAN), (2499, f32::INFINITY), (1024, f32::NEG_INFINITY)] {
                let mut values = values(100);
                values[at] = bad;
                let mut bytes = vec![7];
                match codec.tokens().encode(&values, WIDTH, &mut bytes) {
                    Err(Error::Unstorable { codec: name, position, value }) => {
                        assert_eq!((name, position, value.to_bits()), (codec.name(), at, bad.to_bits()));
                    }
                    other => panic!("{codec} {bad}: {other:?}"),
                }
                assert_eq!(bytes, [7], "{codec}: nothing is left behind");
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        for codec in all() {
            let tokens = codec.tokens();
            let good = vec![0; tokens.bytes(3, WIDTH)];
            tokens.decode_into(&good, WIDTH, &mut [0.0; 3 * WIDTH]).unwrap();
            for (bytes, values) in [(good.len() - 1, 3 * WIDTH), (good.len() + 1, 3 * WIDTH), (good.len(), 2 * WIDTH)] {
                assert!(
                    matches!(
                        tokens.decode_into(&vec![0; bytes], WIDTH, &mut vec![0.0; values]),
                        Err(Error::CodecLength { .. })
                    ),
                    "{codec} {bytes} {values}"
                );
            }
        }
    }

    #[test]
    fn records_are_read_back() {
        for codec in all() {
            let json = serde_json::to_string(&codec).unwrap();
            assert!(json.contains(codec.name()), "{json}");
            assert_eq!(serde_json::from_str::<Codec>(&json).unwrap(), codec);
            assert!(Codec::NAMES.contains(&codec.name()));
        }
        assert!(serde_json::from_str::<Codec>("\"i8\"").is_err());
    }
}
