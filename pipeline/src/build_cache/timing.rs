//! Where the time goes: busy seconds of each stage, added up over its threads.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::TeacherId;

/// A stage of a build, in the order in which a row passes through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Getting an image's bytes.
    Read,
    /// From bytes to pixels.
    Decode,
    Render,
    Infer(TeacherId),
    /// From floats to the pages of a file: codec, sums, checksum, compression.
    Encode,
    /// Writing the samples: checksums, hash, fsync.
    WriteSamples,
    /// Writing a teacher's features, likewise.
    WriteFeatures(TeacherId),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Read => f.write_str("read"),
            Stage::Decode => f.write_str("decode"),
            Stage::Render => f.write_str("crop and resample"),
            Stage::Infer(teacher) => write!(f, "teacher {teacher}"),
            Stage::Encode => f.write_str("encode"),
            Stage::WriteSamples => f.write_str("write samples"),
            Stage::WriteFeatures(teacher) => write!(f, "write {teacher}"),
        }
    }
}

/// Busy time by stage; shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Timings(Mutex<BTreeMap<Stage, Duration>>);

impl Timings {
    /// Runs `work` and books its time under `stage`.
    pub(crate) fn time<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.add(stage, began.elapsed());
        result
    }

    /// Books busy time under `stage`.
    pub(crate) fn add(&self, stage: Stage, busy: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(stage).or_default() += busy;
    }

    /// The stages that did something and their busy time.
    pub(crate) fn busy(&self) -> BTreeMap<Stage, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
