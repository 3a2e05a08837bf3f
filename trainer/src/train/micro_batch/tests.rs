use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::*;

thread_local! {
    static MOST_IMAGES: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Memory is short as long as this lives. A failing test drops it too, since with one test thread the next test runs on the same thread.
#[must_use]
pub(crate) struct Limit(());

impl Drop for Limit {
    fn drop(&mut self) {
        MOST_IMAGES.set(usize::MAX);
    }
}

/// Makes every pass of this thread over more than `images` images fail as if memory were short.
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

/// The mean of `2 * size` images, as the gradient of a weight, in steps of two batches of which the second is the one that does not fit.
fn gradient(size: i64, fits: usize, micro: &mut MicroBatches) -> f64 {
    let mut weight = Tensor::ones([], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let images = Tensor::arange(size, (Kind::Float, Device::Cpu));
    micro
        .retry_smaller(|per_batch| {
            weight.zero_grad();
            for batch in 0..2 {
                for micro_batch in images.chunk(per_batch as i64, 0) {
                    if batch == 1 && micro_batch.size()[0] as usize > fits {
                        let _ = Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu));
                    }
                    ((&weight * &micro_batch).mean(Kind::Float) / (2 * per_batch) as f64).backward();
                }
            }
            Ok(())
        })
        .unwrap();
    weight.grad().double_value(&[])
}

#[test]
fn a_step_that_runs_out_begins_again_in_smaller_micro_batches() {
    for (size, fits, expected) in [(8, 3, 4), (8, 1, 8), (6, 2, 3), (12, 5, 3), (7, 3, 7), (8, 8, 1)] {
        let mut micro = MicroBatches::new(size as usize, 1).unwrap();
        let gradient = gradient(size, fits, &mut micro);
        assert_eq!(micro.per_batch(), expected, "{size} images, {fits} fit");
        let mean = (size - 1) as f64 / 2.0;
        assert!((gradient - mean).abs() < 1e-5, "{gradient}, not {mean}");
    }
}

#[test]
fn one_image_too_much_is_an_error_that_says_what_to_do() {
    let mut micro = MicroBatches::new(4, 1).unwrap();
    let _limit = limit_memory_to(0);
    let failed = micro.retry_smaller(|_| Ok(()));
    let message = failed.unwrap_err().to_string();
    for words in ["one image at a time", "DefaultCPUAllocator", "grad_checkpointing"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
    assert!(MicroBatches::new(4, 3).is_err());
}

#[test]
fn a_batch_that_cannot_be_loaded_is_not_tried_again() {
    let mut micro = MicroBatches::new(4, 1).unwrap();
    let mut tries = 0;
    let failed = micro.retry_smaller(|_| {
        tries += 1;
        Err::<(), _>(NoHostMemory("CUDA error: out of memory".to_owned()).into())
    });
    assert!(format!("{:#}", failed.unwrap_err()).contains("page-locked"));
    assert_eq!((tries, micro.per_batch()), (1, 1));
}
