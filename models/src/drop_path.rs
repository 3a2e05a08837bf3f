//! Stochastic depth (Huang et al. 2016), as timm's `DropPath` has it: in training, whole residual branches of single samples are
//! left out.
//!
//! The uniform numbers come from the caller's keyed generator, so that what is dropped of a sample depends on nothing else in the
//! batch, and a resumed run drops the same.

use tch::Tensor;

/// Which residual branches of a batch are dropped.
#[derive(Debug)]
pub struct DropPath {
    /// `[N, B]` f32: 0 where a branch is dropped, `1 / (1 - rate)` where it is kept.
    scales: Tensor,
}

impl DropPath {
    /// Drops branch `b` of sample `n` where `uniform[n, b] < rates[b]`, and scales what is kept so that the expectation stays.
    ///
    /// `uniform [N, B]`: numbers in [0, 1). `rates [B]`: each in [0, 1), on the same device.
    pub fn new(uniform: &Tensor, rates: &Tensor) -> Self {
        let keep = uniform.ge_tensor(&rates.to_kind(uniform.kind())).to_kind(tch::Kind::Float);
        Self { scales: keep / (1.0 - rates.to_kind(tch::Kind::Float)) }
    }

    /// The scale of branch `index` for each sample: `[N, 1, 1]`, f32.
    pub fn branch(&self, index: usize) -> Tensor {
        let index = i64::try_from(index).expect("a network has few branches");
        self.scales.select(1, index).reshape([-1, 1, 1])
    }
}

/// The rate of each of `blocks` blocks: from 0 for the first in equal steps to `last` for the last (timm and MAE's fine-tuning:
/// `torch.linspace(0, last, blocks)`), each twice, for its attention and its MLP branch: `[2 * blocks]`.
pub fn linear_rates(last: f64, blocks: usize) -> Vec<f64> {
    let steps = blocks.saturating_sub(1).max(1) as f64;
    (0..blocks).flat_map(|i| [last * i as f64 / steps; 2]).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn rates_rise_in_equal_steps_and_come_twice() {
        assert_eq!(linear_rates(0.2, 3), [0.0, 0.0, 0.1, 0.1, 0.2, 0.2]);
        assert_eq!(linear_rates(0.2, 1), [0.0, 0.0]);
        assert!(linear_rates(0.2, 0).is_empty());
    }

    #[test]
    fn a_branch_is_dropped_below_its_rate_and_scaled_above() {
        let uniform = Tensor::from_slice(&[0.1, 0.1, 0.9, 0.5]).view([2, 2]);
        let rates = Tensor::from_slice(&[0.0, 0.5]);
        let drop = DropPath::new(&uniform, &rates);
        assert_eq!(drop.branch(0).size(), [2, 1, 1]);
        let values = |i| Vec::<f32>::try_from(drop.branch(i).flatten(0, -1)).unwrap();
        assert_eq!(values(0), [1.0, 1.0]);
        assert_eq!(values(1), [0.0, 2.0]);
    }

    #[test]
    fn the_expectation_stays() {
        let uniform = (Tensor::arange(1000, (Kind::Double, Device::Cpu)) / 1000.0).view([1000, 1]);
        let drop = DropPath::new(&uniform, &Tensor::from_slice(&[0.3]));
        let mean = drop.branch(0).mean(Kind::Double).double_value(&[]);
        assert!((mean - 1.0).abs() < 1e-6, "{mean}");
    }
}
