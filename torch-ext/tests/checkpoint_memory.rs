//! What a checkpointed pass keeps between forward and backward, counted by the allocator for the thread that computes it: what the
//! process's other threads take, and what the system has of it in memory, does not count.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the allocator's own interface is C")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use tch::{Device, Kind, Tensor};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

unsafe extern "C" {
    fn mallctl(name: *const c_char, old: *mut c_void, old_len: *mut usize, new: *mut c_void, new_len: usize) -> c_int;
}

/// Bytes that this thread has taken so far, less those that it has given back.
fn kept() -> i64 {
    let read = |name: &CStr| {
        let (mut bytes, mut len) = (0u64, size_of::<u64>());
        // SAFETY: the name ends in 0, the pointers are to live local variables of the sizes stated, and nothing is written.
        let failed = unsafe { mallctl(name.as_ptr(), (&raw mut bytes).cast(), &mut len, ptr::null_mut(), 0) };
        assert_eq!((failed, len), (0, size_of::<u64>()), "{name:?}");
        bytes
    };
    read(c"thread.allocated").wrapping_sub(read(c"thread.deallocated")) as i64
}

#[test]
fn a_checkpointed_pass_keeps_less() {
    const LAYERS: i64 = 8;
    const SINES: i64 = 6;
    const NUMBERS: i64 = 1 << 18;
    const TENSOR: i64 = 4 * NUMBERS;
    let between_passes = |checkpointed: bool| {
        let weight = Tensor::full([1], 0.5, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mut x = Tensor::zeros([NUMBERS], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let before = kept();
        for _ in 0..LAYERS {
            let weight = weight.shallow_clone();
            let layer = move |x: &Tensor| {
                let mut y = x * &weight;
                for _ in 0..SINES {
                    y = y.sin();
                }
                y
            };
            x = match checkpointed {
                true => torch_ext::checkpoint(layer, &x),
                false => layer(&x),
            };
        }
        let between = kept() - before;
        x.sum(Kind::Float).backward();
        assert!(weight.grad().defined());
        between
    };
    // The first pass also makes what libtorch makes once.
    between_passes(false);
    let (plain, checkpointed) = (between_passes(false), between_passes(true));
    // A product keeps its input and a sine keeps its own, so each layer's results all live on, and the last is what the caller holds.
    // A checkpointed layer leaves its result alone. Beside the numbers: the graph's nodes.
    for (found, tensors) in [(plain, LAYERS * (1 + SINES)), (checkpointed, LAYERS)] {
        let beside = found - tensors * TENSOR;
        assert!(
            (0..TENSOR / 2).contains(&beside),
            "{tensors} tensors of {TENSOR} bytes and {beside} bytes; {plain} bytes plain, {checkpointed} checkpointed"
        );
    }
}
