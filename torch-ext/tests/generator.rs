//! libtorch's default generator is one for the process: whoever draws beside this test would take its numbers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tch::{Device, Kind, Tensor};
use torch_ext::{rng_state, set_rng_state};

#[test]
fn a_restored_state_repeats_the_draws() {
    let before = rng_state(Device::Cpu).unwrap();
    let draw = || Tensor::randn([64], (Kind::Float, Device::Cpu));
    let first = draw();
    assert_ne!(first, draw());
    set_rng_state(Device::Cpu, &before).unwrap();
    assert_eq!(first, draw());
}
