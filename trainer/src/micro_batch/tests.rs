use std::cell::Cell;

use tch::{Device, Kind, Tensor};
use torch_ext::AdamWConfig;

use super::*;

thread_local! {
    static MOST_IMAGES: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// For as long as this lives memory is short. Dropped by a test that fails too: with one test thread the next test runs on the same.
#[must_use]
pub(crate) struct Limit(());

impl Drop for Limit {
    fn drop(&mut self) {
        MOST_IMAGES.set(usize::MAX);
    }
}

/// Lets every pass of this thread over more than `images` images fail as it does when memory is short.
pub(crate) fn limit_memory_to(images: usize) -> Limit {
    MOST_IMAGES.set(images);
    Limit(())
}

/// Asks libtorch for more memory than there are addresses for, if the pass is over the limit.
pub(super) fn run_out_above_limit(images: usize) {
    if images > MOST_IMAGES.get() {
        let _ = Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu));
    }
}

fn batch(n: i64) -> MimicBatch {
    MimicBatch {
        samples: (0..n as u64).map(|id| (id, 0)).collect(),
        imgs: Tensor::arange(n, (Kind::Float, Device::Cpu)),
        noise: Tensor::zeros([n, 1], (Kind::Double, Device::Cpu)),
        drop_path: None,
        teachers: vec![],
    }
}

/// A loss whose gradient is the mean of the images.
fn pass(weight: &Tensor) -> impl Fn(&MimicBatch, usize) -> anyhow::Result<Losses> {
    move |part, of_step| {
        let total = (weight * &part.imgs).mean(Kind::Float);
        (&total / of_step as f64).backward();
        Ok(Losses { total: total.detach(), rec: None, mimic: Default::default(), mimic_cls: Default::default() })
    }
}

fn optim(weight: &Tensor) -> FusedAdamW {
    let mut optim = FusedAdamW::new(AdamWConfig::default());
    optim.add_group([("weight".to_owned(), weight.shallow_clone())], 0.0, 0.0);
    optim
}

fn one() -> Tensor {
    Tensor::ones([], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

/// The second batch is the one that does not fit; of the first nothing stays behind.
#[test]
fn a_step_that_runs_out_begins_again_in_smaller_parts() {
    for (size, fits, expected_parts) in [(8, 3, 4), (8, 1, 8), (6, 2, 3), (12, 5, 3), (7, 3, 7), (8, 8, 1)] {
        let weight = one();
        let mut optim = optim(&weight);
        let mut micro = MicroBatches::new(size as usize, 2, 1).unwrap();
        let (mut losses, mut batches) = (vec![], vec![]);
        for i in 0..2 {
            batches.push(batch(size));
            let _limit = limit_memory_to(if i == 0 { usize::MAX } else { fits });
            micro.accumulate(&mut optim, &batches, &mut losses, &pass(&weight)).unwrap();
        }
        assert_eq!(micro.parts(), expected_parts, "{size} images, {fits} fit");
        assert_eq!(losses.len(), 2 * expected_parts);
        let mean = (size - 1) as f64 / 2.0;
        let gradient = weight.grad().double_value(&[]);
        assert!((gradient - mean).abs() < 1e-5, "{gradient}, not {mean}");
    }
}

#[test]
fn one_image_too_much_is_an_error_that_says_what_to_do() {
    let weight = one();
    let mut micro = MicroBatches::new(4, 1, 1).unwrap();
    let _limit = limit_memory_to(0);
    let failed = micro.accumulate(&mut optim(&weight), &[batch(4)], &mut vec![], &pass(&weight));
    let message = failed.unwrap_err().to_string();
    for words in ["one image at a time", "DefaultCPUAllocator", "grad_checkpointing"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
    assert!(MicroBatches::new(4, 1, 3).is_err());
}
