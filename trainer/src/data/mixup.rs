//! Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), one of them for a whole batch, as timm's `Mixup(mode="batch")`.

use images::rng::Rng;
use tch::{Kind, Tensor};

use crate::recipe::finetune::Augment;

/// How batches are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mixup {
    /// a of mixup's Beta(a, a); 0 = no mixup. 0.8 in MAE's fine-tuning.
    pub mixup_alpha: f64,
    /// a of CutMix's Beta(a, a); 0 = no CutMix. 1.0 in MAE's fine-tuning.
    pub cutmix_alpha: f64,
    /// Probability that a batch is mixed at all.
    pub prob: f64,
    /// Probability of CutMix where both are possible.
    pub switch_prob: f64,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
}

/// How one batch is mixed. The partner of image `i` is image `N - 1 - i`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Drawn {
    Plain,
    /// `lambda` of the image and `1 - lambda` of its partner.
    Mix {
        /// In [0, 1].
        lambda: f64,
    },
    /// The partner's pixels in a box, which may be empty.
    Cut {
        /// First row, and the one after the last.
        rows: [u32; 2],
        /// First column, and the one after the last.
        columns: [u32; 2],
        /// The share of the image's own pixels that is left.
        lambda: f64,
    },
}

impl Drawn {
    /// The image's own share of the target.
    pub(crate) fn lambda(&self) -> f64 {
        match *self {
            Drawn::Plain => 1.0,
            Drawn::Mix { lambda } | Drawn::Cut { lambda, .. } => lambda,
        }
    }
}

impl Mixup {
    /// The mixing that `augment` asks for.
    pub(crate) fn of(augment: &Augment) -> Mixup {
        Mixup {
            mixup_alpha: augment.mixup,
            cutmix_alpha: augment.cutmix,
            prob: augment.mixup_prob,
            switch_prob: augment.switch_prob,
            label_smoothing: augment.label_smoothing,
        }
    }

    /// Draws how to mix a batch of images of `height` x `width`, each at least 1.
    pub(crate) fn draw(&self, rng: &mut Rng, height: u32, width: u32) -> Drawn {
        let mixed = rng.uniform_f64() < self.prob;
        let switched = rng.uniform_f64() < self.switch_prob;
        let (mixup, cutmix) = (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0);
        if !mixed || !(mixup || cutmix) {
            return Drawn::Plain;
        }
        if cutmix && (switched || !mixup) {
            let lambda = beta(rng, self.cutmix_alpha);
            cut(rng, lambda, height, width)
        } else {
            Drawn::Mix { lambda: beta(rng, self.mixup_alpha) }
        }
    }

    /// Mixes `imgs` `[N, C, H, W]` f32 with `labels` `[N]` i64: the mixed images and the soft targets `[N, n_classes]` f32, whose rows sum to 1.
    /// The inputs are left as they are.
    pub(crate) fn mix(&self, imgs: &Tensor, labels: &Tensor, n_classes: usize, drawn: &Drawn) -> (Tensor, Tensor) {
        let smoothed = labels.one_hot(n_classes as i64).to_kind(Kind::Float) * (1.0 - self.label_smoothing)
            + self.label_smoothing / n_classes as f64;
        let lambda = drawn.lambda();
        let imgs = match *drawn {
            Drawn::Plain => imgs.shallow_clone(),
            Drawn::Mix { .. } => imgs * lambda + imgs.flip([0]) * (1.0 - lambda),
            Drawn::Cut { rows, columns, .. } => {
                let in_box = |t: &Tensor| {
                    let [top, bottom] = rows.map(i64::from);
                    let [left, right] = columns.map(i64::from);
                    t.narrow(2, top, bottom - top).narrow(3, left, right - left)
                };
                let out = imgs.copy();
                in_box(&out).copy_(&in_box(imgs).flip([0]));
                out
            }
        };
        let targets = match drawn {
            Drawn::Plain => smoothed,
            _ => &smoothed * lambda + smoothed.flip([0]) * (1.0 - lambda),
        };
        (imgs, targets)
    }
}

/// CutMix's box: `1 - lambda` of the area around a uniform center, cut off at the border. Lambda becomes the share of the area that is left.
fn cut(rng: &mut Rng, lambda: f64, height: u32, width: u32) -> Drawn {
    let ratio = (1.0 - lambda).sqrt();
    let mut side = |len: u32| {
        let cut = (f64::from(len) * ratio) as u32;
        let center = rng.range(u64::from(len)) as u32;
        [center.saturating_sub(cut / 2), center.saturating_add(cut.div_ceil(2)).min(len)]
    };
    let (rows, columns) = (side(height), side(width));
    let area = |[start, end]: [u32; 2]| f64::from(end - start);
    let all = f64::from(height) * f64::from(width);
    Drawn::Cut { rows, columns, lambda: 1.0 - area(rows) * area(columns) / all }
}

/// A sample of Beta(a, a), with `a` at least 0.001: the first of two Gamma(a, 1) variates over their sum.
///
/// It is computed from the logarithms, because for a small `a` both variates may be below the smallest f64.
fn beta(rng: &mut Rng, a: f64) -> f64 {
    let difference = log_gamma_variate(rng, a) - log_gamma_variate(rng, a);
    // y / (x + y) = 1 / (1 + exp(ln x - ln y))
    1.0 / (1.0 + difference.exp())
}

/// The logarithm of a sample of Gamma(a, 1), by Marsaglia and Tsang (2000). For `a` below 1 the sample is one of Gamma(a + 1) times
/// U^(1 / a).
fn log_gamma_variate(rng: &mut Rng, a: f64) -> f64 {
    let boosted = if a < 1.0 { a + 1.0 } else { a };
    let d = boosted - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let log = loop {
        let [x, _] = rng.normal_pair();
        let v = (1.0 + c * x).powi(3);
        // In (0, 1], so that the logarithm is finite.
        let u = 1.0 - rng.uniform_f64();
        if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            break d.ln() + v.ln();
        }
    };
    if a < 1.0 { log + (1.0 - rng.uniform_f64()).ln() / a } else { log }
}

#[cfg(test)]
mod tests;
