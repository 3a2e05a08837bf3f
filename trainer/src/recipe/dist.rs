//! `[dist]`: how the processes of a run work together. Without others it has no effect.

use std::time::Duration;

use program::range::at_least_one;
use program::recipe::{Error, require};
use serde::{Deserialize, Serialize};

/// `[dist]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dist {
    /// How many seconds a process waits for another one before it gives up. Checkpoints, evaluations and pictures of rank 0 do not count.
    pub timeout: u64,
    /// Gradients are summed in pieces of this size, in MiB. Smaller ones begin earlier, larger ones need fewer messages.
    pub bucket_mib: u64,
    /// The type in which gradients are sent and summed: `f32`, or `bf16`, which halves the bytes and rounds each gradient and each sum to 8 bits. For a
    /// network that is slower than the backward pass.
    pub bucket_type: BucketType,
    /// Whether sums begin while the backward pass still runs. The result is the same.
    pub overlap: bool,
}

/// The type of gradients on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BucketType {
    /// As they are.
    F32,
    /// Half the bytes.
    Bf16,
}

impl Default for Dist {
    fn default() -> Self {
        Dist { timeout: 300, bucket_mib: 25, bucket_type: BucketType::F32, overlap: true }
    }
}

/// Settings of `[dist]` that change only how fast a run is.
pub(super) const FREE: [&str; 3] = ["dist.timeout", "dist.bucket_mib", "dist.overlap"];

impl Dist {
    /// How long a process waits for another one.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        at_least_one("dist.timeout", self.timeout)?;
        // Longer waits would overflow a count of milliseconds, and no one has so much patience.
        require(self.timeout <= 30 * 86400, "dist.timeout", self.timeout, "must be at most 30 days")?;
        at_least_one("dist.bucket_mib", self.bucket_mib)?;
        require(self.bucket_mib <= 1 << 20, "dist.bucket_mib", self.bucket_mib, "must be at most 2^20")
    }
}
