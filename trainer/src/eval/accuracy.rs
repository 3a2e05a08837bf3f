//! Top-1, top-5 and balanced accuracy of a classifier, from its scores.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The k of [`TopK::top5`].
const TOP_K: i64 = 5;

/// Shares of images that were classified correctly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopK {
    /// Share of images whose own class has the highest score, 0 to 1.
    pub top1: f64,
    /// Share of images whose own class is among the five highest; 1 for five classes or fewer.
    pub top5: f64,
    /// Mean of the top-1 accuracies of the classes that occur, which one large class cannot dominate.
    pub balanced: f64,
}

/// Counts correctly classified images, batch by batch.
#[derive(Debug)]
pub(crate) struct Counter {
    /// Per class: images, and those whose top-1 class is right.
    classes: Vec<(u64, u64)>,
    within_top5: u64,
}

impl Counter {
    pub(crate) fn new(n_classes: usize) -> Counter {
        Counter { classes: vec![(0, 0); n_classes], within_top5: 0 }
    }

    /// Counts a batch by its best classes `top [B, up to 5]` ([`top_classes`]) and the labels of its images.
    ///
    /// If scores are NaN, their best classes are arbitrary.
    pub(crate) fn add(&mut self, top: &Tensor, labels: &[i64]) -> anyhow::Result<()> {
        let per_image = top.size()[1] as usize;
        let top = Vec::<i64>::try_from(top.flatten(0, -1))?;
        ensure!(top.len() == labels.len() * per_image, "as many labels as images");
        for (top, &label) in top.chunks_exact(per_image).zip(labels) {
            let class = usize::try_from(label).ok().and_then(|label| self.classes.get_mut(label));
            let (images, right) = class.context("a label out of range")?;
            *images += 1;
            *right += u64::from(top[0] == label);
            self.within_top5 += u64::from(top.contains(&label));
        }
        Ok(())
    }

    /// All counts, so that those of many processes can be added up.
    pub(crate) fn numbers(&self) -> Vec<f64> {
        let counts = self.classes.iter().flat_map(|&(images, right)| [images, right]);
        counts.chain([self.within_top5]).map(|count| count as f64).collect()
    }

    /// From a sum of [`Counter::numbers`].
    pub(crate) fn of_numbers(numbers: &[f64]) -> Counter {
        let (classes, within_top5) = numbers.split_at(numbers.len().saturating_sub(1));
        let classes = classes.chunks_exact(2).map(|of_class| (of_class[0] as u64, of_class[1] as u64));
        Counter { classes: classes.collect(), within_top5: within_top5.iter().map(|&n| n as u64).sum() }
    }

    /// The shares over all counted images.
    pub(crate) fn finish(&self) -> anyhow::Result<TopK> {
        let sum = |part: fn(&(u64, u64)) -> u64| self.classes.iter().map(part).sum::<u64>() as f64;
        let images = sum(|&(images, _)| images);
        ensure!(images > 0.0, "no labeled image is left to classify");
        let shares: Vec<f64> = self
            .classes
            .iter()
            .filter(|&&(images, _)| images > 0)
            .map(|&(images, right)| right as f64 / images as f64)
            .collect();
        Ok(TopK {
            top1: sum(|&(_, right)| right) / images,
            top5: self.within_top5 as f64 / images,
            balanced: shares.iter().sum::<f64>() / shares.len() as f64,
        })
    }
}

/// The classes with the highest scores, the best first: `scores [.., C]` → `[.., up to 5]` i64 on the CPU.
pub(crate) fn top_classes(scores: &Tensor) -> Tensor {
    let n_classes = *scores.size().last().expect("scores have classes");
    let (_, classes) = scores.topk(TOP_K.min(n_classes), -1, true, true);
    classes.to_kind(Kind::Int64).to_device(tch::Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_counted_by_hand() {
        let mut counter = Counter::new(8);
        let scores = Tensor::from_slice(&[
            0.9f32, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, // best 0; 0, 7, 6, 5, 4 are the five best
            0.9, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, //
            0.9, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, //
        ])
        .view([3, 8]);
        counter.add(&top_classes(&scores), &[0, 0, 4]).unwrap();
        counter.add(&top_classes(&scores.narrow(0, 0, 1)), &[1]).unwrap();
        let found = counter.finish().unwrap();
        assert_eq!(Counter::of_numbers(&counter.numbers()).finish().unwrap(), found);
        assert_eq!((found.top1, found.top5), (0.5, 0.75));
        // Class 0 is always right, classes 1 and 4 never.
        assert!((found.balanced - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn few_classes_and_wrong_labels() {
        let scores = Tensor::from_slice(&[1.0f32, 2.0]).view([1, 2]);
        assert_eq!(top_classes(&scores).size(), [1, 2]);
        let mut counter = Counter::new(2);
        assert!(counter.add(&top_classes(&scores), &[2]).is_err());
        assert!(counter.add(&top_classes(&scores), &[-1]).is_err());
        assert!(Counter::new(2).finish().is_err(), "nothing was counted");
    }
}
