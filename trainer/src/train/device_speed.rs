//! A device's matmul rate, which training speeds are compared with (MFU).

use std::time::Instant;

use models::precision::Precision;
use tch::{Cuda, Device, Kind, Tensor};

/// Size of the plain matmul: large enough that its operands do not fit into the caches, and that a GPU's launch time is negligible.
pub(crate) fn product_side(device: Device) -> i64 {
    if device.is_cuda() { 8192 } else { 4096 }
}

/// The device's matmul rate in FLOP/s: `given` in TFLOP/s, or measured now with a plain matmul. On a CPU its operands are smaller than
/// [`product_side`], since training waits for the measurement.
pub(crate) fn peak_flops(precision: Precision, given: Option<f64>, device: Device) -> f64 {
    let side = if device.is_cuda() { 8192 } else { 1024 };
    let measured = || product_speed(precision, side, device) * 1e9;
    given.map_or_else(measured, |tflops| tflops * 1e12)
}

/// GFLOP/s of a plain matmul, the best of three.
pub(crate) fn product_speed(precision: Precision, side: i64, device: Device) -> f64 {
    let kind = match precision {
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let operand = || Tensor::randn([side, side], (Kind::Float, device)).to_kind(kind);
    let (a, b) = (operand(), operand());
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        let product = a.matmul(&b);
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        drop(product);
        start.elapsed().as_secs_f64()
    });
    // The first is a warm-up and is left out.
    let best = seconds.skip(1).fold(f64::INFINITY, f64::min);
    2.0 * (side as f64).powi(3) / best / 1e9
}
