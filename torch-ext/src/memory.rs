//! Bytes: how many are used, and direct access to those of a tensor.

use std::fs;
use std::slice;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// Memory used on a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In use by tensors. On the CPU: resident memory of the process, tensors or not.
    pub allocated: u64,
    /// Taken from the device, in use or kept for later. On the CPU the same as `allocated`.
    pub reserved: u64,
    /// The most that `allocated` has been, since the start or [`reset_peak_memory`].
    pub peak: u64,
}

/// What `device` has given to this process.
///
/// # Errors
/// If the device is not there, or, for the CPU, if the system does not tell ([`peak_rss`]).
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

/// Starts [`Memory::peak`] of a GPU again from what is in use now. On the CPU the peak is the process's and stays.
///
/// # Errors
/// If the device is not there.
pub fn reset_peak_memory(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    // SAFETY: takes a value only.
    ffi::check("resetting the GPU's peak memory", unsafe { ffi::te_reset_peak_memory(index as i64) })
}

/// Gives memory that libtorch's GPU allocator holds without using it back to the driver. Nothing to do without a GPU.
///
/// # Errors
/// If the device reports one.
pub fn empty_cache() -> Result<()> {
    // SAFETY: no arguments.
    ffi::check("emptying the allocator's cache", unsafe { ffi::te_empty_cache() })
}

/// Has memory that this thread's tensors free kept for its next ones, instead of given back to the system after a while; false in a program
/// whose allocator is not jemalloc.
///
/// For a thread that computes: a step or a forward pass frees and takes the same gigabytes again and again, and the system clears every page
/// that it gives out. Not for threads that decode images, each of which would keep the room of the largest image that it has seen.
pub fn keep_freed_memory() -> bool {
    // SAFETY: no arguments; the allocator takes its own lock.
    unsafe { ffi::te_keep_freed_memory() == 1 }
}

/// The most resident memory this process has had, in bytes; `None` where the system does not tell (outside Linux).
///
/// Read from `/proc`, since `getrusage` also counts what the process was before `exec`.
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
/// [`Error::BytesUnavailable`] unless the tensor is contiguous, on the CPU, no leaf that requires a gradient, and the only handle
/// on its storage: a second handle could read or write the bytes while they are lent.
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

/// An uninitialised CPU tensor to fill and copy to `device`: page-locked if that is a GPU, so that the copy can run beside
/// other work, ordinary if not.
///
/// # Errors
/// If the memory cannot be had.
pub fn pinned_empty(size: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Tensor::f_empty(size, (kind, Device::Cpu))
            .map_err(|e| Error::Torch { operation: "allocating a batch", message: e.to_string() });
    }
    ffi::new_tensor("allocating page-locked memory", |out| {
        // SAFETY: `size` is alive and `len` long.
        unsafe { ffi::te_pinned_empty(size.as_ptr(), size.len() as i64, kind_code(kind), out) }
    })
}

/// Copies `src` into `dst`, shapes broadcast and types converted; from page-locked memory to a GPU it returns at once, and work
/// queued later on the device sees the values. Do not refill `src` before the device has come past the copy.
///
/// # Errors
/// If the shapes do not fit.
pub fn copy_non_blocking(dst: &mut Tensor, src: &Tensor) -> Result<()> {
    // SAFETY: both are live tensors; `dst` is exclusively borrowed.
    ffi::check("copying a tensor", unsafe { ffi::te_copy(dst.as_mut_ptr(), src.as_ptr(), 1) })
}

/// `src` on `device`; on a GPU the copy runs beside other work, so `src` must stay as it is until the step is done. On the CPU it is `src`
/// itself.
///
/// # Errors
/// If the device has no memory for it.
pub fn to_device(src: &Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(src.shallow_clone());
    }
    let mut dst = Tensor::empty(src.size(), (src.kind(), device));
    copy_non_blocking(&mut dst, src)?;
    Ok(dst)
}

/// `c10::ScalarType`'s number, which tch keeps to itself.
fn kind_code(kind: Kind) -> std::ffi::c_int {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        other => panic!("no batch is made of {other:?}"),
    }
}

#[cfg(test)]
mod tests;
