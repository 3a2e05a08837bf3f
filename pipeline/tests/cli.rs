//! The program as its users meet it: builds over real files, kills, damage, and what it says and returns.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests make, damage and compare files of their own, and state what they expect by unwrapping"
)]

#[path = "../../tests/support/bucket.rs"]
mod bucket;
/// Sources and caches in a bucket, kills, and a network that fails.
#[path = "cli/buckets.rs"]
mod buckets;
/// Rows, rejects, resuming, thread counts, refusals.
#[path = "cli/build.rs"]
mod build;
/// Every kind of file, a byte at a time.
#[path = "cli/damage.rs"]
mod damage;
/// `--dedup`.
#[path = "cli/dedup.rs"]
mod dedup;
/// `add-images`: data sets that grow.
#[path = "cli/grow.rs"]
mod grow;
/// `kill -9` at twenty moments, and Ctrl-C.
#[path = "cli/kill.rs"]
mod kill;
/// `list`: folders, links, damage.
#[path = "cli/list.rs"]
mod list;
/// `inspect`: rows chosen, and the picture pixel by pixel.
#[path = "cli/picture.rs"]
mod picture;
/// The Ray driver.
#[path = "cli/ray.rs"]
mod ray;
/// Going on over a source whose images have changed places.
#[path = "cli/resume.rs"]
mod resume;
/// `--reuse`, `recode` and `drop-teacher`.
#[path = "cli/rework.rs"]
mod rework;
/// Packed images, codecs, layers, teachers added later.
#[path = "cli/share.rs"]
mod share;
/// Pictures of the source that are not in the data set.
#[path = "cli/skipped.rs"]
mod skipped;
/// Exit codes, help, messages.
#[path = "cli/smoke.rs"]
mod smoke;
#[path = "../../tests/support/sources.rs"]
mod sources;
/// `verify --spot-check`.
#[path = "cli/spot_check.rs"]
mod spot_check;
/// `stats` against its own arithmetic.
#[path = "cli/stats.rs"]
mod stats;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/teacher.rs"]
mod teacher;
/// Several processes that build one cache.
#[path = "cli/workers.rs"]
mod workers;
