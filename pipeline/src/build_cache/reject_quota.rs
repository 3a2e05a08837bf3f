//! A build stops when more images cannot be used than `data.max_rejects` allows: something is wrong with the source, a teacher or a setting, and
//! the rest would take hours to show the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemas::{Cache, Reject};

use super::build::Build;
use super::decode::DUPLICATE;
use super::summary::{commonest_first, word};
use crate::recipe::MaxRejects;

/// More images cannot be used than allowed. A problem of the data.
#[derive(Debug, thiserror::Error)]
#[error("{rejected} images cannot be used, and {allowed} of {samples} are allowed (--max-rejects): {reasons}. The last of them is {last}. {}", self.next_step())]
pub(crate) struct TooManyRejects {
    rejected: u64,
    allowed: u64,
    samples: u64,
    /// `12 truncated, 3 unknown-format`
    reasons: String,
    /// Key and reason.
    last: String,
    cache: PathBuf,
    /// Whether the cache has a finished part, so that other images are another data set than its own.
    pub is_begun: bool,
}

impl TooManyRejects {
    fn next_step(&self) -> String {
        let allow = "allow more with --max-rejects N or --max-rejects P% to build the cache without them";
        let cache = self.cache.display();
        match self.is_begun {
            false => format!(
                "No part is finished yet: mend these images or take them out, and run the same command again; or {allow}"
            ),
            true => format!(
                "Finished parts are kept, and {cache}/rejects names all of their images that cannot be used. Either {allow}; or mend these images and build into \
                 another folder with --reuse {cache}, which takes over the features that are there. With mended images the source is another data set \
                 than the one that {cache} was begun with"
            ),
        }
    }
}

/// Counts images that cannot be used.
#[derive(Debug)]
pub(crate) struct RejectQuota {
    allowed: u64,
    samples: u64,
    rejected: u64,
    by_reason: BTreeMap<String, u64>,
    cache: PathBuf,
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
            cache: cache.dir().to_path_buf(),
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
            cache: self.cache.clone(),
            is_begun: true,
        })
    }
}
