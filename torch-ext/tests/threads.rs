//! The number of threads is one for the process as far as threads that come later are concerned, so this test is alone in it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;

use torch_ext::{num_threads, set_num_threads};

#[test]
fn the_count_is_what_was_set_and_is_never_zero() {
    let before = num_threads();
    assert!(before >= 1);
    set_num_threads(before + 1).unwrap();
    assert_eq!(num_threads(), before + 1);
    // As the docs say: threads that have not called libtorch yet take it over.
    assert_eq!(thread::spawn(num_threads).join().unwrap(), before + 1);
    set_num_threads(before).unwrap();
    assert!(set_num_threads(0).is_err());
    assert_eq!(num_threads(), before);
}
