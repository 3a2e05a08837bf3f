//! **The main job**: pretraining, from the recipe to the last checkpoint, as one visible loop.
//!
//! Everything random is a function of (seed, epoch, sample): the step number alone says which images come next and how they are
//! masked. So a checkpoint is weights, moments and a step, and a run that is killed and started again takes the same steps as one
//! that is not, bit for bit on a CPU with the same number of libtorch threads.
//!
//! The host runs one step ahead of the device: a step's scalars are read when the next one is queued.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use hub::HubSettings;
use models::blocks::ForwardOptions;
use models::drop_path::{DropPath, linear_rates};
use models::flops::Flops;
use models::mr_mae::{Batch, MimicConfig, MimicTokens, MrMae, MrMaeConfig};
use models::params::ParamStore;
use models::targets::TargetStats;
use program::{ExitStatus, signals, words::count};
use schemas::Cache;
use tch::{Device, Tensor};
use torch_ext::{Ema, resolve_device};
use tracing::{info, warn};

use crate::checkpoint::{self, Checkpoint, Keep, Writer};
use crate::cli::PretrainArgs;
use crate::config::{self, Recipe};
use crate::data::Problem;
use crate::data::batch::{BatchShape, MimicBatch};
use crate::data::images::{Images, log_search};
use crate::data::join::{self, Samples};
use crate::data::loader::{Loader, LoaderPlan, Noise};
use crate::data::order::Order;
use crate::data::pixel_cache::PixelCache;
use crate::idle::IdleMeter;
use crate::micro_batch::MicroBatches;
use crate::progress::{InFlight, Progress, Watch};
use crate::reconstruct::Sheet;
use crate::run_folder::RunFolder;
use crate::step::{self, Normalise};
use crate::teachers::{self, RunTeacher};
use crate::{bench, depth, init, optim, run_folder, target_stats};

#[cfg(test)]
mod tests;

/// Trains until the recipe's last step, or for `--stop-after` steps. Run again to continue.
pub fn pretrain(args: &PretrainArgs, hub: &HubSettings) -> anyhow::Result<ExitStatus> {
    // ------------------------------------------------------------------ recipe and run folder
    let device = resolve_device(&args.device.device)?;
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    recipe.run.precision.prepare(device)?;
    torch_ext::set_deterministic(recipe.run.deterministic)?;
    let images = args.images.as_deref().map(|images| ("--images", images));
    run_folder::refuse_among_images(&args.out, images.as_slice())?;
    let run = RunFolder::open(&args.out, &recipe)?;
    info!("recipe\n{}", recipe.to_toml().trim());

    // ------------------------------------------------------------------ cache, teachers, images
    let cache = Arc::new(Cache::open(&args.cache).map_err(Problem::from)?);
    let mut teachers = teachers::open(&recipe, &cache, &args.online_teachers, hub, device)?;
    let images = Images::open(&cache, args.images.as_deref())?;
    let cached: Vec<_> = teachers.iter().filter(|t| t.rows.is_some()).map(|t| t.id.clone()).collect();
    let samples = join::join(&cache, &cached, &images, &recipe.data, &log_search)?;
    if samples.is_empty() {
        let why = match samples.skipped() {
            (0, _) => format!("; the cache has no rows, see {:?}", args.cache.join("rejects")),
            (left_out, _) => format!(
                "; --images holds none of the cache's {}, and data.missing = \"skip\" leaves them out. Give the images that the cache was \
                 built from",
                count(*left_out as u64, "image")
            ),
        };
        return Err(Problem::NoImages { why }.into());
    }
    let begin = init::open(&recipe, hub)?;
    let mut facts = data_facts(&cache, &samples, &teachers);
    facts.extend(begin.iter().map(init::Begin::fact));

    // ------------------------------------------------------------------ order and schedule
    let order = Order::new(recipe.run.seed, samples.len(), recipe.effective_batch()).with_context(|| {
        format!(
            "{} cannot fill one step of optim.batch_size {} x optim.accum_iter {}",
            count(samples.len() as u64, "image"),
            recipe.optim.batch_size,
            recipe.optim.accum_iter
        )
    })?;
    let schedule = recipe.schedule();
    let total_steps = recipe.schedule.epochs * order.steps_per_epoch();

    // ------------------------------------------------------------------ student and optimizer
    let widths = teachers.iter().filter(|t| t.mimicked).map(|t| (t.id.to_string(), t.width.into())).collect();
    let last = checkpoint::load_last(run.path(), &mut |notice| warn!("{notice}"))?;
    let mut stats = BTreeMap::new();
    if last.is_none() {
        // Later they come with the parameters.
        for teacher in teachers.iter().filter(|t| t.mimicked) {
            let (_, norm, _) = recipe.mimic_of(teacher.id.as_str());
            let seed = recipe.run.seed;
            let found = target_stats::of_teacher(&cache, &teacher.id, norm, &samples, seed)?;
            stats.extend(found.map(|found| (teacher.id.to_string(), found)));
        }
    }
    let params = ParamStore::new(device, recipe.run.seed);
    let student = MrMae::new(&params.root(), &student_config(&recipe, &widths, &stats))?;
    if last.is_none()
        && let Some(begin) = &begin
    {
        begin.load(&params, &recipe)?;
    }
    let mut optim = optim::adamw(params.trainable(), &recipe.optim);
    let mut ema = (recipe.optim.ema_decay).map(|_| Ema::new(params.trainable()));
    info!(
        "{:.1} M parameters on {} ({} libtorch threads) in {}, {} in {} of {} x {} an epoch, {} in all, \
         peak lr {:.3e}",
        params.num_trainable() as f64 / 1e6,
        torch_ext::describe(device),
        torch_ext::num_threads(),
        recipe.run.precision,
        count(samples.len() as u64, "image"),
        count(order.steps_per_epoch(), "step"),
        recipe.optim.accum_iter,
        recipe.optim.batch_size,
        count(total_steps, "step"),
        schedule.lr,
    );

    if let Some(left_over) = order.left_over() {
        info!("{left_over}");
    }

    // ------------------------------------------------------------------ resume
    if let Some(last) = &last {
        run_folder::refuse_other_data(run.path(), &last.state.data, &facts)?;
        params.load("the checkpoint's model", &last.model)?;
        optim.load_state(&last.optimizer)?;
        if let Some(ema) = &mut ema {
            // The averaged network too comes with what it was saved with; without, the checkpoint is not this recipe's.
            ema.load_state(last.ema.as_ref().unwrap_or(&BTreeMap::new()))?;
        }
        let before = Recipe::parse(&last.recipe, "the checkpoint's recipe", &[])?;
        let epoch = order.fractional_epoch(last.state.step);
        run_folder::refuse_other_length(run.path(), &before, &recipe, epoch)?;
        info!("resuming {:?} after step {}", args.out, last.state.step);
    }
    let start = last.as_ref().map_or(0, |last| last.state.step);
    if start >= total_steps {
        info!("{:?} is finished: all {total_steps} steps are done", args.out);
        return Ok(ExitStatus::Fine);
    }
    let mut micro = MicroBatches::new(
        recipe.optim.batch_size,
        recipe.optim.accum_iter,
        last.as_ref().map_or(1, |last| last.state.parts),
    )?;
    let mut progress = Progress::open(
        run.path(),
        Watch {
            epochs: recipe.schedule.epochs,
            log_every: recipe.run.log_every,
            stop_after_nonfinite: recipe.run.stop_after_nonfinite,
            full_speed: Some(full_speed(&recipe, student.config(), device)),
        },
        &order,
        device,
        last.map(|last| last.state),
    )?;

    // ------------------------------------------------------------------ loader
    let end = args.stop_after.map_or(total_steps, |n| total_steps.min(start.saturating_add(n)));
    let plan = loader_plan(&recipe, &mut teachers, samples, images, order);
    let mut loader =
        Loader::start(Arc::new(plan), start..end, args.device.loader_threads(device), recipe.data.prefetch, device)?;

    // ------------------------------------------------------------------ the loop
    let normalise = Normalise::imagenet(device);
    let drop_rates =
        Tensor::from_slice(&linear_rates(recipe.model.drop_path, recipe.drop_path_branches() / 2)).to_device(device);
    let keep = Keep { newest: recipe.run.keep_checkpoints, every: recipe.run.keep_every };
    let mut writer = Writer::new(run.path(), keep);
    let mut idle = IdleMeter::new(device);
    let mut in_flight: Option<InFlight> = None;
    for step in start..end {
        let lr = schedule.lr_at(order.fractional_epoch(step));
        optim::set_lr(&mut optim, lr);
        optim.zero_grad();
        let mut losses = Vec::new();
        let mut batches = Vec::new();
        while batches.len() < recipe.optim.accum_iter {
            batches.push(loader.next_batch()?);
            idle.begin()?;
            // One pass over the batch, or several over parts of it once memory has run out.
            micro.accumulate(&mut optim, &batches, &mut losses, &|part, of_step| {
                let imgs = normalise.forward(&teachers::to_device(&part.imgs, device)?);
                let features = teachers::features(&teachers, part, device)?;
                let noise = teachers::to_device(&part.noise, device)?;
                let masking = step::masking(&recipe, &noise, features.cls_attn.as_ref());
                let uniform = part.drop_path.as_ref();
                let uniform = uniform.map(|t| teachers::to_device(t, device)).transpose()?;
                let drop_path = uniform.map(|uniform| DropPath::new(&uniform, &drop_rates));
                let pass =
                    ForwardOptions { drop_path: drop_path.as_ref(), grad_checkpointing: recipe.run.grad_checkpointing };
                let precision = recipe.run.precision;
                Ok(step::accumulate(&student, &imgs, &masking, &features, pass, precision, of_step))
            })?;
            if batches.len() < recipe.optim.accum_iter {
                idle.end()?;
            }
        }
        let averaged = ema.as_mut().zip(recipe.ema_decay(step));
        let values = step::update(&mut optim, &losses, recipe.optim.clip_grad, averaged)?;
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

        let interrupted = signals::requested();
        let every = [Some(recipe.run.checkpoint_every), recipe.run.keep_every];
        let due = every.iter().flatten().any(|&n| (step + 1).is_multiple_of(n));
        if due || step + 1 == end || interrupted {
            if let Some(done) = in_flight.take() {
                let batches = progress.settle(done)?;
                let shown = recipe.run.pictures.min(recipe.optim.batch_size);
                if let Some(batch) = batches.first().filter(|_| shown > 0) {
                    idle.begin()?;
                    let batch = batch.part(0, shown);
                    let sheet = draw(&recipe, &student, &teachers, &batch, &normalise, device)?;
                    idle.end()?;
                    sheet.publish(run.path(), step + 1, &mut progress)?;
                }
                loader.recycle(batches);
            }
            let checkpoint = Checkpoint {
                state: progress.state(micro.parts(), facts.clone())?,
                model: params.tensors(),
                optimizer: optim.state(),
                ema: ema.as_ref().map(|ema| {
                    let mut network = params.tensors();
                    network.extend(ema.state());
                    network
                }),
                recipe: recipe.to_toml(),
            };
            writer.save(checkpoint)?;
        }
        if interrupted && step + 1 < end {
            writer.finish()?;
            warn!("interrupted after step {}; the same command goes on from there", step + 1);
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

/// The network that a recipe asks for, with a head for each teacher of `widths`. A normalisation that needs statistics and is given none
/// starts with those of uncorrelated channels: values come with a checkpoint then, or do not matter.
pub(crate) fn student_config(
    recipe: &Recipe,
    widths: &BTreeMap<String, i64>,
    stats: &BTreeMap<String, TargetStats>,
) -> MrMaeConfig {
    let teacher = |(id, &width): (&String, &i64)| {
        let (share, target_norm, loss) = recipe.mimic_of(id);
        let standard = || TargetStats::standard(usize::try_from(width).unwrap_or_default());
        let stats = stats.get(id).cloned();
        let config = MimicConfig {
            width,
            weight: share * recipe.loss.w_mimic,
            cls_weight: share * recipe.loss.w_cls,
            target_norm,
            loss,
            stats: stats.or_else(|| target_norm.needs_stats().then(standard)),
        };
        (id.clone(), config)
    };
    MrMaeConfig {
        mae: recipe.mae_config(),
        rec_weight: recipe.loss.w_rec,
        mimic_tokens: match recipe.mimic.tokens {
            config::MimicTokens::Visible => MimicTokens::Encoder,
            config::MimicTokens::DecoderRemoved => MimicTokens::DecoderRemoved,
            config::MimicTokens::DecoderVisible => MimicTokens::DecoderVisible,
            config::MimicTokens::DecoderAll => MimicTokens::DecoderAll,
        },
        teachers: widths.iter().map(teacher).collect(),
    }
}

/// What the loader loads for a run. Takes the rows out of `teachers`.
pub(crate) fn loader_plan(
    recipe: &Recipe,
    teachers: &mut [RunTeacher],
    samples: Samples,
    images: Images,
    order: Order,
) -> LoaderPlan {
    let shape = BatchShape {
        batch_size: recipe.optim.batch_size,
        img_size: recipe.model.img_size,
        grid: recipe.grid(),
        drop_path: recipe.drop_path_branches(),
        teachers: teachers.iter().map(|t| t.shape.clone()).collect(),
    };
    let rows = teachers.iter_mut().map(|t| t.rows.take()).collect();
    let pixels = PixelCache::new(recipe.data.pixel_cache_mib << 20);
    let noise = match recipe.mask.kind {
        config::MaskKind::Random | config::MaskKind::Focused => Noise::Uniform,
        config::MaskKind::Block => {
            Noise::Block { num_removed: (recipe.mae_config().num_patches() - recipe.len_keep()) as usize }
        }
    };
    LoaderPlan { samples, images, rows, pixels, shape, order, noise, seed: recipe.run.seed }
}

/// The images of `batch` with what the student makes of them now.
fn draw(
    recipe: &Recipe,
    student: &MrMae,
    teachers: &[RunTeacher],
    batch: &MimicBatch,
    normalise: &Normalise,
    device: Device,
) -> anyhow::Result<Sheet> {
    let _no_grad = tch::no_grad_guard();
    let imgs = normalise.forward(&teachers::to_device(&batch.imgs, device)?);
    let features = teachers::features(teachers, batch, device)?;
    let noise = teachers::to_device(&batch.noise, device)?;
    let masking = step::masking(recipe, &noise, features.cls_attn.as_ref());
    let _scope = recipe.run.precision.guard(device);
    let mut sheet = Sheet::of(student.mae(), &imgs, &masking);
    let (maps, patches) = student.similarity(&Batch {
        imgs: &imgs,
        masking: &masking,
        targets: &features.tokens,
        cls_targets: &features.cls,
        pass: ForwardOptions::default(),
    });
    for map in maps.values() {
        sheet.add_map(map, &patches);
    }
    Ok(sheet)
}

/// Images per second that the device could do if it did nothing but the student's matrix products, at the rate that the recipe gives or a
/// plain product reaches now.
fn full_speed(recipe: &Recipe, config: &MrMaeConfig, device: Device) -> f64 {
    let peak = bench::peak_flops(recipe.run.precision, recipe.run.peak_tflops, device);
    peak / Flops::of_pretraining(config, recipe.len_keep()).step()
}

/// What the weights of a run depend on besides its recipe.
fn data_facts(cache: &Cache, samples: &Samples, teachers: &[RunTeacher]) -> BTreeMap<String, String> {
    let identity = cache.identity();
    let mut facts = BTreeMap::from([
        ("samples".to_owned(), format!("{} (SHA-256 {})", samples.len(), samples.fingerprint())),
        ("views".to_owned(), format!("{:?}", identity.views)),
        ("image_code".to_owned(), identity.image_code.clone()),
        ("pack".to_owned(), format!("{:?}", identity.pack)),
    ]);
    // Runs before this setting have no such fact, and go on.
    if !identity.depth_window.is_high_byte() {
        facts.insert(depth::FACT.to_owned(), identity.depth_window.to_string());
    }
    for teacher in teachers {
        facts.insert(format!("teacher.{}.weights_sha256", teacher.id), teacher.weights_sha256.clone());
        facts.insert(format!("teacher.{}.features", teacher.id), teacher.origin.clone());
    }
    facts
}
