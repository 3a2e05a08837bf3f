//! Fine-tuning: a pretrained encoder, or a teacher's tower, and a new classifier, trained together on labeled images, as one visible loop.
//!
//! The promises are those of pretraining: everything random is a function of (seed, epoch, image), a checkpoint is weights, moments
//! and a step, and a run that is stopped and started again takes the same steps, bit for bit on a CPU with the same number of
//! libtorch threads.
//!
//! The protocol is MAE's (He et al. 2022, appendix A.2); the recipe says which part of it is on.

use std::io::Write;
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
use program::{ExitStatus, signals, words::count};
use schemas::atomic;
use tch::{Kind, Tensor};
use torch_ext::resolve_device;
use tracing::{info, warn};

use crate::cli::FinetuneArgs;
use crate::data::classes::{Classes, Numbering, Set};
use crate::data::labeled::{LabeledBatch, LabeledDataset};
use crate::data::loader::Loader;
use crate::data::mixup::Mixup;
use crate::data::normalize::Normalize;
use crate::data::rejects::Rejects;
use crate::data::sampler::Sampler;
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

/// Trains until the recipe's last epoch, or for `--stop-after` steps. Run again to continue.
pub(crate) fn finetune(args: &FinetuneArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    let device = resolve_device(&args.device.device)?;
    let mut recipe = any::load::<FinetuneRecipe>(&args.recipe.recipe, &args.recipe.set)?;
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
    let images = [("--train", &*args.labeled.train), ("--test", &*args.labeled.test)];
    run_folder::refuse_among_images(&args.out, &images)?;
    let run = RunFolder::open(&args.out, &recipe)?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ images and classes
    let img_size = finetune_init::img_size(&encoder)?;
    let (mean, std) = encoder.normalization();
    let normalization = [mean, std].map(|values| values.map(|v| v as f32));
    let decoder = depth_window::decoder(args.depth_window, &[&args.init])?;
    let train = ImageSource::open(&args.labeled.train)?.decoded_by(decoder);
    let test = ImageSource::open(&args.labeled.test)?.decoded_by(decoder);
    let classes = classes(args, &run, &train, &test)?;
    let train_labels = classes.of_train(&train, 0..train.len())?;
    let test_labels = classes.of_test(&test, 0..test.len())?;
    let data = data_identity(&pretrained, &train, &test, &classes, args.labeled.match_classes);
    let train_images = train.len();

    // ------------------------------------------------------------------ order and schedule
    let sampler = Sampler::of_run(&recipe.optim, recipe.run.seed, train_images)?;
    let schedule = recipe.schedule();
    let total_steps = sampler.total_steps(recipe.schedule.epochs)?;

    // ------------------------------------------------------------------ classifier and optimizer
    let params = ParamStore::new(device, recipe.run.seed);
    let classifier = Classifier::new(&params, &encoder, recipe.model.pool.into(), classes.len() as i64)?;
    start_from(&params, &encoder, &pretrained.description, &pretrained.tensors)?;
    let optim = Optimizer::for_finetuning(params.trainable(), &recipe.optim);
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
    let last = checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))?;
    if let Some(last) = &last {
        run_folder::refuse_other_data(run.path(), &last.state.data, &data)?;
        state.restore(last)?;
        let before = FinetuneRecipe::parse(&last.recipe, "the checkpoint's recipe", &[])?;
        let epoch = sampler.fractional_epoch(last.state.step);
        run_folder::refuse_other_length(run.path(), &before.schedule(), &schedule, epoch)?;
        info!("resuming {:?} after step {}", args.out, last.state.step);
    }
    // Only now: a run that is refused has other classes than these.
    let names = serde_json::to_string_pretty(classes.names())?;
    atomic::write(&run.path().join(CLASSES), names.as_bytes())?;
    let start = last.as_ref().map_or(0, |last| last.state.step);
    let mut evaluations = StepLog::open(run.path(), EVALUATIONS, start)?;
    let publish_result = |out: &mut dyn Write| {
        let unseen = classes.unseen_images();
        let result = FinetuneResult::read(run.path(), &pretrained.description, train_images, classes.len(), unseen)?;
        result.publish(run.path(), args.json, out)
    };
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        publish_result(out)?;
        return Ok(ExitStatus::Fine);
    }
    let mut micro =
        MicroBatches::new(recipe.optim.batch_size, last.as_ref().map_or(1, |last| last.state.micro_batches))?;
    let flop_per_image = STEP_PER_FORWARD * flops::of_classifier(&encoder, classes.len() as i64);
    let log_config = LogConfig::of(&recipe.run, recipe.schedule.epochs, flop_per_image, device);
    let mut log = TrainLog::open(run.path(), log_config, &sampler, device, last.map(|last| last.state))?;

    // ------------------------------------------------------------------ loader and test set
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let rejects = Arc::new(Rejects::read(run.path())?);
    let num_branches = 2 * encoder.num_blocks() as usize;
    let dataset = LabeledDataset {
        source: train,
        labels: train_labels,
        sampler,
        batch_size: recipe.optim.batch_size,
        img_size,
        branches: num_branches,
        normalization,
        policy: recipe.augment.policy()?,
        augment: recipe.augment.clone(),
        seed: recipe.run.seed,
        rejects: Arc::clone(&rejects),
    };
    let threads = args.device.loader_threads(device);
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
    let accum_iter = recipe.optim.accum_iter;
    let mut writer = Writer::new(run.path(), Keep::of(&recipe.run));
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight<LabeledBatch>> = None;
    for step in start..end {
        let lr = schedule.lr_at(sampler.fractional_epoch(step));
        state.optim.set_lr(lr);

        // Forward and backward of the step's batches: of each as a whole, or in micro-batches once memory has run out.
        let mut batches: Vec<LabeledBatch> = Vec::new();
        let losses = micro.retry_smaller(|per_batch| {
            state.optim.zero_grad();
            let mut losses = Vec::new();
            for i in 0..accum_iter {
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
                let mut rng = Rng::new(recipe.run.seed, Purpose::Mixup, &[step, i as u64]);
                let drawn = mixup.draw(&mut rng, img_size, img_size);
                let (imgs, targets) = mixup.mix(&imgs, &labels, classes.len(), &drawn);
                let branches = to_device(&batches[i].branches, device)?;

                let images = recipe.optim.batch_size / per_batch;
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
                    (&loss / (accum_iter * per_batch) as f64).backward();
                    losses.push(loss.detach());
                }
            }
            Ok(losses)
        })?;
        let loss = Tensor::stack(&losses, 0).mean(Kind::Float);
        let ema_decay = recipe.optim.ema_decay_at(step);
        let values = state.optimizer_step(vec![("loss".to_owned(), loss)], recipe.optim.clip_grad, ema_decay)?;
        idle.end()?;

        // This step is queued; now the previous one is read, which is done or nearly so.
        let (queued, waited, idle_gaps) = (Instant::now(), loader.take_waited(), idle.take());
        let queued = InFlight { step, lr, values, batches, queued, waited, idle: idle_gaps };
        if let Some(done) = in_flight.replace(queued) {
            loader.recycle(log.wait_and_log(done)?);
        }
        writer.check()?;

        let steps_done = step + 1;
        let epochs_done = steps_done / sampler.steps_per_epoch();
        let interrupted = signals::requested();
        let evaluates = itstime(steps_done, sampler.steps_per_epoch())
            && (itstime(epochs_done, recipe.run.eval_every) || steps_done == total_steps);
        let due = itstime(steps_done, recipe.run.checkpoint_every) || itstime(steps_done, recipe.run.keep_every);
        let saves = due || steps_done == end || interrupted;
        if (evaluates || saves)
            && let Some(done) = in_flight.take()
        {
            loader.recycle(log.wait_and_log(done)?);
        }
        if evaluates {
            idle.begin()?;
            state.with_averages(|| {
                let found = test.evaluate(&classifier, classes.len(), recipe.run.precision, &pool, device)?;
                let evaluation = Evaluation::of(found, steps_done, epochs_done);
                info!("{evaluation}");
                evaluations.append(&evaluation)?;
                log.evaluated(evaluation.scalars())?;
                if test_set::best(&test_set::read(run.path())?) == Some(&evaluation) {
                    save_best(&run, &state.params.tensors(), &recipe)?;
                }
                Ok(())
            })?;
            idle.end()?;
        }
        if saves {
            evaluations.sync()?;
            rejects.write(run.path())?;
            writer.save(state.checkpoint(log.state(micro.per_batch(), data.clone())?, recipe.to_toml()))?;
        }
        if interrupted && steps_done < end {
            writer.finish()?;
            warn!("interrupted after step {steps_done}; the same command goes on from there");
            return Ok(ExitStatus::Interrupted);
        }
    }
    writer.finish()?;
    if end < total_steps {
        info!("stopped after step {end} of {total_steps} (--stop-after); the same command continues");
        return Ok(ExitStatus::Fine);
    }
    info!("finished: {total_steps} steps");
    publish_result(out)?;
    Ok(ExitStatus::Fine)
}

/// The classes of both sets. The outputs of a classifier that is resumed stay where they are.
fn classes(args: &FinetuneArgs, run: &RunFolder, train: &ImageSource, test: &ImageSource) -> anyhow::Result<Classes> {
    let set = |option, source| Set { option, source };
    let (train, test) = (set("--train", train), set("--test", test));
    let classes = Classes::of(&train, &test, args.labeled.match_classes, Numbering::Labels)?;
    Ok(match finetuned::classes(run.path())? {
        Some(stored) if checkpoint::newest(run.path())?.is_some() => classes.in_order_of(&stored),
        _ => classes,
    })
}
