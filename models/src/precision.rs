//! The number formats that networks compute in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Device;
use torch_ext::{Autocast, allow_tf32};

use crate::error::{Error, Result};

/// In which format matrix products and attention are computed. Parameters, norms, softmax, residual streams and results are f32
/// in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in f32.
    F32,
    /// Matrix products and attention in bf16, as PyTorch's autocast does it.
    Bf16,
    /// Matrix products and convolutions in TF32: an NVIDIA GPU of 2020 or later reads 10 of the 23 mantissa bits of each f32. Several times
    /// as fast as f32, with an error of about 1e-3.
    Tf32,
}

impl Precision {
    /// All names.
    pub const NAMES: [&str; 3] = ["f32", "bf16", "tf32"];

    /// The name in recipes, on command lines and in cache identities.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Tf32 => "tf32",
        }
    }

    /// Has `device` compute f32 products as this precision says, for the whole process: libtorch keeps the choice of TF32 there, and
    /// backward passes follow it. Call it before the first product.
    ///
    /// # Errors
    /// For TF32 on a CPU, which has none.
    pub fn prepare(self, device: Device) -> Result<()> {
        match (self, device) {
            (Precision::Tf32, Device::Cpu) => Err(Error::Config {
                field: "precision",
                value: "tf32".to_owned(),
                reason: "needs an NVIDIA GPU, and this run is on a CPU: take f32 or bf16, or --device cuda".to_owned(),
            }),
            (_, Device::Cpu) => Ok(()),
            _ => Ok(allow_tf32(self == Precision::Tf32)?),
        }
    }

    /// Bytes of an element in a matrix product.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F32 | Precision::Tf32 => 4,
            Precision::Bf16 => 2,
        }
    }

    /// A guard under which operations of this thread follow this precision; bind it to a variable for the length of the forward.
    pub fn guard(self, device: Device) -> Option<Autocast> {
        match self {
            // See `prepare`.
            Precision::F32 | Precision::Tf32 => None,
            Precision::Bf16 => Some(Autocast::bf16(device)),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            "tf32" => Ok(Precision::Tf32),
            other => Err(format!("{other:?} is not a precision; there are f32, bf16 and, on a GPU, tf32")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let read: Vec<&str> = Precision::NAMES.iter().map(|name| name.parse::<Precision>().unwrap().name()).collect();
        assert_eq!(read, Precision::NAMES);
        assert!("f16".parse::<Precision>().is_err());
    }

    #[test]
    fn a_cpu_has_no_tf32() {
        for precision in [Precision::F32, Precision::Bf16] {
            precision.prepare(Device::Cpu).unwrap();
        }
        let error = Precision::Tf32.prepare(Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("take f32 or bf16"), "{error}");
    }
}
