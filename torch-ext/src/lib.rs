//! Parts of libtorch that tch lacks: a little C++ behind safe Rust.
//!
//! tch is generated from libtorch's operator list and lacks everything outside of it: the fused optimizers and
//! list operators (excluded by its generator), bf16 autocast, pinned memory, allocator figures, loading the
//! CUDA library in a program that was linked without it, and training in many processes. `cpp` has them as C functions; the modules here wrap
//! them safely. All `unsafe` code of the workspace is in this crate.
//!
//! | module | content |
//! |---|---|
//! | [`device`] | opening the CUDA library at start, `auto`, `cpu`, `cuda:1` → a device |
//! | [`adamw`] | AdamW in one kernel, with a state that can be saved and restored |
//! | [`ema`] | a moving average of the parameters, which skipped steps do not change |
//! | [`mod@checkpoint`] | gradient checkpointing: computes a part of the forward pass again in backward |
//! | [`grads`] | norm, clipping and the finite check of all gradients, without waiting for the device |
//! | [`process_group`] | processes that train together: a store, all-reduce and broadcast by Gloo or NCCL |
//! | [`grad_buckets`] | the sum of their gradients, while the backward pass still runs |
//! | [`gather`] | rows by index, with a deterministic gradient |
//! | [`mod@linear`] | a linear layer, with the faster matmul where libtorch has two |
//! | [`autocast`] | bf16 compute as a scope |
//! | [`event`] | waiting for a part of the queued work |
//! | [`mod@memory`] | memory statistics of the device and the process; bytes of a tensor |
//! | [`threads`] | number of threads that libtorch uses |
//! | [`transfer`] | copies between host and device beside computing; page-locked memory |
//!
//! With the feature `doc-only` nothing is compiled or linked: the workspace type-checks on a machine without libtorch.

#![allow(unsafe_code, reason = "all unsafe code is in this crate")]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod adamw;
pub mod autocast;
pub mod checkpoint;
pub mod device;
pub mod ema;
pub mod error;
pub mod event;
mod ffi;
pub mod gather;
pub mod grad_buckets;
pub mod grads;
pub mod linear;
pub mod memory;
pub mod out_of_memory;
pub mod process_group;
pub mod threads;
pub mod transfer;

pub use adamw::{AdamWConfig, FusedAdamW};
pub use autocast::Autocast;
pub use checkpoint::checkpoint;
pub use device::{allow_tf32, describe, device_name, gpu_count, resolve_device, set_deterministic};
pub use ema::Ema;
pub use error::{Error, Result};
pub use event::Event;
pub use gather::gather_rows;
pub use grad_buckets::GradBuckets;
pub use grads::{all_finite, clip_grad_norm_, grad_norm, remove_grads};
pub use linear::{lay_out_weight, linear};
pub use memory::{Memory, empty_cache, keep_freed_memory, memory, peak_rss, reset_peak_memory, tensor_bytes_mut};
pub use out_of_memory::{OutOfMemory, attempt, catch_out_of_memory, keep_quiet_about_memory, out_of_memory};
pub use process_group::{ProcessGroup, Reduction, Store};
pub use threads::{num_threads, set_num_threads};
pub use transfer::{HostCopy, pinned_empty, to_device};

/// Name and version of the runtime, as recorded in a cache's identity. The C++ file does not compile against another version.
pub const RUNTIME: &str = "libtorch 2.11.0";
