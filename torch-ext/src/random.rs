//! State of libtorch's random generators, to be saved with a checkpoint.
//!
//! The project draws from keyed generators of its own; this is for what libtorch draws itself.

use tch::{Device, Tensor};

use crate::error::Result;
use crate::ffi;

/// The state of a device's default generator: a byte tensor on the CPU.
///
/// # Errors
/// If the device is not there.
pub fn rng_state(device: Device) -> Result<Tensor> {
    let (kind, index) = ffi::device_parts(device);
    // SAFETY: values and an out-pointer that new_tensor provides.
    ffi::new_tensor("reading the random state", |out| unsafe { ffi::te_rng_state(kind, index, out) })
}

/// Restores a state that [`rng_state`] gave for the same kind of device.
///
/// # Errors
/// If `state` is none, or the device is not there.
pub fn set_rng_state(device: Device, state: &Tensor) -> Result<()> {
    let (kind, index) = ffi::device_parts(device);
    // SAFETY: the pointer is that of a live tensor, which the call only reads.
    ffi::check("restoring the random state", unsafe { ffi::te_set_rng_state(kind, index, state.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_state_that_is_none_is_refused_with_libtorchs_words() {
        let refused = set_rng_state(Device::Cpu, &Tensor::zeros([3], (tch::Kind::Uint8, Device::Cpu)));
        let Err(Error::Torch { operation, message }) = refused else { panic!("{refused:?}") };
        assert_eq!(operation, "restoring the random state");
        assert!(message.contains("RNG state"), "{message}");
        assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
    }
}
