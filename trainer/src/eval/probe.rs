//! MAE's linear probe on fixed features (He et al. 2022, appendix A.1): heads at several learning rates, the choice among them on held-out
//! training images, and the chosen one's accuracy.

use images::rng::{Purpose, Rng};
use schemas::ContentHash;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::accuracy::TopK;
use super::heads::{Labeled, Training, train};

/// The result for one kind of feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// The base learning rate that did best on the held-out images.
    pub blr: f64,
    /// The accuracy of that rate's head on the test images.
    pub test: TopK,
    /// All heads, in the order of their rates. Do not choose among them by `test`: that would be a choice on the test images.
    pub heads: Vec<Head>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Base learning rate per 256 images.
    pub blr: f64,
    /// Mean training loss of the last epoch; absent when it is not finite.
    pub train_loss: Option<f64>,
    /// The accuracy on the held-out images of a head that was not trained on them; absent if nothing was held out.
    pub held_out: Option<TopK>,
    /// The accuracy on the test images of the head that was trained on all training images.
    pub test: TopK,
}

/// Which training images choose the learning rate.
#[derive(Debug)]
pub(crate) struct Split {
    pub all: Vec<i64>,
    /// Those that train the heads among which is chosen.
    pub kept: Vec<i64>,
    /// Those that choose; empty if there is nothing to choose.
    pub held_out: Vec<i64>,
}

impl Split {
    /// Every one of `n` images trains.
    pub(crate) fn without_choice(n: usize) -> Split {
        let all: Vec<i64> = (0..n as i64).collect();
        Split { kept: all.clone(), all, held_out: Vec::new() }
    }

    /// Holds out the share `held_out` of the images. It is drawn by content, so that copies of an image fall on the same side.
    pub(crate) fn of(hashes: &[ContentHash], seed: u64, held_out: f64) -> Split {
        let is_held_out = |hash: &ContentHash| {
            let content = u128::from_le_bytes(hash.0);
            let key = [content as u64, (content >> 64) as u64];
            Rng::new(seed, Purpose::Select, &key).uniform_f64() < held_out
        };
        let all: Vec<i64> = (0..hashes.len() as i64).collect();
        let (held_out, kept) = all.iter().partition(|&&row| is_held_out(&hashes[row as usize]));
        Split { all, kept, held_out }
    }
}

/// One kind of feature of both sets, `[V, N, D]`, and their labels, `N` each.
#[derive(Debug)]
pub(crate) struct Sets<'a> {
    pub train: (&'a Tensor, &'a [i64]),
    pub test: (&'a Tensor, &'a [i64]),
}

/// Chooses the learning rate on the held-out images, then trains a head for each rate on all training images. If rates do equally well,
/// the lowest is chosen.
///
/// # Errors
/// As [`train`].
pub(crate) fn probe(
    sets: &Sets,
    split: &Split,
    n_classes: usize,
    training: &Training,
    device: Device,
) -> anyhow::Result<Probe> {
    let set = |rows| Labeled { features: sets.train.0, labels: sets.train.1, rows };
    let held_out = if split.held_out.is_empty() {
        None
    } else {
        let (heads, _) = train(&set(&split.kept), n_classes, training, device)?;
        Some(heads.accuracy(&set(&split.held_out))?)
    };
    let (heads, losses) = train(&set(&split.all), n_classes, training, device)?;
    let test_rows: Vec<i64> = (0..sets.test.1.len() as i64).collect();
    let test = heads.accuracy(&Labeled { features: sets.test.0, labels: sets.test.1, rows: &test_rows })?;

    let mut best = 0;
    for (i, accuracy) in held_out.iter().flatten().enumerate() {
        if held_out.as_ref().is_some_and(|all| accuracy.top1 > all[best].top1) {
            best = i;
        }
    }
    let heads: Vec<Head> = test
        .into_iter()
        .enumerate()
        .map(|(i, test)| Head {
            blr: training.blrs[i],
            train_loss: Some(losses[i]).filter(|loss| loss.is_finite()),
            held_out: held_out.as_ref().map(|all| all[i].clone()),
            test,
        })
        .collect();
    Ok(Probe { blr: training.blrs[best], test: heads[best].test.clone(), heads })
}
