//! The color scale for similarities: viridis, which is perceptually uniform and readable without color vision.

use tch::{Kind, Tensor};

/// Colors from dark to bright.
const STEPS: usize = 256;

/// `[N, L]` → `[N, 3, L]`, RGB from 0 to 1: values up to 0 get the darkest color, values from 1 on the brightest.
pub(super) fn heat(values: &Tensor) -> Tensor {
    let table: Vec<u8> = (0..STEPS).flat_map(|i| colorous::VIRIDIS.eval_rational(i, STEPS).as_array()).collect();
    let table = Tensor::from_slice(&table).view([STEPS as i64, 3]).to_kind(Kind::Float) / 255.0;
    let index = (values.to_kind(Kind::Float).clamp(0.0, 1.0) * (STEPS - 1) as f64).round().to_kind(Kind::Int64);
    let (n, l) = index.size2().expect("values are [N, L]");
    table.index_select(0, &index.flatten(0, 1)).view([n, l, 3]).transpose(1, 2)
}
