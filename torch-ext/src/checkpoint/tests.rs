use std::panic;
use std::sync::Arc;

use tch::{Device, Kind};

use super::*;
use crate::Autocast;

const DIM: i64 = 48;

fn random(shape: &[i64], seed: i64) -> Tensor {
    // Not from the shared generator, which other tests use at the same time.
    let n: i64 = shape.iter().product();
    let t = Tensor::arange(n, (Kind::Double, Device::Cpu)) * 0.7131 + seed as f64 * 1.37;
    ((t.sin() * 9173.0).sin() * 0.3).to_kind(Kind::Float).reshape(shape)
}

fn leaf(shape: &[i64], seed: i64) -> Tensor {
    random(shape, seed).set_requires_grad(true)
}

/// Three residual layers over `x`, each in a checkpoint or plain: the gradients of every weight and of `x`, and the result.
fn run(checkpointed: bool, bf16: bool, rounds: usize) -> (Vec<Tensor>, Tensor) {
    let weights: Vec<[Tensor; 2]> = (0..3).map(|i| [leaf(&[DIM, DIM], i), leaf(&[DIM], 10 + i)]).collect();
    let input = leaf(&[5, DIM], 99);
    let mut result = Tensor::new();
    for _ in 0..rounds {
        let y = {
            let _scope = bf16.then(|| Autocast::bf16(Device::Cpu));
            let mut x = &input * 1.0;
            for [weight, bias] in &weights {
                let (weight, bias) = (weight.shallow_clone(), bias.shallow_clone());
                let layer = move |x: &Tensor| x + x.linear(&weight, Some(&bias)).gelu("none");
                x = match checkpointed {
                    true => checkpoint(layer, &x),
                    false => layer(&x),
                };
            }
            x
        };
        (y.to_kind(Kind::Float) * random(&[5, DIM], 7)).sum(Kind::Float).backward();
        result = y.detach();
    }
    let mut grads: Vec<Tensor> = weights.iter().flatten().map(Tensor::grad).collect();
    grads.push(input.grad());
    (grads, result)
}

#[test]
fn gradients_are_those_of_the_plain_pass_to_the_bit() {
    for bf16 in [false, true] {
        for rounds in [1, 3] {
            let (plain, y) = run(false, bf16, rounds);
            let (checkpointed, same_y) = run(true, bf16, rounds);
            assert_eq!(y, same_y, "bf16 {bf16}");
            assert_eq!(plain.len(), 7);
            for (a, b) in plain.iter().zip(&checkpointed) {
                assert!(a.abs().sum(Kind::Double).double_value(&[]) > 0.0);
                assert_eq!(a, b, "bf16 {bf16}, {rounds} rounds");
            }
        }
    }
    assert_ne!(run(true, false, 1).1, run(true, true, 1).1, "bf16 is on");
}

/// A weight that is checkpointed first and used plainly after, in one scope, still gets both gradients.
#[test]
fn casts_made_without_gradient_are_not_remembered() {
    let gradient = |checkpointed: bool| {
        let weight = leaf(&[DIM, DIM], 1);
        let x = leaf(&[4, DIM], 2);
        let loss = {
            let _bf16 = Autocast::bf16(Device::Cpu);
            let held = weight.shallow_clone();
            let first = move |x: &Tensor| x.matmul(&held);
            let y = match checkpointed {
                true => checkpoint(first, &x),
                false => first(&x),
            };
            y.matmul(&weight).to_kind(Kind::Float).sum(Kind::Float)
        };
        loss.backward();
        weight.grad()
    };
    let (plain, checkpointed) = (gradient(false), gradient(true));
    // Two gradients of one weight are added in another order and rounded in between.
    let error = (&plain - &checkpointed).norm().double_value(&[]) / plain.norm().double_value(&[]);
    assert!(error < 5e-3, "{error}");
}

#[test]
fn without_gradients_it_is_a_call_and_the_closure_is_freed() {
    let alive = Arc::new(());
    let held = alive.clone();
    let double = move |x: &Tensor| {
        let _held = &held;
        x * 2.0
    };
    let y = tch::no_grad(|| checkpoint(double, &leaf(&[3], 0)));
    assert!(!y.requires_grad());
    assert_eq!(Arc::strong_count(&alive), 1);

    let held = alive.clone();
    let weight = leaf(&[3], 1);
    let times = {
        let weight = weight.shallow_clone();
        move |x: &Tensor| {
            let _held = &held;
            x * &weight
        }
    };
    // An input that asks for no gradient: the weight gets its own all the same.
    let y = checkpoint(times, &random(&[3], 2));
    y.sum(Kind::Float).backward();
    assert_eq!(weight.grad(), random(&[3], 2));
    drop(y);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn a_panic_crosses_the_border_as_a_panic_in_both_passes() {
    let message =
        |payload: Box<dyn std::any::Any + Send>| payload.downcast_ref::<String>().expect("a formatted message").clone();
    let forward = panic::catch_unwind(|| {
        let _ = checkpoint(|_| panic!("on purpose, forward"), &leaf(&[2], 0));
    });
    assert!(message(forward.unwrap_err()).contains("on purpose, forward"));

    let backward = panic::catch_unwind(|| {
        let first = std::sync::atomic::AtomicBool::new(true);
        let y = checkpoint(
            move |x| {
                assert!(first.swap(false, std::sync::atomic::Ordering::Relaxed), "on purpose, backward");
                x * 2.0
            },
            &leaf(&[2], 0),
        );
        y.sum(Kind::Float).backward();
    });
    assert!(message(backward.unwrap_err()).contains("on purpose, backward"));

    // Neither has left anything switched.
    let x = leaf(&[2], 0);
    (checkpoint(|x| x * 3.0, &x)).sum(Kind::Float).backward();
    assert_eq!(x.grad(), Tensor::from_slice(&[3f32, 3.0]));
    let product = x.view([1, 2]).matmul(&x.view([2, 1]));
    assert_eq!(product.kind(), Kind::Float);
}
