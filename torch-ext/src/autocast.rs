//! bf16 compute as a scope.

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::Device;

use crate::ffi;

/// While it exists, matmuls, convolutions and attention on one kind of device run in bf16 on this thread.
///
/// f32 inputs are cast, parameters once per outermost scope; bf16 has the range of f32, so no loss
/// scaling is needed. Run the backward pass outside: each operation's backward uses the type of its forward. The end of the scope,
/// also by a panic, restores the state before it. Scopes may nest; drop them in the reverse order of creation, like
/// local variables.
///
/// Do not run the same trained parameters first without and then with gradients inside one scope: the cast copies of the first run
/// are cached and carry no gradient (libtorch's behavior, the same in Python).
#[derive(Debug)]
#[must_use = "autocast ends when the guard is dropped"]
pub struct Autocast {
    device_type: c_int,
    was_enabled: c_int,
    was_dtype: c_int,
    /// Not `Send`: the state is per thread, so the guard must be dropped on its own thread.
    not_send: PhantomData<*const ()>,
}

impl Autocast {
    /// Starts bf16 autocast for the kind of `device`.
    pub fn bf16(device: Device) -> Self {
        Self::start(device, true)
    }

    /// Switches autocast off inside a scope of [`Autocast::bf16`] while it exists: operations run in the types of their inputs.
    pub fn pause(device: Device) -> Self {
        Self::start(device, false)
    }

    fn start(device: Device, on: bool) -> Self {
        let (device_type, _) = ffi::device_parts(device);
        let (mut was_enabled, mut was_dtype) = (0, 0);
        // SAFETY: both pointers are to live local variables.
        let code = unsafe {
            match on {
                true => ffi::te_autocast_enter(device_type, &mut was_enabled, &mut was_dtype),
                false => ffi::te_autocast_pause(device_type, &mut was_enabled, &mut was_dtype),
            }
        };
        ffi::check("autocast", code).expect("autocast exists for the CPU and CUDA");
        Self { device_type, was_enabled, was_dtype, not_send: PhantomData }
    }

    /// [`Autocast::bf16`] if `on`, else nothing: `let _scope = Autocast::bf16_if(precision == Bf16, device);`
    pub fn bf16_if(on: bool, device: Device) -> Option<Self> {
        on.then(|| Self::bf16(device))
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: takes values only. It cannot fail after a successful enter, and a drop could not handle a failure.
        unsafe { ffi::te_autocast_exit(self.device_type, self.was_enabled, self.was_dtype) };
    }
}

#[cfg(test)]
mod tests;
