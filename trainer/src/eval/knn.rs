//! DINO's weighted k-nearest-neighbor vote. It trains nothing, so it measures the features alone.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

#[cfg(test)]
mod tests;

/// Temperature of the votes; the value of DINO's protocol (Caron et al. 2021, after Wu et al. 2018).
pub(crate) const TEMPERATURE: f64 = 0.07;

/// Test images compared at once: a block of similarities of 256 x train floats, 1.3 GB for ImageNet.
const BLOCK: i64 = 256;

/// Largest number of similarities of a block: 2 GiB.
const MAX_SIMILARITIES: i64 = 1 << 29;

/// Features and labels of one set of images.
#[derive(Debug)]
pub(crate) struct Labeled {
    /// `[N, D]`, any scale.
    pub features: Tensor,
    /// `N` classes, each less than the number of classes.
    pub labels: Vec<i64>,
}

/// Shares of test images that were classified correctly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accuracy {
    /// Share of all test images, 0 to 1.
    pub top1: f64,
    /// Mean of the accuracies of the classes that occur in the test set, which one large class cannot dominate.
    pub balanced: f64,
}

/// Classifies every test image by its `k` most similar train images and compares with its label.
///
/// Features are scaled to unit length; a neighbor at cosine `s` votes for its class with weight `exp(s / 0.07)`
/// (`facebookresearch/dino`, `eval_knn.py`). With fewer than `k` train images all of them vote.
pub(crate) fn knn(train: &Labeled, test: &Labeled, k: u32, n_classes: usize) -> anyhow::Result<Accuracy> {
    let predictions = predict(train, &test.features, k, n_classes)?;
    accuracy(&predictions, &test.labels, n_classes)
}

/// The predicted class of each row of `test` `[M, D]`.
pub(crate) fn predict(train: &Labeled, test: &Tensor, k: u32, n_classes: usize) -> anyhow::Result<Vec<i64>> {
    let voters = Voters::new(train, k, n_classes)?;
    let mut predictions = Vec::with_capacity(test.size()[0] as usize);
    voters.votes(test, |votes| {
        predictions.extend(Vec::<i64>::try_from(votes.argmax(1, false).to_device(tch::Device::Cpu))?);
        Ok(())
    })?;
    Ok(predictions)
}

/// Training features that vote for their classes.
#[derive(Debug)]
pub(crate) struct Voters {
    /// `[D, N]`, each column at unit length.
    features: Tensor,
    /// `[N]`.
    labels: Tensor,
    k: i64,
    n_classes: i64,
}

impl Voters {
    /// The rows of `train`, on its device, of which the `k` nearest vote; all where there are fewer.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn new(train: &Labeled, k: u32, n_classes: usize) -> anyhow::Result<Voters> {
        let n_train = train.features.size()[0];
        ensure!(n_train > 0 && n_train as usize == train.labels.len(), "no labeled train image is left to vote");
        let _no_grad = tch::no_grad_guard();
        let features = unit_length(&train.features).transpose(0, 1);
        let labels = Tensor::from_slice(&train.labels).to_device(features.device());
        Ok(Voters { features, labels, k: i64::from(k).min(n_train), n_classes: n_classes as i64 })
    }

    /// The votes for each class, the sums of `exp(s / 0.07)` over the neighbors: `test [M, D]` → `[B, C]` for one block of rows after the
    /// other.
    pub(crate) fn votes(
        &self,
        test: &Tensor,
        mut take: impl FnMut(Tensor) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _no_grad = tch::no_grad_guard();
        let block = BLOCK.min((MAX_SIMILARITIES / self.labels.size()[0]).max(1));
        let test = unit_length(test); // [M, D]
        for start in (0..test.size()[0]).step_by(block as usize) {
            let rows = block.min(test.size()[0] - start);
            let similarity = test.narrow(0, start, rows).matmul(&self.features); // [B, N]
            let (nearest, index) = similarity.topk(self.k, 1, true, true); // [B, k]
            let votes = (nearest / TEMPERATURE).exp();
            let neighbor_labels = self.labels.index_select(0, &index.flatten(0, 1)).view([rows, self.k]);
            let scores = Tensor::zeros([rows, self.n_classes], (Kind::Float, votes.device()));
            take(scores.scatter_add(1, &neighbor_labels, &votes))?; // [B, C]
        }
        Ok(())
    }
}

fn accuracy(predictions: &[i64], labels: &[i64], n_classes: usize) -> anyhow::Result<Accuracy> {
    let mut right = vec![0u64; n_classes];
    let mut total = vec![0u64; n_classes];
    for (prediction, &label) in predictions.iter().zip(labels) {
        let label_idx = usize::try_from(label).ok().filter(|&l| l < n_classes).context("a label out of range")?;
        total[label_idx] += 1;
        right[label_idx] += u64::from(*prediction == label);
    }
    ensure!(!labels.is_empty() && predictions.len() == labels.len(), "no labeled test image is left to classify");
    let per_class: Vec<f64> =
        right.iter().zip(&total).filter(|&(_, &n)| n > 0).map(|(&r, &n)| r as f64 / n as f64).collect();
    Ok(Accuracy {
        top1: right.iter().sum::<u64>() as f64 / labels.len() as f64,
        balanced: per_class.iter().sum::<f64>() / per_class.len() as f64,
    })
}

/// Rows scaled to unit length, f32; a row of zeros stays a row of zeros.
fn unit_length(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let norm = features.square().sum_dim_intlist(-1, true, None).sqrt();
    features / norm.clamp_min(1e-12)
}
