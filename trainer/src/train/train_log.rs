//! The log of a run: steps are read back one step late, counted, logged, and checked for values that are not finite.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tch::Device;
use tracing::{info, warn};

use crate::data::batch::{MimicBatch, Samples};
use crate::data::sampler::Sampler;
use crate::recipe::Run;
use crate::train::checkpoint::State;
use crate::train::device_speed;
use crate::train::idle::Gaps;
use crate::train::metrics::{Clock, Lap, Line, METRICS, NONFINITE, Skipped, StepLog, Window};
use crate::train::step::StepValues;
use crate::train::tensorboard::EventLog;

/// A step that is queued on the device and not read yet.
#[derive(Debug)]
pub(crate) struct InFlight<B = MimicBatch> {
    pub step: u64,
    pub lr: f64,
    /// Its scalars, on the device.
    pub values: StepValues,
    /// Its batches. The device may still be copying from them.
    pub batches: Vec<B>,
    /// When it was queued.
    pub queued: Instant,
    /// How long the host had waited for its batches.
    pub waited: Duration,
    /// When the device had nothing to do before and within it.
    pub idle: Gaps,
}

/// How often a run is logged, and when it counts as diverged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogConfig {
    /// Length of the run, in epochs.
    pub epochs: u64,
    /// Steps between two log lines.
    pub log_every: u64,
    /// How many consecutive non-finite steps end the run.
    pub stop_after_nonfinite: u32,
    /// Images per second if the device computed only the network's matmuls, at its full rate; `None` if unknown.
    pub full_speed: Option<f64>,
}

impl LogConfig {
    /// The configuration that `[run]` asks for, for a run of `epochs` epochs that computes `flop_per_image` FLOPs per image. Measures the device's speed, unless
    /// `run.peak_tflops` gives it.
    pub(crate) fn of(run: &Run, epochs: u64, flop_per_image: f64, device: Device) -> LogConfig {
        let peak = device_speed::peak_flops(run.precision, run.peak_tflops, device);
        LogConfig {
            epochs,
            log_every: run.log_every,
            stop_after_nonfinite: run.stop_after_nonfinite,
            full_speed: Some(peak / flop_per_image),
        }
    }
}

/// The run up to the last step that was read. Together with weights and moments it is what a checkpoint holds.
#[derive(Debug)]
pub(crate) struct TrainLog {
    run: PathBuf,
    step: u64,
    nonfinite_in_row: u32,
    window: Window,
    metrics: StepLog,
    nonfinite: StepLog,
    clock: Clock,
    order: Sampler,
    device: Device,
    total_steps: u64,
    log_every: u64,
    stop_after_nonfinite: u32,
    full_speed: Option<f64>,
    events: EventLog,
}

impl TrainLog {
    /// Continues from `state`, or starts; opens the run's logs at its step.
    pub(crate) fn open(
        run: &Path,
        watch: LogConfig,
        order: &Sampler,
        device: Device,
        state: Option<State>,
    ) -> anyhow::Result<TrainLog> {
        let (step, nonfinite_in_row, window) =
            state.map_or_else(Default::default, |s| (s.step, s.nonfinite_in_row, s.window));
        Ok(TrainLog {
            run: run.into(),
            step,
            nonfinite_in_row,
            window,
            metrics: StepLog::open(run, METRICS, step)?,
            nonfinite: StepLog::open(run, NONFINITE, step)?,
            clock: Clock::start(),
            order: *order,
            device,
            total_steps: watch.epochs * order.steps_per_epoch(),
            log_every: watch.log_every,
            stop_after_nonfinite: watch.stop_after_nonfinite,
            full_speed: watch.full_speed,
            events: EventLog::open(run, step)?,
        })
    }

    /// Waits for a step, counts it, logs what is due, and gives its batches back: the device is past every copy from them.
    ///
    /// A step that was skipped because a loss or gradient was not finite is recorded with its images; too many in a row are an
    /// error.
    pub(crate) fn wait_and_log<B: Samples>(&mut self, mut done: InFlight<B>) -> anyhow::Result<Vec<B>> {
        let (finite, values) = done.values.read()?;
        self.step = done.step + 1;
        self.window.add(finite, &values);
        let images = done.batches.iter().map(|b| b.samples().len()).sum();
        let idle = done.idle.total()?;
        self.clock.step(images, done.queued, done.waited, idle);
        if finite {
            self.nonfinite_in_row = 0;
        } else {
            self.nonfinite_in_row += 1;
            warn!("step {}: a loss or gradient is not finite; skipped, its images are in {NONFINITE}", self.step);
            self.nonfinite.append(&Skipped {
                step: self.step,
                values: values.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
                samples: done.batches.iter().flat_map(|batch| batch.samples().iter().copied()).collect(),
            })?;
        }
        if self.step.is_multiple_of(self.log_every) || self.step == self.total_steps {
            self.log(done.lr)?;
        }
        ensure!(
            self.nonfinite_in_row < self.stop_after_nonfinite,
            "{} steps in a row had a loss or gradient that is not finite (run.stop_after_nonfinite): the run has diverged. The \
             images are in {:?}; try a lower optim.blr, or optim.clip_grad",
            self.nonfinite_in_row,
            self.run.join(NONFINITE)
        );
        Ok(done.batches)
    }

    /// The state of a checkpoint taken now, of a run that splits each batch into `micro_batches`. The logs that it relies on are made durable first.
    pub(crate) fn state(&self, micro_batches: usize, data: BTreeMap<String, String>) -> anyhow::Result<State> {
        self.metrics.sync()?;
        self.nonfinite.sync()?;
        self.events.sync()?;
        Ok(State::new(self.step, self.nonfinite_in_row, micro_batches, self.window.clone(), data))
    }

    /// Writes the line of the current window and starts a new window.
    fn log(&mut self, lr: f64) -> anyhow::Result<()> {
        let window = std::mem::take(&mut self.window);
        let Lap { images_per_s, wait_share, device_idle_share } = self.clock.lap();
        let line = Line {
            step: self.step,
            epoch: self.order.fractional_epoch(self.step),
            lr,
            images_per_s,
            wait_share,
            device_idle_share: Some(device_idle_share),
            peak_memory_bytes: torch_ext::memory(self.device)?.peak,
            mfu: self.full_speed.map(|full_speed| images_per_s / full_speed),
            skipped: window.skipped,
            means: window.means(),
        };
        info!("{}", line.console(self.total_steps, self.clock.eta(self.total_steps - self.step)));
        self.events.scalars(line.step, line.scalars())?;
        self.metrics.append(&line)
    }

    /// Writes the results of an evaluation after the last step to TensorBoard, by name.
    pub(crate) fn evaluated<S: AsRef<str>>(
        &mut self,
        scalars: impl IntoIterator<Item = (S, f64)>,
    ) -> anyhow::Result<()> {
        let scalars: Vec<(S, f64)> = scalars.into_iter().collect();
        self.events.scalars(self.step, scalars.iter().map(|(tag, value)| (tag.as_ref(), *value)))
    }

    /// Writes a PNG of `size` (width, height) to TensorBoard, for the last step.
    pub(crate) fn picture(&mut self, tag: &str, size: [u32; 2], png: &[u8]) -> anyhow::Result<()> {
        self.events.image(self.step, tag, size, png)
    }
}
