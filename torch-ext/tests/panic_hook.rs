//! The panic hook belongs to the process: what the program sets silences an attempt that runs out of memory, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Arc, Mutex};

use tch::{Device, Kind, Tensor};
use torch_ext::{attempt, keep_quiet_about_memory};

/// Asks for more memory than there are addresses for.
fn run_out() -> Tensor {
    Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu))
}

#[test]
fn only_an_attempt_that_runs_out_of_memory_is_silenced() {
    let printed: Arc<Mutex<Vec<String>>> = Arc::default();
    let to = Arc::clone(&printed);
    set_hook(Box::new(move |info| to.lock().unwrap().push(info.to_string())));
    keep_quiet_about_memory();
    let news = || std::mem::take(&mut *printed.lock().unwrap());

    assert!(attempt(|| Ok::<_, Infallible>(run_out())).unwrap().is_err());
    assert_eq!(news(), [""; 0]);

    assert!(catch_unwind(AssertUnwindSafe(|| attempt(|| -> Result<(), Infallible> { panic!("a bug") }))).is_err());
    let found = news();
    assert!(found.len() == 1 && found[0].contains("a bug"), "{found:?}");

    // Outside an attempt it is a panic like any other.
    assert!(catch_unwind(run_out).is_err());
    let found = news();
    assert!(found.len() == 1 && found[0].contains("DefaultCPUAllocator"), "{found:?}");
}
