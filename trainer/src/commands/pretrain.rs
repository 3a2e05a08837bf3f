//! **The main job**: pretraining, from the recipe to the last checkpoint, as one visible loop.
//!
//! Everything random is a function of (seed, epoch, sample): the step number alone says which images come next and how they are
//! masked. So a checkpoint is the train state (weights, moments, average), the number of micro-batches of a batch, and a step. A run that is killed
//! and started again takes the same steps as one that is not, bit for bit on a CPU with the same number of libtorch threads.
//!
//! The host runs one step ahead of the device: a step's scalars are read when the next one is queued.

use std::collections::BTreeMap;
use std::path::Path;
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
use torch_ext::to_device;
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
use crate::dist::{Cut, Place, Reducer, World, in_world, resolve_device};
use crate::eval::features::Model;
use crate::eval::watch::{EvalSchedule, Watch, WatchConfig, Watched};
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

/// Trains until the recipe's last step, or for `--stop-after` steps. Run again to continue. `place` says which process of many this is.
pub(crate) fn pretrain(args: &PretrainArgs, hub: &HubSettings, place: Option<&Place>) -> anyhow::Result<ExitStatus> {
    let device = resolve_device(&args.device.device, place)?;
    in_world(place, |world| {
        let recipe = any::load(&args.recipe.recipe, &args.recipe.set)?;
        train(args, hub, &recipe, world, device)
    })
}

/// Trains as one of the processes of `world`. Rank 0 alone opens the run folder, evaluates and draws.
fn train(
    args: &PretrainArgs,
    hub: &HubSettings,
    recipe: &Recipe,
    world: &World,
    device: Device,
) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    recipe.run.precision.prepare(device)?;
    torch_ext::set_deterministic(recipe.run.deterministic)?;
    let share = world.share(recipe.optim.batch_size, recipe.optim.accum_iter, Cut::Ranges)?;
    let mut facts = recipe.settings();
    facts.insert("--stop-after".to_owned(), format!("{:?}", args.stop_after));
    facts.insert("--eval-train".to_owned(), format!("{:?}", args.eval_train));
    world.agree(&facts)?;
    world.connect(device, recipe.dist.timeout())?;
    let run = world.is_main().then(|| open_run(args, recipe)).transpose()?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ cache, teachers, images
    let caches = joined::open(&args.cache)?;
    let teachers = teachers::open(recipe, &caches, &args.online_teachers, hub, device)?;
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
    let mut data = data_identity(recipe, &joined, &teachers)?;
    world.agree(&data)?;
    let init = world.is_main().then(|| init::open(recipe, hub)).transpose()?.flatten();
    data.extend(init.iter().map(init::Begin::fact));

    // ------------------------------------------------------------------ order and schedule
    let sampler = Sampler::of_run(&recipe.optim, recipe.run.seed, joined.len())?;
    let schedule = recipe.schedule();
    let total_steps = sampler.total_steps(recipe.schedule.epochs)?;

    // ------------------------------------------------------------------ resume: the last checkpoint is of the same run
    let last = match &run {
        Some(run) => checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))?,
        None => None,
    };
    if let Some((run, last)) = run.as_ref().zip(last.as_ref()) {
        run_folder::refuse_other_data(run.path(), &last.state.data, &data)?;
        let before = Recipe::parse(&last.recipe, "the checkpoint's recipe", &[])?;
        let epoch = sampler.fractional_epoch(last.state.step);
        run_folder::refuse_other_length(run.path(), &before.schedule(), &schedule, epoch)?;
    }
    let resumed = world.lead(|| Ok(last.as_ref().map(|last| last.state.clone())))?;

    // ------------------------------------------------------------------ student and optimizer
    let widths = teachers.iter().filter(|t| t.mimicked).map(|t| (t.id.to_string(), t.width.into())).collect();
    let mut stats = BTreeMap::new();
    if world.is_main() && resumed.is_none() {
        // On resume the statistics are loaded with the parameters, and the other processes get them with those of rank 0.
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
    if resumed.is_none()
        && let Some(init) = &init
    {
        init.load(&params, recipe)?;
    }
    let optim = Optimizer::for_pretraining(params.trainable(), &recipe.optim, world);
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

    state.restore(last.as_ref(), world)?;
    if let Some(last) = last {
        info!("resuming {:?} after step {}", args.out, last.state.step);
    }
    let start = resumed.as_ref().map_or(0, |resumed| resumed.step);
    world.set_step(start);
    let eval_schedule = evaluations(args, recipe, &sampler)?;
    let run_path = run.as_ref().map(RunFolder::path);
    let mut watch = eval_schedule
        .map(|when| watch(args, watch_config(args, recipe, when, device), &caches, run_path, start, world))
        .transpose()?;
    // An evaluation that was interrupted is made up for.
    let is_missing = |watch: &mut Watch| world.lead(|| Ok(watch.is_missing(start) && start > 0));
    if let Some(watch) = &mut watch
        && is_missing(watch)?
    {
        let Some(watched) = evaluate(watch, &state, recipe, run.as_ref(), start, world)? else {
            return Ok(ExitStatus::Interrupted);
        };
        if let Some(run) = run_path {
            let scalars = watched.scalars();
            EventLog::open(run, start)?.scalars(start, scalars.iter().map(|(tag, value)| (&**tag, *value)))?;
        }
    }
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        return Ok(ExitStatus::Fine);
    }
    let mut micro = MicroBatches::of_share(&share, resumed.as_ref().map_or(1, |resumed| resumed.micro_batches))?;
    let mut reducer = Reducer::new(world, &state.params.trainable(), &recipe.dist)?;
    let flop_per_image = Flops::of_pretraining(student.config(), recipe.len_keep()).step();
    let log_config = LogConfig::of(&recipe.run, recipe.schedule.epochs, flop_per_image, world, device);
    let mut log = TrainLog::open(run_path, log_config, &sampler, &share, device, resumed)?;

    // ------------------------------------------------------------------ loader
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let dataset = MimicDataset::new(recipe, &teachers, joined, sampler, share)?;
    let threads = args.device.loader_threads(device, world.local_size());
    let mut loader = Loader::start(Arc::new(dataset), start..end, threads, recipe.data.prefetch, device)?;

    // ------------------------------------------------------------------ the loop
    let normalize = Normalize::imagenet(device);
    // A rate per block; each block has two residual branches.
    let drop_rates = linear_rates(recipe.model.drop_path, recipe.drop_path_branches() / 2);
    let drop_rates = Tensor::from_slice(&drop_rates).to_device(device);
    let mut writer = run_path.map(|run| Writer::new(run, Keep::of(&recipe.run)));
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight> = None;
    for step in start..end {
        let lr = schedule.lr_at(sampler.fractional_epoch(step));
        state.optim.set_lr(lr);

        // Forward and backward of the step's batches: of each as a whole, or in micro-batches once memory has run out.
        let mut batches: Vec<MimicBatch> = Vec::new();
        let losses = micro.retry_smaller(|per_batch| {
            state.optim.zero_grad();
            reducer.begin();
            let passes = share.batches() * per_batch;
            let mut losses = Vec::new();
            for i in 0..share.batches() {
                if batches.len() == i {
                    batches.push(idle.pause(|| loader.next_batch())?);
                }
                for micro_batch in batches[i].micro_batches(per_batch) {
                    let imgs = normalize.forward(&to_device(&micro_batch.imgs, device)?);
                    let (features, masking) = teachers::features(recipe, &teachers, &micro_batch, device)?;
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
                    losses.push(step::detach(&loss));
                    if losses.len() == passes {
                        reducer.last_pass();
                    }
                    (&loss.total / (passes * world.size()) as f64).backward();
                }
            }
            Ok(losses)
        })?;
        let waited = loader.take_waited();
        let reduced = reducer.finish(step::mean_losses(&losses), &log.facts(waited, micro.per_batch())?)?;
        let ema_decay = recipe.optim.ema_decay_at(step);
        let values = state.optimizer_step(reduced.losses, reduced.ranks.as_ref(), recipe.optim.clip_grad, ema_decay)?;
        idle.end()?;

        // This step is queued; now the previous one is read, which is done or nearly so.
        let queued = InFlight { step, lr, values, batches, queued: Instant::now(), waited, idle: idle.take() };
        if let Some(done) = in_flight.replace(queued) {
            loader.recycle(log.wait_and_log(done, world)?);
        }
        writer.as_mut().map_or(Ok(()), Writer::check)?;

        let steps_done = step + 1;
        let interrupted = log.interrupted();
        let due = itstime(steps_done, recipe.run.checkpoint_every) || itstime(steps_done, recipe.run.keep_every);
        let evaluates = eval_schedule.is_some_and(|when| when.due(steps_done));
        let saves = due || steps_done == end || interrupted;
        if (saves || evaluates)
            && let Some(done) = in_flight.take()
        {
            let batches = log.wait_and_log(done, world)?;
            let drawn = recipe.run.pictures.unwrap_or_default().min(share.images());
            if let Some((run, batch)) = run.as_ref().zip(batches.first()).filter(|_| saves && drawn > 0) {
                idle.begin()?;
                let grid = draw(recipe, &student, &teachers, &batch.narrow(0, drawn), &normalize, device)?;
                idle.end()?;
                let (image, png) = image_grid::publish(&grid, run.path(), steps_done)?;
                log.picture("reconstruction", [image.width(), image.height()], &png)?;
            }
            loader.recycle(batches);
        }
        let mut interrupted = log.interrupted();
        if let Some(watch) = watch.as_mut().filter(|_| evaluates) {
            idle.begin()?;
            let watched = evaluate(watch, &state, recipe, run.as_ref(), steps_done, world)?;
            watched.as_ref().map_or(Ok(()), |watched| log.evaluated(watched.scalars()))?;
            // What a signal has ended waits for the next call; and one may have come in the last moment.
            interrupted |= world.lead(|| Ok(watched.is_none() || signals::requested()))?;
            idle.end()?;
        }
        if saves || interrupted {
            world.require_equal(&state.params.tensors())?;
            let optimizer = state.optim.state()?;
            // The others wait for it, however slow the disk is.
            world.lead(|| {
                let Some(writer) = &mut writer else {
                    return Ok(());
                };
                watch.as_ref().map_or(Ok(()), Watch::sync)?;
                let progress = log.state(micro.per_batch(), data.clone())?;
                writer.save(state.checkpoint(progress, optimizer, recipe.to_toml()))
            })?;
        }
        if interrupted && steps_done < end {
            // A launcher ends the others when one has ended, so none ends before the checkpoint is there.
            world.lead(|| writer.as_mut().map_or(Ok(()), Writer::finish))?;
            if world.is_main() {
                warn!("interrupted after step {steps_done}; the same command goes on from there");
            }
            return Ok(ExitStatus::Interrupted);
        }
    }
    world.lead(|| writer.as_mut().map_or(Ok(()), Writer::finish))?;
    if end == total_steps {
        info!("finished: {total_steps} steps");
    } else {
        info!("stopped after step {end} of {total_steps} (--stop-after); the same command continues");
    }
    Ok(ExitStatus::Fine)
}

/// The run folder of rank 0.
fn open_run(args: &PretrainArgs, recipe: &Recipe) -> anyhow::Result<RunFolder> {
    let mut images: Vec<_> = args.images.iter().map(|images| ("--images", images.as_str())).collect();
    images.extend(args.eval_train.as_deref().map(|images| ("--eval-train", images)));
    images.extend(args.eval_test.as_deref().map(|images| ("--eval-test", images)));
    run_folder::refuse_among_images(&args.out, &images)?;
    RunFolder::open(&args.out, recipe)
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

/// When the student is evaluated while it is trained; `None` if there is nothing to evaluate on.
fn evaluations(args: &PretrainArgs, recipe: &Recipe, sampler: &Sampler) -> anyhow::Result<Option<EvalSchedule>> {
    if args.eval_train.is_none() {
        ensure!(
            recipe.run.eval_every.is_none(),
            "run.eval_every is set, but there is nothing to evaluate on: give --eval-train and --eval-test"
        );
        return Ok(None);
    }
    let total_steps = sampler.total_steps(recipe.schedule.epochs)?;
    Ok(Some(EvalSchedule { every: recipe.run.eval_every, steps_per_epoch: sampler.steps_per_epoch(), total_steps }))
}

/// What the student is evaluated on while it is trained, and when.
fn watch_config(args: &PretrainArgs, recipe: &Recipe, schedule: EvalSchedule, device: Device) -> WatchConfig {
    WatchConfig {
        train: args.eval_train.clone().unwrap_or_default(),
        test: args.eval_test.clone().unwrap_or_default(),
        matching: args.match_classes,
        linprobe: args.eval_linprobe,
        schedule,
        precision: recipe.run.precision,
        device,
    }
}

/// Opens the images of evaluations. Rank 0 has the `run` folder.
fn watch(
    args: &PretrainArgs,
    config: WatchConfig,
    caches: &[Arc<Cache>],
    run: Option<&Path>,
    start: u64,
    world: &World,
) -> anyhow::Result<Watch> {
    // As the student's images are decoded.
    let identity = caches[0].identity();
    let decoder = Decoder::of_cache(&identity.image_code, identity.depth_window);
    let decoder = decoder.unwrap_or_else(|| Decoder::new(identity.depth_window));
    let threads = args.device.loader_threads(config.device, world.local_size());
    let watch = Watch::open(config, decoder, threads, run, start)?;
    let [train, test] = watch.images();
    world.agree(&BTreeMap::from([("--eval-train".to_owned(), train), ("--eval-test".to_owned(), test)]))?;
    Ok(watch)
}

/// Evaluates the student, by its moving average if it has one, and keeps the weights of the best evaluation. `None` if a signal came first.
fn evaluate(
    watch: &mut Watch,
    state: &TrainState,
    recipe: &Recipe,
    run: Option<&RunFolder>,
    steps_done: u64,
    world: &World,
) -> anyhow::Result<Option<Watched>> {
    let evaluated = state.with_averages(|| {
        let student = Model::of_student(recipe, state.params.tensors(), state.params.device())?;
        let features = watch.features(&student, world)?;
        // The others wait for it, however long it takes.
        world.lead(|| {
            let (watched, is_best) = watch.evaluate(&features, steps_done)?;
            if let Some(run) = run.filter(|_| is_best) {
                save_best(run, &state.params.tensors(), recipe)?;
            }
            Ok(watched)
        })
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
