//! Selects the device to compute on, and opens libtorch's CUDA library.
//!
//! The programs are linked only with the CPU library, so that one binary starts everywhere. The CUDA library is opened when a
//! GPU may be used, and registers itself with the CPU library.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::error::{Error, Result};
use crate::ffi;
use crate::memory::keep_freed_memory;

/// Opens libtorch's CUDA library, once per process.
///
/// Call it before anything else uses libtorch: libtorch looks for its CUDA library once, at the first call that concerns GPUs
/// (seeding is one), and keeps the result.
///
/// # Errors
/// [`Error::NoCudaLibrary`] if it or one of its own libraries is missing, as on most machines without a GPU.
pub(crate) fn load_cuda() -> Result<()> {
    static LOADED: OnceLock<Result<(), (String, String)>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let mut path = [0u8; 4096];
        // SAFETY: `path` is writable for its whole length and the function writes a zero-terminated string into it.
        let code = unsafe { ffi::te_load_cuda(path.as_mut_ptr().cast::<c_char>(), path.len() as i64) };
        if code == 0 {
            return Ok(());
        }
        let path = CStr::from_bytes_until_nul(&path).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        Err((path, ffi::last_error()))
    });
    loaded.clone().map_err(|(path, reason)| Error::NoCudaLibrary { path, reason, gpu_seen: gpu_node().is_some() })
}

/// The device named by `auto`, `cpu`, `cuda` (the first GPU) or `cuda:INDEX`. `auto` is the first GPU if one can be used, else the CPU,
/// with a warning that gives the reason if the machine has a GPU. Opens the CUDA library except for `cpu`, so call it first, on the thread
/// that will compute: on the CPU the thread keeps its freed memory from here on ([`keep_freed_memory`]).
///
/// # Errors
/// [`Error::UnknownDevice`] for other words; [`Error::NoCudaLibrary`] and [`Error::NoSuchGpu`] if a named GPU cannot be
/// used. `auto` never fails because of a missing GPU.
pub fn resolve_device(name: &str) -> Result<Device> {
    let index = match name {
        "cpu" => return Ok(cpu()),
        "auto" => {
            let reason = match load_cuda() {
                Ok(()) if Cuda::device_count() > 0 => return gpu(0),
                Ok(()) => "libtorch's CUDA library finds no GPU that it can use (is the driver as new as CUDA 13 asks, and is \
                           CUDA_VISIBLE_DEVICES right?)"
                    .to_owned(),
                Err(error) => error.to_string(),
            };
            if let Some(node) = gpu_node() {
                tracing::warn!(
                    "computing on the CPU, although {node} shows a GPU: {reason}. Pass --device cpu to silence this warning"
                );
            }
            return Ok(cpu());
        }
        "cuda" => 0,
        other => {
            let index = other.strip_prefix("cuda:").and_then(|index| index.parse().ok());
            index.ok_or_else(|| Error::UnknownDevice { given: name.to_owned() })?
        }
    };
    load_cuda()?;
    let count = Cuda::device_count().max(0) as usize;
    if index < count { gpu(index) } else { Err(Error::NoSuchGpu { index, count }) }
}

/// Number of GPUs that libtorch can use. Opens the CUDA library.
///
/// # Errors
/// [`Error::NoCudaLibrary`].
pub fn gpu_count() -> Result<usize> {
    load_cuda()?;
    Ok(Cuda::device_count().max(0) as usize)
}

/// Restricts libtorch to deterministic operations, or allows the fastest ones again. It applies to the whole process; call it before the
/// first computation on a GPU, because cuBLAS reads its setting once.
///
/// An operation without a deterministic form then fails with its name. On the CPU nothing changes.
///
/// # Errors
/// If libtorch reports an error.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: takes a value only.
    ffi::check("choosing deterministic operations", unsafe { ffi::te_set_deterministic(i32::from(on)) })
}

/// Allows or forbids TF32 for matmuls and convolutions of f32 tensors on GPUs, for the whole process. [`resolve_device`] switches it off.
///
/// # Errors
/// If libtorch reports an error.
pub fn allow_tf32(on: bool) -> Result<()> {
    // SAFETY: takes a value only.
    ffi::check("choosing TF32", unsafe { ffi::te_allow_tf32(on.into()) })
}

/// The driver's name of a GPU, such as `NVIDIA H200`; `None` for the CPU, or if the driver has none.
pub fn device_name(device: Device) -> Option<String> {
    let Device::Cuda(index) = device else {
        return None;
    };
    let mut name = [0u8; 256];
    // SAFETY: `name` is writable for its whole length, and the function writes a zero-terminated string into it.
    unsafe {
        ffi::te_device_name(index as i64, name.as_mut_ptr().cast::<c_char>(), name.len() as i64);
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy();
    (!name.is_empty()).then(|| name.into_owned())
}

/// A device for people: `the CPU`, `NVIDIA H200 (cuda:0)`.
pub fn describe(device: Device) -> String {
    match (device, device_name(device)) {
        (Device::Cuda(index), Some(name)) => format!("{name} (cuda:{index})"),
        (Device::Cuda(index), None) => format!("cuda:{index}"),
        _ => "the CPU".to_owned(),
    }
}

/// An existing GPU, set to real f32 (not TF32) and to f32 sums of bf16 products, regardless of libtorch's defaults and the environment.
fn gpu(index: usize) -> Result<Device> {
    allow_tf32(false)?;
    // SAFETY: no arguments.
    ffi::check("choosing f32 sums", unsafe { ffi::te_sum_in_f32() })?;
    Ok(Device::Cuda(index))
}

/// Device files of a GPU's driver: NVIDIA's own, and that of the Windows Subsystem for Linux.
fn gpu_node() -> Option<&'static str> {
    ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"].into_iter().find(|node| Path::new(node).exists())
}

fn cpu() -> Device {
    keep_freed_memory();
    Device::Cpu
}

#[cfg(test)]
mod tests;
