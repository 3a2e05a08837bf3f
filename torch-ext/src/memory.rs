//! Memory statistics, and the bytes of a tensor.

use std::fs;
use std::slice;

use tch::{Device, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// Memory used on a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In use by tensors. On the CPU: resident memory of the process, tensors or not.
    pub allocated: u64,
    /// Taken from the device, in use or kept for later. On the CPU the same as `allocated`.
    pub reserved: u64,
    /// Largest value of `allocated` since the start or [`reset_peak_memory`].
    pub peak: u64,
}

/// Memory that this process uses on `device`.
///
/// # Errors
/// If the device does not exist, or, for the CPU, if the system has no figures ([`peak_rss`]).
pub fn memory(device: Device) -> Result<Memory> {
    let Device::Cuda(index) = device else {
        let unknown = || Error::Torch { operation: "memory of the process", message: "no /proc/self/status".into() };
        let resident = proc_status("VmRSS:").ok_or_else(unknown)?;
        return Ok(Memory { allocated: resident, reserved: resident, peak: peak_rss().ok_or_else(unknown)? });
    };
    let (mut allocated, mut reserved, mut peak) = (0, 0, 0);
    // SAFETY: the pointers are to live local variables.
    let code = unsafe { ffi::te_device_memory(index as i64, &mut allocated, &mut reserved, &mut peak) };
    ffi::check("memory of the GPU", code)?;
    Ok(Memory { allocated: allocated as u64, reserved: reserved as u64, peak: peak as u64 })
}

/// Resets [`Memory::peak`] of a GPU to the current use. On the CPU the peak belongs to the process and stays.
///
/// # Errors
/// If the device does not exist.
pub fn reset_peak_memory(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    // SAFETY: takes a value only.
    ffi::check("resetting the GPU's peak memory", unsafe { ffi::te_reset_peak_memory(index as i64) })
}

/// Returns unused memory of libtorch's GPU allocator to the driver. Does nothing without a GPU.
///
/// # Errors
/// If the device reports an error.
pub fn empty_cache() -> Result<()> {
    // SAFETY: no arguments.
    ffi::check("emptying the allocator's cache", unsafe { ffi::te_empty_cache() })
}

/// Keeps memory that this thread's tensors free for its next ones, instead of returning it to the system after a while. Returns false in a
/// program whose allocator is not jemalloc.
///
/// For threads that compute: a step or a forward pass frees and allocates the same gigabytes again and again, and the system clears every
/// page that it hands out. Not for threads that decode images: each would keep the memory of the largest image that it has decoded.
pub fn keep_freed_memory() -> bool {
    // SAFETY: no arguments; the allocator takes its own lock.
    unsafe { ffi::te_keep_freed_memory() == 1 }
}

/// Peak resident memory of this process in bytes; `None` if the system has no such figure (outside Linux).
///
/// Read from `/proc`, because `getrusage` also counts the process before `exec`.
pub fn peak_rss() -> Option<u64> {
    proc_status("VmHWM:")
}

fn proc_status(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The bytes of a tensor, to be filled in place, in native byte order and row-major order.
///
/// # Errors
/// [`Error::BytesUnavailable`] unless the tensor is contiguous, on the CPU, does not require a gradient, and is the only handle
/// on its storage: a second handle could read or write the bytes while they are borrowed.
pub fn tensor_bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8]> {
    let refuse = |reason| Err(Error::BytesUnavailable { reason });
    if tensor.device() != Device::Cpu {
        return refuse("it is not on the CPU");
    }
    if !tensor.is_contiguous() {
        return refuse("it is not contiguous");
    }
    if tensor.requires_grad() {
        return refuse("it takes part in a gradient");
    }
    // SAFETY: the pointer is that of a live tensor, which the call only reads.
    if unsafe { ffi::te_is_unshared(tensor.as_ptr()) } == 0 {
        return refuse("another handle shares its storage");
    }
    let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: a contiguous CPU tensor has numel elements at data_ptr. No other handle on the storage exists, as just checked,
    // and none can be made while the returned slice borrows this one mutably. Any byte is a valid u8.
    Ok(unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), len) })
}

#[cfg(test)]
mod tests;
