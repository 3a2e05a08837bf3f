//! Fine-tuning: a pretrained encoder, or a teacher's tower, and a new classifier, trained together on labeled images, as one visible loop.
//!
//! The promises are those of pretraining: everything random is a function of (seed, epoch, image), a checkpoint is weights, moments
//! and a step, and a run that is stopped and started again takes the same steps, bit for bit on a CPU with the same number of
//! libtorch threads.
//!
//! The protocol is MAE's (He et al. 2022, appendix A.2); the recipe says which part of it is on.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use hub::HubSettings;
use images::ImageSource;
use images::rng::{Purpose, Rng};
use models::blocks::ForwardOptions;
use models::classifier::{Classifier, soft_target_cross_entropy, start_from};
use models::drop_path::{DropPath, linear_rates};
use models::flops::{self, STEP_PER_FORWARD};
use models::params::ParamStore;
use program::{ExitStatus, words::count};
use schemas::atomic;
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use crate::cli::FinetuneArgs;
use crate::data::classes::{Classes, Numbering, Set};
use crate::data::labeled::{LabeledBatch, LabeledDataset};
use crate::data::loader::Loader;
use crate::data::mixup::Mixup;
use crate::data::normalize::Normalize;
use crate::data::rejects::Rejects;
use crate::data::sampler::Sampler;
use crate::dist::{Cut, Place, Reducer, World, in_world, resolve_device};
use crate::eval::test_set::{self, EVALUATIONS, Evaluation, FinetuneResult, TestSet};
use crate::pretrained::depth_window;
use crate::pretrained::finetune_init::{self, Start};
use crate::recipe::Experiment;
use crate::recipe::any;
use crate::recipe::finetune::FinetuneRecipe;
use crate::train::best::save_best;
use crate::train::checkpoint::{self, Keep, Writer};
use crate::train::finetuned::{self, CLASSES};
use crate::train::idle::IdleMeter;
use crate::train::itstime::itstime;
use crate::train::metrics::StepLog;
use crate::train::micro_batch::MicroBatches;
use crate::train::optim::Optimizer;
use crate::train::run_folder;
use crate::train::run_folder::RunFolder;
use crate::train::train_log::{InFlight, LogConfig, TrainLog};
use crate::train::train_state::TrainState;
use torch_ext::to_device;

mod data_identity;
#[cfg(test)]
mod tests;

use data_identity::data_identity;

/// Trains until the recipe's last epoch, or for `--stop-after` steps. Run again to continue. `place` says which process of many this is.
pub(crate) fn finetune(
    args: &FinetuneArgs,
    hub: &HubSettings,
    place: Option<&Place>,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let device = resolve_device(&args.device.device, place)?;
    in_world(place, |world| {
        let recipe = any::load(&args.recipe.recipe, &args.recipe.set)?;
        train(args, hub, recipe, world, device, out)
    })
}

/// Trains as one of the processes of `world`. Rank 0 alone opens the run folder and writes to `out`.
fn train(
    args: &FinetuneArgs,
    hub: &HubSettings,
    mut recipe: FinetuneRecipe,
    world: &World,
    device: Device,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    recipe.run.precision.prepare(device)?;
    torch_ext::set_deterministic(recipe.run.deterministic)?;
    let pretrained = Start::load(&args.init, hub)?;
    let encoder = match recipe.model.img_size {
        Some(img_size) => {
            let resized = pretrained.encoder.at_size(img_size.into());
            resized.with_context(|| format!("model.img_size = {img_size}"))?
        }
        None => pretrained.encoder.clone(),
    };
    ensure!(
        recipe.encoder.as_ref().is_none_or(|of| *of == encoder),
        "[encoder] of the recipe is another than that of --init {}; leave it out, it is filled in",
        args.init
    );
    recipe.encoder = Some(encoder.clone());
    // Images are mixed with their partners.
    let share = world.share(recipe.optim.batch_size, recipe.optim.accum_iter, Cut::Mirrored)?;
    let mut facts = recipe.settings();
    facts.insert("--stop-after".to_owned(), format!("{:?}", args.stop_after));
    world.agree(&facts)?;
    world.connect(device, recipe.dist.timeout())?;
    let run = world.is_main().then(|| open_run(args, &recipe)).transpose()?;
    let run_path = run.as_ref().map(RunFolder::path);
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ images and classes
    let img_size = finetune_init::img_size(&encoder)?;
    let (mean, std) = encoder.normalization();
    let normalization = [mean, std].map(|values| values.map(|v| v as f32));
    let decoder = depth_window::decoder(args.depth_window, &[&args.init])?;
    let train = ImageSource::open(&args.labeled.train)?.decoded_by(decoder);
    let test = ImageSource::open(&args.labeled.test)?.decoded_by(decoder);
    let classes = classes(args, run_path, &train, &test, world)?;
    let train_labels = classes.of_train(&train, 0..train.len())?;
    let test_labels = classes.of_test(&test, 0..test.len())?;
    let data = data_identity(&pretrained, &train, &test, &classes, args.labeled.match_classes);
    world.agree(&data)?;
    let train_images = train.len();

    // ------------------------------------------------------------------ order and schedule
    let sampler = Sampler::of_run(&recipe.optim, recipe.run.seed, train_images)?;
    let schedule = recipe.schedule();
    let total_steps = sampler.total_steps(recipe.schedule.epochs)?;

    // ------------------------------------------------------------------ classifier and optimizer
    let params = ParamStore::new(device, recipe.run.seed);
    let classifier = Classifier::new(&params, &encoder, recipe.model.pool.into(), classes.len() as i64)?;
    start_from(&params, &encoder, &pretrained.description, &pretrained.tensors)?;
    let optim = Optimizer::for_finetuning(params.trainable(), &recipe.optim, world);
    let mut state = TrainState::new(params, optim, recipe.optim.ema_decay.is_some());
    info!(
        "{}, {:.1} M parameters on {} ({} libtorch threads) in {}, {} of {} classes in {} of {} x {} an epoch, \
         {} in all, peak lr {:.3e}",
        pretrained.description,
        state.params.num_trainable() as f64 / 1e6,
        torch_ext::describe(device),
        torch_ext::num_threads(),
        recipe.run.precision,
        count(train_images as u64, "image"),
        classes.len(),
        count(sampler.steps_per_epoch(), "step"),
        recipe.optim.accum_iter,
        recipe.optim.batch_size,
        count(total_steps, "step"),
        schedule.lr,
    );
    if let Some(left_over) = sampler.left_over() {
        info!("{left_over}");
    }

    // ------------------------------------------------------------------ resume
    let last = match run_path {
        Some(run) => checkpoint::load_last(run, &mut |notice| warn!("{notice}"))?,
        None => None,
    };
    if let Some((run, last)) = run_path.zip(last.as_ref()) {
        run_folder::refuse_other_data(run, &last.state.data, &data)?;
        let before = FinetuneRecipe::parse(&last.recipe, "the checkpoint's recipe", &[])?;
        let epoch = sampler.fractional_epoch(last.state.step);
        run_folder::refuse_other_length(run, &before.schedule(), &schedule, epoch)?;
        info!("resuming {run:?} after step {}", last.state.step);
    }
    let resumed = world.lead(|| Ok(last.as_ref().map(|last| last.state.clone())))?;
    state.restore(last.as_ref(), world)?;
    drop(last);
    let start = resumed.as_ref().map_or(0, |resumed| resumed.step);
    world.set_step(start);
    let open_evaluations = |run: &Path| {
        // Only now: a run that is refused has other classes than these.
        let names = serde_json::to_string_pretty(classes.names())?;
        atomic::write(&run.join(CLASSES), names.as_bytes())?;
        StepLog::open(run, EVALUATIONS, start)
    };
    let mut evaluations = run_path.map(open_evaluations).transpose()?;
    let publish_result = |out: &mut dyn Write| {
        let Some(run) = run_path else {
            return Ok(());
        };
        let unseen = classes.unseen_images();
        let result = FinetuneResult::read(run, &pretrained.description, train_images, classes.len(), unseen)?;
        result.publish(run, args.json, out)
    };
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        publish_result(out)?;
        return Ok(ExitStatus::Fine);
    }
    let mut micro = MicroBatches::of_share(&share, resumed.as_ref().map_or(1, |resumed| resumed.micro_batches))?;
    let mut reducer = Reducer::new(world, &state.params.trainable(), &recipe.dist)?;
    let flop_per_image = STEP_PER_FORWARD * flops::of_classifier(&encoder, classes.len() as i64);
    let log_config = LogConfig::of(&recipe.run, recipe.schedule.epochs, flop_per_image, world, device);
    let mut log = TrainLog::open(run_path, log_config, &sampler, &share, device, resumed)?;

    // ------------------------------------------------------------------ loader and test set
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let rejects = Arc::new(run_path.map(Rejects::read).transpose()?.unwrap_or_default());
    let num_branches = 2 * encoder.num_blocks() as usize;
    let dataset = LabeledDataset {
        source: train,
        labels: train_labels,
        sampler,
        share,
        img_size,
        branches: num_branches,
        normalization,
        policy: recipe.augment.policy()?,
        augment: recipe.augment.clone(),
        seed: recipe.run.seed,
        rejects: Arc::clone(&rejects),
    };
    let threads = args.device.loader_threads(device, world.local_size());
    let prefetch = recipe.run.prefetch.unwrap_or(1);
    let mut loader = Loader::start(Arc::new(dataset), start..end, threads, prefetch, device)?;
    let test = TestSet {
        source: test,
        labels: test_labels,
        img_size,
        normalization,
        crop_pct: recipe.augment.crop_pct,
        batch_size: recipe.optim.batch_size,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;

    // ------------------------------------------------------------------ the loop
    let normalize = Normalize::of(normalization, device);
    let mixup = Mixup::of(&recipe.augment);
    let drop_rates = linear_rates(recipe.model.drop_path, num_branches / 2);
    let drop_rates = Tensor::from_slice(&drop_rates).to_kind(Kind::Float).to_device(device);
    let mut writer = run_path.map(|run| Writer::new(run, Keep::of(&recipe.run)));
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight<LabeledBatch>> = None;
    for step in start..end {
        let lr = schedule.lr_at(sampler.fractional_epoch(step));
        state.optim.set_lr(lr);

        // Forward and backward of the step's batches: of each as a whole, or in micro-batches once memory has run out.
        let mut batches: Vec<LabeledBatch> = Vec::new();
        let losses = micro.retry_smaller(|per_batch| {
            state.optim.zero_grad();
            reducer.begin();
            let passes = share.batches() * per_batch;
            let mut losses = Vec::new();
            for i in 0..share.batches() {
                if batches.len() == i {
                    batches.push(idle.pause(|| loader.next_batch())?);
                }
                // Images are mixed with others of their whole batch, whatever micro-batches it is split into.
                let imgs = to_device(&batches[i].imgs, device)?;
                let imgs = match imgs.kind() {
                    Kind::Uint8 => normalize.forward(&imgs),
                    // Random erasing draws noise of normalized pixels, so the loader has normalized them.
                    _ => imgs,
                };
                let labels = to_device(&batches[i].labels, device)?;
                let mut rng = Rng::new(recipe.run.seed, Purpose::Mixup, &[step, share.batch(i) as u64]);
                let drawn = mixup.draw(&mut rng, img_size, img_size);
                let (imgs, targets) = mixup.mix(&imgs, &labels, classes.len(), &drawn);
                let branches = to_device(&batches[i].branches, device)?;

                let images = share.images() / per_batch;
                for micro_batch in 0..per_batch {
                    let rows = |t: &Tensor| t.narrow(0, (micro_batch * images) as i64, images as i64);
                    let drop_path = DropPath::new(&rows(&branches), &drop_rates);
                    let pass = ForwardOptions {
                        drop_path: (recipe.model.drop_path > 0.0).then_some(&drop_path),
                        grad_checkpointing: recipe.run.grad_checkpointing,
                    };
                    let autocast = recipe.run.precision.guard(device);
                    let scores = classifier.forward(&rows(&imgs), &pass);
                    // Each operation's backward uses the type its forward used.
                    drop(autocast);
                    let loss = soft_target_cross_entropy(&scores, &rows(&targets));
                    losses.push(loss.detach());
                    if losses.len() == passes {
                        reducer.last_pass();
                    }
                    (&loss / (passes * world.size()) as f64).backward();
                }
            }
            Ok(losses)
        })?;
        let losses = vec![("loss".to_owned(), Tensor::stack(&losses, 0).mean(Kind::Float))];
        let waited = loader.take_waited();
        let reduced = reducer.finish(losses, &log.facts(waited, micro.per_batch())?)?;
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
        let epochs_done = steps_done / sampler.steps_per_epoch();
        let interrupted = log.interrupted();
        let evaluates = itstime(steps_done, sampler.steps_per_epoch())
            && (itstime(epochs_done, recipe.run.eval_every) || steps_done == total_steps);
        let due = itstime(steps_done, recipe.run.checkpoint_every) || itstime(steps_done, recipe.run.keep_every);
        let saves = due || steps_done == end || interrupted;
        if (evaluates || saves)
            && let Some(done) = in_flight.take()
        {
            loader.recycle(log.wait_and_log(done, world)?);
        }
        if evaluates {
            idle.begin()?;
            state.with_averages(|| {
                let found = test.evaluate(&classifier, classes.len(), recipe.run.precision, &pool, world, device)?;
                let evaluation = Evaluation::of(found, steps_done, epochs_done);
                info!("{evaluation}");
                world.lead(|| {
                    let Some((run, evaluations)) = run.as_ref().zip(evaluations.as_mut()) else {
                        return Ok(());
                    };
                    evaluations.append(&evaluation)?;
                    log.evaluated(evaluation.scalars())?;
                    if test_set::best(&test_set::read(run.path())?) == Some(&evaluation) {
                        save_best(run, &state.params.tensors(), &recipe)?;
                    }
                    Ok(())
                })
            })?;
            idle.end()?;
        }
        if saves {
            world.require_equal(&state.params.tensors())?;
            let optimizer = state.optim.state()?;
            rejects.extend(world.gather(rejects.reasons())?);
            // The others wait for it, however slow the disk is.
            world.lead(|| {
                let (Some(run), Some(writer)) = (run_path, &mut writer) else {
                    return Ok(());
                };
                evaluations.as_ref().map_or(Ok(()), StepLog::sync)?;
                rejects.write(run)?;
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
    if end < total_steps {
        info!("stopped after step {end} of {total_steps} (--stop-after); the same command continues");
        return Ok(ExitStatus::Fine);
    }
    info!("finished: {total_steps} steps");
    publish_result(out)?;
    Ok(ExitStatus::Fine)
}

/// The classes of both sets. The outputs of a classifier that is resumed stay where they are.
fn classes(
    args: &FinetuneArgs,
    run: Option<&Path>,
    train: &ImageSource,
    test: &ImageSource,
    world: &World,
) -> anyhow::Result<Classes> {
    let set = |option, source| Set { option, source };
    let (train, test) = (set("--train", train), set("--test", test));
    let classes = Classes::of(&train, &test, args.labeled.match_classes, Numbering::Labels)?;
    let stored = world.lead(|| match run {
        Some(run) if checkpoint::newest(run)?.is_some() => finetuned::classes(run),
        _ => Ok(None),
    })?;
    Ok(stored.map_or(classes.clone(), |stored| classes.in_order_of(&stored)))
}

/// The run folder of rank 0.
fn open_run(args: &FinetuneArgs, recipe: &FinetuneRecipe) -> anyhow::Result<RunFolder> {
    let images = [("--train", &*args.labeled.train), ("--test", &*args.labeled.test)];
    run_folder::refuse_among_images(&args.out, &images)?;
    RunFolder::open(&args.out, recipe)
}
