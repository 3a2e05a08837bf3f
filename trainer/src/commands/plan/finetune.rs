//! The plan of a fine-tuning.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::classifier::Classifier;
use models::encoder::EncoderConfig;
use models::flops::{STEP_PER_FORWARD, of_classifier};
use models::params::ParamStore;
use tch::Device;

use super::{Estimate, figure, memory, peak_tflops};
use crate::cli::PlanArgs;
use crate::pretrained::finetune_init::Start;
use crate::recipe::finetune::FinetuneRecipe;

/// Default number of classes: ImageNet-1K's, whose head is about one percent of a base network's parameters.
const NUM_CLASSES: u32 = 1000;

/// Prints the plan of `recipe` for the encoder of `--init`, or for the recipe's own.
pub(super) fn plan(
    args: &PlanArgs,
    recipe: &FinetuneRecipe,
    hub: &HubSettings,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    ensure!(
        args.cache.is_none(),
        "--cache: fine-tuning reads no cache; give the number of labeled images with --num-images"
    );
    let images = args.num_images.context("give the number of labeled training images with --num-images")?;
    let encoder = match (&args.init, &recipe.encoder) {
        (Some(spec), _) => Start::load(spec, hub)?.encoder,
        (None, Some(encoder)) => encoder.clone(),
        (None, None) => anyhow::bail!(
            "the recipe does not say which encoder is fine-tuned: give --init as for `trainer finetune`, or the recipe.toml of a run"
        ),
    };
    let encoder = match recipe.model.img_size {
        Some(img_size) => encoder.at_size(img_size.into()).with_context(|| format!("model.img_size = {img_size}"))?,
        None => encoder,
    };
    let given = args.peak_tflops.or(recipe.run.peak_tflops);
    let peak_tflops = peak_tflops(args, given, recipe.run.precision)?;
    let classes = args.num_classes.unwrap_or(NUM_CLASSES);
    let plan = Estimate::of_finetuning(recipe, &encoder, classes, images, peak_tflops, args.mfu)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(());
    }
    let millions = |part: &str| plan.params[part] as f64 / 1e6;
    writeln!(
        out,
        "parameters    {:.1} M trained: encoder {:.1}, classifier of {classes} classes {:.1}",
        millions("encoder") + millions("classifier"),
        millions("encoder"),
        millions("classifier")
    )?;
    writeln!(out, "arithmetic    {} GFLOP per image and step", figure(plan.gflop_per_image["total"]))?;
    let o = &recipe.optim;
    plan.write_run(recipe.schedule.epochs, [o.accum_iter, o.batch_size], given.is_none(), out)
}

impl Estimate {
    /// The plan of a fine-tuning of `encoder` over `images` images of `classes` classes, on a device that reaches the share `mfu`
    /// of `peak_tflops`. Evaluations are not counted.
    ///
    /// # Errors
    /// If the data set does not fill one step, or the classifier cannot be built.
    pub(crate) fn of_finetuning(
        recipe: &FinetuneRecipe,
        encoder: &EncoderConfig,
        classes: u32,
        images: u64,
        peak_tflops: f64,
        mfu: f64,
    ) -> anyhow::Result<Estimate> {
        let store = ParamStore::frozen(Device::Cpu);
        let _classifier = Classifier::new(&store, encoder, recipe.model.pool.into(), classes.into())?;
        let mut params = BTreeMap::new();
        for (name, tensor) in store.tensors() {
            let part = match name.starts_with("head.") {
                true => "classifier",
                false => "encoder",
            };
            *params.entry(part.to_owned()).or_default() += tensor.numel();
        }
        let (steps, images_seen) =
            super::length(recipe.schedule.epochs, images, [recipe.optim.batch_size, recipe.optim.accum_iter])?;
        let flop = STEP_PER_FORWARD * of_classifier(encoder, classes.into());
        let reached = peak_tflops * 1e12 * mfu;
        let trained = params.values().sum::<usize>() as f64;
        Ok(Estimate {
            params,
            gflop_per_image: BTreeMap::from([("total".to_owned(), flop / 1e9)]),
            images,
            steps,
            images_seen,
            left_over_per_epoch: images - images_seen / recipe.schedule.epochs.max(1),
            pflop: flop * images_seen as f64 / 1e15,
            peak_tflops,
            mfu,
            images_per_s: reached / flop,
            hours: flop * images_seen as f64 / reached / 3600.0,
            memory_bytes: memory::of_finetuning(recipe, encoder, trained),
            teachers: BTreeMap::new(),
            read_bytes_per_s: 0.0,
        })
    }
}
