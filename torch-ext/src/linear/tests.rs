use tch::{Device, Kind, Tensor};

use super::*;
use crate::Autocast;

/// Numbers between -1 and 1 with no pattern that a product could hide behind.
fn numbers(shape: &[i64], step: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * step;
    angles.sin().reshape(shape)
}

/// Output and gradients of `x`, `weight` and `bias`.
fn passes(
    layer: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor,
    kind: Kind,
    [rows, from, to]: [i64; 3],
    bias: bool,
) -> Vec<Tensor> {
    let given = |shape: &[i64], step| numbers(shape, step).to_kind(kind).set_requires_grad(true);
    let x = given(&[2, rows, from], 0.7);
    let weight = given(&[to, from], 1.3);
    let bias = bias.then(|| given(&[to], 2.1));
    let y = layer(&x, &weight, bias.as_ref());
    let pull = numbers(&[2, rows, to], 0.9).to_kind(kind);
    (&y * pull).sum(kind).backward();
    let mut all = vec![y.detach(), x.grad(), weight.grad()];
    all.extend(bias.map(|bias| bias.grad()));
    all
}

/// On both sides of the size from which oneDNN computes, with and without a bias. A sum of `n` products of numbers up to 1 is within
/// `n` times f32's 6e-8 of that in f64; a wrong product is off by its size, some `sqrt(n)`.
#[test]
fn f32_layers_are_those_of_f64() {
    for shape in [[5, 192, 256], [64, 768, 200], [3, 191, 300], [7, 300, 16]] {
        for bias in [true, false] {
            let ours = passes(linear, Kind::Float, shape, bias);
            let expected = passes(|x, weight, bias| x.linear(weight, bias), Kind::Double, shape, bias);
            assert_eq!(ours.len(), expected.len());
            for (place, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                assert_eq!(ours.kind(), Kind::Float);
                assert_eq!(ours.size(), expected.size());
                let off = (ours - expected).abs().max().double_value(&[]);
                assert!(off < 768.0 * 6e-8, "{shape:?}, bias {bias}, tensor {place}: {off:e}");
            }
        }
    }
}

/// The weight of a convolution, some outputs of a layer, an input that is a part of another.
#[test]
fn views_are_read_as_what_they_show() {
    let weight = numbers(&[2, 256, 200], 1.3).to_kind(Kind::Float);
    let x = numbers(&[9, 400], 0.7).to_kind(Kind::Float);
    let (x, weight) = (x.slice(1, 100, 300, 1), weight.get(1).slice(0, 32, 224, 1));
    let ours = linear(&x, &weight, None);
    let expected = linear(&x.contiguous(), &weight.contiguous(), None);
    assert!((ours - expected).abs().max().double_value(&[]) < 1e-6);
    let turned = numbers(&[200, 256], 1.1).to_kind(Kind::Float);
    let ours = linear(&x, &turned.tr(), None);
    let expected = x.matmul(&turned);
    assert!((ours - expected).abs().max().double_value(&[]) < 1e-4);
}

#[test]
fn under_autocast_it_is_bf16() {
    let x = numbers(&[4, 256], 0.7).to_kind(Kind::Float);
    let weight = numbers(&[256, 256], 1.3).to_kind(Kind::Float);
    let _scope = Autocast::bf16(Device::Cpu);
    let y = linear(&x, &weight, None);
    assert_eq!(y.kind(), Kind::BFloat16);
    assert_eq!(y, x.linear(&weight, None::<Tensor>));
}

#[test]
fn gradients_that_nobody_wants_are_not_made() {
    let x = numbers(&[4, 256], 0.7).to_kind(Kind::Float);
    let weight = numbers(&[256, 256], 1.3).to_kind(Kind::Float);
    let bias = numbers(&[256], 0.3).to_kind(Kind::Float).set_requires_grad(true);
    linear(&x, &weight, Some(&bias)).sum(Kind::Float).backward();
    assert_eq!(bias.grad().double_value(&[0]), 4.0);
    assert!(!x.grad().defined() && !weight.grad().defined());
    let _no_grad = tch::no_grad_guard();
    assert!(!linear(&x, &weight, Some(&bias)).requires_grad());
}

#[test]
fn no_rows_give_no_rows() {
    let weight = numbers(&[256, 256], 1.3).to_kind(Kind::Float);
    let x = Tensor::zeros([0, 256], (Kind::Float, Device::Cpu));
    assert_eq!(linear(&x, &weight, None).size(), [0, 256]);
}

#[test]
#[should_panic(expected = "a linear layer")]
fn shapes_that_do_not_fit_are_refused() {
    let weight = numbers(&[256, 256], 1.3).to_kind(Kind::Float);
    let _ = linear(&Tensor::zeros([4, 200], (Kind::Float, Device::Cpu)), &weight, None);
}

#[test]
fn a_frozen_weight_keeps_its_numbers() {
    let x = numbers(&[9, 200], 0.7).to_kind(Kind::Float);
    for (out, moved) in [(256, true), (64, false)] {
        let weight = numbers(&[out, 200], 1.3).to_kind(Kind::Float);
        let laid_out = lay_out_weight(&weight);
        assert_eq!(laid_out, weight);
        assert_eq!(laid_out.stride() == [1, out], moved);
        let off = (linear(&x, &laid_out, None) - linear(&x, &weight, None)).abs();
        assert!(off.max().double_value(&[]) < 200.0 * 6e-8);
    }
}
