//! What can be wrong with a weights file, each with the next step.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing a caller would do differently about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weights file could not be read from disk.
    #[error("{path:?}: cannot be read")]
    ReadWeights {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// A file is not an intact safetensors file: cut short, damaged, or something else under that name.
    #[error("{path:?} is not an intact safetensors file: {reason}. Copy or convert it again")]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong with it.
        reason: String,
    },

    /// A tensor that is needed has values of a type that is not read. Nothing is wrong with the file.
    #[error(
        "{path:?}: dtype {dtype} of tensor {tensor}{} is not supported. Convert the file to f16, bf16 or f32, or take weights that are \
         not quantized",
        and_more(*.others)
    )]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The first such tensor, by the file's name.
        tensor: String,
        /// Its type, in the file's word.
        dtype: String,
        /// How many more of those needed there are.
        others: usize,
    },

    /// An archive of `torch.save` that is damaged.
    #[error(
        "{path:?} is not an intact file of torch.save: {reason}. Copy or save it again, or convert it: {}",
        to_safetensors(path)
    )]
    BadTorchFile {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong with it.
        reason: String,
    },

    /// A pickle that names a function which Python would run when it opens the file.
    #[error(
        "{path:?} would run {function} when opened in Python, which weights never do; nothing of it was run here. Do not open this \
         file: get the weights as safetensors, or from where you trust"
    )]
    HarmfulTorchFile {
        /// The file.
        path: PathBuf,
        /// `module.name` of the function.
        function: String,
    },

    /// A download that left something else in the place of the weights.
    #[error("{path:?} is {what} and holds no weights: {next_step}")]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// How to get the weights.
        next_step: &'static str,
    },

    /// Weights that hold NaN or infinities.
    #[error(
        "{path:?}: values of tensor {tensor}{} are NaN or infinite: the file is damaged or its training diverged. Take other weights",
        and_more(*.others)
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The first such tensor, by the file's name.
        tensor: String,
        /// How many more there are.
        others: usize,
    },

    /// A damaged file in the cache of a hub, where nobody copied or converted it.
    #[error("{damage}. It lies in the cache of a model hub: delete {blob:?}, and the same command fetches it again")]
    DamagedDownload {
        /// The file to delete.
        blob: PathBuf,
        /// What is wrong.
        damage: Box<Error>,
    },

    /// A file is in a format that is not read here, or has contents that are not. Nothing is wrong with the file.
    #[error("{path:?} is {what}, which is not read here. {next_step}")]
    UnreadFormat {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// How to get weights that are read.
        next_step: String,
    },

    /// The index of a sharded set and its shards do not agree.
    #[error("{path:?}: {reason}. Copy the index and all its shards again")]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// The first thing that is wrong, naming shard and tensor.
        reason: String,
    },

    /// A folder does not say which file holds the weights.
    #[error(
        "{folder:?} has none of the usual weights files (model.safetensors, pytorch_model.bin, their indices, open_clip_model), and {}",
        candidates(found, unread)
    )]
    NoWeightsFile {
        /// The folder.
        folder: PathBuf,
        /// The files in it that may hold weights.
        found: Vec<PathBuf>,
        /// Where there are none, the files of weights that are not read.
        unread: Vec<PathBuf>,
    },
}

/// The next step for what torch can open: a line of Python that converts the state dict in `path`.
pub(crate) fn convert_in_python(path: &Path) -> String {
    format!("Convert it in Python: {}", to_safetensors(path))
}

/// A line of Python that converts the state dict in `path`, wherever it stands in the saved object.
fn to_safetensors(path: &Path) -> String {
    let to = path.with_extension("safetensors");
    format!(
        "python -c 'import torch, safetensors.torch as s; x = torch.load({path:?}, map_location=\"cpu\", weights_only=True); \
         x = x.get(\"state_dict\", x); s.save_file({{k: v.clone().contiguous() for k, v in x.items()}}, {to:?})' (for TorchScript \
         take torch.jit.load(..).state_dict())"
    )
}

fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        n => format!(" (and of {n} more)"),
    }
}

fn candidates(found: &[PathBuf], unread: &[PathBuf]) -> String {
    match found {
        [] if unread.is_empty() => "no other .safetensors, .pth, .pt, .ckpt or .bin file".to_owned(),
        [] => format!(
            "no other .safetensors, .pth, .pt, .ckpt or .bin file. There is {unread:?}, in a format that is not read: get or save the \
             weights as safetensors"
        ),
        _ => format!("{} that may be meant: {found:?}. Name the file itself", found.len()),
    }
}
