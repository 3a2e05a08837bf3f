//! That libtorch's tensors are jemalloc's in a program that is linked with it, and that a thread that computes keeps what they free.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tch::{Device, Kind, Tensor};
use tikv_jemallocator::Jemalloc;

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// 64 MiB, which another allocator would map and unmap each time.
const NUMBERS: i64 = 16 << 20;
const PAGES: u64 = 4 * NUMBERS as u64 / 4096;

#[test]
fn later_tensors_take_the_pages_of_earlier_ones() {
    assert!(torch_ext::keep_freed_memory());
    let fill = || drop(Tensor::ones([NUMBERS], (Kind::Float, Device::Cpu)));
    fill();
    let before = page_faults();
    for _ in 0..8 {
        fill();
    }
    let faults = page_faults() - before;
    // Given out anew, each page would fault, or one in 512 where pages are huge; a few may fault beside the tensors.
    assert!(faults < 8 * PAGES / 1024, "{faults} page faults while 8 x {PAGES} pages were filled");
}

/// Minor page faults of the process so far: the tenth field of `/proc/self/stat`.
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let field = after_name.split_whitespace().nth(7);
    field.unwrap().parse().unwrap()
}
