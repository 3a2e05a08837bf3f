//! `trainer predict`: the classes of unlabeled images by a fine-tuned network, as a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use arrow_array::{ArrayRef, Float32Array, Int32Array, RecordBatch};
use hub::HubSettings;
use images::ImageSource;
use models::blocks::ForwardOptions;
use models::classifier::Classifier;
use models::params::ParamStore;
use models::precision::Precision;
use models::pretrained::Wanted;
use program::words::{count, grouped};
use program::{ExitStatus, signals};
use tch::{Device, Kind, Tensor};
use torch_ext::to_device;
use tracing::{info, warn};

use crate::cli::PredictArgs;
use crate::data::batch::stack;
use crate::data::decode_ahead::decode_ahead;
use crate::data::normalize::Normalize;
use crate::eval::test_set::read_center;
use crate::output::{Chunks, Format, strings};
use crate::pretrained::trained::{self, Trained};
use crate::pretrained::{Door, Pretrained, depth_window, finetune_init};
use crate::recipe::any::AnyRecipe;
use crate::recipe::spec::Spec;
use crate::train::finetuned;

/// Images of a chunk: what a stopped command may have to compute again.
const CHUNK: usize = 4096;

/// A fine-tuned network with what its predictions depend on.
struct Fitted {
    classifier: Classifier,
    /// By output.
    classes: Vec<String>,
    img_size: u32,
    normalize: Normalize,
    /// Share of the shorter side that the central square has.
    crop_pct: f64,
    device: Device,
    precision: Precision,
    description: String,
    sha256: String,
}

/// `trainer predict`.
pub(crate) fn predict(args: &PredictArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let format = Format::of(&args.out, &[Format::Csv, Format::Parquet])?;
    let device = torch_ext::resolve_device(&args.network.device.device)?;
    args.network.precision.prepare(device)?;
    let fitted = Fitted::load(&args.model, hub, device, args.network.precision)?;
    let top = usize::from(args.top).min(fitted.classes.len());
    let decoder = depth_window::decoder(args.network.depth_window, &[&args.model])?;
    let source = ImageSource::open(&args.images)?.decoded_by(decoder);
    let about = BTreeMap::from([
        ("model".to_owned(), fitted.description.clone()),
        ("weights".to_owned(), fitted.sha256.clone()),
        ("images".to_owned(), source.identity().digest),
        ("number of classes per image".to_owned(), top.to_string()),
        ("precision".to_owned(), args.network.precision.to_string()),
        ("depth window".to_owned(), decoder.window().to_string()),
    ]);
    let chunks = Chunks::open(&args.out, &about)?;
    info!("{}: {} of {} classes", fitted.description, count(source.len() as u64, "image"), fitted.classes.len());

    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.network.device.loader_threads(device, 1)).build()?;
    let total = source.len().div_ceil(CHUNK);
    for index in (0..total).filter(|&index| !chunks.has(index)).collect::<Vec<_>>() {
        let range = index * CHUNK..source.len().min((index + 1) * CHUNK);
        let done = range.end as u64;
        let Some(rows) = fitted.rows(&source, range, top, args.network.batch_size, &pool)? else {
            warn!("interrupted; finished chunks are kept, and the same command goes on from there");
            return Ok(ExitStatus::Interrupted);
        };
        chunks.write(index, &rows)?;
        info!("{} of {} images", grouped(done), grouped(source.len() as u64));
    }
    let rows = chunks.finish(total, format)?;
    writeln!(out, "{}: {}", args.out.display(), count(rows, "image"))?;
    let unusable = source.len() as u64 - rows;
    if unusable > 0 {
        warn!(
            "{} could not be used and {} no row",
            count(unusable, "image"),
            if unusable == 1 { "has" } else { "have" }
        );
    }
    Ok(ExitStatus::Fine)
}

impl Fitted {
    fn load(given: &str, hub: &HubSettings, device: Device, precision: Precision) -> anyhow::Result<Fitted> {
        let takes = "a run folder of trainer finetune, or a checkpoint's file";
        let spec = Spec::parse(given);
        let door = Door { option: "--model", takes, wanted: Wanted::TowerFirst, hub };
        let Pretrained::Trained(found) = door.open(&spec)? else {
            bail!("--model {given}: was not fine-tuned by this program; give {takes}");
        };
        let AnyRecipe::Finetune(recipe) = &found.recipe else {
            bail!(
                "--model {given}: was pretrained and knows no classes; fine-tune it first (trainer finetune), and give that run"
            );
        };
        let config = trained::backbone(recipe, &found.place)?;
        config.check(&found.tensors).with_context(|| found.place.clone())?;
        let params = ParamStore::frozen(device);
        let n_classes = found.n_classes()?;
        let classifier = Classifier::new(&params, config, recipe.model.pool.into(), n_classes)?;
        params.load(&found.place, &found.tensors)?;
        let (mean, std) = config.normalization();
        Ok(Fitted {
            classifier,
            classes: classes(&spec, &found, usize::try_from(n_classes)?)?,
            img_size: finetune_init::img_size(config)?,
            normalize: Normalize::of([mean, std].map(|values| values.map(|v| v as f32)), device),
            crop_pct: recipe.augment.crop_pct,
            device,
            precision,
            description: found.describe(),
            sha256: found.sha256,
        })
    }

    /// Predictions of the images `range` that can be read; `None` after a signal.
    fn rows(
        &self,
        source: &ImageSource,
        range: Range<usize>,
        top: usize,
        batch_size: u32,
        pool: &rayon::ThreadPool,
    ) -> anyhow::Result<Option<RecordBatch>> {
        let _no_grad = tch::no_grad_guard();
        let mut idxs = Vec::new();
        let mut best: Vec<(Vec<i64>, Vec<f32>)> = Vec::new();
        let mut stopped = false;
        let (first, crop_pct, img_size) = (range.start, self.crop_pct, self.img_size);
        let decode = |i: usize| (first + i, read_center(source, first + i, crop_pct, img_size));
        let prefetch = |i: usize| source.prefetch(first + i);
        decode_ahead(range.len(), batch_size as usize, pool, prefetch, decode, |decoded| {
            stopped |= signals::requested();
            let mut rendered = Vec::new();
            for (i, result) in decoded {
                match result {
                    Ok(img) => {
                        idxs.push(i);
                        rendered.push(img);
                    }
                    Err(e) => warn!("cannot be used: {}: {e:#}", source.key(i)),
                }
            }
            if !rendered.is_empty() && !stopped {
                best.push(self.classify(&to_device(&stack(rendered.iter(), img_size)?, self.device)?, top)?);
            }
            Ok(())
        })?;
        if stopped {
            return Ok(None);
        }
        let (classes, scores): (Vec<i64>, Vec<f32>) = best.into_iter().fold(Default::default(), |mut all, of_batch| {
            all.0.extend(of_batch.0);
            all.1.extend(of_batch.1);
            all
        });
        let mut columns = vec![("key".to_owned(), strings(idxs.iter().map(|&i| source.key(i))))];
        for place in 0..top {
            let name = |text: &str| if place == 0 { text.to_owned() } else { format!("{text}_{}", place + 1) };
            let of_place = || classes.iter().skip(place).step_by(top);
            let scores = scores.iter().skip(place).step_by(top).copied();
            let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(of_place().map(|&class| class as i32)));
            columns.push((name("class"), strings(of_place().map(|&class| &*self.classes[class as usize]))));
            columns.push((name("class_index"), numbers));
            columns.push((name("score"), Arc::new(Float32Array::from_iter_values(scores)) as ArrayRef));
        }
        Ok(Some(RecordBatch::try_from_iter(columns)?))
    }

    /// The `top` best classes of each image and their probabilities, the best first: `pixels [N, S, S, 3]` u8 → two of `N * top`.
    fn classify(&self, pixels: &Tensor, top: usize) -> anyhow::Result<(Vec<i64>, Vec<f32>)> {
        let scores = {
            let _scope = self.precision.guard(self.device);
            self.classifier.forward(&self.normalize.forward(pixels), &ForwardOptions::default())
        };
        let (scores, classes) = scores.softmax(-1, Kind::Float).topk(top as i64, -1, true, true);
        let flat = |t: Tensor| t.to_device(Device::Cpu).contiguous().flatten(0, -1);
        Ok((Vec::try_from(flat(classes))?, Vec::try_from(flat(scores))?))
    }
}

/// The names of the classes by output: those of the run, or their numbers for a file that has left its run.
fn classes(spec: &Spec, found: &Trained, n_classes: usize) -> anyhow::Result<Vec<String>> {
    let Some(names) = finetuned::classes_near(spec.path())? else {
        warn!("{}: no {} beside it, so classes are written by number", found.place, finetuned::CLASSES);
        return Ok((0..n_classes).map(|class| class.to_string()).collect());
    };
    ensure!(
        names.len() == n_classes,
        "{}: {} has {} names, and the classifier {n_classes} scores: the two are not of one run",
        found.place,
        finetuned::CLASSES,
        names.len()
    );
    Ok(names)
}

#[cfg(test)]
mod tests;
