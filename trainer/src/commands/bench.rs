//! `trainer bench`: the cost of a training step, and what the machine can do, measured in one run.
//!
//! Three figures say where the time goes: the loader alone (decode, crop, cached rows), the step alone (on data that is there),
//! and a plain matmul. A training step consists mostly of matmuls, so its FLOPs divided by the rate of the plain matmul are a
//! lower bound for its time.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::blocks::ForwardOptions;
use models::drop_path::{DropPath, linear_rates};
use models::flops::Flops;
use models::mr_mae::MrMae;
use models::params::ParamStore;
use models::precision::Precision;
use models::teacher_drop::mean_kept;
use program::table::{Left, Right, table};
use schemas::Cache;
use serde::Serialize;
use tch::{Device, Kind, Tensor};
use tracing::info;

use crate::cli::{BenchArgs, BenchPart};
use crate::data::Problem;
use crate::data::batch::{MaskInput, Patches};
use crate::data::images::Images;
use crate::data::join;
use crate::data::joined::JoinedCaches;
use crate::data::loader::Loader;
use crate::data::masking::masking;
use crate::data::mimic::MimicDataset;
use crate::data::normalize::Normalize;
use crate::data::sampler::Sampler;
use crate::data::teachers::{self, Features, RunTeacher};
use crate::dist::{Share, World};
use crate::recipe::any;
use crate::recipe::{MaskKind, Recipe};
use crate::train::device_speed::{product_side, product_speed};
use crate::train::optim::Optimizer;
use crate::train::step;
use crate::train::train_state::TrainState;

#[cfg(test)]
mod tests;

/// All figures of one call.
#[derive(Debug, Serialize)]
pub(crate) struct BenchResult {
    /// Where the steps ran: the GPU's name, or the CPU.
    pub device: String,
    pub torch_threads: usize,
    /// Threads of the loader.
    pub loader_threads: usize,
    pub batch_size: usize,
    /// The loader alone, with --cache.
    pub loader: Option<LoaderFigures>,
    /// Arithmetic of forward and backward for one image, in GFLOP.
    pub gflop_per_image: f64,
    /// The training step alone, per precision.
    pub steps: BTreeMap<String, StepFigures>,
}

/// The loader alone, without training steps behind it.
#[derive(Debug, Serialize)]
pub(crate) struct LoaderFigures {
    /// Mean over an epoch, or over the requested number of batches; the first batch is left out.
    pub images_per_s: f64,
    /// With `--consume`: the share of the time in which the consumer waited for a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_share: Option<f64>,
    /// The largest resident memory of the process so far, in bytes.
    pub peak_memory_bytes: u64,
}

/// The training step in one precision.
#[derive(Debug, Serialize)]
pub(crate) struct StepFigures {
    /// Median over the timed steps.
    pub images_per_s: f64,
    /// Slowest and fastest step.
    pub spread: [f64; 2],
    /// GFLOP/s of a plain matmul of square matrices in the same precision, of size 4096, or 8192 on a GPU; the best of three. In the recipe's
    /// precision `run.peak_tflops` replaces it.
    pub product_gflop_per_s: f64,
    /// Images per second if the whole step ran at the rate of the plain matmul.
    pub floor_images_per_s: f64,
    /// The largest resident memory of the process so far, in bytes, including earlier measurements; with a GPU, the GPU's peak.
    pub peak_memory_bytes: u64,
}

pub(crate) fn bench(args: &BenchArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let device = torch_ext::resolve_device(&args.device.device)?;
    let recipe = any::load::<Recipe>(&args.recipe.recipe, &args.recipe.set)?;
    let threads = args.device.loader_threads(device, 1);
    ensure!(
        recipe.data.fresh == 0.0,
        "data.fresh = {}: fresh views run teachers inside the loop, which is not measured here. Measure stored views with --set data.fresh=0",
        recipe.data.fresh
    );

    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    ensure!(
        args.cache.is_some() || !args.only.contains(&BenchPart::Loader),
        "--only loader needs --cache: the loader is measured on it"
    );
    let mut loader = None;
    let mut teachers = Vec::new();
    if let Some(cache) = &args.cache {
        let cache = Arc::new(Cache::open(cache).map_err(Problem::from)?);
        teachers = teachers::open(&recipe, std::slice::from_ref(&cache), &[], &HubSettings::default(), device)?;
        if wanted(BenchPart::Loader) {
            info!("the loader alone");
            let images = Images::open(&cache, args.images.as_deref())?;
            let (images_per_s, wait_share) =
                loader_speed(&recipe, &cache, images, &mut teachers, threads, args, device)?;
            let peak_memory_bytes = torch_ext::memory(Device::Cpu)?.peak;
            loader = Some(LoaderFigures { images_per_s, wait_share, peak_memory_bytes });
        }
    }

    let widths: BTreeMap<String, i64> = recipe
        .mimic
        .teachers
        .iter()
        .map(|id| {
            let cached = teachers.iter().find(|t| t.id.as_str() == id).map(|t| i64::from(t.width));
            // Without a cache the teacher is taken to be as wide as the student, as CLIP-B and DINO-B are for a ViT-B.
            (id.clone(), cached.unwrap_or(recipe.mae_config().encoder.embed_dim()))
        })
        .collect();
    let gflop_per_image = flop_per_image(&recipe, &widths) / 1e9;
    let mut steps = BTreeMap::new();
    for (part, precision) in
        [(BenchPart::Bf16, Precision::Bf16), (BenchPart::F32, Precision::F32), (BenchPart::Tf32, Precision::Tf32)]
    {
        if !wanted(part) || (part == BenchPart::Tf32 && args.only.is_empty() && !device.is_cuda()) {
            continue;
        }
        precision.prepare(device)?;
        info!("steps in {precision}");
        let product_gflop_per_s = match recipe.run.peak_tflops {
            // It is the rate in the recipe's precision, which may differ from this one.
            Some(tflops) if precision == recipe.run.precision => tflops * 1e3,
            _ => product_speed(precision, product_side(device), device),
        };
        torch_ext::reset_peak_memory(device)?;
        let mut speeds = step_speeds(&recipe, &widths, precision, args.steps, device)?;
        speeds.sort_by(f64::total_cmp);
        let figures = StepFigures {
            images_per_s: speeds[speeds.len() / 2],
            spread: [speeds[0], speeds[speeds.len() - 1]],
            product_gflop_per_s,
            floor_images_per_s: product_gflop_per_s / gflop_per_image,
            peak_memory_bytes: torch_ext::memory(device)?.peak,
        };
        steps.insert(precision.name().to_owned(), figures);
    }
    let result = BenchResult {
        device: torch_ext::describe(device),
        torch_threads: torch_ext::num_threads(),
        loader_threads: threads,
        batch_size: recipe.optim.batch_size,
        loader,
        gflop_per_image,
        steps,
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&result)?)?;
    } else {
        write_table(&result, out)?;
    }
    Ok(())
}

fn write_table(result: &BenchResult, out: &mut dyn Write) -> std::io::Result<()> {
    let BenchResult { device, torch_threads, loader_threads, batch_size, gflop_per_image, .. } = result;
    writeln!(
        out,
        "{device}, {torch_threads} libtorch threads, batch {batch_size}, {gflop_per_image:.1} GFLOP per image and step"
    )?;
    if let Some(loader) = &result.loader {
        writeln!(
            out,
            "loader alone ({loader_threads} threads)  {:.1} img/s{}   peak {:.2} GB",
            loader.images_per_s,
            loader.wait_share.map(|share| format!(", waited {:.2} %", 100.0 * share)).unwrap_or_default(),
            loader.peak_memory_bytes as f64 / 1e9,
        )?;
    }
    if result.steps.is_empty() {
        return Ok(());
    }
    let row = |(precision, s): (&String, &StepFigures)| {
        [
            precision.clone(),
            format!("{:.2}", s.images_per_s),
            format!("{:.2} to {:.2}", s.spread[0], s.spread[1]),
            format!("{:.2}", s.floor_images_per_s),
            format!("{:.0} %", 100.0 * s.images_per_s / s.floor_images_per_s),
            format!("{:.0}", s.product_gflop_per_s),
            format!("{:.2}", s.peak_memory_bytes as f64 / 1e9),
        ]
    };
    let titles = ["step", "img/s", "spread", "floor img/s", "of the floor", "matmul GFLOP/s", "peak GB"];
    let align = [Left, Right, Right, Right, Right, Right, Right];
    write!(out, "{}", table(titles, align, result.steps.iter().map(row).collect()))
}

/// Images per second of the loader alone, without training steps: over the batches asked for, or over one epoch. The first batch is not counted.
/// With `--consume` also the share of the time that a consumer of this pace waited.
fn loader_speed(
    recipe: &Recipe,
    cache: &Arc<Cache>,
    images: Images,
    teachers: &mut [RunTeacher],
    threads: usize,
    args: &BenchArgs,
    device: Device,
) -> anyhow::Result<(f64, Option<f64>)> {
    let ids: Vec<_> = teachers.iter().map(|t| t.id.clone()).collect();
    let samples = join::join(cache, &ids, &images, &recipe.data, &|_, _| ())?;
    let batch = recipe.optim.batch_size;
    let sampler = Sampler::new(recipe.run.seed, samples.len(), batch).context("too few images for one batch")?;
    let batches = args.loader_batches.map_or(sampler.steps_per_epoch().max(2), |n| u64::from(n) + 1);
    let joined = JoinedCaches::new(vec![(Arc::clone(cache), Arc::new(images), samples)]);
    let dataset = MimicDataset::new(recipe, teachers, joined, sampler, Share::whole(batch, 1))?;
    let mut loader = Loader::start(Arc::new(dataset), 0..batches, threads, recipe.data.prefetch, device)?;
    let pace = args.consume.map(|rate| Duration::from_secs_f64(batch as f64 / f64::from(rate)));
    let mut start = Instant::now();
    for i in 0..batches {
        let batch = loader.next_batch()?;
        if i == 0 {
            start = Instant::now();
            loader.take_waited();
        }
        if let Some(pace) = pace {
            std::thread::sleep(pace);
        }
        loader.recycle([batch]);
    }
    let took = start.elapsed();
    let wait_share = pace.map(|_| loader.take_waited().as_secs_f64() / took.as_secs_f64());
    // Up to `prefetch` batches were ready before the clock started, which matters little over an epoch of hundreds of images.
    Ok(((batches - 1) as f64 * batch as f64 / took.as_secs_f64(), wait_share))
}

/// Images per second of each of `steps` whole steps (forward, backward, update) on random data, after a warm-up. As in training,
/// a step is read when the next one is queued.
fn step_speeds(
    recipe: &Recipe,
    widths: &BTreeMap<String, i64>,
    precision: Precision,
    steps: u32,
    device: Device,
) -> anyhow::Result<Vec<f64>> {
    let params = ParamStore::new(device, recipe.run.seed);
    let student = MrMae::new(&params.root(), &recipe.mr_mae_config(widths, &BTreeMap::new()))?;
    let mut optim = Optimizer::for_pretraining(params.trainable(), &recipe.optim, &World::alone());
    optim.set_lr(recipe.schedule().lr);
    let mut state = TrainState::new(params, optim, false);
    let n = recipe.optim.batch_size as i64;
    let (size, l) = (i64::from(recipe.model.img_size), recipe.mae_config().num_patches());
    let pixels = Tensor::randint(256, [n, size, size, 3], (Kind::Uint8, device));
    let cls_attn = Tensor::rand([n, l], (Kind::Float, device)).to_kind(Kind::Half);
    let mask = match recipe.mask.kind {
        MaskKind::Random | MaskKind::Block => {
            MaskInput::Order(Tensor::rand([n, l], (Kind::Double, device)).argsort(1, false))
        }
        MaskKind::Focused => MaskInput::Noise(Tensor::rand([n, l], (Kind::Double, device))),
    };
    let at = Patches::of_targets(recipe);
    let patches = if at == Patches::Visible { recipe.len_keep() } else { l };
    let token = |(id, &width): (&String, &i64)| {
        (id.clone(), Tensor::randn([n, patches, width], (Kind::Float, device)).to_kind(Kind::Half))
    };
    let cls = |(id, &width): (&String, &i64)| {
        let cls = Tensor::randn([n, width], (Kind::Float, device));
        (id.clone(), cls.to_kind(Kind::Half))
    };
    let features = Features {
        tokens: widths.iter().map(token).collect(),
        cls: widths.iter().map(cls).collect(),
        at,
        cls_attn: Some(cls_attn),
        teacher_drop: (recipe.teacher_draws() > 0).then(|| {
            let uniform = Tensor::rand([n, recipe.teacher_draws() as i64], (Kind::Double, device));
            let mean_kept = mean_kept(&uniform, recipe.mimic.drop);
            (uniform, mean_kept)
        }),
    };
    // As in training, no branch is looked at if the recipe drops none.
    let branches = recipe.drop_path_branches();
    let drop_rates = Tensor::from_slice(&linear_rates(recipe.model.drop_path, branches / 2)).to_device(device);
    let uniform = Tensor::rand([n, branches as i64], (Kind::Float, device));
    let normalize = Normalize::imagenet(device);
    // On a GPU, kernels are loaded at their first use, and several may be tried for a shape.
    let warm_up = if device.is_cuda() { 5 } else { 1 };
    let mut speeds = Vec::new();
    let mut in_flight = None;
    let mut last_read = Instant::now();
    for step in 0..=warm_up + steps {
        state.optim.zero_grad();
        let imgs = normalize.forward(&pixels);
        let masking = masking(recipe, &mask, features.cls_attn.as_ref(), device)?;
        let dropped = (branches > 0).then(|| DropPath::new(&uniform, &drop_rates));
        let pass = ForwardOptions { drop_path: dropped.as_ref(), grad_checkpointing: recipe.run.grad_checkpointing };
        let autocast = precision.guard(device);
        let losses = student.forward(&features.batch(&imgs, &masking, pass));
        drop(autocast);
        losses.total.backward();
        let losses = step::mean_losses(&[step::detach(&losses)]);
        let values = state.optimizer_step(losses, None, recipe.optim.clip_grad, None)?;
        let Some(mut before) = in_flight.replace(values) else {
            continue;
        };
        before.read(|| Ok(()))?;
        if step > warm_up {
            speeds.push(n as f64 / last_read.elapsed().as_secs_f64());
        }
        last_read = Instant::now();
    }
    Ok(speeds)
}

/// Floating-point operations of forward and backward for one image; see [`Flops`].
pub(crate) fn flop_per_image(recipe: &Recipe, widths: &BTreeMap<String, i64>) -> f64 {
    let config = recipe.mr_mae_config(widths, &BTreeMap::new());
    Flops::of_pretraining(&config, recipe.len_keep()).step()
}
