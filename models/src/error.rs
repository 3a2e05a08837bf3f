//! What can be wrong with what comes from outside: weights, configurations, teacher targets.
//!
//! A tensor of the wrong shape that our own code made is a bug of ours and panics inside tch; nothing here is for that.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use tch::Kind;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing a caller would do differently about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The names or shapes of a set of weights are not those of the network: wrong architecture, or wrong file.
    #[error("{origin}: the weights do not fit the network\n{mismatch}")]
    WeightsMismatch {
        /// Where the weights came from, as the user knows it (usually a path).
        origin: String,
        /// Everything that does not fit, not only the first.
        mismatch: Mismatch,
    },

    /// A configuration describes no network (a width that the heads do not divide, an image that is no whole number of patches).
    #[error("{field} = {value}: {reason}")]
    Config {
        /// The field of the configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why it cannot be, and what would do.
        reason: String,
    },

    /// Tensors could not be written.
    #[error("weights cannot be written")]
    WriteWeights {
        /// What the receiving side says.
        source: io::Error,
    },

    /// The names in a weights file are not those of any tower known here.
    #[error(
        "{path:?} holds no vision tower in a known layout (CLIP of Hugging Face, OpenAI, open_clip or timm; ViT, DINO, DINOv2 and \
         DINOv3 of Hugging Face, timm or their own code; SigLIP of Hugging Face). {}", begins(*count, first)
    )]
    UnknownLayout {
        /// The weights file.
        path: PathBuf,
        /// How many tensors it holds.
        count: usize,
        /// The first few names.
        first: Vec<String>,
    },

    /// A file holds several networks of one kind, and nothing tells which is meant.
    #[error(
        "{path:?} holds {} networks, whose tensors begin with {prefixes:?}, and nothing says which is meant. Save one in a file of its own: \
         python -c 'import torch; x = torch.load({path:?}, map_location=\"cpu\", weights_only=True); torch.save(x[\"NAME\"], \"one.pth\")'",
        prefixes.len()
    )]
    SeveralNetworks {
        /// The weights file.
        path: PathBuf,
        /// What precedes the names of each.
        prefixes: Vec<String>,
    },

    /// Something about a teacher that its tensors cannot tell is not written beside them.
    #[error("{}. {next_step}", unsaid(path, fact, *exists))]
    MissingFact {
        /// The file that should say it.
        path: PathBuf,
        /// Whether there is such a file.
        exists: bool,
        /// What is not said.
        fact: &'static str,
        /// How to say it.
        next_step: String,
    },

    /// Several such things, each a [`Error::MissingFact`]: whoever has to write them down should hear of all at once.
    #[error("{} things about this teacher are not written beside its weights:{}", .0.len(), one_a_line(.0))]
    MissingFacts(Vec<Error>),

    /// A teacher's config.json or preprocessor file cannot be used.
    #[error("{path:?}: {reason}")]
    TeacherConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would do.
        reason: String,
    },

    /// Features of layer `proj` were asked of a file that has no visual projection.
    #[error(
        "{path:?}: no features of layer proj, because {reason}. Use layer last or last_norm, or the file of the whole model"
    )]
    NoProjection {
        /// The weights file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// A teacher was given images that it cannot cut into patches.
    #[error(
        "teacher input is {found}; needed are u8 pixels [N, 3, H, W], H and W multiples of the patch size {patch_size}"
    )]
    TeacherInput {
        /// Type and shape that were given.
        found: String,
        /// The teacher's patch size.
        patch_size: u32,
    },

    /// A student cannot be written as another package's model.
    #[error("format {format} cannot hold this student: {reason}")]
    CannotExport {
        /// The format.
        format: &'static str,
        /// Why, and what would do.
        reason: String,
    },

    /// The names in a weights file are not those of any student that can be read.
    #[error(
        "{path:?} holds no student in a known layout (MAE, ConvMAE, timm's ViT, transformers' ViT and ViTMAE). {}", begins(*count, first)
    )]
    NoStudent {
        /// The weights file.
        path: PathBuf,
        /// How many tensors it holds.
        count: usize,
        /// The first few names.
        first: Vec<String>,
    },

    /// The config.json beside a student's weights describes another network.
    #[error("{path:?}: {reason}")]
    StudentConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would do.
        reason: String,
    },

    /// A weights file cannot be used.
    #[error(transparent)]
    WeightsFile(#[from] hub::weights::Error),

    /// The libtorch side failed.
    #[error(transparent)]
    TorchExt(#[from] torch_ext::Error),
}

/// What a weights file holds instead of a known layout.
fn begins(count: usize, first: &[String]) -> String {
    match count {
        0 => "It holds no tensors by name: at its top must be a dict of names and tensors (a state_dict), or one within it".to_owned(),
        1 => format!("Its only tensor is {first:?}"),
        count => format!("Its {count} tensors begin with {first:?}"),
    }
}

/// Tells a file that leaves something out from one that is not there.
fn unsaid(path: &Path, fact: &str, exists: bool) -> String {
    match exists {
        true => format!("{path:?} does not say {fact}"),
        false => format!("there is no {path:?}, which would say {fact}"),
    }
}

fn one_a_line(errors: &[Error]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect()
}

/// Every difference between the tensors a network needs and the tensors it was given.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Mismatch {
    /// Needed and not given, with the shape needed.
    pub missing: Vec<(String, Vec<i64>)>,
    /// Given and not needed, with the shape given.
    pub unexpected: Vec<(String, Vec<i64>)>,
    /// Given with another shape.
    pub misshaped: Vec<Misshaped>,
    /// Given with values that are not floating-point numbers, with their type.
    pub not_float: Vec<(String, Kind)>,
}

/// A tensor with the right name and the wrong shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Misshaped {
    /// Name of the tensor.
    pub name: String,
    /// Its shape in what was given.
    pub found: Vec<i64>,
    /// Its shape in the network.
    pub expected: Vec<i64>,
}

impl Mismatch {
    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty() && self.not_float.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let named = |list: &[(String, Vec<i64>)]| list.iter().map(|(n, s)| format!("{n} {s:?}")).collect::<Vec<_>>();
        if !self.missing.is_empty() {
            parts.push(section("missing", &named(&self.missing)));
        }
        if !self.unexpected.is_empty() {
            parts.push(section("unexpected", &named(&self.unexpected)));
        }
        if !self.misshaped.is_empty() {
            let lines = self.misshaped.iter();
            let lines = lines.map(|m| format!("{}: found {:?}, the network has {:?}", m.name, m.found, m.expected));
            parts.push(section("misshaped", &lines.collect::<Vec<_>>()));
        }
        if !self.not_float.is_empty() {
            let lines = self.not_float.iter().map(|(n, k)| format!("{n}: {k:?}"));
            parts.push(section("not floating point", &lines.collect::<Vec<_>>()));
        }
        f.write_str(&parts.join("\n"))
    }
}

fn section(title: &str, lines: &[String]) -> String {
    format!("  {title} ({}):\n    {}", lines.len(), lines.join("\n    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_named_tensors_is_told_what_it_lacks() {
        let said = |first: &[&str]| {
            let first: Vec<String> = first.iter().map(|name| (*name).to_owned()).collect();
            begins(first.len(), &first)
        };
        assert!(said(&[]).contains("state_dict"));
        assert!(said(&["a"]).contains("only tensor is [\"a\"]"));
        assert!(said(&["a", "b"]).contains("2 tensors begin with [\"a\", \"b\"]"));
    }
}
