//! Evaluation of a classifier on a test set, and the result of a fine-tuning.

use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use images::{ImageSource, RgbImage, draw_view};
use models::blocks::ForwardOptions;
use models::classifier::Classifier;
use models::precision::Precision;
use program::table::{Left, Right, percent, table};
use program::words::count;
use schemas::{ContentHash, ViewPolicy, atomic};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use tracing::warn;

use super::accuracy::{Counter, TopK, top_classes};
use crate::data::batch::stack;
use crate::data::decode_ahead::decode_ahead;
use crate::data::normalize::Normalize;
use crate::dist::World;
use torch_ext::to_device;

/// The file in a run folder with one [`Evaluation`] per line.
pub(crate) const EVALUATIONS: &str = "evaluations.jsonl";
/// The file in a run folder with the result.
pub(crate) const FINETUNE_FILE: &str = "eval/finetune.json";

/// The accuracy on the test set after some step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    pub step: u64,
    pub epoch: u64,
    /// Mean cross entropy, without label smoothing.
    pub loss: f64,
    /// Shares of images that were classified correctly.
    #[serde(flatten)]
    pub accuracy: TopK,
    /// Test images that were classified.
    pub images: usize,
    /// Test images that could not be decoded.
    pub skipped: usize,
}

impl Evaluation {
    /// The outcome after `step` updates and `epoch` epochs.
    pub(crate) fn of(outcome: Outcome, step: u64, epoch: u64) -> Evaluation {
        let Outcome { loss, accuracy, images, skipped } = outcome;
        Evaluation { step, epoch, loss, accuracy, images, skipped: skipped.len() }
    }

    /// The figures that TensorBoard shows, by tag.
    pub(crate) fn scalars(&self) -> [(&'static str, f64); 3] {
        [("eval/top1", self.accuracy.top1), ("eval/top5", self.accuracy.top5), ("eval/loss", self.loss)]
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TopK { top1, top5, .. } = self.accuracy;
        write!(f, "epoch {}: top-1 {:.2}%  top-5 {:.2}%  loss {:.4}", self.epoch, 100.0 * top1, 100.0 * top5, self.loss)
    }
}

/// The result of `trainer finetune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FinetuneResult {
    pub model: String,
    /// Images to train on.
    pub train_images: usize,
    /// Outputs of the classifier: the training set's labels, including those without an image, and classes that only the test set has.
    pub classes: usize,
    /// Test images of classes that no training image has: all count as wrong.
    #[serde(default)]
    pub test_images_of_unseen_classes: usize,
    /// The evaluation after the last epoch, which is the result.
    pub last: Evaluation,
    /// The evaluation with the highest top-1, the earliest of equals. It was chosen by looking at the test images.
    pub best: Evaluation,
    /// All evaluations, in order.
    pub evaluations: Vec<Evaluation>,
}

impl FinetuneResult {
    /// The result of a run so far, from its evaluations.
    ///
    /// # Errors
    /// If the run has no evaluation, or their file is damaged.
    pub(crate) fn read(
        run: &Path,
        model: &str,
        train_images: usize,
        classes: usize,
        test_images_of_unseen_classes: usize,
    ) -> anyhow::Result<FinetuneResult> {
        let evaluations = read(run)?;
        let none = || format!("{run:?}: holds no evaluation");
        Ok(FinetuneResult {
            model: model.to_owned(),
            train_images,
            classes,
            test_images_of_unseen_classes,
            last: evaluations.last().with_context(none)?.clone(),
            best: best(&evaluations).with_context(none)?.clone(),
            evaluations,
        })
    }

    /// Writes the result into the run folder, and for people or as JSON to `out`.
    pub(crate) fn publish(&self, run: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        atomic::write(&run.join(FINETUNE_FILE), text.as_bytes())?;
        if json {
            writeln!(out, "{text}")?;
        } else {
            write_table(self, out)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct TestSet {
    pub source: ImageSource,
    /// The class of each image.
    pub labels: Vec<i64>,
    /// Side of the square input, in pixels.
    pub img_size: u32,
    /// Mean and std by which the encoder's pixels are normalized.
    pub normalization: [[f32; 3]; 2],
    /// Share of the shorter side that the central square has, above 0 and at most 1.
    pub crop_pct: f64,
    /// Images of a forward pass.
    pub batch_size: usize,
}

/// The outcome on a test set, before it becomes an [`Evaluation`].
#[derive(Debug)]
pub(crate) struct Outcome {
    /// See [`Evaluation::loss`].
    pub loss: f64,
    pub accuracy: TopK,
    /// Images that were classified.
    pub images: usize,
    /// Keys of the other images, and what is wrong with them: on rank 0.
    pub skipped: Vec<String>,
}

impl TestSet {
    /// Classifies all images that can be read; each process of `world` takes a share of them, and all get the outcome. `pool` decodes one
    /// batch ahead.
    pub(crate) fn evaluate(
        &self,
        classifier: &Classifier,
        n_classes: usize,
        precision: Precision,
        pool: &rayon::ThreadPool,
        world: &World,
        device: Device,
    ) -> anyhow::Result<Outcome> {
        let range = world.range(self.source.len());
        let normalize = Normalize::of(self.normalization, device);
        let _no_grad = tch::no_grad_guard();
        let mut counter = Counter::new(n_classes);
        let (mut loss_sum, mut images, mut skipped) = (0.0, 0, Vec::new());
        let decode = |i: usize| {
            let i = range.start + i;
            (i, read_center(&self.source, i, self.crop_pct, self.img_size))
        };
        decode_ahead(
            range.len(),
            self.batch_size,
            pool,
            |i| self.source.prefetch(range.start + i),
            decode,
            |decoded| {
                let (mut labels, mut rendered) = (Vec::new(), Vec::new());
                for (i, result) in decoded {
                    match result {
                        Ok(img) => {
                            labels.push(self.labels[i]);
                            rendered.push(img);
                        }
                        Err(e) => skipped.push(format!("{}: {e:#}", self.source.key(i))),
                    }
                }
                if rendered.is_empty() {
                    return Ok(());
                }
                let pixels = to_device(&stack(rendered.iter(), self.img_size)?, device)?;
                let scores = {
                    let _scope = precision.guard(device);
                    classifier.forward(&normalize.forward(&pixels), &ForwardOptions::default())
                };
                let targets = Tensor::from_slice(&labels).to_device(device);
                let loss = scores.cross_entropy_loss(&targets, None::<Tensor>, tch::Reduction::Sum, -100, 0.0);
                loss_sum += loss.double_value(&[]);
                images += labels.len();
                counter.add(&top_classes(&scores), &labels)
            },
        )?;
        let mut numbers = vec![loss_sum, images as f64];
        numbers.extend(counter.numbers());
        let numbers = world.sum(&numbers)?;
        let (loss_sum, images, counter) = (numbers[0], numbers[1] as usize, Counter::of_numbers(&numbers[2..]));
        let skipped = world.gather(skipped)?.concat();
        if let Some(first) = skipped.first() {
            warn!("--test: {} cannot be used, the first is {first}", count(skipped.len() as u64, "image"));
        }
        Ok(Outcome { loss: loss_sum / images as f64, accuracy: counter.finish()?, images, skipped })
    }
}

/// Image `i` of a source as a fine-tuned network is shown it: the central square with the share `crop_pct` of the shorter side, at `img_size`.
pub(crate) fn read_center(source: &ImageSource, i: usize, crop_pct: f64, img_size: u32) -> anyhow::Result<RgbImage> {
    let bytes = source.read(i)?;
    let hash = ContentHash::of(&bytes);
    let img = source.decode(i, &bytes)?;
    let mut view = draw_view(&ViewPolicy::Center, 0, &hash, 0, img.width, img.height);
    let whole = view.crop.w;
    let side = ((f64::from(whole) * crop_pct).round() as u32).clamp(1, whole);
    let margin = (whole - side) / 2;
    view.crop.x += margin;
    view.crop.y += margin;
    (view.crop.w, view.crop.h) = (side, side);
    Ok(images::render(&img, &view, img_size)?)
}

/// The evaluations of a run so far.
pub(crate) fn read(run: &Path) -> anyhow::Result<Vec<Evaluation>> {
    let path = run.join(EVALUATIONS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path:?}: cannot be read"))?;
    let parse = |(i, line)| serde_json::from_str(line).with_context(|| format!("{path:?}, line {}", i + 1));
    text.lines().enumerate().map(parse).collect()
}

/// The evaluation with the highest top-1, the earliest of equals.
pub(crate) fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    evaluations.iter().reduce(|best, e| if e.accuracy.top1 > best.accuracy.top1 { e } else { best })
}

/// Writes the last and the best evaluation as a table.
fn write_table(result: &FinetuneResult, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "fine-tuned {}: {} train and {} test images, {} classes",
        result.model, result.train_images, result.last.images, result.classes
    )?;
    let row = |name: &str, e: &Evaluation| {
        let [top1, top5, balanced] = [e.accuracy.top1, e.accuracy.top5, e.accuracy.balanced].map(percent);
        [name.to_owned(), e.epoch.to_string(), top1, top5, balanced, format!("{:.4}", e.loss)]
    };
    let rows = vec![row("last", &result.last), row("best", &result.best)];
    let titles = ["", "epoch", "top-1", "top-5", "balanced", "loss"];
    write!(out, "{}", table(titles, [Left, Right, Right, Right, Right, Right], rows))
}
