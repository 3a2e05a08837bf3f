//! **The main job**: pretraining, from the recipe to the last checkpoint, as one visible loop.
//!
//! Everything random is a function of (seed, epoch, sample): the step number alone says which images come next and how they are
//! masked. So a checkpoint is weights, moments and a step, and a run that is killed and started again takes the same steps as one
//! that is not, bit for bit on a CPU with the same number of libtorch threads.
//!
//! The host runs one step ahead of the device: a step's scalars are read when the next one is queued.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use images::ImageSource;
use models::mr_mae::{MimicConfig, MrMae, MrMaeConfig};
use models::params::ParamStore;
use schemas::Cache;
use tch::Device;
use torch_ext::resolve_device;
use tracing::{info, warn};

use crate::checkpoint::{self, Checkpoint, State};
use crate::cli::PretrainArgs;
use crate::config::Recipe;
use crate::data::batch::{BatchShape, MimicBatch};
use crate::data::join::{self, Samples};
use crate::data::loader::{Loader, LoaderPlan};
use crate::data::order::Order;
use crate::data::pixel_cache::PixelCache;
use crate::metrics::{self, Clock, Line, Skipped, StepLog, Window};
use crate::run_folder::RunFolder;
use crate::step::{self, StepValues};
use crate::teachers::{self, RunTeacher};
use crate::{optim, run_folder};

#[cfg(test)]
mod tests;

/// Trains until the recipe's last step, or for `--stop-after` steps. Run again to continue.
pub fn pretrain(args: &PretrainArgs) -> anyhow::Result<()> {
    // ------------------------------------------------------------------ recipe and run folder
    let device = resolve_device(&args.device.device)?;
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    let run = RunFolder::open(&args.out, &recipe)?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ cache, teachers, images
    let cache = Arc::new(Cache::open(&args.cache)?);
    let mut teachers = teachers::open(&recipe, &cache, &args.online_teachers, device)?;
    let Some(images) = &args.images else {
        bail!(
            "{:?} holds no pixels: give the images it was built from with --images",
            args.cache
        );
    };
    let source = ImageSource::open(images)?;
    let cached: Vec<_> = teachers
        .iter()
        .filter(|t| t.rows.is_some())
        .map(|t| t.id.clone())
        .collect();
    let samples = join::join(&cache, &cached, &source, &recipe.data, &report_scan)?;
    let facts = data_facts(&cache, &samples, &teachers);

    // ------------------------------------------------------------------ order and schedule
    let order = Order::new(recipe.run.seed, samples.len(), recipe.effective_batch()).with_context(
        || {
            format!(
                "{} images do not fill one step of optim.batch_size {} x optim.accum_iter {}",
                samples.len(),
                recipe.optim.batch_size,
                recipe.optim.accum_iter
            )
        },
    )?;
    let schedule = recipe.schedule();
    let total_steps = recipe.schedule.epochs * order.steps_per_epoch();

    // ------------------------------------------------------------------ student and optimizer
    let widths = teachers
        .iter()
        .filter(|t| t.mimicked)
        .map(|t| (t.id.to_string(), t.width.into()))
        .collect();
    let params = ParamStore::new(device, recipe.run.seed);
    let student = MrMae::new(&params.root(), &student_config(&recipe, &widths))?;
    let mut optim = optim::adamw(params.trainable(), &recipe.optim);
    info!(
        "{:.1} M parameters on {device:?} in {}, {} images in {} steps of {} x {} an epoch, {total_steps} steps, peak lr {:.3e}",
        params.num_trainable() as f64 / 1e6,
        recipe.run.precision,
        samples.len(),
        order.steps_per_epoch(),
        recipe.optim.accum_iter,
        recipe.optim.batch_size,
        schedule.lr,
    );

    // ------------------------------------------------------------------ resume
    let mut progress = Progress {
        step: 0,
        nonfinite_in_row: 0,
        window: Window::default(),
    };
    if let Some(last) = checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))? {
        run_folder::refuse_other_data(run.path(), &last.state.data, &facts)?;
        params.load("the checkpoint's model", &last.model)?;
        optim.load_state(&last.optimizer)?;
        progress = Progress {
            step: last.state.step,
            nonfinite_in_row: last.state.nonfinite_in_row,
            window: last.state.window,
        };
        info!("resuming {:?} after step {}", args.out, progress.step);
    }
    if progress.step >= total_steps {
        info!(
            "{:?} is finished: all {total_steps} steps are done",
            args.out
        );
        return Ok(());
    }
    let mut metrics = StepLog::open(run.path(), metrics::METRICS, progress.step)?;
    let mut nonfinite = StepLog::open(run.path(), metrics::NONFINITE, progress.step)?;

    // ------------------------------------------------------------------ loader
    let end = args.stop_after.map_or(total_steps, |n| {
        total_steps.min(progress.step.saturating_add(n))
    });
    let plan = loader_plan(&recipe, &mut teachers, samples, source, order);
    let steps = progress.step..end;
    let mut loader = Loader::start(
        Arc::new(plan),
        steps.clone(),
        args.device.loader_threads(),
        recipe.data.prefetch,
        device,
    )?;

    // ------------------------------------------------------------------ the loop
    let mut clock = Clock::start();
    let mut in_flight: Option<InFlight> = None;
    for step in steps {
        let lr = schedule.lr_at(order.fractional_epoch(step));
        optim::set_lr(&mut optim, lr);
        optim.zero_grad();
        let mut losses = Vec::new();
        let mut batches = Vec::new();
        for _ in 0..recipe.optim.accum_iter {
            let batch = loader.next_batch()?;
            let imgs = step::normalise(&teachers::to_device(&batch.imgs, device)?);
            let features = teachers::features(&teachers, &batch, device)?;
            let noise = teachers::to_device(&batch.noise, device)?;
            let masking = step::masking(&recipe, &noise, features.cls_attn.as_ref());
            losses.push(step::accumulate(
                &student,
                &imgs,
                &masking,
                &features,
                recipe.run.precision,
                recipe.optim.accum_iter,
            ));
            batches.push(batch);
        }
        let values = step::update(&mut optim, &losses, recipe.optim.clip_grad)?;
        clock.step(recipe.effective_batch(), loader.take_waited());

        // This step is queued; now the previous one is read, which must be done or nearly so.
        let done = in_flight.replace(InFlight {
            step,
            lr,
            values,
            batches,
        });
        let mut settle = |done: InFlight, progress: &mut Progress| -> anyhow::Result<()> {
            let finite = progress.settle(&done, &mut nonfinite)?;
            if !finite {
                warn!(
                    "step {}: a loss or gradient is not finite; skipped, its images are in {}",
                    done.step + 1,
                    metrics::NONFINITE
                );
            }
            let in_row = progress.nonfinite_in_row;
            if progress.step % recipe.run.log_every == 0 || progress.step == total_steps {
                let line = progress.line(
                    order.fractional_epoch(progress.step),
                    done.lr,
                    &mut clock,
                    device,
                )?;
                info!(
                    "{}",
                    line.console(total_steps, clock.eta(total_steps - progress.step))
                );
                metrics.append(&line)?;
            }
            done.batches
                .into_iter()
                .for_each(|batch| loader.recycle(batch));
            ensure!(
                in_row < recipe.run.stop_after_nonfinite,
                "{in_row} steps in a row had a loss or gradient that is not finite (run.stop_after_nonfinite): the run has diverged. \
                 The images are in {:?}; try a lower optim.blr, or optim.clip_grad",
                run.path().join(metrics::NONFINITE)
            );
            Ok(())
        };
        if let Some(done) = done {
            settle(done, &mut progress)?;
        }

        let is_due = (step + 1) % recipe.run.checkpoint_every == 0 || step + 1 == end;
        if is_due {
            if let Some(done) = in_flight.take() {
                settle(done, &mut progress)?;
            }
            metrics.sync()?;
            nonfinite.sync()?;
            let state = State::new(
                progress.step,
                progress.nonfinite_in_row,
                progress.window.clone(),
                facts.clone(),
            );
            let checkpoint = Checkpoint {
                state,
                model: params.tensors(),
                optimizer: optim.state(),
            };
            let folder = checkpoint::save(
                run.path(),
                &checkpoint,
                &recipe.to_toml(),
                recipe.run.keep_checkpoints,
            )?;
            info!("checkpoint {}", folder.display());
        }
    }
    if end == total_steps {
        info!("finished: {total_steps} steps");
    } else {
        info!(
            "stopped after step {end} of {total_steps} (--stop-after); the same command continues"
        );
    }
    Ok(())
}

/// A step that is queued on the device and not read yet. Its batches may still be being copied from.
struct InFlight {
    step: u64,
    lr: f64,
    values: StepValues,
    batches: Vec<MimicBatch>,
}

/// What has been read so far; with weights and moments, all that a checkpoint holds.
struct Progress {
    step: u64,
    nonfinite_in_row: u32,
    window: Window,
}

impl Progress {
    /// Waits for a step, counts it, and records its images if it was skipped. Returns whether it was done.
    fn settle(&mut self, done: &InFlight, nonfinite: &mut StepLog) -> anyhow::Result<bool> {
        let (finite, values) = done.values.read()?;
        self.step = done.step + 1;
        self.window.add(finite, &values);
        self.nonfinite_in_row = if finite { 0 } else { self.nonfinite_in_row + 1 };
        if !finite {
            nonfinite.append(&Skipped {
                step: self.step,
                values: values
                    .into_iter()
                    .map(|(name, value)| (name, value.to_string()))
                    .collect(),
                samples: done
                    .batches
                    .iter()
                    .flat_map(|batch| batch.samples.iter().copied())
                    .collect(),
            })?;
        }
        Ok(finite)
    }

    /// The metrics line of the current window, which then starts anew.
    fn line(
        &mut self,
        epoch: f64,
        lr: f64,
        clock: &mut Clock,
        device: Device,
    ) -> anyhow::Result<Line> {
        let window = std::mem::take(&mut self.window);
        let (images_per_s, wait_share) = clock.lap();
        let peak_memory_bytes = torch_ext::memory(device)?.peak;
        let (skipped, means) = (window.skipped, window.means());
        Ok(Line {
            step: self.step,
            epoch,
            lr,
            images_per_s,
            wait_share,
            peak_memory_bytes,
            skipped,
            means,
        })
    }
}

/// The network that a recipe asks for, with a head for each teacher of `widths`. `loss.w_mimic` is shared evenly by the teachers.
pub(crate) fn student_config(recipe: &Recipe, widths: &BTreeMap<String, i64>) -> MrMaeConfig {
    let weight = recipe.loss.w_mimic / widths.len().max(1) as f64;
    let config = |&width: &i64| MimicConfig {
        width,
        weight,
        target_norm: recipe.target.norm,
    };
    MrMaeConfig {
        mae: recipe.mae_config(),
        rec_weight: recipe.loss.w_rec,
        teachers: widths
            .iter()
            .map(|(id, width)| (id.clone(), config(width)))
            .collect(),
    }
}

/// What the loader loads for a run. Takes the rows out of `teachers`.
pub(crate) fn loader_plan(
    recipe: &Recipe,
    teachers: &mut [RunTeacher],
    samples: Samples,
    source: ImageSource,
    order: Order,
) -> LoaderPlan {
    let shape = BatchShape {
        batch_size: recipe.optim.batch_size,
        img_size: recipe.model.img_size,
        grid: recipe.grid(),
        teachers: teachers.iter().map(|t| t.shape.clone()).collect(),
    };
    let rows = teachers.iter_mut().map(|t| t.rows.take()).collect();
    let pixels = PixelCache::new(recipe.data.pixel_cache_mib << 20);
    LoaderPlan {
        samples,
        source,
        rows,
        pixels,
        shape,
        order,
        seed: recipe.run.seed,
    }
}

/// What the weights of a run depend on besides its recipe.
fn data_facts(
    cache: &Cache,
    samples: &Samples,
    teachers: &[RunTeacher],
) -> BTreeMap<String, String> {
    let identity = cache.identity();
    let mut facts = BTreeMap::from([
        (
            "samples".to_owned(),
            format!("{} (SHA-256 {})", samples.len(), samples.fingerprint()),
        ),
        ("views".to_owned(), format!("{:?}", identity.views)),
        ("image_code".to_owned(), identity.image_code.clone()),
    ]);
    for teacher in teachers {
        facts.insert(
            format!("teacher.{}.weights_sha256", teacher.id),
            teacher.weights_sha256.clone(),
        );
        facts.insert(format!("teacher.{}.features", teacher.id), teacher.origin());
    }
    facts
}

/// Tells how far the search for renamed images is, at every tenth.
fn report_scan(done: u64, of: u64) {
    if done * 10 / of != (done - 1) * 10 / of {
        info!("searching renamed images by content: {done} of {of} files read");
    }
}
