//! A build stops when more images cannot be used than `data.max_rejects` allows: something is wrong with the source, a teacher or a setting, and
//! the rest would take hours to show the same.

use std::collections::BTreeMap;

use schemas::{Cache, Reject};

use super::build::Build;
use super::decode::DUPLICATE;
use super::summary::{commonest_first, word};
use crate::recipe::MaxRejects;

/// More images cannot be used than allowed. A problem of the data.
#[derive(Debug, thiserror::Error)]
#[error(
    "{rejected} images cannot be used, and {allowed} of {samples} are allowed (--max-rejects): {reasons}. The last of them is {last}. What is \
     finished is kept, and {rejects} names all of its images that cannot be used. Allow more with --max-rejects N or --max-rejects P% to go on; a source that was put right is another data set, for another cache"
)]
pub(crate) struct TooManyRejects {
    rejected: u64,
    allowed: u64,
    samples: u64,
    /// `12 truncated, 3 unknown-format`
    reasons: String,
    /// Key and reason.
    last: String,
    /// Where they are listed.
    rejects: String,
}

/// Counts images that cannot be used.
#[derive(Debug)]
pub(crate) struct RejectQuota {
    allowed: u64,
    samples: u64,
    rejected: u64,
    by_reason: BTreeMap<String, u64>,
    rejects: String,
}

impl RejectQuota {
    /// Counts on from what the finished parts of the cache say.
    pub(crate) fn new(build: &Build, cache: &Cache) -> anyhow::Result<RejectQuota> {
        let samples = build.identity.samples();
        let mut quota = RejectQuota {
            allowed: MaxRejects::images(build.recipe.data.max_rejects, samples),
            samples,
            rejected: 0,
            by_reason: BTreeMap::new(),
            rejects: cache.dir().join("rejects").display().to_string(),
        };
        for part in 0..build.identity.parts() {
            if cache.part_state(part)?.samples.is_some_and(|samples| samples.rejects.rows > 0) {
                quota.add(&cache.rejects(part)?)?;
            }
        }
        Ok(quota)
    }

    /// Counts more of them.
    ///
    /// # Errors
    /// [`TooManyRejects`].
    pub(crate) fn add(&mut self, rejects: &[Reject]) -> Result<(), TooManyRejects> {
        // Copies are what was asked for.
        let unusable = |reject: &&Reject| word(&reject.reason) != DUPLICATE;
        for reject in rejects.iter().filter(unusable) {
            self.rejected += 1;
            *self.by_reason.entry(word(&reject.reason).to_owned()).or_default() += 1;
        }
        let Some(last) = rejects.iter().rfind(unusable).filter(|_| self.rejected > self.allowed) else {
            return Ok(());
        };
        let reasons =
            commonest_first(self.by_reason.clone()).into_iter().map(|(reason, count)| format!("{count} {reason}"));
        Err(TooManyRejects {
            rejected: self.rejected,
            allowed: self.allowed,
            samples: self.samples,
            reasons: reasons.collect::<Vec<_>>().join(", "),
            last: format!("{:?}, {}", last.key, last.reason),
            rejects: self.rejects.clone(),
        })
    }
}
