//! `trainer plan`: an estimate of what a recipe costs: parameters, FLOPs, memory, time, and when a cache pays for itself. Recipes of
//! fine-tuning are estimated in the same way, without a cache.
//!
//! Nothing is trained and no feature is read; with `--peak-tflops` nothing is computed either.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::flops::Flops;
use models::mr_mae::MrMae;
use models::params::ParamStore;
use models::precision::Precision;
use models::vit::VitConfig;
use program::words::count;
use schemas::{Cache, TeacherId, TeacherIdentity};
use serde::Serialize;
use tch::Device;

use crate::cli::PlanArgs;
use crate::data::Problem;
use crate::data::join::{self, Usable};
use crate::data::sampler::Epoch;
use crate::data::teachers;
use crate::recipe::Recipe;
use crate::recipe::any::AnyRecipe;
use crate::train::device_speed::{product_side, product_speed};
use crate::train::metrics::human_time;

mod finetune;
mod memory;
#[cfg(test)]
mod tests;

/// The plan, as `--json` prints it. FLOPs are those of matmuls; a multiply-add counts as two.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// Parameters by part: `encoder`, `decoder` and `heads`, or in fine-tuning `encoder` and `classifier`.
    pub params: BTreeMap<String, usize>,
    /// GFLOP of the forward and backward pass of one image, by part, and `total`.
    pub gflop_per_image: BTreeMap<String, f64>,
    /// Images of the data set.
    pub images: u64,
    /// Updates of the whole run.
    pub steps: u64,
    /// Images seen by the whole run.
    pub images_seen: u64,
    /// Images that an epoch leaves over, because it consists of whole steps.
    pub left_over_per_epoch: u64,
    /// PFLOP of the whole run.
    pub pflop: f64,
    /// TFLOP/s of the device, given or measured.
    pub peak_tflops: f64,
    /// Share of `peak_tflops` that is assumed to be reached.
    pub mfu: f64,
    /// Images per second at that share.
    pub images_per_s: f64,
    /// Hours of the whole run at that share.
    pub hours: f64,
    /// Memory in bytes: `params` (weights, gradients, AdamW's two moments), `ema` (the moving average of the weights, if the recipe keeps
    /// one), and `activations`, an estimate of what the blocks keep for the backward pass; with gradient checkpointing that is their inputs
    /// and the activations of one block. The loader's batches, workspaces of libraries and bf16 copies of weights are not counted.
    pub memory_bytes: BTreeMap<String, f64>,
    /// One for each teacher that the recipe names and the cache has.
    pub teachers: BTreeMap<String, TeacherEstimate>,
    /// Bytes of features that are read per second at `images_per_s`.
    pub read_bytes_per_s: f64,
}

/// What one teacher costs, online and cached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TeacherEstimate {
    /// GFLOP of its forward pass for one view.
    pub gflop_per_view: f64,
    /// Views stored per image.
    pub views: u16,
    /// Uncompressed bytes of all images' rows for one view.
    pub bytes_per_view: u64,
    /// Hours that its forward passes take in the whole run if it runs inside the loop, at the same share of the peak.
    pub online_hours: f64,
    /// Hours that its forward passes over the recipe's fresh views (`data.fresh`) add to those of the run; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh_hours: Option<f64>,
    /// Hours that its forward passes take to build the cache, at the same share of the peak.
    pub cache_hours: f64,
    /// Epochs, of one run or of several together, after which the cache has cost less than the teacher inside the loop.
    /// `None` if all views are fresh: then no rows are read.
    pub pays_after_epochs: Option<u64>,
}

pub(crate) fn plan(args: &PlanArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    let recipe = match AnyRecipe::load(&args.recipe.recipe, &args.recipe.set)? {
        AnyRecipe::Pretrain(recipe) => *recipe,
        AnyRecipe::Finetune(recipe) => return finetune::plan(args, &recipe, hub, out),
    };
    ensure!(
        args.init.is_none() && args.num_classes.is_none(),
        "--init and --num-classes are for recipes of fine-tuning; this recipe is one of pretraining"
    );
    let cache = args.cache.as_deref().map(|dir| Cache::open(dir).map_err(Problem::from)).transpose()?;
    let mut cache_note = None;
    let images = match (&cache, args.num_images) {
        (_, Some(images)) => images,
        (Some(cache), None) => {
            let usable = usable(&recipe, cache)?;
            cache_note = usable.note(&recipe);
            usable.images
        }
        (None, None) => {
            anyhow::bail!("give --cache, or the size of the data set with --num-images")
        }
    };
    let given = args.peak_tflops.or(recipe.run.peak_tflops);
    let peak_tflops = peak_tflops(args, given, recipe.run.precision)?;
    let plan = Estimate::of(&recipe, cache.as_ref(), images, peak_tflops, args.mfu)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
    } else {
        plan.write_text(&recipe, given.is_none(), out)?;
        if let Some(note) = cache_note {
            writeln!(out, "cache         {note}")?;
        }
    }
    Ok(())
}

/// The images of a cache that a run of `recipe` trains on, as far as the cache's records say.
fn usable(recipe: &Recipe, cache: &Cache) -> anyhow::Result<Usable> {
    let wanted = recipe.mimic.teachers.iter().chain(&recipe.mask.teacher);
    // `Estimate::of` refuses a teacher that the cache does not have.
    let teachers: Vec<TeacherId> =
        (cache.teachers().keys()).filter(|id| wanted.clone().any(|wanted| wanted == id.as_str())).cloned().collect();
    Ok(join::count(cache, &teachers, &recipe.data)?)
}

impl Usable {
    /// A note on images that are not counted and parts that are not built yet; `None` if there are none.
    fn note(&self, recipe: &Recipe) -> Option<String> {
        let mut notes = Vec::new();
        if self.rejected > 0 {
            notes.push(format!("without {} that the build could not use", count(self.rejected, "image")));
        }
        if self.unfinished_parts > 0 {
            let counted = match recipe.data.allow_incomplete {
                true => "left out (data.allow_incomplete)",
                false => "counted as if every image could be used",
            };
            notes.push(format!("unfinished parts: {}, {counted}", self.unfinished_parts));
        }
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// The device's matmul rate in TFLOP/s, as given or measured now. Also checks `--mfu`.
fn peak_tflops(args: &PlanArgs, given: Option<f64>, precision: Precision) -> anyhow::Result<f64> {
    ensure!(args.mfu > 0.0 && args.mfu <= 1.0, "--mfu {}: is a share of the peak, above 0 and at most 1", args.mfu);
    match given {
        Some(peak) => {
            ensure!(peak > 0.0 && peak.is_finite(), "--peak-tflops {peak}: must be positive");
            Ok(peak)
        }
        None => {
            let device = torch_ext::resolve_device(&args.device)?;
            precision.prepare(device).context("without --peak-tflops the speed of a plain matmul is measured")?;
            Ok(product_speed(precision, product_side(device), device) / 1e3)
        }
    }
}

/// The steps of a run, and the images that they see.
fn length(epochs: u64, images: u64, [batch_size, accum_iter]: [usize; 2]) -> anyhow::Result<(u64, u64)> {
    // Far beyond any data set, and small enough that products do not overflow.
    const MAX_IMAGES: u64 = 1 << 40;
    ensure!(images <= MAX_IMAGES, "{images} images are more than any data set has; a plan is for {MAX_IMAGES} at most");
    let batch = (batch_size as u64).saturating_mul(accum_iter as u64);
    let epoch = Epoch::of(images, batch);
    ensure!(
        epoch.steps > 0,
        "{images} images cannot fill one step of optim.batch_size {batch_size} x optim.accum_iter {accum_iter}"
    );
    epoch.times(epochs)
}

impl Estimate {
    /// The plan of a recipe over `images` images, on a device that reaches the share `mfu` of `peak_tflops`.
    ///
    /// # Errors
    /// If the data set does not fill one step, or the cache has no such teacher.
    pub(crate) fn of(
        recipe: &Recipe,
        cache: Option<&Cache>,
        images: u64,
        peak_tflops: f64,
        mfu: f64,
    ) -> anyhow::Result<Estimate> {
        let known: BTreeMap<&str, &TeacherIdentity> =
            cache.iter().flat_map(|cache| cache.teachers()).map(|(id, teacher)| (id.as_str(), teacher)).collect();
        let view_grid = match cache {
            Some(cache) => teachers::view_grid(recipe, cache.teachers())?,
            None => recipe.grid(),
        };
        let mut widths = BTreeMap::new();
        for id in &recipe.mimic.teachers {
            let width = match (known.get(id.as_str()), cache) {
                (Some(teacher), Some(_)) => {
                    teachers::require_grid(teacher, recipe, view_grid)?;
                    teacher.width.into()
                }
                (None, Some(cache)) => {
                    anyhow::bail!("{:?} has no teacher {id} (it has {:?})", cache.dir(), known.keys())
                }
                // Without a cache the teacher is taken to be as wide as the student, as CLIP-B and DINO-B are for a ViT-B.
                (_, None) => recipe.mae_config().encoder.embed_dim(),
            };
            widths.insert(id.clone(), width);
        }

        let config = recipe.mr_mae_config(&widths, &BTreeMap::new());
        let store = ParamStore::frozen(Device::Cpu);
        let _network = MrMae::new(&store.root(), &config)?;
        let mut params = BTreeMap::new();
        for (name, tensor) in store.tensors() {
            let fixed = name.ends_with("pos_embed")
                || ["mimic_targets.", "mimic_cls_targets."].iter().any(|of| name.starts_with(of));
            let part = match name.as_str() {
                _ if fixed => continue,
                name if name.starts_with("mimic_") => "heads",
                name if name.starts_with("decoder_") || name == "mask_token" => "decoder",
                _ => "encoder",
            };
            *params.entry(part.to_owned()).or_default() += tensor.numel();
        }

        let flops = Flops::of_pretraining(&config, recipe.len_keep());
        let per_step = models::flops::STEP_PER_FORWARD / 1e9;
        let gflop_per_image = BTreeMap::from([
            ("encoder".to_owned(), flops.encoder * per_step),
            ("decoder".to_owned(), flops.decoder * per_step),
            ("heads".to_owned(), flops.heads * per_step),
            ("total".to_owned(), flops.step() / 1e9),
        ]);
        let (steps, images_seen) =
            length(recipe.schedule.epochs, images, [recipe.optim.batch_size, recipe.optim.accum_iter])?;
        let reached = peak_tflops * 1e12 * mfu;
        let images_per_s = reached / flops.step();
        let hours = |flop: f64| flop / reached / 3600.0;

        let mut teacher_plans = BTreeMap::new();
        let named = recipe.mimic.teachers.iter().chain(&recipe.mask.teacher);
        for id in named {
            let (Some(teacher), Some(cache)) = (known.get(id.as_str()), cache) else {
                continue;
            };
            let views = cache.identity().views.views;
            let flop = teacher_flops(teacher)?;
            teacher_plans.insert(
                id.clone(),
                TeacherEstimate {
                    gflop_per_view: flop / 1e9,
                    views,
                    bytes_per_view: images
                        * (teacher.tokens_bytes() + teacher.cls_bytes() + teacher.cls_attn_bytes()) as u64,
                    online_hours: hours(flop * images_seen as f64),
                    fresh_hours: (recipe.data.fresh > 0.0)
                        .then(|| hours(flop * images_seen as f64) * recipe.data.fresh),
                    cache_hours: hours(flop * (images * u64::from(views)) as f64),
                    // An epoch uses one view of each image, and fresh ones cost the same with or without the cache.
                    pays_after_epochs: (recipe.data.fresh < 1.0)
                        .then(|| (f64::from(views) / (1.0 - recipe.data.fresh)).ceil() as u64),
                },
            );
        }
        let row_bytes: u64 = teacher_plans.values().map(|t| t.bytes_per_view / images).sum();
        let decodes = flops.decoder > 0.0;
        let untrained = match decodes {
            true => 0,
            false => params.get("decoder").copied().unwrap_or_default(),
        };
        let trained = params.values().sum::<usize>() - untrained;
        Ok(Estimate {
            params,
            gflop_per_image,
            images,
            steps,
            images_seen,
            left_over_per_epoch: images - images_seen / recipe.schedule.epochs.max(1),
            pflop: flops.step() * images_seen as f64 / 1e15,
            peak_tflops,
            mfu,
            images_per_s,
            hours: hours(flops.step() * images_seen as f64),
            memory_bytes: memory::of_pretraining(recipe, trained as f64, untrained as f64),
            teachers: teacher_plans,
            read_bytes_per_s: row_bytes as f64 * images_per_s * (1.0 - recipe.data.fresh),
        })
    }

    /// Writes length, time and memory of the run.
    fn write_run(
        &self,
        epochs: u64,
        [accum_iter, batch_size]: [usize; 2],
        measured: bool,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        writeln!(
            out,
            "run           {} of {}: {} of {accum_iter} x {batch_size}, {} PFLOP",
            count(epochs, "epoch"),
            count(self.images, "image"),
            count(self.steps, "step"),
            figure(self.pflop)
        )?;
        let per_step = (accum_iter as u64).saturating_mul(batch_size as u64);
        if let Some(left_over) = Epoch::of(self.images, per_step).left_over() {
            writeln!(out, "              {left_over}")?;
        }
        writeln!(
            out,
            "time          {} at {:.0} % of {} TFLOP/s ({}): {:.1} img/s",
            human_hours(self.hours),
            100.0 * self.mfu,
            figure(self.peak_tflops),
            if measured { "measured with a plain matmul" } else { "given" },
            self.images_per_s
        )?;
        let gb = |part: &str| self.memory_bytes.get(part).map(|bytes| bytes / 1e9);
        let pixel_cache = if self.params.contains_key("classifier") {
            ""
        } else {
            " and, in the host's memory, data.pixel_cache_mib"
        };
        let ema = gb("ema").map_or(String::new(), |ema| format!("{ema:.2} for the moving average, "));
        writeln!(
            out,
            "memory        about {:.2} GB: {:.2} for weights, gradients and moments, {ema}{:.2} for activations at batch {batch_size}; \
             not counting libtorch itself{pixel_cache}",
            self.memory_bytes.values().sum::<f64>() / 1e9,
            gb("params").unwrap_or_default(),
            gb("activations").unwrap_or_default(),
        )?;
        Ok(())
    }

    fn write_text(&self, recipe: &Recipe, measured: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let millions = |part: &str| *self.params.get(part).unwrap_or(&0) as f64 / 1e6;
        let gflop = |part: &str| self.gflop_per_image[part];
        let decodes = gflop("decoder") > 0.0;
        let (decoder, other_parts) = match decodes {
            true => (
                millions("decoder"),
                format!("decoder {:.1}, mimic heads {:.1}", millions("decoder"), millions("heads")),
            ),
            false => (
                0.0,
                format!(
                    "mimic heads {:.1}; the decoder's {:.1} are not, since no loss needs them",
                    millions("heads"),
                    millions("decoder")
                ),
            ),
        };
        writeln!(
            out,
            "parameters    {:.1} M trained: encoder {:.1}, {other_parts}",
            millions("encoder") + decoder + millions("heads"),
            millions("encoder"),
        )?;
        writeln!(
            out,
            "arithmetic    {} GFLOP per image and step: encoder {}, decoder {}, mimic heads {}",
            figure(gflop("total")),
            figure(gflop("encoder")),
            figure(gflop("decoder")),
            figure(gflop("heads"))
        )?;
        let o = &recipe.optim;
        self.write_run(recipe.schedule.epochs, [o.accum_iter, o.batch_size], measured, out)?;
        if self.teachers.is_empty() && !recipe.mimic.teachers.is_empty() {
            writeln!(out, "teachers      give --cache to see what they cost")?;
        }
        for (id, teacher) in &self.teachers {
            writeln!(
                out,
                "teacher       {id}: {} GFLOP per view, {:.0} % of the student's step",
                figure(teacher.gflop_per_view),
                100.0 * teacher.gflop_per_view / gflop("total")
            )?;
            writeln!(
                out,
                "              online {} more; cached once {} for {} views, {:.2} GB per view before compression",
                human_hours(teacher.online_hours),
                human_hours(teacher.cache_hours),
                teacher.views,
                teacher.bytes_per_view as f64 / 1e9
            )?;
            if let Some(fresh) = teacher.fresh_hours {
                writeln!(
                    out,
                    "              {} more for the fresh views, {:.0} % of all (data.fresh)",
                    human_hours(fresh),
                    100.0 * recipe.data.fresh
                )?;
            }
            if let Some(epochs) = teacher.pays_after_epochs {
                writeln!(
                    out,
                    "              the cache pays for itself after {epochs} epochs, counting those of all runs that use it"
                )?;
            }
        }
        if !self.teachers.is_empty() {
            writeln!(out, "reading       {:.1} MB/s of features at that speed", self.read_bytes_per_s / 1e6)?;
        }
        Ok(())
    }
}

/// A number with three significant digits and no exponent.
fn figure(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 6.0);
    format!("{value:.*}", decimals as usize)
}

fn human_hours(hours: f64) -> String {
    // Capped at about a thousand years, so that the conversion does not overflow.
    human_time(Duration::from_secs_f64((hours * 3600.0).clamp(0.0, 3e10)))
}

/// FLOPs of a cached teacher's forward pass over one view, from the sizes in its identity.
fn teacher_flops(teacher: &TeacherIdentity) -> anyhow::Result<f64> {
    let tower = VitConfig::from_arch(&teacher.arch)
        .with_context(|| format!("teacher {}: its arch {:?} does not say its sizes", teacher.id, teacher.arch))?;
    Ok(tower.flops(teacher.n_tokens() as i64))
}
