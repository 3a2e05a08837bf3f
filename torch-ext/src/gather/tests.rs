use tch::{Device, Kind, Tensor};

use super::*;

/// Places of each row, found by looking: `[most, rows]`.
fn inverse(index: &[i64], rows: i64) -> Tensor {
    let places = |row: i64| {
        let all = index.iter().enumerate();
        all.filter(move |&(_, &of)| of == row).map(|(place, _)| place as i64)
    };
    let most = (0..rows).map(|row| places(row).count()).max().unwrap();
    let none = index.len() as i64;
    let slot = |slot: usize| (0..rows).map(move |row| places(row).nth(slot).unwrap_or(none));
    let flat: Vec<i64> = (0..most).flat_map(slot).collect();
    Tensor::from_slice(&flat).reshape([most as i64, rows])
}

/// Rows that go to several places, to one and to none, and places that are zero.
const INDEX: [i64; 9] = [0, 2, 2, 4, 1, 4, 0, 4, 2];

#[test]
fn values_and_gradients_are_those_of_index_select() {
    for kind in [Kind::Float, Kind::Double] {
        let x =
            Tensor::arange(20, (Kind::Float, Device::Cpu)).sin().reshape([4, 5]).to_kind(kind).set_requires_grad(true);
        let index = Tensor::from_slice(&INDEX);
        let weight = Tensor::arange(45, (Kind::Float, Device::Cpu)).cos().reshape([9, 5]).to_kind(kind);

        let rows = gather_rows(&x, &index, &inverse(&INDEX, 4));
        (&rows * &weight).sum(None).backward();
        let grad = x.grad().copy();
        let _ = x.grad().zero_();

        let zero = Tensor::zeros([1, 5], (kind, Device::Cpu));
        let expected = Tensor::cat(&[&x, &zero], 0).index_select(0, &index);
        assert_eq!(rows, expected);
        (&expected * &weight).sum(None).backward();
        assert!((grad - x.grad()).abs().max().double_value(&[]) < 1e-6);
        assert_eq!(x.grad().get(3).abs().sum(None).double_value(&[]), 0.0, "goes nowhere");
    }
}

/// 256 + 1 + 1 is 258 and not 256, as rounding to bf16 after each addition makes it.
#[test]
fn a_bf16_gradient_is_rounded_once() {
    let x = Tensor::ones([1, 1], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    let rows = gather_rows(&x, &Tensor::from_slice(&[0i64, 0, 0]), &inverse(&[0; 3], 1));
    let weight = Tensor::from_slice(&[256f32, 1.0, 1.0]).to_kind(Kind::BFloat16).unsqueeze(1);
    (rows * weight).sum(None).backward();
    assert_eq!(x.grad().double_value(&[0, 0]), 258.0);
}

#[test]
fn where_nothing_asks_for_gradients_it_is_a_gather() {
    let _no_grad = tch::no_grad_guard();
    let x = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([3, 2]);
    let rows = gather_rows(&x, &Tensor::from_slice(&[3i64, 1]), &inverse(&[3, 1], 3));
    assert_eq!(rows, Tensor::from_slice(&[0f32, 0.0, 2.0, 3.0]).reshape([2, 2]));
}
