//! The memory of the process, as the system counts it. Whatever else ran in this process would count too, so nothing does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tch::{Device, Kind, Tensor};
use torch_ext::{memory, peak_rss, reset_peak_memory};

#[test]
fn the_peak_holds_what_has_been_freed() {
    if peak_rss().is_none() {
        println!("skipped: the system does not tell");
        return;
    }
    const BYTES: i64 = 512 << 20;
    let before = memory(Device::Cpu).unwrap();
    let big = Tensor::ones([BYTES], (Kind::Uint8, Device::Cpu));
    let during = memory(Device::Cpu).unwrap();
    drop(big);
    let after = memory(Device::Cpu).unwrap();
    // The kernel counts in batches, so a figure may be some pages behind another.
    let said = format!("{before:?}, {during:?}, then {after:?}");
    assert!(during.peak as i64 >= BYTES, "{said}");
    assert!(after.peak as i64 >= BYTES, "{said}");
    // A system that is short of memory may have taken some of it from this process meanwhile.
    assert!(during.allocated > before.allocated, "{said}");
    assert!(after.allocated < during.allocated, "{said}");
    assert_eq!(after.reserved, after.allocated);
    reset_peak_memory(Device::Cpu).unwrap();
}
