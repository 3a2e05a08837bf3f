//! What can go wrong at the border to libtorch.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One variant for each thing a caller would do differently about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation.
    #[error("{operation}: {message}")]
    Torch {
        /// What was asked of it.
        operation: &'static str,
        /// Its own words, without the C++ backtrace.
        message: String,
    },

    /// A device was named in a way that means nothing.
    #[error("device {given:?}: expected auto, cpu, cuda or cuda:INDEX")]
    UnknownDevice {
        /// What was given.
        given: String,
    },

    /// A GPU was asked for and libtorch's CUDA half cannot be opened.
    #[error(
        "{path}: {reason}\n{}",
        match gpu_seen {
            true => "This libtorch cannot use a GPU: run `scripts/setup --cuda` and build again, or pass --device cpu",
            false => "This machine shows no NVIDIA GPU: pass --device cpu. Where there is one, run `scripts/setup --cuda` and build again",
        }
    )]
    NoCudaLibrary {
        /// The file that was tried.
        path: String,
        /// What the dynamic linker said.
        reason: String,
        /// Whether the system has a device of an NVIDIA driver.
        gpu_seen: bool,
    },

    /// A GPU was asked for, libtorch could use one, and the machine has none (or not as many).
    #[error("cuda:{index}: libtorch sees {count} GPUs. Does nvidia-smi list it? Is CUDA_VISIBLE_DEVICES set?")]
    NoSuchGpu {
        /// Index asked for.
        index: usize,
        /// GPUs that libtorch sees.
        count: usize,
    },

    /// The bytes of a tensor were asked for and it does not own plain, contiguous CPU memory alone.
    #[error("the bytes of a tensor cannot be lent: {reason}")]
    BytesUnavailable {
        /// Which condition fails.
        reason: &'static str,
    },

    /// Saved averages are not those of the parameters.
    #[error("average of {param}: {problem}")]
    EmaState {
        /// Name of the parameter, or of the stray entry.
        param: String,
        /// What does not fit.
        problem: String,
    },

    /// An optimizer's saved state is not that of its parameters.
    #[error("optimizer state of {param}: {problem}")]
    OptimizerState {
        /// Name of the parameter, or of the stray entry.
        param: String,
        /// What does not fit.
        problem: String,
    },
}
