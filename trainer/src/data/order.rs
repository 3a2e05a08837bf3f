//! The order of samples, as a pure function of (seed, epoch): nothing is remembered, so nothing is lost at a resume.

use std::ops::Range;

use images::rng::{Purpose, Rng};

/// Which samples each step sees.
///
/// An epoch is a fresh permutation of all samples, cut into steps of `batch_size * accum_iter`. **The remainder is
/// dropped**: the last `samples % (batch_size * accum_iter)` of the permutation take no part in that epoch (a different
/// few in each), so that every update averages equally many images and the learning rate's batch is the true one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    samples: usize,
    per_step: usize,
}

/// Where a step stands in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Step within the epoch, from 0.
    pub step: u64,
}

impl Order {
    /// An order over `samples`; `None` when they do not fill a single step, or are more than 2^32.
    pub fn new(seed: u64, samples: usize, per_step: usize) -> Option<Order> {
        (per_step > 0 && samples >= per_step && u32::try_from(samples).is_ok()).then_some(Order {
            seed,
            samples,
            per_step,
        })
    }

    /// Updates in one epoch, at least 1.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.samples / self.per_step) as u64
    }

    /// Epoch and step within it, for a step counted from the start of the run.
    pub fn position(&self, step: u64) -> Position {
        Position {
            epoch: step / self.steps_per_epoch(),
            step: step % self.steps_per_epoch(),
        }
    }

    /// The epoch at `step` with its fraction, as the schedule wants it.
    pub fn fractional_epoch(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch() as f64
    }

    /// Positions of a step's samples within [`Order::permutation`] of its epoch.
    pub fn step_range(&self, step_in_epoch: u64) -> Range<usize> {
        let start = step_in_epoch as usize * self.per_step;
        start..start + self.per_step
    }

    /// The samples of an epoch, each index exactly once.
    ///
    /// Shuffled by the counter RNG keyed by (seed, epoch): a few milliseconds for a million samples, done once per epoch.
    pub fn permutation(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.samples as u32).collect();
        Rng::new(self.seed, Purpose::Order, &[epoch]).shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_and_only_seed_and_epoch_matter() {
        let order = Order::new(7, 1000, 64).unwrap();
        let first = order.permutation(0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_ne!(first, sorted, "1000 samples in their old order");
        assert_ne!(first, order.permutation(1), "epochs differ");
        assert_eq!(
            first,
            order.permutation(0),
            "asking for another epoch in between changes nothing"
        );
        assert_ne!(
            first,
            Order::new(8, 1000, 64).unwrap().permutation(0),
            "seeds differ"
        );
        // How the order is cut does not change it.
        assert_eq!(first, Order::new(7, 1000, 10).unwrap().permutation(0));
    }

    #[test]
    fn every_sample_is_as_likely_to_be_dropped() {
        // 10 samples in steps of 4: two are dropped per epoch. Over 2000 epochs each is expected 400 times, with a
        // standard deviation of sqrt(2000 * 0.2 * 0.8) = 18.
        let order = Order::new(0, 10, 4).unwrap();
        let mut dropped = [0i32; 10];
        for epoch in 0..2000 {
            for &sample in &order.permutation(epoch)[8..] {
                dropped[sample as usize] += 1;
            }
        }
        assert!(dropped.iter().all(|&n| (n - 400).abs() < 90), "{dropped:?}");
    }

    #[test]
    fn steps_cut_the_epoch_and_drop_the_rest() {
        let order = Order::new(0, 10, 4).unwrap();
        assert_eq!(order.steps_per_epoch(), 2);
        assert_eq!(order.step_range(1), 4..8);
        assert_eq!(order.position(5), Position { epoch: 2, step: 1 });
        assert_eq!(order.fractional_epoch(5), 2.5);
        assert_eq!(Order::new(0, 3, 4), None);
    }
}
