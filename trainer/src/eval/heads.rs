//! Linear classifiers over fixed features, one per learning rate, all trained on the same batches.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use models::init::Init;
use program::signals::{self, Interrupted};
use tch::{Device, Kind, Tensor};
use torch_ext::linear;

use crate::data::sampler::Sampler;
use crate::eval::accuracy::{Counter, TopK, top_classes};
use crate::recipe::schedule::{Descent, Schedule, scale_lr};
use crate::train::optim::lars::{Lars, LarsConfig};

/// eps of the batch norm in front of the classifier, as in MAE's probe.
const NORM_EPS: f64 = 1e-6;
/// Weight of a new batch in the running statistics; PyTorch's default.
const NORM_MOMENTUM: f64 = 0.1;
/// Standard deviation of the initial weights, as in MAE's probe.
const INIT_STD: f64 = 0.01;
/// Largest number of scores of a batch: 2 GiB, of which training holds a few copies.
const MAX_SCORES: usize = 1 << 29;
/// Scores computed at once when classifying.
const SCORES_AT_ONCE: usize = 1 << 24;

/// How heads are trained.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Training {
    /// Base learning rates per 256 images, one head each.
    pub blrs: Vec<f64>,
    /// Passes over the training images.
    pub epochs: u64,
    /// Epochs of linear learning-rate warm-up.
    pub warmup_epochs: f64,
    /// Images per step; the remainder of an epoch is dropped.
    pub batch_size: usize,
    /// Weight decay.
    pub weight_decay: f64,
    /// Seed for initial weights and order.
    pub seed: u64,
}

/// Features and classes of a set of images.
#[derive(Debug)]
pub(crate) struct Labeled<'a> {
    /// `[V, N, D]` f32 on the CPU.
    pub features: &'a Tensor,
    /// `N` classes.
    pub labels: &'a [i64],
    /// Indices of the images that take part.
    pub rows: &'a [i64],
}

/// `R` heads. Each is a linear layer; they share a batch norm without affine parameters, because they see the same batches.
#[derive(Debug)]
pub(crate) struct Heads {
    /// `[R, C, D]`.
    pub(super) weight: Tensor,
    /// `[R, C]`.
    pub(super) bias: Tensor,
    /// `[D]`.
    pub(super) running_mean: Tensor,
    /// `[D]`, unbiased.
    pub(super) running_var: Tensor,
}

impl Heads {
    /// `n_heads` heads that start alike: weights from N(0, 0.01²) by `seed`, biases zero.
    pub(crate) fn new(n_heads: usize, n_classes: usize, dim: i64, seed: u64, device: Device) -> Heads {
        let (heads, classes) = (n_heads as i64, n_classes as i64);
        let start = Init::TruncNormal { std: INIT_STD }.tensor(&[classes, dim], seed, "head.weight");
        let f32_on_device = (Kind::Float, device);
        Heads {
            weight: start.to_device(device).unsqueeze(0).repeat([heads, 1, 1]).set_requires_grad(true),
            bias: Tensor::zeros([heads, classes], f32_on_device).set_requires_grad(true),
            running_mean: Tensor::zeros([dim], f32_on_device),
            running_var: Tensor::ones([dim], f32_on_device),
        }
    }

    /// The trained parameters, stacked over the heads.
    pub(crate) fn params(&self) -> BTreeMap<String, Tensor> {
        [("weight", &self.weight), ("bias", &self.bias)].map(|(name, t)| (name.to_owned(), t.shallow_clone())).into()
    }

    /// `x [B, D]` → `[B, R, C]`. In training the batch's own mean and variance are used and move the running ones.
    fn scores(&self, x: &Tensor, train: bool) -> Tensor {
        let x = self.norm(x, train);
        let (heads, classes, _) = self.weight.size3().expect("weight is [R, C, D]");
        // One product for all heads.
        linear(&x, &self.weight.flatten(0, 1), Some(&self.bias.flatten(0, 1))).view([-1, heads, classes])
    }

    /// The scores of one head, after training: `x [B, D]` → `[B, C]`.
    pub(crate) fn scores_of(&self, head: usize, x: &Tensor) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let head = head as i64;
        linear(&self.norm(x, false), &self.weight.get(head), Some(&self.bias.get(head)))
    }

    fn norm(&self, x: &Tensor, train: bool) -> Tensor {
        let none = None::<Tensor>;
        x.batch_norm(
            none.as_ref(),
            none.as_ref(),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            NORM_MOMENTUM,
            NORM_EPS,
            false,
        )
    }

    /// One step on `x [B, D]` with classes `labels [B]`; returns each head's loss before it, `[R]`.
    pub(crate) fn step(&self, lars: &mut Lars, x: &Tensor, labels: &Tensor, lr_scale: f64) -> Tensor {
        lars.zero_grad();
        let scores = self.scores(x, true);
        let (batch, heads, classes) = scores.size3().expect("scores are [B, R, C]");
        let labels = labels.unsqueeze(1).expand([batch, heads], false);
        let losses = scores
            .reshape([batch * heads, classes])
            .cross_entropy_loss(&labels.reshape([batch * heads]), None::<Tensor>, tch::Reduction::None, -100, 0.0)
            .view([batch, heads])
            .mean_dim(0, false, None);
        // A sum, so that each head's gradient is that of its own loss.
        losses.sum(Kind::Float).backward();
        lars.step(lr_scale);
        losses.detach()
    }

    /// The accuracy of each head on `set`, over all its views.
    pub(crate) fn accuracy(&self, set: &Labeled) -> anyhow::Result<Vec<TopK>> {
        let (heads, classes, _) = self.weight.size3()?;
        let at_once = (SCORES_AT_ONCE / (heads * classes) as usize).max(1);
        let mut counters: Vec<Counter> = (0..heads).map(|_| Counter::new(classes as usize)).collect();
        tch::no_grad(|| {
            for view in 0..set.features.size()[0] {
                let view_features = set.features.get(view);
                for rows in set.rows.chunks(at_once) {
                    let x = view_features.index_select(0, &Tensor::from_slice(rows)).to_device(self.weight.device());
                    let top = top_classes(&self.scores(&x, false)); // [B, R, up to 5]
                    let labels: Vec<i64> = rows.iter().map(|&row| set.labels[row as usize]).collect();
                    for (head, counter) in (0..).zip(&mut counters) {
                        counter.add(&top.select(1, head), &labels)?;
                    }
                }
            }
            counters.iter().map(Counter::finish).collect()
        })
    }
}

/// Trains one head per learning rate on the rows of `set`; epoch `e` sees view `e` modulo their number. Returns the heads and each
/// one's mean loss in the last epoch.
///
/// # Errors
/// If the set does not fill a batch, if a batch has too many scores, and at Ctrl-C.
pub(crate) fn train(
    set: &Labeled,
    n_classes: usize,
    training: &Training,
    device: Device,
) -> anyhow::Result<(Heads, Vec<f64>)> {
    let batch_size = training.batch_size;
    let n_heads = training.blrs.len();
    let scores = n_heads.checked_mul(batch_size).and_then(|n| n.checked_mul(n_classes));
    ensure!(
        scores.is_some_and(|n| n <= MAX_SCORES),
        "{n_heads} learning rates x {batch_size} images x {n_classes} classes are too many scores for a step; use a smaller \
         --probe-batch or fewer --blr"
    );
    require_a_step(set.rows.len(), batch_size)?;
    let order =
        Sampler::new(training.seed, set.rows.len(), batch_size).context("an order of the images to train on")?;
    let (views, _, dim) = set.features.size3()?;
    let heads = Heads::new(n_heads, n_classes, dim, training.seed, device);
    let lrs: Vec<f64> = training.blrs.iter().map(|&blr| scale_lr(blr, batch_size)).collect();
    let config = LarsConfig { weight_decay: training.weight_decay, ..LarsConfig::default() };
    let mut lars = Lars::new(config, &lrs, heads.params());
    let schedule = Schedule {
        lr: 1.0,
        min_lr: 0.0,
        warmup_epochs: training.warmup_epochs,
        epochs: training.epochs as f64,
        descent: Descent::Cosine,
    };

    let mut last_losses = Tensor::zeros([n_heads as i64], (Kind::Float, device));
    for epoch in 0..training.epochs {
        let view_features = set.features.get((epoch % views as u64) as i64);
        let permutation = order.permutation(epoch);
        last_losses = last_losses.zeros_like();
        for step in 0..order.steps_per_epoch() {
            let rows: Vec<i64> = permutation[order.step_range(step)].iter().map(|&i| set.rows[i as usize]).collect();
            let labels: Vec<i64> = rows.iter().map(|&row| set.labels[row as usize]).collect();
            let x = view_features.index_select(0, &Tensor::from_slice(&rows));
            let lr_scale = schedule.lr_at(order.fractional_epoch(epoch * order.steps_per_epoch() + step));
            last_losses +=
                heads.step(&mut lars, &x.to_device(device), &Tensor::from_slice(&labels).to_device(device), lr_scale);
        }
        if signals::requested() {
            return Err(Interrupted.into());
        }
    }
    let losses = last_losses / order.steps_per_epoch() as f64;
    Ok((heads, Vec::<f64>::try_from(losses.to_kind(Kind::Double))?))
}

/// Refuses fewer images than one step takes.
pub(crate) fn require_a_step(images: usize, batch_size: usize) -> anyhow::Result<()> {
    ensure!(
        images >= batch_size,
        "{images} images to train on cannot fill one step of --probe-batch {batch_size}; give a smaller --probe-batch"
    );
    Ok(())
}

#[cfg(test)]
mod tests;
