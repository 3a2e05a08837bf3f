//! The plan: which samples go to which part.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the samples of a data set are cut into parts. Part `p` holds the samples `p * part_samples .. (p + 1) * part_samples`,
/// the last one fewer. Parts are the unit of building, resuming and committing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Samples in the data set, the unusable ones included.
    pub samples: u64,
    /// Samples per part.
    pub part_samples: u64,
}

impl Plan {
    /// The most parts a cache may have. It bounds what a damaged `cache.json` can make a reader do.
    pub const MAX_PARTS: u64 = 1_000_000;

    /// Number of parts. A plan read from, or checked against, a cache has at least one sample per part and at most
    /// [`Plan::MAX_PARTS`] parts; of an unchecked one the count saturates.
    pub fn parts(&self) -> u32 {
        u32::try_from(self.samples.div_ceil(self.part_samples.max(1))).unwrap_or(u32::MAX)
    }

    /// The sample ids of a part; empty beyond the last part.
    pub fn range(&self, part: u32) -> Range<u64> {
        let start = u64::from(part).saturating_mul(self.part_samples).min(self.samples);
        let end = start.saturating_add(self.part_samples).min(self.samples);
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_samples_once() {
        for (samples, part_samples) in [(0, 5), (1, 5), (5, 5), (6, 5), (17, 4), (u64::MAX, u64::MAX)] {
            let plan = Plan { samples, part_samples };
            let mut next = 0;
            for part in 0..plan.parts() {
                let range = plan.range(part);
                assert_eq!(range.start, next, "{plan:?}");
                assert!(!range.is_empty() && range.end - range.start <= part_samples, "{plan:?}");
                next = range.end;
            }
            assert_eq!(next, samples, "{plan:?}");
            assert!(plan.range(plan.parts()).is_empty(), "{plan:?}");
        }
    }
}
