//! The order of samples, as a pure function of (seed, epoch): there is no state to save for a resume.

use std::ops::Range;

use anyhow::Context;
use images::rng::{Purpose, Rng};
use program::words::count;

use crate::recipe::Optim;

/// Which samples each step sees.
///
/// An epoch is a fresh permutation of all samples, cut into steps of `batch_size * accum_iter`. **The remainder is
/// dropped**: the last `samples % (batch_size * accum_iter)` of the permutation take no part in that epoch (different
/// ones in each epoch), so that every update averages the same number of images, the one that the learning rate is scaled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sampler {
    seed: u64,
    samples: usize,
    per_step: usize,
}

/// How many steps the images of an epoch fill. Runs and `trainer plan` share this computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub samples: u64,
    /// Images of a step, at least 1.
    pub per_step: u64,
    pub steps: u64,
}

impl Epoch {
    /// An epoch over `samples` in steps of `per_step`.
    pub(crate) fn of(samples: u64, per_step: u64) -> Epoch {
        Epoch { samples, per_step, steps: samples / per_step.max(1) }
    }

    /// The steps of a run of `epochs`, and the images that they see.
    ///
    /// # Errors
    /// If the run is longer than 64 bits can count.
    pub(crate) fn times(&self, epochs: u64) -> anyhow::Result<(u64, u64)> {
        let steps = epochs.checked_mul(self.steps);
        steps
            .and_then(|steps| Some((steps, steps.checked_mul(self.per_step)?)))
            .with_context(|| format!("schedule.epochs = {epochs}: longer than can be counted"))
    }

    /// A message that says how many images are left over; `None` if there are none.
    pub(crate) fn left_over(&self) -> Option<String> {
        let left = self.samples - self.steps * self.per_step;
        (left > 0 && self.steps > 0).then(|| {
            let (samples, per_step) = (self.samples, self.per_step);
            format!("{left} of {samples} images are left over in each epoch, since a step takes {per_step} (different ones each time)")
        })
    }
}

/// Where a step stands in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub epoch: u64,
    /// Step within the epoch, from 0.
    pub step: u64,
}

impl Sampler {
    /// An order over `samples`; `None` when they do not fill a single step, or are more than 2^32.
    pub(crate) fn new(seed: u64, samples: usize, per_step: usize) -> Option<Sampler> {
        (per_step > 0 && samples >= per_step && u32::try_from(samples).is_ok()).then_some(Sampler {
            seed,
            samples,
            per_step,
        })
    }

    /// The order of a run over `images` images.
    ///
    /// # Errors
    /// If they do not fill one step.
    pub(crate) fn of_run(optim: &Optim, seed: u64, images: usize) -> anyhow::Result<Sampler> {
        Sampler::new(seed, images, optim.effective_batch()).with_context(|| {
            format!(
                "{} cannot fill one step of optim.batch_size {} x optim.accum_iter {}",
                count(images as u64, "image"),
                optim.batch_size,
                optim.accum_iter
            )
        })
    }

    fn epoch(&self) -> Epoch {
        Epoch::of(self.samples as u64, self.per_step as u64)
    }

    /// Updates in one epoch, at least 1.
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.epoch().steps
    }

    /// Updates in a run of `epochs`.
    ///
    /// # Errors
    /// If the run is longer than 64 bits can count.
    pub(crate) fn total_steps(&self, epochs: u64) -> anyhow::Result<u64> {
        Ok(self.epoch().times(epochs)?.0)
    }

    /// A message that says how many images an epoch leaves over; `None` if there are none.
    pub(crate) fn left_over(&self) -> Option<String> {
        self.epoch().left_over()
    }

    /// Epoch and step within it, for a step counted from the start of the run.
    pub(crate) fn position(&self, step: u64) -> Position {
        Position { epoch: step / self.steps_per_epoch(), step: step % self.steps_per_epoch() }
    }

    /// The epoch at `step` with its fraction, as the schedule takes it.
    pub(crate) fn fractional_epoch(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch() as f64
    }

    /// Positions of a step's samples within [`Sampler::permutation`] of its epoch.
    pub(crate) fn step_range(&self, step_in_epoch: u64) -> Range<usize> {
        let start = step_in_epoch as usize * self.per_step;
        start..start + self.per_step
    }

    /// The samples of an epoch, each index exactly once.
    ///
    /// Shuffled by the counter RNG keyed by (seed, epoch): a few milliseconds for a million samples, done once per epoch.
    pub(crate) fn permutation(&self, epoch: u64) -> Vec<u32> {
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
        let order = Sampler::new(7, 1000, 64).unwrap();
        let first = order.permutation(0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_ne!(first, sorted, "1000 samples in their old order");
        assert_ne!(first, order.permutation(1), "epochs differ");
        assert_eq!(first, order.permutation(0), "asking for another epoch in between changes nothing");
        assert_ne!(first, Sampler::new(8, 1000, 64).unwrap().permutation(0), "seeds differ");
        // How the order is cut does not change it.
        assert_eq!(first, Sampler::new(7, 1000, 10).unwrap().permutation(0));
    }

    #[test]
    fn every_sample_is_as_likely_to_be_dropped() {
        // 10 samples in steps of 4: two are dropped per epoch. Over 2000 epochs each is expected 400 times, with a
        // standard deviation of sqrt(2000 * 0.2 * 0.8) = 18.
        let order = Sampler::new(0, 10, 4).unwrap();
        let mut dropped = [0i32; 10];
        for epoch in 0..2000 {
            for &sample in &order.permutation(epoch)[8..] {
                dropped[sample as usize] += 1;
            }
        }
        assert!(dropped.iter().all(|&n| (n - 400).abs() < 90), "{dropped:?}");
    }

    #[test]
    fn what_an_epoch_leaves_over_is_told() {
        for (samples, per_step, steps, left) in [
            (180, 64, 2, Some("52 of 180 images")),
            (574, 64, 8, Some("62 of 574 images")),
            (10, 10, 1, None),
            (19, 10, 1, Some("9 of 19 images")),
            (3, 1, 3, None),
        ] {
            let order = Sampler::new(0, samples, per_step).unwrap();
            assert_eq!(order.steps_per_epoch(), steps);
            let message = order.left_over();
            assert_eq!(message.is_some(), left.is_some(), "{message:?}");
            assert!(message.is_none_or(|message| message.starts_with(left.unwrap())));
            // What the message counts is what the steps do not see.
            let seen: usize = (0..steps).map(|step| order.step_range(step).len()).sum();
            let unseen = samples - seen;
            assert!(left.map_or(unseen == 0, |left| { left.starts_with(&format!("{unseen} of")) }));
        }
    }

    #[test]
    fn a_run_is_as_long_as_can_be_counted() {
        let order = Sampler::new(0, 10, 4).unwrap();
        assert_eq!(order.total_steps(3).unwrap(), 6);
        let most = u64::MAX / 8;
        assert_eq!(order.total_steps(most).unwrap(), 2 * most);
        let refused = order.total_steps(most + 1).unwrap_err().to_string();
        assert_eq!(refused, format!("schedule.epochs = {}: longer than can be counted", most + 1));
    }

    #[test]
    fn steps_cut_the_epoch_and_drop_the_rest() {
        let order = Sampler::new(0, 10, 4).unwrap();
        assert_eq!(order.steps_per_epoch(), 2);
        assert_eq!(order.step_range(1), 4..8);
        assert_eq!(order.position(5), Position { epoch: 2, step: 1 });
        assert_eq!(order.fractional_epoch(5), 2.5);
        assert_eq!(Sampler::new(0, 3, 4), None);
    }
}
