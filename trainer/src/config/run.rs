//! `[data]` and `[run]`: what surrounds the method.

use models::precision::Precision;
use serde::{Deserialize, Serialize};

use super::{KEEP_CHECKPOINTS, PICTURES, PREFETCH, Recipe, STOP_AFTER_NONFINITE};
use program::recipe::{Error, POSITIVE, require};

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// What to do about cached images that `--images` does not have: none of its images has their content, whatever it is called. With
    /// `skip`, every image is read once before the first step, to know which they are.
    pub missing: Missing,
    /// Train on the parts that are complete although others are missing. Off by default: a run on a third of the data
    /// looks like a run. The samples in use are recorded, so a cache that has grown since refuses to resume.
    pub allow_incomplete: bool,
    /// Views used of those that the cache stores per image: the first so many, one an epoch in turn. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
    /// Finished batches that may wait for the device.
    pub prefetch: usize,
    /// Memory for rendered crops, in MiB. Views are finite, so a data set whose crops fit (12 KB each at 64 pixels, 150 KB at
    /// 224) is decoded once and not every epoch. 0 = none.
    pub pixel_cache_mib: usize,
}

impl Default for Data {
    fn default() -> Self {
        Data { missing: Missing::Error, allow_incomplete: false, views: None, prefetch: PREFETCH, pixel_cache_mib: 0 }
    }
}

/// What to do about images that cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// List them and stop.
    Error,
    /// List them and train on the rest.
    Skip,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Weights, order and masks are functions of it.
    pub seed: u64,
    /// What matrix products and attention compute in, forward and backward. Parameters, moments, norms, softmax, the residual
    /// stream and losses are f32 either way; bf16 has f32's range and needs no loss scaling. `f32`, `bf16`, or on a GPU `tf32`; then an
    /// online teacher computes in TF32 as well.
    #[serde(with = "precision_name")]
    pub precision: Precision,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two checkpoints; there is always one at the end.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// Samples of the current batch that are drawn with each checkpoint: original, masked, reconstruction, and how close each token comes
    /// to each teacher. Into `RUN/pictures/` and TensorBoard. 0 = none.
    pub pictures: usize,
    /// The device's matrix products in TFLOP/s, in this precision, for the log's MFU. Default: measured at the start by a small plain
    /// product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Besides these, checkpoints after every so many steps are written and kept for good: to evaluate a run along its way, or to finish a
    /// `wsd` run at several lengths. Absent = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Keep of each block (convolution stages and decoder included) only its input and compute the rest again in backward (Chen et al. 2016): a third more arithmetic
    /// for a fraction of the memory. Changes no number.
    pub grad_checkpointing: bool,
    /// Use only operations that give the same bits every time. On a GPU some gradients, of attention first of all, are otherwise summed in
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
            log_every: 20,
            checkpoint_every: 1000,
            keep_checkpoints: KEEP_CHECKPOINTS,
            pictures: PICTURES,
            peak_tflops: None,
            keep_every: None,
            grad_checkpointing: false,
            deterministic: false,
            stop_after_nonfinite: STOP_AFTER_NONFINITE,
        }
    }
}

/// [`Precision`] as its name.
pub(crate) mod precision_name {
    use models::precision::Precision;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(precision: &Precision, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(precision.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Precision, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}

impl Recipe {
    pub(super) fn check_data_and_run(&self) -> Result<(), Error> {
        require(self.data.views != Some(0), "data.views", 0, POSITIVE)?;
        require(self.data.prefetch >= 1, "data.prefetch", self.data.prefetch, POSITIVE)?;
        let most = usize::MAX >> 20;
        let mib = self.data.pixel_cache_mib;
        require(mib <= most, "data.pixel_cache_mib", mib, "must fit this machine's address space")?;
        require(self.run.log_every >= 1, "run.log_every", self.run.log_every, POSITIVE)?;
        require(self.run.checkpoint_every >= 1, "run.checkpoint_every", self.run.checkpoint_every, POSITIVE)?;
        require(self.run.keep_checkpoints >= 1, "run.keep_checkpoints", self.run.keep_checkpoints, POSITIVE)?;
        let every = self.run.keep_every.unwrap_or(1);
        require(every >= 1, "run.keep_every", every, POSITIVE)?;
        let peak = self.run.peak_tflops.unwrap_or(1.0);
        require(
            peak > 0.0 && peak.is_finite(),
            "run.peak_tflops",
            peak,
            "must be positive; leave it out to have it measured",
        )?;
        require(
            self.run.stop_after_nonfinite >= 1,
            "run.stop_after_nonfinite",
            self.run.stop_after_nonfinite,
            POSITIVE,
        )?;
        // TOML integers are signed 64-bit; a larger seed could not be saved with the run.
        require(i64::try_from(self.run.seed).is_ok(), "run.seed", self.run.seed, "must be less than 2^63")
    }
}
