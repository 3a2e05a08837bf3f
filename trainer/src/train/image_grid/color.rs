//! A colour scale that is even to the eye and readable without colour vision: matplotlib's viridis at nine points.

use tch::{Kind, Tensor};

/// RGB from 0 to 255, for 0 to 1 in equal steps.
const VIRIDIS: [[f32; 3]; 9] = [
    [68.0, 1.0, 84.0],
    [71.0, 44.0, 122.0],
    [59.0, 81.0, 139.0],
    [44.0, 113.0, 142.0],
    [33.0, 144.0, 141.0],
    [39.0, 173.0, 129.0],
    [92.0, 200.0, 99.0],
    [170.0, 220.0, 50.0],
    [253.0, 231.0, 37.0],
];

/// `[N, L]` → `[N, 3, L]`: 0 and below the darkest, 1 and above the brightest.
pub(super) fn heat(values: &Tensor) -> Tensor {
    let table = Tensor::from_slice(VIRIDIS.as_flattened()).reshape([9, 3]) / 255.0;
    let place = values.to_kind(Kind::Float).clamp(0.0, 1.0) * 8.0;
    let below = place.floor().clamp(0.0, 7.0);
    let share = (&place - &below).unsqueeze(1); // [N, 1, L]
    let row = |index: &Tensor| {
        let (n, l) = index.size2().expect("values are [N, L]");
        table.index_select(0, &index.to_kind(Kind::Int64).flatten(0, 1)).reshape([n, l, 3]).transpose(1, 2)
    };
    row(&below) * (1.0 - &share) + row(&(&below + 1.0)) * share
}
