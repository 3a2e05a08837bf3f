//! The two number formats that networks compute in.

use std::fmt;
use std::str::FromStr;

use tch::Device;
use torch_ext::Autocast;

/// In which format matrix products and attention are computed. Parameters, norms, softmax, residual streams and results are f32
/// in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Everything in f32.
    F32,
    /// Matrix products and attention in bf16, as PyTorch's autocast does it.
    Bf16,
}

impl Precision {
    /// The name in recipes, on command lines and in cache identities.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// A guard under which operations of this thread follow this precision; bind it to a variable for the length of the forward.
    pub fn guard(self, device: Device) -> Option<Autocast> {
        match self {
            Precision::F32 => None,
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
            other => Err(format!("{other:?} is no precision; there are f32 and bf16")),
        }
    }
}
