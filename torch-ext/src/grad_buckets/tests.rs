use tch::{Device, Kind, Tensor};

use super::*;
use crate::process_group::tests::in_group;

/// Three layers, one of which `used` may leave out, and their loss on rows of numbers that depend on the row alone.
struct Net {
    params: Vec<Tensor>,
}

impl Net {
    fn new() -> Net {
        let weight = |seed: i64, shape: &[i64]| {
            let numbers: i64 = shape.iter().product();
            let values = (Tensor::arange(numbers, (Kind::Float, Device::Cpu)) + seed as f64).sin();
            values.view(shape).set_requires_grad(true)
        };
        Net {
            params: vec![weight(1, &[4, 6]), weight(2, &[6]), weight(3, &[6, 6]), weight(4, &[6, 2]), weight(5, &[3])],
        }
    }

    /// The sum over rows `rows` of the step; the last parameter takes part if `all`.
    fn loss(&self, rows: std::ops::Range<i64>, all: bool) -> Tensor {
        let x = Tensor::arange_start(rows.start * 4, rows.end * 4, (Kind::Float, Device::Cpu)).cos().view([-1, 4]);
        let hidden = (x.matmul(&self.params[0]) + &self.params[1]).tanh().matmul(&self.params[2]).tanh();
        let loss = hidden.matmul(&self.params[3]).square().sum(Kind::Float);
        if all { loss + self.params[4].square().sum(Kind::Float) } else { loss }
    }

    /// Removes the gradients.
    fn forget(&self) {
        crate::remove_grads(&self.params);
    }

    fn grads(&self) -> Vec<Option<Vec<f32>>> {
        let numbers = |grad: Tensor| Vec::<f32>::try_from(grad.reshape([-1])).unwrap();
        self.params.iter().map(|param| param.grad()).map(|grad| grad.defined().then(|| numbers(grad))).collect()
    }
}

fn assert_near(found: &[Option<Vec<f32>>], expected: &[Option<Vec<f32>>], tolerance: f32) {
    for (found, expected) in found.iter().zip(expected) {
        let (Some(found), Some(expected)) = (found, expected) else {
            assert_eq!(found, expected);
            continue;
        };
        let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance * largest, "{found:?}, expected {expected:?}");
        }
    }
}

/// The gradients of one process that sees all 12 rows.
fn alone(all: bool) -> Vec<Option<Vec<f32>>> {
    let net = Net::new();
    net.loss(0..12, false).backward();
    if all {
        // The term without rows counts once for each of the three processes.
        (net.params[4].square().sum(Kind::Float) * 3.0).backward();
    }
    net.grads()
}

#[test]
fn gradients_and_values_are_those_of_all_rows_for_any_bucket_size() {
    for (bucket_bytes, in_bf16) in [(1, false), (100, false), (1 << 20, false), (100, true)] {
        let found = in_group(3, |rank, group| {
            let net = Net::new();
            let mut buckets = GradBuckets::new(group, &net.params, bucket_bytes, in_bf16).unwrap();
            let mut of_steps = Vec::new();
            // From the second step on, sums begin within the last backward pass.
            for _ in 0..3 {
                net.forget();
                buckets.begin();
                let first = rank as i64 * 4;
                net.loss(first..first + 3, true).backward();
                buckets.arm();
                net.loss(first + 3..first + 4, false).backward();
                let mut values = Tensor::from_slice(&[rank as f32, 1.0]);
                buckets.finish(&mut values).unwrap();
                of_steps.push((net.grads(), Vec::<f32>::try_from(values).unwrap()));
            }
            of_steps
        });
        assert!(found.iter().all(|of_rank| *of_rank == found[0]), "the same bits everywhere");
        for (grads, values) in &found[0] {
            // bf16 has 8 bits; f32 is summed in another order.
            assert_near(grads, &alone(true), if in_bf16 { 0.02 } else { 1e-5 });
            assert_eq!(values, &[3.0, 3.0]);
        }
    }
}

#[test]
fn a_pass_that_is_repeated_does_not_count_twice() {
    let found = in_group(3, |rank, group| {
        let net = Net::new();
        let mut buckets = GradBuckets::new(group, &net.params, 1, false).unwrap();
        let first = rank as i64 * 4;
        let mut grads = Vec::new();
        for step in 0..3 {
            net.forget();
            buckets.begin();
            if rank == 1 && step > 0 {
                // The gradients of the last layer arrive and are summed; then memory runs out.
                buckets.arm();
                net.loss(first..first + 4, false).backward();
                net.forget();
                net.loss(first..first + 2, false).backward();
                buckets.arm();
                net.loss(first + 2..first + 4, false).backward();
            } else {
                buckets.arm();
                net.loss(first..first + 4, false).backward();
            }
            buckets.finish(&mut Tensor::zeros([1], (Kind::Float, Device::Cpu))).unwrap();
            grads = net.grads();
        }
        grads
    });
    assert!(found.iter().all(|of_rank| *of_rank == found[0]));
    assert_near(&found[0], &alone(false), 1e-5);
}

#[test]
fn what_would_lose_a_gradient_is_an_error() {
    let found = in_group(2, |_, group| {
        let mut errors = Vec::new();
        let mut steps = |frozen: [bool; 2], zeroes: bool| {
            let mut net = Net::new();
            let mut buckets = GradBuckets::new(Arc::clone(&group), &net.params, 1, false).unwrap();
            let mut outcome = None;
            for frozen in frozen {
                match zeroes {
                    true => net.params.iter_mut().for_each(Tensor::zero_grad),
                    false => net.forget(),
                }
                // The first layer's gradient comes last, when the sums have begun.
                net.params[0] = net.params[0].set_requires_grad(!frozen);
                buckets.begin();
                buckets.arm();
                net.loss(0..2, false).backward();
                let done = buckets.finish(&mut Tensor::zeros([1], (Kind::Float, Device::Cpu)));
                outcome = done.err().map(|e| e.to_string());
            }
            errors.push(outcome.unwrap_or_default());
        };
        steps([false, false], false);
        steps([true, false], false);
        steps([false, false], true);
        errors
    });
    for errors in found {
        assert_eq!(errors[0], "");
        assert!(errors[1].contains("did not have in the step before"), "{errors:?}");
        assert!(errors[2].contains("removed, and not set to zero"), "{errors:?}");
    }
}
