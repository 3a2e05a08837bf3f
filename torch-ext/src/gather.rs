//! Rows by index, with a gradient that is the same every time.

use tch::Tensor;

use crate::ffi;

/// Rows of `x [M, D]` by `index [P]` → `[P, D]`; the index `M` stands for a row of zeros.
///
/// `inverse [S, M]` is the same relation seen from the other side: the up to `S` places of the result that row `m` went to, `P` for
/// none. The gradient is then `S` gathers, summed in f32 in this order. That of `Tensor::index_select` adds every place to its row instead,
/// on a GPU with atomics: in bf16 each addition is rounded, and their order differs from run to run.
///
/// # Panics
/// If the shapes or types do not fit. That `inverse` belongs to `index` is not checked.
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
