//! `[run]`: seed, precision, logging and checkpoints.

use models::precision::Precision;
use program::range::{at_least_one, positive};
use program::recipe::{Error, require};
use serde::{Deserialize, Serialize};

use super::data::check_prefetch;

/// One is enough to resume; the second serves if the first turns out to be damaged.
pub(super) const KEEP_CHECKPOINTS: usize = 2;
/// A few skipped steps are an accident, this many in a row are a diverged run.
pub(super) const STOP_AFTER_NONFINITE: u32 = 5;

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Run {
    /// Seed for weights, order, masks, crops and everything else that is random.
    pub seed: u64,
    /// Precision of matmuls and attention, forward and backward: `f32`, `bf16`, or on a GPU `tf32`, in which an online teacher then computes
    /// too. Parameters, moments, norms, softmax, the residual stream and losses are always f32; bf16 has f32's range and needs no loss
    /// scaling.
    pub precision: Precision,
    /// Epochs between two evaluations; there is always one at the end. Fine-tuning: of the classifier on `--test`, by default after every
    /// epoch. Pretraining: by k-NN on `--eval-train` and `--eval-test`, by default only at the end; it changes nothing in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// For fine-tuning: finished batches that may wait for the device (in pretraining `data.prefetch`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<usize>,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two checkpoints; there is always one at the end.
    pub checkpoint_every: u64,
    /// Number of most recent checkpoints to keep.
    pub keep_checkpoints: usize,
    /// For pretraining: how many samples of the current batch are drawn with each checkpoint: original, masked, reconstruction, and the
    /// similarity of each token to each teacher. They go to `RUN/pictures/` and TensorBoard. 0 = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<usize>,
    /// The device's matmul rate in TFLOP/s, in this precision, for the log's MFU. Default: measured at the start with a small plain
    /// matmul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Also write a checkpoint at every multiple of this many steps, and never remove it: to evaluate a run at several steps, or to finish
    /// a `wsd` run at several lengths. Absent = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Keep only the input of each block (convolution stages and decoder included) and recompute the rest in the backward pass (Chen et
    /// al. 2016): a third more arithmetic for a fraction of the memory. Results do not change.
    pub grad_checkpointing: bool,
    /// Use only operations that give the same bits every time. On a GPU some gradients, above all attention's, are otherwise summed in
    /// an order that differs from run to run. Costs speed; changes nothing on a CPU, whose operations are all of this kind.
    pub deterministic: bool,
    /// Consecutive steps with a non-finite loss or gradient (each skipped and recorded) that end the run.
    pub stop_after_nonfinite: u32,
}

impl Default for Run {
    fn default() -> Self {
        Run {
            seed: 0,
            precision: Precision::Bf16,
            eval_every: None,
            prefetch: None,
            log_every: 20,
            checkpoint_every: 1000,
            keep_checkpoints: KEEP_CHECKPOINTS,
            pictures: None,
            peak_tflops: None,
            keep_every: None,
            grad_checkpointing: false,
            deterministic: false,
            stop_after_nonfinite: STOP_AFTER_NONFINITE,
        }
    }
}

/// Settings of `[run]` that change only how fast a run is and what it keeps, and so may differ when it is resumed.
pub(super) const FREE: [&str; 9] = [
    "run.prefetch",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.keep_every",
    "run.peak_tflops",
    "run.grad_checkpointing",
    "run.deterministic",
    "run.stop_after_nonfinite",
];

impl Run {
    pub(super) fn check(&self) -> Result<(), Error> {
        at_least_one("run.eval_every", self.eval_every)?;
        self.prefetch.map_or(Ok(()), |batches| check_prefetch("run.prefetch", batches))?;
        at_least_one("run.log_every", self.log_every)?;
        at_least_one("run.checkpoint_every", self.checkpoint_every)?;
        at_least_one("run.keep_checkpoints", self.keep_checkpoints as u64)?;
        at_least_one("run.keep_every", self.keep_every)?;
        at_least_one("run.stop_after_nonfinite", u64::from(self.stop_after_nonfinite))?;
        positive("run.peak_tflops", self.peak_tflops)?;
        // TOML integers are signed 64-bit; a larger seed could not be saved with the run.
        require(i64::try_from(self.seed).is_ok(), "run.seed", self.seed, "must be less than 2^63")
    }
}
