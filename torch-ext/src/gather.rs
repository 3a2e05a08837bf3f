//! Rows by index, with a gradient that is the same every time.

use tch::Tensor;

use crate::ffi;

/// Rows of `x [M, D]` by `index [P]` → `[P, D]`; the index `M` stands for a row of zeros.
///
/// `inverse [S, M]` is the inverse relation: for row `m` the up to `S` places of the result that it went to, and `P` for
/// unused entries. The gradient is then `S` gathers, summed in f32 in this order. The gradient of `Tensor::index_select` adds every place to
/// its row instead, on a GPU with atomics: in bf16 each addition is rounded, and their order differs from run to run.
///
/// # Panics
/// If the shapes or types do not match. It does not check that `inverse` belongs to `index`.
pub fn gather_rows(x: &Tensor, index: &Tensor, inverse: &Tensor) -> Tensor {
    let rows = ffi::new_tensor("gathering rows", |out| {
        // SAFETY: all three are alive and only read.
        unsafe { ffi::te_gather_rows(x.as_ptr(), index.as_ptr(), inverse.as_ptr(), out) }
    });
    match rows {
        Ok(rows) => rows,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests;
