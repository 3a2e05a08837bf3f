use tch::{Device, Kind};

use super::*;

fn tensors(values: &[&[f32]]) -> Vec<Tensor> {
    values.iter().map(|v| Tensor::from_slice(v)).collect()
}

fn finite(tensors: &[Tensor]) -> bool {
    let answer = all_finite(tensors).unwrap();
    assert_eq!((answer.kind(), answer.dim()), (Kind::Bool, 0));
    answer.int64_value(&[]) == 1
}

#[test]
fn the_norm_is_that_of_all_numbers_together() {
    let norm = grad_norm(&tensors(&[&[3.0, 0.0], &[4.0], &[12.0]])).unwrap();
    assert_eq!((norm.dim(), norm.double_value(&[])), (0, 13.0));
    assert_eq!(grad_norm(&[]).unwrap().double_value(&[]), 0.0);
}

#[test]
fn clipping_scales_down_and_never_up() {
    let mut grads = tensors(&[&[3.0], &[4.0]]);
    assert_eq!(clip_grad_norm_(&mut grads, 10.0).unwrap().double_value(&[]), 5.0);
    assert_eq!(grads, tensors(&[&[3.0], &[4.0]]));
    assert_eq!(clip_grad_norm_(&mut grads, 1.0).unwrap().double_value(&[]), 5.0, "the norm before");
    let after = grad_norm(&grads).unwrap().double_value(&[]);
    assert!((after - 1.0).abs() < 1e-6, "{after}");
    assert_eq!(clip_grad_norm_(&mut [], 1.0).unwrap().double_value(&[]), 0.0);
}

#[test]
fn clipping_reaches_the_gradient_itself() {
    let x = Tensor::from_slice(&[3f32, 4.0]).set_requires_grad(true);
    (&x * &x.detach()).sum(Kind::Float).backward();
    let before = clip_grad_norm_(&mut [x.grad()], 0.5).unwrap();
    assert_eq!(before.double_value(&[]), 5.0);
    let norm = x.grad().norm().double_value(&[]);
    assert!((norm - 0.5).abs() < 1e-6, "{norm}");
}

#[test]
fn one_bad_number_is_seen() {
    assert!(finite(&tensors(&[&[1.0, 2.0], &[3.0]])));
    assert!(finite(&[]));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!finite(&tensors(&[&[1.0, bad, 2.0], &[3.0]])), "{bad}");
        assert!(!finite(&tensors(&[&[1.0], &[bad]])), "{bad}");
    }
}

#[test]
fn large_numbers_whose_squares_overflow_are_finite() {
    let large = tensors(&[&[f32::MAX, f32::MIN]]);
    assert!(finite(&large));
    assert!(grad_norm(&large).unwrap().double_value(&[]).is_infinite());
}

#[test]
fn whole_numbers_are_refused_with_an_error() {
    let ints = [Tensor::zeros([2], (Kind::Int64, Device::Cpu))];
    assert!(grad_norm(&ints).is_err());
}
