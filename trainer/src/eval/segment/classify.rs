//! Classifiers of patches, and their scores as classes of pixels.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::areas::Areas;
use super::patches::TrainPatches;
use crate::eval::heads::{self, Heads, Training};
use crate::eval::knn::{self, Voters};
use crate::eval::probe::Split;

/// Scores that are interpolated at once: 256 MiB.
const SCORES_AT_ONCE: usize = 1 << 26;
/// Patches of a part of the training set that are classified at once.
const PATCHES_AT_ONCE: usize = 1 << 14;

/// Gives patches a score for each class of the training patches.
#[derive(Debug)]
pub(crate) struct PatchClassifier {
    /// The numbers of the classes, ascending; class `i` of the scores is the `i`-th.
    classes: Vec<u16>,
    device: Device,
    kind: Method,
}

#[derive(Debug)]
enum Method {
    Knn(Voters),
    Linear(Heads),
}

/// How a linear classifier was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    /// The base learning rate of the classifier.
    pub blr: f64,
    /// Mean training loss of its last epoch; absent when it is not finite.
    pub train_loss: Option<f64>,
    /// Training patches on which the rate was chosen; 0 if only one rate was tried.
    pub held_out_patches: usize,
    /// For each rate, the mIoU of held-out patches by a classifier that was not trained on them; empty if only one was tried.
    pub rates: Vec<Rate>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Base learning rate per 256 patches.
    pub blr: f64,
    /// Mean IoU of the held-out patches, each of which counts as one.
    pub held_out_miou: f64,
}

impl PatchClassifier {
    /// The `k` nearest of the training patches vote.
    pub(crate) fn knn(patches: &TrainPatches, k: u32, device: Device) -> anyhow::Result<PatchClassifier> {
        let (classes, labels) = numbered(&patches.classes);
        let train = knn::Labeled { features: patches.features.to_device(device), labels };
        let voters = Voters::new(&train, k, classes.len())?;
        Ok(PatchClassifier { classes, device, kind: Method::Knn(voters) })
    }

    /// A linear layer after a batch norm, at the learning rate that does best on the patches of the share `held_out` of the images; with
    /// one rate nothing is held out. If rates do equally well, the lowest is chosen.
    ///
    /// # Errors
    /// If patches do not fill a step, or none is held out.
    pub(crate) fn linear(
        patches: &TrainPatches,
        training: &Training,
        held_out: f64,
        device: Device,
    ) -> anyhow::Result<(PatchClassifier, Choice)> {
        let (classes, labels) = numbered(&patches.classes);
        let split = match training.blrs.len() {
            1 => Split::without_choice(labels.len()),
            _ => Split::of(&patches.hashes, training.seed, held_out),
        };
        ensure!(
            training.blrs.len() == 1 || !split.held_out.is_empty(),
            "--held-out {held_out} of the training images holds out none; hold out more, or give one --blr, which needs no choice"
        );
        ensure!(
            split.kept.len() >= training.batch_size,
            "{} training patches cannot fill one step of --probe-batch {}; give a smaller --probe-batch or more images",
            split.kept.len(),
            training.batch_size
        );
        let features = patches.features.unsqueeze(0);
        let set = |rows| heads::Labeled { features: &features, labels: &labels, rows };
        let mut rates = Vec::new();
        if !split.held_out.is_empty() {
            let (trained, _) = heads::train(&set(&split.kept), classes.len(), training, device)?;
            for (head, &blr) in training.blrs.iter().enumerate() {
                let mut areas = Areas::new();
                for rows in split.held_out.chunks(PATCHES_AT_ONCE) {
                    let x = patches.features.index_select(0, &Tensor::from_slice(rows)).to_device(device);
                    let best =
                        Vec::<i64>::try_from(trained.scores_of(head, &x).argmax(1, false).to_device(Device::Cpu))?;
                    let best: Vec<u16> = best.into_iter().map(|class| classes[class as usize]).collect();
                    let actual: Vec<u16> = rows.iter().map(|&row| patches.classes[row as usize]).collect();
                    areas.add(&actual, &best);
                }
                let found = areas.finish().context("held-out patches have classes")?;
                rates.push(Rate { blr, held_out_miou: found.miou });
            }
        }
        let mut best = 0;
        for (i, rate) in rates.iter().enumerate() {
            if rate.held_out_miou > rates[best].held_out_miou {
                best = i;
            }
        }
        let blr = training.blrs[best];
        let chosen = Training { blrs: vec![blr], ..training.clone() };
        let (trained, losses) = heads::train(&set(&split.all), classes.len(), &chosen, device)?;
        let choice = Choice {
            blr,
            train_loss: losses.first().copied().filter(|loss| loss.is_finite()),
            held_out_patches: split.held_out.len(),
            rates,
        };
        Ok((PatchClassifier { classes, device, kind: Method::Linear(trained) }, choice))
    }

    /// The numbers of its classes, ascending.
    pub(crate) fn classes(&self) -> &[u16] {
        &self.classes
    }

    /// `patches [L, D]` → `[L, C]`: the shares of the votes, or the logits.
    pub(crate) fn scores(&self, patches: &Tensor) -> anyhow::Result<Tensor> {
        let patches = patches.to_device(self.device);
        match &self.kind {
            Method::Knn(voters) => {
                let mut blocks = Vec::new();
                voters.votes(&patches, |votes| {
                    // Each patch has the same weight, however near its neighbors are.
                    blocks.push(&votes / votes.sum_dim_intlist(1, true, Kind::Float));
                    Ok(())
                })?;
                Ok(Tensor::cat(&blocks, 0))
            }
            Method::Linear(heads) => Ok(heads.scores_of(0, &patches)),
        }
    }

    /// The classes of the pixels of a square of `side`, row by row, by the scores `[L, C]` of its patches.
    pub(crate) fn pixels(&self, scores: &Tensor, side: u32) -> anyhow::Result<Vec<u16>> {
        let best = best_of_pixels(scores, side)?;
        Ok(best.into_iter().map(|class| self.classes[class as usize]).collect())
    }
}

/// The classes that occur, ascending, and each class as its place among them.
fn numbered(classes: &[u16]) -> (Vec<u16>, Vec<i64>) {
    let mut found = classes.to_vec();
    found.sort_unstable();
    found.dedup();
    let place = |class: &u16| found.partition_point(|other| other < class) as i64;
    let labels = classes.iter().map(place).collect();
    (found, labels)
}

/// Interpolates the scores of a square grid, `[L, C]`, bilinearly to `side` x `side` pixels (pixel centers as in PyTorch with
/// `align_corners=False`), and returns the place of the best score at each pixel; the first among equals.
fn best_of_pixels(scores: &Tensor, side: u32) -> anyhow::Result<Vec<i64>> {
    let _no_grad = tch::no_grad_guard();
    let (patches, classes) = scores.size2()?;
    let grid = patches.isqrt();
    ensure!(grid * grid == patches, "{patches} patches are not a square");
    let side = i64::from(side);
    let maps = scores.to_kind(Kind::Float).tr().reshape([1, classes, grid, grid]);
    let at_once = (SCORES_AT_ONCE as i64 / (side * side)).clamp(1, classes);
    let mut best: Option<(Tensor, Tensor)> = None;
    for start in (0..classes).step_by(at_once as usize) {
        let part = maps.narrow(1, start, at_once.min(classes - start));
        let (values, places) =
            part.upsample_bilinear2d([side, side], false, None, None).squeeze_dim(0).max_dim(0, false);
        let places = places + start;
        best = Some(match best {
            None => (values, places),
            Some((best, at)) => {
                let better = values.gt_tensor(&best);
                (values.where_self(&better, &best), places.where_self(&better, &at))
            }
        });
    }
    let (_, places) = best.context("there is a class")?;
    Ok(Vec::try_from(places.flatten(0, -1).to_device(Device::Cpu))?)
}

#[cfg(test)]
mod tests;
