//! Which device to compute on, and opening libtorch's CUDA half.
//!
//! The programs are linked with the CPU library alone, so that one binary starts everywhere; the CUDA library is opened when a
//! GPU may be wanted, and registers itself with the CPU library.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::error::{Error, Result};
use crate::ffi;
use crate::memory::keep_freed_memory;

/// Opens libtorch's CUDA library, once per process.
///
/// Call it before anything else touches libtorch: libtorch looks for its CUDA half once, at the first question about GPUs
/// (seeding is one), and keeps the answer.
///
/// # Errors
/// [`Error::NoCudaLibrary`] when it is not there or its own libraries are not: a CPU machine, in most cases.
pub fn load_cuda() -> Result<()> {
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

/// The device that `auto`, `cpu`, `cuda` (the first GPU) or `cuda:INDEX` names; `auto` is the first GPU if one can be used,
/// else the CPU, with a warning that says why where the machine has a GPU. Opens the CUDA library except for `cpu`, so call it first thing, in
/// the thread that will compute: on the CPU its memory is kept from here on ([`keep_freed_memory`]).
///
/// # Errors
/// [`Error::UnknownDevice`] for other words; [`Error::NoCudaLibrary`] and [`Error::NoSuchGpu`] when a GPU is named and cannot
/// be had. `auto` never fails for want of a GPU.
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
                    "computing on the CPU, although {node} says that there is a GPU: {reason}. --device cpu says that this is meant"
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

/// Has libtorch use only operations whose result is the same every time, or again whatever is fastest. For the whole process, and before
/// it first computes on a GPU: cuBLAS looks at its setting once.
///
/// An operation that has no deterministic form fails then, with its name. On the CPU nothing changes.
///
/// # Errors
/// If libtorch reports one.
pub fn set_deterministic(on: bool) -> Result<()> {
    // SAFETY: takes a value only.
    ffi::check("choosing deterministic operations", unsafe { ffi::te_set_deterministic(i32::from(on)) })
}

/// Whether products and convolutions of f32 tensors on GPUs may be TF32, for the whole process. [`resolve_device`] switches it off.
///
/// # Errors
/// If libtorch reports one.
pub fn allow_tf32(on: bool) -> Result<()> {
    // SAFETY: takes a value only.
    ffi::check("choosing TF32", unsafe { ffi::te_allow_tf32(on.into()) })
}

/// The name of a GPU as its driver has it, such as `NVIDIA H200`; `None` for the CPU, or if the driver does not say.
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

/// A GPU that is there, with f32 meaning f32 and sums of bf16 products in f32, whatever libtorch's defaults and the environment say.
fn gpu(index: usize) -> Result<Device> {
    allow_tf32(false)?;
    // SAFETY: no arguments.
    ffi::check("choosing f32 sums", unsafe { ffi::te_sum_in_f32() })?;
    Ok(Device::Cuda(index))
}

/// What a driver leaves in the file system for a GPU: NVIDIA's own, and that of Windows' subsystem for Linux.
fn gpu_node() -> Option<&'static str> {
    ["/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"].into_iter().find(|node| Path::new(node).exists())
}

fn cpu() -> Device {
    keep_freed_memory();
    Device::Cpu
}

#[cfg(test)]
mod tests;
