//! The metrics of a run: `metrics.jsonl`, one JSON object per logged step, and the same as a line for the console.
//!
//! Losses are means over the steps since the previous line, unweighted, and over all images, also those for which a teacher is dropped. The sums behind them are part of a checkpoint, so
//! a resumed run logs the losses of an uninterrupted one; only times and memory differ. On a resume the file
//! is cut back to the checkpoint's step: no step appears twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// One [`Line`] per logged step.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// One [`Skipped`] per step that was skipped.
pub(crate) const NONFINITE: &str = "nonfinite.jsonl";

/// Sums since the last line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Window {
    /// Steps whose values were finite.
    pub steps: u64,
    /// Steps that were skipped because a loss or gradient was not finite.
    pub skipped: u64,
    /// Per quantity, the sum over `steps`.
    pub sums: BTreeMap<String, f64>,
}

impl Window {
    /// Adds a step's values, or counts it as skipped.
    pub(crate) fn add(&mut self, finite: bool, values: &BTreeMap<String, f64>) {
        if !finite {
            self.skipped += 1;
            return;
        }
        self.steps += 1;
        for (name, value) in values {
            *self.sums.entry(name.clone()).or_default() += value;
        }
    }

    /// The means; empty when every step was skipped.
    pub(crate) fn means(&self) -> BTreeMap<String, f64> {
        self.sums.iter().map(|(name, sum)| (name.clone(), sum / self.steps as f64)).collect()
    }
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Updates done so far, skipped ones included.
    pub step: u64,
    /// Epochs done so far, with a fraction.
    pub epoch: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Images per second since the previous line.
    pub images_per_s: f64,
    /// Share of that time that the host spent waiting for data, 0 to 1. A wait while the device is still computing costs nothing: see
    /// `device_idle_share`.
    pub wait_share: f64,
    /// Share of that time, 0 to 1, in which the device was idle between two pieces of work, because it waited for data or for the copy of
    /// a checkpoint. Absent in lines of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_idle_share: Option<f64>,
    /// Peak memory so far: the device's, or on the CPU the process's resident set.
    pub peak_memory_bytes: u64,
    /// Model FLOP utilization: the rate of the network's matmuls at that speed, as a share of the device's rate in a plain matmul; absent if
    /// one of the two is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Processes that train together, of which rates are the sum, and waits, idle times and memory the largest; absent for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub world_size: Option<usize>,
    /// The process whose host took longest for its part of the steps, which the others waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowest_rank: Option<usize>,
    /// Skipped steps since the previous line.
    pub skipped: u64,
    /// Means over the finite steps since the previous line: `loss` (the weighted total), `rec`, `mimic.<teacher>`,
    /// `mimic_cls.<teacher>`, `mimic_kept.<teacher>` (where teachers are dropped, the share of images for which each counts), `grad_norm`.
    /// Absent when there were none.
    #[serde(flatten)]
    pub means: BTreeMap<String, f64>,
}

/// One line of `nonfinite.jsonl`: the values and images of a skipped step, enough to run it again alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    /// The step, counted like [`Line::step`].
    pub step: u64,
    /// Its values as text, since JSON has no NaN.
    pub values: BTreeMap<String, String>,
    /// (sample id, view) of every image in it; view 65,535 stands for a fresh one (`data.fresh`).
    pub samples: Vec<(u64, u16)>,
}

impl Line {
    /// The line for the console. `total_steps` and `eta` say how much is left.
    pub(crate) fn console(&self, total_steps: u64, eta: Duration) -> String {
        let mut text = format!("step {}/{total_steps}  epoch {:.2}", self.step, self.epoch);
        for (name, value) in &self.means {
            text += &format!("  {name} {value:.4}");
        }
        if self.skipped > 0 {
            text += &format!("  skipped {}", self.skipped);
        }
        text += &format!("  lr {:.2e}  {:.1} img/s  wait {:.0}%", self.lr, self.images_per_s, 100.0 * self.wait_share,);
        if let Some(idle) = self.device_idle_share {
            text += &format!("  idle {:.0}%", 100.0 * idle);
        }
        text += &format!("  {:.2} GB", self.peak_memory_bytes as f64 / 1e9);
        if let Some(mfu) = self.mfu {
            text += &format!("  mfu {:.0}%", 100.0 * mfu);
        }
        if let Some((world_size, slowest)) = self.world_size.zip(self.slowest_rank) {
            text += &format!("  {world_size} ranks, slowest {slowest}");
        }
        text += &format!("  eta {}", human_time(eta));
        text
    }

    /// Every number of the line, with its name in the file.
    pub(crate) fn scalars(&self) -> Vec<(&str, f64)> {
        let mut scalars = vec![
            ("epoch", self.epoch),
            ("lr", self.lr),
            ("images_per_s", self.images_per_s),
            ("wait_share", self.wait_share),
            ("peak_memory_bytes", self.peak_memory_bytes as f64),
            ("skipped", self.skipped as f64),
        ];
        scalars.extend(self.device_idle_share.map(|idle| ("device_idle_share", idle)));
        scalars.extend(self.mfu.map(|mfu| ("mfu", mfu)));
        scalars.extend(self.means.iter().map(|(name, &mean)| (name.as_str(), mean)));
        scalars
    }
}

/// A file of one JSON object per line, each with a `step`, open for appending.
///
/// It grows while the run goes on, so it is the one kind of file here that is not published whole; a line that a kill cut
/// short is dropped at the next [`StepLog::open`].
#[derive(Debug)]
pub(crate) struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Opens `RUN/name` of a run that has done `step` steps, dropping every line of a later step.
    pub(crate) fn open(run: &Path, name: &str, step: u64) -> anyhow::Result<StepLog> {
        #[derive(Deserialize)]
        struct Numbered {
            step: u64,
        }
        let path = run.join(name);
        if path.exists() {
            let bytes = std::fs::read(&path).with_context(|| format!("{path:?}: cannot be read"))?;
            let is_kept = |line: &&[u8]| {
                line.ends_with(b"\n") && serde_json::from_slice::<Numbered>(line).is_ok_and(|line| line.step <= step)
            };
            let kept: Vec<u8> = bytes.split_inclusive(|&b| b == b'\n').take_while(is_kept).flatten().copied().collect();
            if kept != bytes {
                schemas::atomic::write(&path, &kept)?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("{path:?}: cannot be opened for appending"))?;
        Ok(StepLog { path, file })
    }

    pub(crate) fn append(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line).context("a log line is plain numbers and names")?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| format!("{:?}: cannot be written", self.path))
    }

    /// Makes all lines durable; called before the checkpoint that counts on them is published.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| format!("{:?}: cannot be written", self.path))
    }
}

/// The lines of a run; none where it has no log yet.
#[cfg(test)]
pub(crate) fn read(run: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(run.join(METRICS)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

/// The speed of the steps of one [`Line`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lap {
    /// See [`Line::images_per_s`].
    pub images_per_s: f64,
    /// See [`Line::wait_share`].
    pub wait_share: f64,
    /// See [`Line::device_idle_share`].
    pub device_idle_share: f64,
}

/// Measures where the wall time goes. Steps are read back late, so each comes with the time at which it was queued.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    line_started: Instant,
    now: Instant,
    waited: Duration,
    idle: Duration,
    images: u64,
    steps_since_start: u64,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        let now = Instant::now();
        Clock {
            started: now,
            line_started: now,
            now,
            waited: Duration::ZERO,
            idle: Duration::ZERO,
            images: 0,
            steps_since_start: 0,
        }
    }

    /// Counts a step of `images` images that was queued at `queued`, after the host had waited for its data and the device had been
    /// idle for so long.
    pub(crate) fn step(&mut self, images: usize, queued: Instant, waited: Duration, idle: Duration) {
        self.now = queued;
        self.steps_since_start += 1;
        self.images += images as u64;
        self.waited += waited;
        self.idle += idle;
    }

    /// The speed from the previous call to the last step; starts a new measurement.
    pub(crate) fn lap(&mut self) -> Lap {
        let seconds = (self.now - self.line_started).as_secs_f64().max(1e-9);
        let share = |time: Duration| (time.as_secs_f64() / seconds).min(1.0);
        let lap = Lap {
            images_per_s: self.images as f64 / seconds,
            wait_share: share(self.waited),
            device_idle_share: share(self.idle),
        };
        self.line_started = self.now;
        self.images = 0;
        self.waited = Duration::ZERO;
        self.idle = Duration::ZERO;
        lap
    }

    /// How long `steps` more steps take at this process's mean speed so far.
    pub(crate) fn eta(&self, steps: u64) -> Duration {
        (self.now - self.started).mul_f64(steps as f64 / self.steps_since_start.max(1) as f64)
    }
}

/// A duration as its largest nonzero unit and the one below it.
pub(crate) fn human_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, _, _) => format!("{d}d{h:02}h"),
    }
}
