//! The log of a run: steps are read back one step late, counted, logged, and checked for values that are not finite.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use program::signals;
use tch::Device;
use tracing::{info, warn};

use crate::data::batch::{MimicBatch, Samples};
use crate::data::sampler::Sampler;
use crate::dist::{RankFacts, Share, World};
use crate::recipe::Run;
use crate::train::checkpoint::State;
use crate::train::device_speed;
use crate::train::idle::Gaps;
use crate::train::metrics::{Clock, Lap, Line, METRICS, NONFINITE, Skipped, StepLog, Window};
use crate::train::step::{StepRead, StepValues};
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
    /// Whether no other process trains with this one.
    pub is_alone: bool,
    /// Images per second if the device computed only the network's matmuls, at its full rate; `None` if unknown.
    pub full_speed: Option<f64>,
}

impl LogConfig {
    /// The configuration that `[run]` asks for, for a run of `epochs` epochs that computes `flop_per_image` FLOPs per image. On rank 0 it measures
    /// the device's speed, unless `run.peak_tflops` gives it.
    pub(crate) fn of(run: &Run, epochs: u64, flop_per_image: f64, world: &World, device: Device) -> LogConfig {
        let peak = world.is_main().then(|| device_speed::peak_flops(run.precision, run.peak_tflops, device));
        LogConfig {
            epochs,
            log_every: run.log_every,
            stop_after_nonfinite: run.stop_after_nonfinite,
            is_alone: world.group().is_none(),
            full_speed: peak.map(|peak| peak * world.size() as f64 / flop_per_image),
        }
    }
}

/// The run up to the last step that was read. Together with weights and moments it is what a checkpoint holds. Every process counts, and rank 0
/// writes.
#[derive(Debug)]
pub(crate) struct TrainLog {
    step: u64,
    nonfinite_in_row: u32,
    window: Window,
    files: Option<Files>,
    clock: Clock,
    share: Share,
    is_alone: bool,
    /// What the processes said of themselves in the last step; empty before the first, and for one that is alone.
    ranks: Vec<RankFacts>,
    /// How long each has been busy since the last line.
    busy: Vec<Duration>,
    /// Idle time of the device that the other processes have not been told.
    idle_untold: Duration,
    order: Sampler,
    device: Device,
    total_steps: u64,
    log_every: u64,
    stop_after_nonfinite: u32,
    full_speed: Option<f64>,
}

/// The files of a run that grow with it.
#[derive(Debug)]
struct Files {
    run: PathBuf,
    metrics: StepLog,
    nonfinite: StepLog,
    events: EventLog,
}

impl TrainLog {
    /// Continues from `state`, or starts; opens the logs of the run folder `run`, which rank 0 has, at its step.
    pub(crate) fn open(
        run: Option<&Path>,
        watch: LogConfig,
        order: &Sampler,
        share: &Share,
        device: Device,
        state: Option<State>,
    ) -> anyhow::Result<TrainLog> {
        let (step, nonfinite_in_row, window) =
            state.map_or_else(Default::default, |s| (s.step, s.nonfinite_in_row, s.window));
        let open = |run: &Path| {
            let (metrics, nonfinite) = (StepLog::open(run, METRICS, step)?, StepLog::open(run, NONFINITE, step)?);
            anyhow::Ok(Files { run: run.into(), metrics, nonfinite, events: EventLog::open(run, step)? })
        };
        Ok(TrainLog {
            step,
            nonfinite_in_row,
            window,
            files: run.map(open).transpose()?,
            clock: Clock::start(),
            share: *share,
            is_alone: watch.is_alone,
            ranks: Vec::new(),
            busy: Vec::new(),
            idle_untold: Duration::ZERO,
            order: *order,
            device,
            total_steps: watch.epochs * order.steps_per_epoch(),
            log_every: watch.log_every,
            stop_after_nonfinite: watch.stop_after_nonfinite,
            full_speed: watch.full_speed,
        })
    }

    /// What this process says of itself with the step that it is about to queue, having waited for its data for so long.
    pub(crate) fn facts(&mut self, waited: Duration, micro_batches: usize) -> anyhow::Result<RankFacts> {
        Ok(RankFacts {
            waited,
            idle: std::mem::take(&mut self.idle_untold),
            busy: Duration::ZERO,
            peak_memory: torch_ext::memory(self.device)?.peak,
            micro_batches,
            stops: signals::requested(),
        })
    }

    /// Whether a signal asks to stop, as far as all processes know it.
    pub(crate) fn interrupted(&self) -> bool {
        match self.is_alone {
            true => signals::requested(),
            false => {
                let stops = self.ranks.iter().any(|rank| rank.stops);
                if stops {
                    // The others' signal is this process's too: it ends with the same status.
                    signals::request();
                }
                stops
            }
        }
    }

    /// Waits for a step, counts it, logs what is due, and gives its batches back: the device is past every copy from them.
    ///
    /// A step that was skipped because a loss or gradient was not finite is recorded with its images; too many in a row are an
    /// error.
    pub(crate) fn wait_and_log<B: Samples>(&mut self, mut done: InFlight<B>, world: &World) -> anyhow::Result<Vec<B>> {
        let began = Instant::now();
        let StepRead { finite, scalars, ranks } = done.values.read(|| world.check(began))?;
        self.step = done.step + 1;
        world.set_step(self.step);
        self.window.add(finite, &scalars);
        let images: usize = done.batches.iter().map(|b| b.samples().len()).sum();
        let idle = done.idle.total()?;
        self.idle_untold += idle;
        self.busy.resize(ranks.len(), Duration::ZERO);
        self.busy.iter_mut().zip(&ranks).for_each(|(busy, rank)| *busy += rank.busy);
        let longest = |own: Duration, of: fn(&RankFacts) -> Duration| ranks.iter().map(of).max().unwrap_or(own);
        let (waited, idle) = (longest(done.waited, |rank| rank.waited), longest(idle, |rank| rank.idle));
        self.clock.step(images * world.size(), done.queued, waited, idle);
        self.ranks = ranks;
        if finite {
            self.nonfinite_in_row = 0;
        } else {
            self.nonfinite_in_row += 1;
            // All know it, so all come here.
            let own: Vec<_> = done.batches.iter().flat_map(|batch| batch.samples().iter().copied()).collect();
            let of_ranks = world.gather(own)?;
            if let Some(files) = &mut self.files {
                warn!("step {}: a loss or gradient is not finite; skipped, its images are in {NONFINITE}", self.step);
                files.nonfinite.append(&Skipped {
                    step: self.step,
                    values: scalars.into_iter().map(|(name, value)| (name, value.to_string())).collect(),
                    samples: self.share.merge(&of_ranks),
                })?;
            }
        }
        if self.step.is_multiple_of(self.log_every) || self.step == self.total_steps {
            self.log(done.lr)?;
        }
        ensure!(
            self.nonfinite_in_row < self.stop_after_nonfinite,
            "{} steps in a row had a loss or gradient that is not finite (run.stop_after_nonfinite): the run has diverged. The \
             images are in {:?}; try a lower optim.blr, or optim.clip_grad",
            self.nonfinite_in_row,
            self.files.as_ref().map(|files| files.run.join(NONFINITE)).unwrap_or_default()
        );
        Ok(done.batches)
    }

    /// The state of a checkpoint taken now, of a process that splits its part of each batch into `micro_batches`. The logs that it relies on are
    /// made durable first.
    pub(crate) fn state(&self, micro_batches: usize, data: BTreeMap<String, String>) -> anyhow::Result<State> {
        if let Some(Files { metrics, nonfinite, events, .. }) = &self.files {
            metrics.sync()?;
            nonfinite.sync()?;
            events.sync()?;
        }
        let most = self.ranks.iter().map(|rank| rank.micro_batches).fold(micro_batches, usize::max);
        let micro_batches = if most > 1 { most * self.share.parts() } else { 1 };
        Ok(State::new(self.step, self.nonfinite_in_row, micro_batches, self.window.clone(), data))
    }

    /// Writes the line of the current window and starts a new window.
    fn log(&mut self, lr: f64) -> anyhow::Result<()> {
        let window = std::mem::take(&mut self.window);
        let Lap { images_per_s, wait_share, device_idle_share } = self.clock.lap();
        let slowest_rank = self.busy.iter().enumerate().max_by_key(|(_, busy)| **busy).map(|(rank, _)| rank);
        self.busy.clear();
        let Some(files) = &mut self.files else {
            return Ok(());
        };
        let peak_memory = torch_ext::memory(self.device)?.peak;
        let line = Line {
            step: self.step,
            epoch: self.order.fractional_epoch(self.step),
            lr,
            images_per_s,
            wait_share,
            device_idle_share: Some(device_idle_share),
            peak_memory_bytes: self.ranks.iter().map(|rank| rank.peak_memory).fold(peak_memory, u64::max),
            mfu: self.full_speed.map(|full_speed| images_per_s / full_speed),
            world_size: slowest_rank.map(|_| self.ranks.len()),
            slowest_rank,
            skipped: window.skipped,
            means: window.means(),
        };
        info!("{}", line.console(self.total_steps, self.clock.eta(self.total_steps - self.step)));
        files.events.scalars(line.step, line.scalars())?;
        files.metrics.append(&line)
    }

    /// Writes the results of an evaluation after the last step to TensorBoard, by name.
    pub(crate) fn evaluated<S: AsRef<str>>(
        &mut self,
        scalars: impl IntoIterator<Item = (S, f64)>,
    ) -> anyhow::Result<()> {
        let Some(files) = &mut self.files else {
            return Ok(());
        };
        let scalars: Vec<(S, f64)> = scalars.into_iter().collect();
        files.events.scalars(self.step, scalars.iter().map(|(tag, value)| (tag.as_ref(), *value)))
    }

    /// Writes a PNG of `size` (width, height) to TensorBoard, for the last step.
    pub(crate) fn picture(&mut self, tag: &str, size: [u32; 2], png: &[u8]) -> anyhow::Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.events.image(self.step, tag, size, png))
    }
}
