//! `[data]`: which samples are used, and how they are loaded.

use program::range::at_least_one;
use program::recipe::{Error, require};
use serde::{Deserialize, Serialize};

/// Default number of finished batches that may wait for the device. A few hide a slow batch; more only cost memory.
pub(super) const PREFETCH: usize = 3;

/// Checks `data.prefetch` or `run.prefetch`.
pub(super) fn check_prefetch(field: &str, batches: usize) -> Result<(), Error> {
    // Far more than hide any slow batch: 1024 batches of 64 images at 224 pixels are 10 GB.
    const MAX: usize = 1024;
    at_least_one(field, batches as u64)?;
    require(batches <= MAX, field, batches, &format!("must be at most {MAX}"))
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Data {
    /// What to do about cached images that `--images` does not have: none of its images has their content, under any name. With `skip`,
    /// every image is read once before the first step to find out which ones are missing.
    pub missing: Missing,
    /// Train on the parts that are complete although others are missing. Off by default: a run on a third of the data
    /// looks like a run. The samples in use are recorded, so a cache that has grown since refuses to resume.
    pub allow_incomplete: bool,
    /// How many of the views that the cache stores per image are used: the first ones, in turn, one per epoch. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
    /// Show the student a random part of each view. The cache's grid is larger than the student's (`pipeline build-cache --grid`), and the student
    /// sees as many patches as it has, at an offset of whole patches that is drawn uniformly for every image and epoch. Targets and attention are
    /// those of the same patches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub random_shift: bool,
    /// Probability with which the student sees not a part of a view but all of it, at half the resolution: in [0, 1]; needs `random_shift`, and
    /// a grid of the cache that is twice the student's. Each of its patches then covers 2 x 2 of the view's, and the mean of their features is
    /// its target. So a student learns from one cache at two resolutions.
    #[serde(skip_serializing_if = "is_zero")]
    pub half_resolution: f64,
    /// Probability with which an image's view is not one of the cache but a fresh crop, drawn anew for every image and epoch as the cache's crops
    /// were, and its targets come from the teachers themselves: in [0, 1]. Every teacher of the run needs `--online-teacher`. 1 = no view is
    /// used twice, as in the paper, and no rows are read.
    #[serde(skip_serializing_if = "is_zero")]
    pub fresh: f64,
    /// Finished batches that may wait for the device; at most 1024.
    pub prefetch: usize,
    /// Memory for rendered crops, in MiB. Views are finite, so a data set whose crops fit (12 KB each at 64 pixels, 150 KB at
    /// 224) is decoded once and not every epoch. With `random_shift` whole views are kept, which are larger. 0 = none.
    pub pixel_cache_mib: usize,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            missing: Missing::Error,
            allow_incomplete: false,
            views: None,
            random_shift: false,
            half_resolution: 0.0,
            fresh: 0.0,
            prefetch: PREFETCH,
            pixel_cache_mib: 0,
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// What to do about images that cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Missing {
    /// List them and stop.
    Error,
    /// List them and train on the rest.
    Skip,
}

impl Data {
    pub(super) fn check(&self) -> Result<(), Error> {
        at_least_one("data.views", self.views.map(|n| n as u64))?;
        require((0.0..=1.0).contains(&self.fresh), "data.fresh", self.fresh, "must be in [0, 1]")?;
        let half = self.half_resolution;
        require((0.0..=1.0).contains(&half), "data.half_resolution", half, "must be in [0, 1]")?;
        require(
            half == 0.0 || self.random_shift,
            "data.half_resolution",
            half,
            "needs data.random_shift = true (--set data.random_shift=true): an image that is not drawn shows a part of a view of the cache, whose grid is larger than the student's",
        )?;
        check_prefetch("data.prefetch", self.prefetch)?;
        let largest = usize::MAX >> 20;
        let mib = self.pixel_cache_mib;
        require(mib <= largest, "data.pixel_cache_mib", mib, "must fit this machine's address space")
    }
}
