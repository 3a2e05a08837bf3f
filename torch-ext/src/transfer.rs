//! Copies between the host and a device, beside what the device computes.
//!
//! A GPU does what is queued on a stream in order, so a copy on the stream that computes waits for the steps queued before it, and holds up
//! those behind it. The copies of this module have streams of their own, one for each direction.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi;

/// An uninitialized CPU tensor to fill and copy to `device`: page-locked if that is a GPU, so that the copy can overlap with
/// other work, else ordinary.
///
/// # Errors
/// If the memory cannot be allocated.
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

/// `src`, a CPU tensor, on `device`. From page-locked memory to a GPU this returns at once and the copy begins at once; work queued later
/// sees the values. Do not refill `src` before work queued later is done. On the CPU it is `src` itself.
///
/// # Errors
/// If the device has no memory for it.
pub fn to_device(src: &Tensor, device: Device) -> Result<Tensor> {
    let Device::Cuda(index) = device else {
        return Ok(src.shallow_clone());
    };
    // SAFETY: the pointer is that of a live tensor, which the call only reads.
    ffi::new_tensor("copying to the GPU", |out| unsafe { ffi::te_to_device(src.as_ptr(), index as i64, out) })
}

/// A tensor on its way to the host's memory.
#[derive(Debug)]
pub struct HostCopy {
    /// Not to be read before `copied`.
    tensor: Tensor,
    copied: Event,
}

impl HostCopy {
    /// Begins a copy of `src` as it will be after the work queued so far; from a GPU to page-locked memory, while the GPU goes on with what
    /// is queued later.
    ///
    /// # Errors
    /// If the memory cannot be allocated.
    pub fn start(src: &Tensor) -> Result<HostCopy> {
        let Device::Cuda(_) = src.device() else {
            return Ok(HostCopy { tensor: src.contiguous().copy(), copied: Event::record(Device::Cpu)? });
        };
        let mut copied = std::ptr::null_mut();
        // SAFETY: the first pointer is that of a live tensor, which the call only reads; the others are to live local variables.
        let copy = |out| unsafe { ffi::te_to_host(src.as_ptr(), out, &mut copied) };
        let tensor = ffi::new_tensor("copying from the GPU", copy)?;
        Ok(HostCopy { tensor, copied: Event::of(copied) })
    }

    /// Waits for the copy and returns it: contiguous, and the only handle on its storage.
    ///
    /// # Errors
    /// If the copy or work before it has failed.
    pub fn wait(&mut self) -> Result<&mut Tensor> {
        self.wait_with(|| Ok(()))
    }

    /// Like [`HostCopy::wait`], and calls `check` now and then meanwhile.
    ///
    /// # Errors
    /// If the copy or work before it has failed, and those of `check`, which end the wait.
    pub fn wait_with<E: From<Error>>(&mut self, check: impl FnMut() -> Result<(), E>) -> Result<&mut Tensor, E> {
        self.copied.synchronize_with(check)?;
        Ok(&mut self.tensor)
    }
}

/// The number of a `c10::ScalarType`, which is private in tch.
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
mod tests {
    use super::*;
    use crate::tensor_bytes_mut;

    #[test]
    fn every_kind_of_batch_has_its_size_in_bytes() {
        let kinds = [
            (Kind::Uint8, 1),
            (Kind::Int8, 1),
            (Kind::Bool, 1),
            (Kind::Half, 2),
            (Kind::BFloat16, 2),
            (Kind::Int16, 2),
            (Kind::Int, 4),
            (Kind::Float, 4),
            (Kind::Int64, 8),
            (Kind::Double, 8),
        ];
        for (kind, size) in kinds {
            let mut tensor = pinned_empty(&[3, 5], kind, Device::Cpu).unwrap();
            assert_eq!(tensor.kind(), kind);
            assert_eq!(tensor_bytes_mut(&mut tensor).unwrap().len(), 15 * size, "{kind:?}");
        }
        assert!(tensor_bytes_mut(&mut pinned_empty(&[0, 5], Kind::Float, Device::Cpu).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn a_copy_on_the_host_is_in_order_and_nobody_else_s() {
        let values = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]).tr();
        let mut copy = HostCopy::start(&values).unwrap();
        let copied = copy.wait().unwrap();
        assert_eq!(*copied, values);
        tensor_bytes_mut(copied).unwrap().fill(0);
        assert_eq!(values.double_value(&[0, 1]), 3.0);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        if crate::resolve_device("cuda").is_ok() {
            println!("skipped: there is a GPU");
            return;
        }
        assert!(pinned_empty(&[2], Kind::Float, Device::Cuda(0)).is_err());
        let Err(Error::Torch { operation, message }) = to_device(&Tensor::from_slice(&[1f32]), Device::Cuda(0)) else {
            panic!("there is no GPU");
        };
        assert_eq!(operation, "copying to the GPU");
        assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
    }
}
