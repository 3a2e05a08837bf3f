//! Fine-tuning: a pretrained encoder, or a teacher's tower, and a new classifier, trained together on labelled images, as one visible loop.
//!
//! The promises are those of pretraining: everything random is a function of (seed, epoch, image), a checkpoint is weights, moments
//! and a step, and a run that is stopped and started again takes the same steps, bit for bit on a CPU with the same number of
//! libtorch threads.
//!
//! The protocol is MAE's (He et al. 2022, appendix A.2); the recipe says which part of it is on.

use std::collections::BTreeMap;
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
use models::encoder::EncoderConfig;
use models::flops::{self, STEP_PER_FORWARD};
use models::params::ParamStore;
use program::{ExitStatus, signals, words::count};
use schemas::atomic;
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamWConfig, Ema, resolve_device};
use tracing::{info, warn};

use crate::checkpoint::{self, Checkpoint, Keep, Writer};
use crate::classes::{Classes, Numbering, Set};
use crate::cli::FinetuneArgs;
use crate::data::loader::Loader;
use crate::data::order::Order;
use crate::idle::IdleMeter;
use crate::metrics::StepLog;
use crate::optim::layer_decay::LayerDecayed;
use crate::progress::{InFlight, Progress, Watch};
use crate::run_folder::RunFolder;
use crate::step::{self, Normalise};
use crate::teachers::to_device;
use crate::{bench, depth, run_folder};
use data::TrainPlan;
use evaluate::{EVALUATIONS, Evaluation, FinetuneResult, TestSet};
use init::Start;
use recipe::FinetuneRecipe;
use record::{exchange_values, facts, publish, save_best};
use rejects::Rejects;

pub mod data;
pub mod evaluate;
pub mod init;
pub mod recipe;
pub(crate) mod record;
pub mod rejects;
#[cfg(test)]
mod tests;

/// The names of the classes in a run folder, in the order of the classifier's scores.
pub const CLASSES: &str = "classes.json";
/// The weights of the best evaluation in a run folder.
pub const BEST: &str = "best/model.safetensors";

/// Trains until the recipe's last epoch, or for `--stop-after` steps. Run again to continue.
pub fn finetune(args: &FinetuneArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    let device = resolve_device(&args.device.device)?;
    let mut recipe = FinetuneRecipe::load(&args.recipe.recipe, &args.recipe.set)?;
    recipe.run.precision.prepare(device)?;
    let start_from_weights = Start::load(&args.init, hub)?;
    let encoder = match recipe.model.img_size {
        Some(img_size) => (start_from_weights.encoder)
            .at_size(img_size.into())
            .with_context(|| format!("model.img_size = {img_size}"))?,
        None => start_from_weights.encoder.clone(),
    };
    ensure!(
        recipe.encoder.as_ref().is_none_or(|of| *of == encoder),
        "[encoder] of the recipe is another than that of --init {}; leave it out, it is filled in",
        args.init
    );
    recipe.encoder = Some(encoder.clone());
    let images = [("--train", &*args.train), ("--test", &*args.test)];
    run_folder::refuse_among_images(&args.out, &images)?;
    let run = RunFolder::open(&args.out, &recipe)?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ images
    let img_size = init::img_size(&encoder)?;
    let (mean, std) = encoder.normalization();
    let normalisation = [mean, std].map(|of| of.map(|v| v as f32));
    let decoder = depth::decoder(args.depth_window, &[&args.init])?;
    let (train, test) =
        (ImageSource::open(&args.train)?.decoded_by(decoder), ImageSource::open(&args.test)?.decoded_by(decoder));
    let set = |option, source| Set { option, source };
    let (train_set, test_set) = (set("--train", &train), set("--test", &test));
    let classes = Classes::of(&train_set, &test_set, args.match_classes, Numbering::Labels)?;
    // The outputs of a classifier that exists stay where they are.
    let classes = match record::classes(run.path())? {
        Some(stored) if checkpoint::newest(run.path())?.is_some() => classes.in_order_of(&stored),
        _ => classes,
    };
    let (train_labels, test_labels) =
        (classes.of_train(&train, 0..train.len())?, classes.of_test(&test, 0..test.len())?);
    let facts = facts(&start_from_weights, &train, &test, &classes, args.match_classes);
    let train_images = train.len();

    // ------------------------------------------------------------------ order and schedule
    let order = Order::new(recipe.run.seed, train_images, recipe.effective_batch()).with_context(|| {
        format!(
            "{} cannot fill one step of optim.batch_size {} x optim.accum_iter {}",
            count(train_images as u64, "image"),
            recipe.optim.batch_size,
            recipe.optim.accum_iter
        )
    })?;
    let schedule = recipe.schedule();
    let total_steps = recipe.schedule.epochs * order.steps_per_epoch();

    // ------------------------------------------------------------------ classifier and optimizer
    let params = ParamStore::new(device, recipe.run.seed);
    let classifier = Classifier::new(&params, &encoder, recipe.model.pool.into(), classes.len() as i64)?;
    start_from(&params, &encoder, &start_from_weights.description, &start_from_weights.tensors)?;
    let branches = 2 * encoder.num_blocks() as usize;
    let drop_rates = linear_rates(recipe.model.drop_path, branches / 2);
    let drop_rates = Tensor::from_slice(&drop_rates).to_kind(Kind::Float).to_device(device);
    let [beta1, beta2] = recipe.optim.betas;
    let mut optim = LayerDecayed::new(
        params.trainable(),
        recipe.optim.layer_decay,
        recipe.optim.weight_decay,
        AdamWConfig { beta1, beta2, eps: recipe.optim.eps },
    );
    info!(
        "{}, {:.1} M parameters on {} ({} libtorch threads) in {}, {} of {} classes in {} of {} x {} an epoch, \
         {} in all, peak lr {:.3e}",
        start_from_weights.description,
        params.num_trainable() as f64 / 1e6,
        torch_ext::describe(device),
        torch_ext::num_threads(),
        recipe.run.precision,
        count(train_images as u64, "image"),
        classes.len(),
        count(order.steps_per_epoch(), "step"),
        recipe.optim.accum_iter,
        recipe.optim.batch_size,
        count(total_steps, "step"),
        schedule.lr,
    );

    if let Some(left_over) = order.left_over() {
        info!("{left_over}");
    }

    let mut ema = (recipe.optim.ema_decay).map(|_| Ema::new(params.trainable()));

    // ------------------------------------------------------------------ resume
    let last = checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))?;
    if let Some(last) = &last {
        run_folder::refuse_other_data(run.path(), &last.state.data, &facts)?;
        params.load("the checkpoint's model", &last.model)?;
        optim.optim.load_state(&last.optimizer)?;
        if let Some(ema) = &mut ema {
            // One that is not there is told by the name of what it lacks.
            ema.load_state(last.ema.as_ref().unwrap_or(&BTreeMap::new()))?;
        }
        info!("resuming {:?} after step {}", args.out, last.state.step);
    }
    // Not before: the outputs of a run that is refused are not these.
    let names = serde_json::to_string_pretty(classes.names())?;
    atomic::write(&run.path().join(CLASSES), names.as_bytes())?;
    let start = last.as_ref().map_or(0, |last| last.state.step);
    let mut log = StepLog::open(run.path(), EVALUATIONS, start)?;
    let result = || -> anyhow::Result<FinetuneResult> {
        let evaluations = evaluate::read(run.path())?;
        let none = || format!("{:?}: holds no evaluation", args.out);
        Ok(FinetuneResult {
            model: start_from_weights.description.clone(),
            train_images,
            classes: classes.len(),
            test_images_of_unseen_classes: classes.unseen_images(),
            last: evaluations.last().with_context(none)?.clone(),
            best: evaluate::best(&evaluations).with_context(none)?.clone(),
            evaluations,
        })
    };
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        publish(&run, &result()?, args.json, out)?;
        return Ok(ExitStatus::Fine);
    }
    let watch = Watch {
        epochs: recipe.schedule.epochs,
        log_every: recipe.run.log_every,
        stop_after_nonfinite: recipe.run.stop_after_nonfinite,
        full_speed: Some(full_speed(&recipe, &encoder, classes.len(), device)),
    };
    let state = last.map(|last| last.state);
    let mut progress = Progress::open(run.path(), watch, &order, device, state)?;

    // ------------------------------------------------------------------ loader
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let rejects = Arc::new(Rejects::read(run.path())?);
    let plan = TrainPlan {
        source: train,
        labels: train_labels,
        order,
        batch_size: recipe.optim.batch_size,
        img_size,
        branches,
        normalisation,
        policy: recipe.augment.policy()?,
        augment: recipe.augment.clone(),
        seed: recipe.run.seed,
        rejects: Arc::clone(&rejects),
    };
    let threads = args.device.loader_threads(device);
    let mut loader = Loader::start(Arc::new(plan), start..end, threads, recipe.run.prefetch, device)?;
    let test = TestSet {
        source: test,
        labels: test_labels,
        img_size,
        normalisation,
        crop_pct: recipe.augment.crop_pct,
        batch_size: recipe.optim.batch_size,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;

    // ------------------------------------------------------------------ the loop
    let normalise = Normalise::of(normalisation, device);
    let mixing = recipe.augment.mixing();
    let keep = Keep { newest: recipe.run.keep_checkpoints, every: None };
    let mut writer = Writer::new(run.path(), keep);
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight<data::LabelledBatch>> = None;
    for step in start..end {
        let lr = schedule.lr_at(order.fractional_epoch(step));
        optim.set_lr(lr);
        optim.optim.zero_grad();
        let mut losses = Vec::new();
        let mut batches = Vec::new();
        for _ in 0..recipe.optim.accum_iter {
            let batch = loader.next_batch()?;
            idle.begin()?;
            let imgs = to_device(&batch.imgs, device)?;
            let imgs = match imgs.kind() {
                Kind::Uint8 => normalise.forward(&imgs),
                // Boxes of noise are among them.
                _ => imgs,
            };
            let labels = to_device(&batch.labels, device)?;
            let key = [step, batches.len() as u64];
            let mut rng = Rng::new(recipe.run.seed, Purpose::Mixup, &key);
            let drawn = mixing.draw(&mut rng, img_size, img_size);
            let (imgs, targets) = mixing.mix(&imgs, &labels, classes.len(), &drawn);
            let drop_path = DropPath::new(&to_device(&batch.branches, device)?, &drop_rates);
            let scores = {
                let _scope = recipe.run.precision.guard(device);
                let drop_path = (recipe.model.drop_path > 0.0).then_some(&drop_path);
                let pass = ForwardOptions { drop_path, grad_checkpointing: false };
                classifier.forward(&imgs, &pass)
            };
            let loss = soft_target_cross_entropy(&scores, &targets);
            (&loss / recipe.optim.accum_iter as f64).backward();
            losses.push(loss.detach());
            batches.push(batch);
            if batches.len() < recipe.optim.accum_iter {
                idle.end()?;
            }
        }
        let loss = Tensor::stack(&losses, 0).mean(Kind::Float);
        let values = step::finish(
            &mut optim.optim,
            vec!["loss".to_owned()],
            vec![loss],
            recipe.optim.clip_grad,
            ema.as_mut().zip(recipe.optim.ema_decay),
        )?;
        idle.end()?;
        let queued = InFlight {
            step,
            lr,
            values,
            batches,
            queued: Instant::now(),
            waited: loader.take_waited(),
            idle: idle.take(),
        };

        // This step is queued; now the previous one is read, which is done or nearly so.
        if let Some(done) = in_flight.replace(queued) {
            loader.recycle(progress.settle(done)?);
        }
        writer.check()?;

        let done_steps = step + 1;
        let epochs_done = done_steps / order.steps_per_epoch();
        let evaluates = done_steps.is_multiple_of(order.steps_per_epoch())
            && (epochs_done.is_multiple_of(recipe.run.eval_every) || done_steps == total_steps);
        let interrupted = signals::requested();
        let saves = done_steps.is_multiple_of(recipe.run.checkpoint_every) || done_steps == end || interrupted;
        if (evaluates || saves)
            && let Some(done) = in_flight.take()
        {
            loader.recycle(progress.settle(done)?);
        }
        if evaluates {
            idle.begin()?;
            let trained = ema.as_ref().map(|ema| exchange_values(&params, &ema.state()));
            let outcome = test.evaluate(&classifier, classes.len(), recipe.run.precision, &pool, device)?;
            let evaluation = Evaluation {
                step: done_steps,
                epoch: epochs_done,
                loss: outcome.loss,
                accuracy: outcome.accuracy,
                images: outcome.images,
                skipped: outcome.skipped.len(),
            };
            info!(
                "epoch {epochs_done}: top-1 {:.2}%  top-5 {:.2}%  loss {:.4}",
                100.0 * evaluation.accuracy.top1,
                100.0 * evaluation.accuracy.top5,
                evaluation.loss
            );
            log.append(&evaluation)?;
            progress.evaluated(&[
                ("eval/top1", evaluation.accuracy.top1),
                ("eval/top5", evaluation.accuracy.top5),
                ("eval/loss", evaluation.loss),
            ])?;
            if evaluate::best(&evaluate::read(run.path())?) == Some(&evaluation) {
                save_best(&run, &params, &recipe)?;
            }
            if let Some(trained) = trained {
                exchange_values(&params, &trained);
            }
            idle.end()?;
        }
        if saves {
            log.sync()?;
            rejects.write(run.path())?;
            let checkpoint = Checkpoint {
                state: progress.state(1, facts.clone())?,
                model: params.tensors(),
                optimizer: optim.optim.state(),
                ema: ema.as_ref().map(|ema| {
                    let mut network = params.tensors();
                    network.extend(ema.state());
                    network
                }),
                recipe: recipe.to_toml(),
            };
            writer.save(checkpoint)?;
        }
        if interrupted && done_steps < end {
            writer.finish()?;
            warn!("interrupted after step {done_steps}; the same command goes on from there");
            return Ok(ExitStatus::Interrupted);
        }
    }
    writer.finish()?;
    if end < total_steps {
        info!("stopped after step {end} of {total_steps} (--stop-after); the same command continues");
        return Ok(ExitStatus::Fine);
    }
    info!("finished: {total_steps} steps");
    publish(&run, &result()?, args.json, out)?;
    Ok(ExitStatus::Fine)
}

/// Images per second that the device could do if it did nothing but the classifier's matrix products, at the rate that the recipe gives or
/// a plain product reaches now.
fn full_speed(recipe: &FinetuneRecipe, encoder: &EncoderConfig, n_classes: usize, device: Device) -> f64 {
    let peak = bench::peak_flops(recipe.run.precision, recipe.run.peak_tflops, device);
    peak / (STEP_PER_FORWARD * flops::of_classifier(encoder, n_classes as i64))
}
