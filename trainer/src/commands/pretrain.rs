//! **The main job**: pretraining, from the recipe to the last checkpoint, as one visible loop.
//!
//! Everything random is a function of (seed, epoch, sample): the step number alone says which images come next and how they are
//! masked. So a checkpoint is the train state (weights, moments, average), the number of micro-batches of a batch, and a step. A run that is killed
//! and started again takes the same steps as one that is not, bit for bit on a CPU with the same number of libtorch threads.
//!
//! The host runs one step ahead of the device: a step's scalars are read when the next one is queued.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use hub::HubSettings;
use images::Decoder;
use models::blocks::ForwardOptions;
use models::drop_path::{DropPath, linear_rates};
use models::flops::Flops;
use models::mr_mae::MrMae;
use models::params::ParamStore;
use program::signals::{self, Interrupted};
use program::{ExitStatus, words::count};
use schemas::Cache;
use tch::{Device, Tensor};
use torch_ext::{resolve_device, to_device};
use tracing::{info, warn};

use crate::cli::PretrainArgs;
use crate::data::Problem;
use crate::data::batch::MimicBatch;
use crate::data::images::log_search;
use crate::data::joined::{self, JoinedCaches};
use crate::data::loader::Loader;
use crate::data::mimic::MimicDataset;
use crate::data::normalize::Normalize;
use crate::data::sampler::Sampler;
use crate::data::teachers::{self, RunTeacher};
use crate::eval::features::Model;
use crate::eval::watch::{Watch, WatchConfig, Watched};
use crate::pretrained::{depth_window, init};
use crate::recipe::any;
use crate::recipe::{Experiment, Recipe, TeacherStats};
use crate::train::best::save_best;
use crate::train::checkpoint::{self, Keep, Writer};
use crate::train::idle::IdleMeter;
use crate::train::image_grid::{self, ImageGrid};
use crate::train::itstime::itstime;
use crate::train::micro_batch::MicroBatches;
use crate::train::optim::Optimizer;
use crate::train::run_folder::RunFolder;
use crate::train::step;
use crate::train::tensorboard::EventLog;
use crate::train::train_log::{InFlight, LogConfig, TrainLog};
use crate::train::train_state::TrainState;
use crate::train::{run_folder, target_stats};

#[cfg(test)]
mod tests;

/// Trains until the recipe's last step, or for `--stop-after` steps. Run again to continue.
pub(crate) fn pretrain(args: &PretrainArgs, hub: &HubSettings) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    let device = resolve_device(&args.device.device)?;
    let recipe = any::load::<Recipe>(&args.recipe.recipe, &args.recipe.set)?;
    recipe.run.precision.prepare(device)?;
    torch_ext::set_deterministic(recipe.run.deterministic)?;
    let mut images: Vec<_> = args.images.iter().map(|images| ("--images", images.as_str())).collect();
    images.extend(args.eval_train.as_deref().map(|images| ("--eval-train", images)));
    images.extend(args.eval_test.as_deref().map(|images| ("--eval-test", images)));
    run_folder::refuse_among_images(&args.out, &images)?;
    let run = RunFolder::open(&args.out, &recipe)?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ cache, teachers, images
    let caches = joined::open(&args.cache)?;
    let teachers = teachers::open(&recipe, &caches, &args.online_teachers, hub, device)?;
    let images = joined::open_images(&caches, &args.images)?;
    let cached: Vec<_> = teachers.iter().filter(|t| t.rows().is_some()).map(|t| t.id.clone()).collect();
    let shared = args.images.len() <= 1;
    let joined = joined::join(&caches, images, &cached, &recipe.data, shared, &log_search)?;
    if joined.len() == 0 {
        let left_out: usize = joined.members().iter().map(|member| member.samples.skipped().0).sum();
        let why = match left_out {
            0 => format!("; the cache has no rows, see {:?}", caches[0].dir().join("rejects")),
            left_out => format!(
                "; --images holds none of the cache's {}, and data.missing = \"skip\" leaves them out. Give the images that the cache was \
                 built from",
                count(left_out as u64, "image")
            ),
        };
        return Err(Problem::NoImages { why }.into());
    }
    let init = init::open(&recipe, hub)?;
    let mut data = data_identity(&recipe, &joined, &teachers)?;
    data.extend(init.iter().map(init::Begin::fact));

    // ------------------------------------------------------------------ order and schedule
    let sampler = Sampler::of_run(&recipe.optim, recipe.run.seed, joined.len())?;
    let schedule = recipe.schedule();
    let total_steps = sampler.total_steps(recipe.schedule.epochs)?;

    // ------------------------------------------------------------------ resume: the last checkpoint is of the same run
    let last = checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))?;
    if let Some(last) = &last {
        run_folder::refuse_other_data(run.path(), &last.state.data, &data)?;
        let before = Recipe::parse(&last.recipe, "the checkpoint's recipe", &[])?;
        let epoch = sampler.fractional_epoch(last.state.step);
        run_folder::refuse_other_length(run.path(), &before.schedule(), &schedule, epoch)?;
    }

    // ------------------------------------------------------------------ student and optimizer
    let widths = teachers.iter().filter(|t| t.mimicked).map(|t| (t.id.to_string(), t.width.into())).collect();
    let mut stats = BTreeMap::new();
    if last.is_none() {
        // On resume the statistics are loaded with the parameters.
        for teacher in teachers.iter().filter(|t| t.mimicked) {
            let how = recipe.mimic_of(teacher.id.as_str());
            let cls = match teacher.mimics_cls {
                true => target_stats::of_cls(&joined, &teacher.id, how.cls, recipe.run.seed)?,
                false => None,
            };
            let patches = target_stats::of_teacher(&joined, &teacher.id, how.patches.0, recipe.run.seed)?;
            stats.insert(teacher.id.to_string(), TeacherStats { patches, cls });
        }
    }
    let params = ParamStore::new(device, recipe.run.seed);
    let student = MrMae::new(&params.root(), &recipe.mr_mae_config(&widths, &stats))?;
    if last.is_none()
        && let Some(init) = &init
    {
        init.load(&params, &recipe)?;
    }
    let optim = Optimizer::for_pretraining(params.trainable(), &recipe.optim);
    let mut state = TrainState::new(params, optim, recipe.optim.ema_decay.is_some());
    info!(
        "{:.1} M parameters on {} ({} libtorch threads) in {}, {} in {} of {} x {} an epoch, {} in all, \
         peak lr {:.3e}",
        state.params.num_trainable() as f64 / 1e6,
        torch_ext::describe(device),
        torch_ext::num_threads(),
        recipe.run.precision,
        count(joined.len() as u64, "image"),
        count(sampler.steps_per_epoch(), "step"),
        recipe.optim.accum_iter,
        recipe.optim.batch_size,
        count(total_steps, "step"),
        schedule.lr,
    );
    if let Some(left_over) = sampler.left_over() {
        info!("{left_over}");
    }

    if let Some(last) = &last {
        state.restore(last)?;
        info!("resuming {:?} after step {}", args.out, last.state.step);
    }
    let start = last.as_ref().map_or(0, |last| last.state.step);
    let mut watch = watch(args, &recipe, &caches, &run, start, &sampler, device)?;
    // An evaluation that was interrupted is made up for.
    if let Some(watch) = watch.as_mut().filter(|watch| watch.due(start) && start > 0) {
        let Some(watched) = evaluate(watch, &state, &recipe, &run, start, device)? else {
            return Ok(ExitStatus::Interrupted);
        };
        let scalars = watched.scalars();
        EventLog::open(run.path(), start)?.scalars(start, scalars.iter().map(|(tag, value)| (&**tag, *value)))?;
    }
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        return Ok(ExitStatus::Fine);
    }
    let mut micro =
        MicroBatches::new(recipe.optim.batch_size, last.as_ref().map_or(1, |last| last.state.micro_batches))?;
    let flop_per_image = Flops::of_pretraining(student.config(), recipe.len_keep()).step();
    let log_config = LogConfig::of(&recipe.run, recipe.schedule.epochs, flop_per_image, device);
    let mut log = TrainLog::open(run.path(), log_config, &sampler, device, last.map(|last| last.state))?;

    // ------------------------------------------------------------------ loader
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let dataset = MimicDataset::new(&recipe, &teachers, joined, sampler)?;
    let threads = args.device.loader_threads(device);
    let mut loader = Loader::start(Arc::new(dataset), start..end, threads, recipe.data.prefetch, device)?;

    // ------------------------------------------------------------------ the loop
    let normalize = Normalize::imagenet(device);
    // A rate per block; each block has two residual branches.
    let drop_rates = linear_rates(recipe.model.drop_path, recipe.drop_path_branches() / 2);
    let drop_rates = Tensor::from_slice(&drop_rates).to_device(device);
    let accum_iter = recipe.optim.accum_iter;
    let mut writer = Writer::new(run.path(), Keep::of(&recipe.run));
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight> = None;
    for step in start..end {
        let lr = schedule.lr_at(sampler.fractional_epoch(step));
        state.optim.set_lr(lr);

        // Forward and backward of the step's batches: of each as a whole, or in micro-batches once memory has run out.
        let mut batches: Vec<MimicBatch> = Vec::new();
        let losses = micro.retry_smaller(|per_batch| {
            state.optim.zero_grad();
            let mut losses = Vec::new();
            for i in 0..accum_iter {
                if batches.len() == i {
                    batches.push(idle.pause(|| loader.next_batch())?);
                }
                for micro_batch in batches[i].micro_batches(per_batch) {
                    let imgs = normalize.forward(&to_device(&micro_batch.imgs, device)?);
                    let (features, masking) = teachers::features(&recipe, &teachers, &micro_batch, device)?;
                    let uniform = micro_batch.drop_path.map(|uniform| to_device(&uniform, device)).transpose()?;
                    let drop_path = uniform.map(|uniform| DropPath::new(&uniform, &drop_rates));

                    let pass = ForwardOptions {
                        drop_path: drop_path.as_ref(),
                        grad_checkpointing: recipe.run.grad_checkpointing,
                    };
                    let autocast = recipe.run.precision.guard(device);
                    let loss = student.forward(&features.batch(&imgs, &masking, pass));
                    // Each operation's backward uses the type its forward used.
                    drop(autocast);
                    (&loss.total / (accum_iter * per_batch) as f64).backward();
                    losses.push(step::detach(&loss));
                }
            }
            Ok(losses)
        })?;
        let ema_decay = recipe.optim.ema_decay_at(step);
        let values = state.optimizer_step(step::mean_losses(&losses), recipe.optim.clip_grad, ema_decay)?;
        idle.end()?;

        // This step is queued; now the previous one is read, which is done or nearly so.
        let (queued, waited, idle_gaps) = (Instant::now(), loader.take_waited(), idle.take());
        let queued = InFlight { step, lr, values, batches, queued, waited, idle: idle_gaps };
        if let Some(done) = in_flight.replace(queued) {
            loader.recycle(log.wait_and_log(done)?);
        }
        writer.check()?;

        let steps_done = step + 1;
        let interrupted = signals::requested();
        let due = itstime(steps_done, recipe.run.checkpoint_every) || itstime(steps_done, recipe.run.keep_every);
        let evaluates = watch.as_ref().is_some_and(|watch| watch.due(steps_done));
        let saves = due || steps_done == end || interrupted;
        if (saves || evaluates)
            && let Some(done) = in_flight.take()
        {
            let batches = log.wait_and_log(done)?;
            let drawn = recipe.run.pictures.unwrap_or_default().min(recipe.optim.batch_size);
            if let Some(batch) = batches.first().filter(|_| saves && drawn > 0) {
                idle.begin()?;
                let grid = draw(&recipe, &student, &teachers, &batch.narrow(0, drawn), &normalize, device)?;
                idle.end()?;
                let (image, png) = image_grid::publish(&grid, run.path(), steps_done)?;
                log.picture("reconstruction", [image.width(), image.height()], &png)?;
            }
            loader.recycle(batches);
        }
        if let Some(watch) = watch.as_mut().filter(|_| evaluates) {
            idle.begin()?;
            if let Some(watched) = evaluate(watch, &state, &recipe, &run, steps_done, device)? {
                log.evaluated(watched.scalars())?;
            }
            idle.end()?;
        }
        // A signal may have come during the evaluation, which then waits for the next call.
        let interrupted = interrupted || signals::requested();
        if saves || interrupted {
            watch.as_ref().map_or(Ok(()), Watch::sync)?;
            writer.save(state.checkpoint(log.state(micro.per_batch(), data.clone())?, recipe.to_toml()))?;
        }
        if interrupted && steps_done < end {
            writer.finish()?;
            warn!("interrupted after step {steps_done}; the same command goes on from there");
            return Ok(ExitStatus::Interrupted);
        }
    }
    writer.finish()?;
    if end == total_steps {
        info!("finished: {total_steps} steps");
    } else {
        info!("stopped after step {end} of {total_steps} (--stop-after); the same command continues");
    }
    Ok(ExitStatus::Fine)
}

/// Originals, masks and reconstructions of `batch` by the student as it is now, with a map of how close its tokens come to each teacher's.
fn draw(
    recipe: &Recipe,
    student: &MrMae,
    teachers: &[RunTeacher],
    batch: &MimicBatch,
    normalize: &Normalize,
    device: Device,
) -> anyhow::Result<ImageGrid> {
    let _no_grad = tch::no_grad_guard();
    let imgs = normalize.forward(&to_device(&batch.imgs, device)?);
    let (features, masking) = teachers::features(recipe, teachers, batch, device)?;
    let _autocast = recipe.run.precision.guard(device);
    let mut grid = ImageGrid::of(student.mae(), &imgs, &masking);
    let (maps, patches) = student.similarity(&features.batch(&imgs, &masking, ForwardOptions::default()));
    for map in maps.values() {
        grid.add_map(map, &patches);
    }
    Ok(grid)
}

/// The images on which the student is evaluated while it is trained; `None` if there are none.
fn watch(
    args: &PretrainArgs,
    recipe: &Recipe,
    caches: &[Arc<Cache>],
    run: &RunFolder,
    start: u64,
    sampler: &Sampler,
    device: Device,
) -> anyhow::Result<Option<Watch>> {
    let Some((train, test)) = args.eval_train.clone().zip(args.eval_test.clone()) else {
        ensure!(
            recipe.run.eval_every.is_none(),
            "run.eval_every is set, but there is nothing to evaluate on: give --eval-train and --eval-test"
        );
        return Ok(None);
    };
    let config = WatchConfig {
        train,
        test,
        matching: args.match_classes,
        linprobe: args.eval_linprobe,
        every: recipe.run.eval_every,
        steps_per_epoch: sampler.steps_per_epoch(),
        total_steps: sampler.total_steps(recipe.schedule.epochs)?,
        precision: recipe.run.precision,
        device,
    };
    // As the student's images are decoded.
    let identity = caches[0].identity();
    let decoder = Decoder::of_cache(&identity.image_code, identity.depth_window);
    let decoder = decoder.unwrap_or_else(|| Decoder::new(identity.depth_window));
    Watch::open(config, decoder, args.device.loader_threads(device), run.path(), start).map(Some)
}

/// Evaluates the student, by its moving average if it has one, and keeps the weights of the best evaluation. `None` if a signal came first.
fn evaluate(
    watch: &mut Watch,
    state: &TrainState,
    recipe: &Recipe,
    run: &RunFolder,
    steps_done: u64,
    device: Device,
) -> anyhow::Result<Option<Watched>> {
    let evaluated = state.with_averages(|| {
        let student = Model::of_student(recipe, state.params.tensors(), device)?;
        let (watched, is_best) = watch.evaluate(&student, steps_done)?;
        if is_best {
            save_best(run, &state.params.tensors(), recipe)?;
        }
        Ok(watched)
    });
    match evaluated {
        Err(error) if error.is::<Interrupted>() => Ok(None),
        evaluated => evaluated.map(Some),
    }
}

/// What the weights of a run depend on besides its recipe.
fn data_identity(
    recipe: &Recipe,
    joined: &JoinedCaches,
    teachers: &[RunTeacher],
) -> anyhow::Result<BTreeMap<String, String>> {
    // Views and image code are the same for all.
    let identity = joined.members()[0].cache.identity();
    let packs = joined.members().iter().map(|member| format!("{:?}", member.cache.identity().pack));
    let mut facts = BTreeMap::from([
        ("samples".to_owned(), format!("{} (SHA-256 {})", joined.len(), joined.fingerprint())),
        ("views".to_owned(), format!("{:?}", identity.views)),
        ("image_code".to_owned(), identity.image_code.clone()),
        ("pack".to_owned(), packs.collect::<Vec<_>>().join(", ")),
    ]);
    // The default is left out, so that runs older than this setting can resume.
    if !identity.depth_window.is_high_byte() {
        facts.insert(depth_window::FACT.to_owned(), identity.depth_window.to_string());
    }
    if recipe.data.random_shift {
        let view_grid = teachers::view_grid(recipe, joined.members()[0].cache.teachers())?;
        facts.insert("view_grid".to_owned(), view_grid.to_string());
    }
    for teacher in teachers {
        facts.insert(format!("teacher.{}.weights_sha256", teacher.id), teacher.weights_sha256.clone());
        facts.insert(format!("teacher.{}.features", teacher.id), teacher.origin.clone());
    }
    Ok(facts)
}
