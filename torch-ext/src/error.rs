//! Errors of calls into libtorch.

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors, with a variant for everything that a caller would handle differently.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch reported an error.
    #[error("{operation}: {message}")]
    Torch {
        /// The operation.
        operation: &'static str,
        /// libtorch's message, without the C++ backtrace.
        message: String,
    },

    /// Something that a group of processes does together has failed: another process is gone or late, or cannot be reached.
    #[error("{operation}: {message}")]
    Group {
        /// The operation.
        operation: &'static str,
        /// libtorch's message, without the C++ backtrace.
        message: String,
    },

    /// An unknown name of a device.
    #[error("device {given:?}: expected auto, cpu, cuda or cuda:INDEX")]
    UnknownDevice {
        /// What was given.
        given: String,
    },

    /// A GPU was asked for and libtorch's CUDA library cannot be opened.
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
        /// The dynamic linker's message.
        reason: String,
        /// Whether the system has a device of an NVIDIA driver.
        gpu_seen: bool,
    },

    /// A GPU was asked for and libtorch can use GPUs, but the machine has no GPU with this index.
    #[error("cuda:{index}: libtorch sees {count} GPUs. Does nvidia-smi list it? Is CUDA_VISIBLE_DEVICES set?")]
    NoSuchGpu {
        /// Index asked for.
        index: usize,
        /// GPUs that libtorch sees.
        count: usize,
    },

    /// The bytes of a tensor were asked for, but it is not the only owner of contiguous CPU memory.
    #[error("the bytes of a tensor cannot be lent: {reason}")]
    BytesUnavailable {
        /// Which condition fails.
        reason: &'static str,
    },

    /// Saved averages do not match the parameters.
    #[error("average of {param}: {problem}")]
    EmaState {
        /// Name of the parameter, or of the stray entry.
        param: String,
        /// What does not fit.
        problem: String,
    },

    /// An optimizer's saved state does not match its parameters.
    #[error("optimizer state of {param}: {problem}")]
    OptimizerState {
        /// Name of the parameter, or of the stray entry.
        param: String,
        /// What does not fit.
        problem: String,
    },
}
