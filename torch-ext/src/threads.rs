//! Number of threads that libtorch uses for one operation.

use std::ffi::c_int;

use crate::error::Result;
use crate::ffi;

/// Number of threads of a CPU operation that this thread calls.
pub fn num_threads() -> usize {
    // SAFETY: no arguments.
    unsafe { ffi::te_num_threads() }.max(1) as usize
}

/// Sets [`num_threads`] for this thread and for threads that have not called libtorch yet, so call it at the start.
///
/// # Errors
/// For 0.
pub fn set_num_threads(threads: usize) -> Result<()> {
    let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
    // SAFETY: takes a value only.
    ffi::check("setting the number of threads", unsafe { ffi::te_set_num_threads(threads) })
}
