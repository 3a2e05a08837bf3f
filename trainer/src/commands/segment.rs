//! `trainer segment`: semantic segmentation by frozen patch tokens.
//!
//! One pass over the training images keeps a bounded sample of their patches; then each model gets a classifier of patches, and one pass
//! over the test images compares its predictions with the masks, pixel by pixel.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, bail, ensure};
use hub::HubSettings;
use images::RgbImage;
use images::rng::{Purpose, Rng};
use program::table::{Left, Right, percent, table};
use program::words::count;
use schemas::{ContentHash, atomic};
use serde::{Deserialize, Serialize};
use tch::Tensor;
use tracing::{info, warn};

use crate::cli::{SegmentArgs, SegmentMethod};
use crate::data::Problem;
use crate::data::batch::stack;
use crate::eval::features::Model;
use crate::eval::frozen::{Frozen, ModelFacts};
use crate::eval::heads::Training;
use crate::eval::record;
use crate::eval::segment::areas::{Areas, Segmentation};
use crate::eval::segment::classify::{Choice, PatchClassifier};
use crate::eval::segment::patches::{PatchSample, TrainPatches, classes_of_patches};
use crate::eval::segment::set::{MaskedImages, Sample};
use crate::eval::segment::sheet::{PANEL, Sheet};
use crate::eval::sets::{SetFacts, report_skipped};
use crate::train::image_grid::png;

#[cfg(test)]
mod tests;

/// Pictures of a sheet.
const PICTURES: usize = 8;
/// The sheet's file in the folder of pictures.
const SHEET: &str = "segment.png";

/// The result of `trainer segment`, one per model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SegmentResult {
    #[serde(flatten)]
    pub model: ModelFacts,
    #[serde(flatten)]
    pub sets: SetFacts,
    /// Numbers in masks that are not classes, ascending.
    pub ignore_labels: Vec<u16>,
    /// How patches were classified.
    pub protocol: Protocol,
    /// Patches along each side of an image.
    pub grid: usize,
    /// Training patches of the classifier.
    pub train_patches: u64,
    /// Training patches with a class, out of which they were drawn.
    pub labeled_patches: u64,
    /// Pixels of the test images whose class no training patch of the classifier has: all count as wrong.
    pub pixels_of_unseen_classes: u64,
    /// How the learning rate of a linear classifier was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// How well the masks of the test images were predicted.
    pub test_pixels: Segmentation,
}

/// How patches are classified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// The nearest training patches vote.
    Knn {
        /// Neighbors that vote.
        k: u32,
        /// Limit on the training patches.
        max_patches: u32,
        /// Seed of their choice.
        seed: u64,
    },
    /// A linear layer after a batch norm.
    Linear {
        /// Passes over the training patches.
        epochs: u64,
        /// Epochs of linear learning-rate warm-up.
        warmup_epochs: f64,
        /// Base learning rates that were tried.
        blrs: Vec<f64>,
        /// Patches per step.
        batch_size: usize,
        /// Weight decay.
        weight_decay: f64,
        /// Share of the training images on which the rate was chosen.
        held_out: f64,
        /// Limit on the training patches.
        max_patches: u32,
        /// Seed of their choice, of order and initial weights, and of the choice of held-out images.
        seed: u64,
    },
}

/// `trainer segment`.
pub(crate) fn segment(args: &SegmentArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    let protocol = protocol(args)?;
    let ignored: BTreeSet<u16> = args.ignore_labels.iter().copied().collect();
    if let Some(folder) = &args.pictures {
        std::fs::create_dir_all(folder).with_context(|| format!("--pictures {folder:?}: cannot be created"))?;
    }
    let device = torch_ext::resolve_device(&args.network.device.device)?;
    let frozen = Frozen::load(&args.models, &args.network, hub, device, 1)?;
    let models = &frozen.models;
    let train = MaskedImages::open("--train", &args.train, &ignored, frozen.decoder)?;
    let test = MaskedImages::open("--test", &args.test, &ignored, frozen.decoder)?;
    info!("{}, {} train and {} test images", count(models.len() as u64, "model"), train.len(), test.len());

    let job = Job { args, frozen: &frozen };
    let trained = job.train_patches(&train)?;
    let mut classifiers = Vec::with_capacity(models.len());
    for patches in &trained.patches {
        classifiers.push(match &protocol {
            Protocol::Knn { k, .. } => (PatchClassifier::knn(patches, *k, frozen.device)?, None),
            Protocol::Linear { held_out, .. } => {
                let training = training(&protocol).context("a linear classifier is trained")?;
                let (classifier, choice) = PatchClassifier::linear(patches, &training, *held_out, frozen.device)?;
                (classifier, Some(choice))
            }
        });
    }
    for ((_, choice), model) in classifiers.iter().zip(models) {
        if let (Some(choice), Protocol::Linear { blrs, .. }) = (choice, &protocol)
            && let [lowest, .., highest] = blrs[..]
            && (choice.blr == lowest || choice.blr == highest)
        {
            warn!(
                "{}: the best base learning rate, {}, is the lowest or the highest of those tried; try others with --blr",
                model.describe(),
                choice.blr
            );
        }
    }

    let only: Vec<&PatchClassifier> = classifiers.iter().map(|(classifier, _)| classifier).collect();
    let tested = job.test(&test, &only)?;
    if let (Some(folder), Some(sheet)) = (&args.pictures, tested.sheet.image()) {
        let path = folder.join(SHEET);
        atomic::remove_stale(&path)?;
        atomic::write(&path, &png(&sheet)?)?;
        info!("{}: images, masks, and predictions of each model", path.display());
    }

    let skipped = trained.skipped + tested.skipped;
    let sets = SetFacts::new((&args.train, &args.test), &trained.hashes, &tested.hashes, skipped);
    let mut results = Vec::with_capacity(models.len());
    for (i, (classifier, choice)) in classifiers.into_iter().enumerate() {
        let found = tested.areas[i].finish().context(
            "no pixel of --test has a class: all pixels of its masks, as far as they are seen, have an ignored label",
        )?;
        let seen: BTreeSet<u16> = classifier.classes().iter().copied().collect();
        let unseen = unseen_pixels(&found, &seen)?;
        let patches = &trained.patches[i];
        let result = SegmentResult {
            model: frozen.facts(&models[i]),
            sets: sets.clone(),
            ignore_labels: ignored.iter().copied().collect(),
            protocol: protocol.clone(),
            grid: tested.grids[i],
            train_patches: patches.classes.len() as u64,
            labeled_patches: patches.offered,
            pixels_of_unseen_classes: unseen,
            choice,
            test_pixels: found,
        };
        let question = [&SetFacts::QUESTION[..], &ModelFacts::QUESTION, &["ignore_labels", "protocol"]].concat();
        record::save(&models[i], "segment", &question, &result)?;
        results.push(result);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        write_table(&results, out)?;
    }
    Ok(())
}

/// What both passes over images share.
struct Job<'a> {
    args: &'a SegmentArgs,
    frozen: &'a Frozen,
}

/// The result of the pass over the training images.
struct Trained {
    /// For each model.
    patches: Vec<TrainPatches>,
    /// Contents of the images that were used.
    hashes: Vec<ContentHash>,
    skipped: usize,
}

/// The result of the pass over the test images.
struct Tested {
    /// For each model.
    areas: Vec<Areas>,
    /// For each model, the patches along a side.
    grids: Vec<usize>,
    hashes: Vec<ContentHash>,
    skipped: usize,
    sheet: Sheet,
}

impl Job<'_> {
    /// Draws the training patches of each model.
    fn train_patches(&self, set: &MaskedImages) -> anyhow::Result<Trained> {
        let limit = self.args.train_patches as usize;
        let mut samples: Vec<PatchSample> =
            self.frozen.models.iter().map(|_| PatchSample::new(limit, self.args.seed)).collect();
        let mut hashes = Vec::new();
        let skipped = self.each(set, &BTreeSet::new(), |images, patches| {
            for (sample, patches) in samples.iter_mut().zip(patches) {
                let grid = grid_of(patches)?;
                for (row, image) in (0..).zip(images) {
                    let classes = classes_of_patches(&image.mask, grid);
                    sample.offer(image.index, image.hash, &patches.get(row), &classes)?;
                }
            }
            hashes.extend(images.iter().map(|image| image.hash));
            Ok(())
        })?;
        no_images("--train", &hashes, &skipped)?;
        let patches = samples.into_iter().map(PatchSample::finish).collect::<anyhow::Result<_>>()?;
        Ok(Trained { patches, hashes, skipped: skipped.len() })
    }

    /// Compares the predictions of each model's classifier with the masks.
    fn test(&self, set: &MaskedImages, classifiers: &[&PatchClassifier]) -> anyhow::Result<Tested> {
        let pictured = match self.args.pictures {
            Some(_) => chosen(set.len(), self.args.seed),
            None => BTreeSet::new(),
        };
        let mut tested = Tested {
            areas: classifiers.iter().map(|_| Areas::new()).collect(),
            grids: vec![0; classifiers.len()],
            hashes: Vec::new(),
            skipped: 0,
            sheet: Sheet::new(self.frozen.models.len()),
        };
        let skipped = self.each(set, &pictured, |images, patches| {
            for (row, image) in (0..).zip(images) {
                let mut predictions = Vec::with_capacity(classifiers.len());
                for (i, (classifier, patches)) in classifiers.iter().zip(patches).enumerate() {
                    tested.grids[i] = grid_of(patches)?;
                    let predicted = classifier.pixels(&classifier.scores(&patches.get(row))?, image.mask.width)?;
                    tested.areas[i].add(&image.mask.data, &predicted);
                    if pictured.contains(&image.index) {
                        predictions.push(predicted);
                    }
                }
                if let Some(picture) = image.rendered.get(&PANEL).filter(|_| pictured.contains(&image.index)) {
                    let predictions = predictions.iter().map(Vec::as_slice);
                    let classes: Vec<&[u16]> = std::iter::once(&*image.mask.data).chain(predictions).collect();
                    tested.sheet.add(picture, &classes);
                }
                tested.hashes.push(image.hash);
            }
            Ok(())
        })?;
        no_images("--test", &tested.hashes, &skipped)?;
        tested.skipped = skipped.len();
        Ok(tested)
    }

    /// Passes the images in batches to `take`, with the patches `[N, L, D]` of each model.
    fn each(
        &self,
        set: &MaskedImages,
        pictured: &BTreeSet<usize>,
        mut take: impl FnMut(&[Sample], &[Tensor]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let sizes: BTreeSet<u32> = self.frozen.models.iter().map(Model::input_size).collect();
        let (len, mut done) = (set.len(), 0);
        set.each(&sizes, (pictured, PANEL), self.args.network.batch_size, &self.frozen.pool, |images| {
            let mut batches = BTreeMap::new();
            for &size in &sizes {
                let pixels: Vec<&RgbImage> = images.iter().map(|image| &image.rendered[&size]).collect();
                batches.insert(size, stack(pixels.into_iter(), size)?);
            }
            let patches = self
                .frozen
                .models
                .iter()
                .map(|model| model.patches(&batches[&model.input_size()], self.frozen.precision));
            let patches = patches.collect::<anyhow::Result<Vec<_>>>()?;
            let before = done;
            done += images.len();
            take(&images, &patches)?;
            if done * 10 / len != before * 10 / len {
                info!("patches of {done} of {len} images");
            }
            Ok(())
        })
    }
}

/// Patches along a side: `[N, L, D]`, where `L` is a square.
fn grid_of(patches: &Tensor) -> anyhow::Result<usize> {
    let patches = patches.size()[1] as usize;
    let grid = patches.isqrt();
    ensure!(grid * grid == patches, "{patches} patches are not a square");
    Ok(grid)
}

/// Tells which images cannot be used; an error if none can.
fn no_images(name: &str, used: &[ContentHash], skipped: &[String]) -> anyhow::Result<()> {
    report_skipped(name, skipped);
    match used.is_empty() {
        true => {
            Err(Problem::NoImages { why: skipped.first().map(|e| format!("; the first: {e}")).unwrap_or_default() }
                .into())
        }
        false => Ok(()),
    }
}

/// The images of the sheet: a few out of `images`, at random.
fn chosen(images: usize, seed: u64) -> BTreeSet<usize> {
    let mut all: Vec<usize> = (0..images).collect();
    Rng::new(seed, Purpose::Select, &[]).shuffle(&mut all);
    all.into_iter().take(PICTURES).collect()
}

/// Pixels of the test images whose class is not among those `seen` in training. Warns if there are any.
///
/// # Errors
/// If that is all of them: no prediction could be right.
fn unseen_pixels(found: &Segmentation, seen: &BTreeSet<u16>) -> anyhow::Result<u64> {
    let of_test: Vec<(u16, u64)> =
        found.classes.iter().filter(|(_, class)| class.pixels > 0).map(|(&class, area)| (class, area.pixels)).collect();
    let unseen: Vec<(u16, u64)> = of_test.iter().copied().filter(|(class, _)| !seen.contains(class)).collect();
    let list = |classes: &mut dyn Iterator<Item = u16>| {
        let classes: Vec<u16> = classes.collect();
        let shown = classes.iter().take(10).map(u16::to_string).collect::<Vec<_>>().join(", ");
        if classes.len() > 10 { format!("{shown} and {} more", classes.len() - 10) } else { shown }
    };
    if unseen.len() == of_test.len() {
        bail!(
            "no class of --test is among the training patches: masks of --test have {}, patches of --train {}. Number the classes of both \
             alike; pixels without a class have a number in --ignore-label",
            list(&mut of_test.iter().map(|&(class, _)| class)),
            list(&mut seen.iter().copied())
        );
    }
    let pixels = unseen.iter().map(|&(_, pixels)| pixels).sum();
    if pixels > 0 {
        warn!(
            "{} of the test images have no training patch ({}): their {} of {} pixels count as wrong",
            count(unseen.len() as u64, "class"),
            list(&mut unseen.iter().map(|&(class, _)| class)),
            pixels,
            found.pixels
        );
    }
    Ok(pixels)
}

/// The method and its settings, checked.
fn protocol(args: &SegmentArgs) -> anyhow::Result<Protocol> {
    let linear_only = [
        ("--blr", !args.blrs.is_empty()),
        ("--epochs", args.epochs.is_some()),
        ("--warmup-epochs", args.warmup_epochs.is_some()),
        ("--probe-batch", args.probe_batch.is_some()),
        ("--weight-decay", args.weight_decay.is_some()),
        ("--held-out", args.held_out.is_some()),
    ];
    let (max_patches, seed) = (args.train_patches, args.seed);
    if args.method == SegmentMethod::Knn {
        if let Some((option, _)) = linear_only.iter().find(|(_, given)| *given) {
            bail!("{option} is a setting of --method linear; give that, or leave {option} out");
        }
        return Ok(Protocol::Knn { k: args.k.unwrap_or(20), max_patches, seed });
    }
    ensure!(args.k.is_none(), "--k is a setting of --method knn; give that, or leave --k out");
    let mut blrs = args.blrs.clone();
    if blrs.is_empty() {
        blrs = vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
    }
    blrs.sort_by(f64::total_cmp);
    blrs.dedup();
    ensure!(blrs.iter().all(|blr| blr.is_finite() && *blr > 0.0), "--blr: learning rates must be positive");
    let epochs = args.epochs.unwrap_or(40);
    let warmup_epochs = args.warmup_epochs.unwrap_or(f64::from(epochs) / 10.0);
    ensure!(
        (0.0..f64::from(epochs)).contains(&warmup_epochs),
        "--warmup-epochs {warmup_epochs}: must be zero or more, and less than --epochs {epochs}"
    );
    let weight_decay = args.weight_decay.unwrap_or(0.0);
    ensure!(weight_decay >= 0.0 && weight_decay.is_finite(), "--weight-decay {weight_decay}: must be zero or positive");
    let held_out = args.held_out.unwrap_or(0.1);
    ensure!(
        held_out > 0.0 && held_out <= 0.5,
        "--held-out {held_out}: must be a share of the training images, above 0 and at most 0.5"
    );
    ensure!(
        blrs.len() > 1 || args.held_out.is_none(),
        "--held-out {held_out}: one --blr leaves nothing to choose, and all images train; leave --held-out out"
    );
    Ok(Protocol::Linear {
        epochs: epochs.into(),
        warmup_epochs,
        blrs,
        batch_size: args.probe_batch.unwrap_or(1024) as usize,
        weight_decay,
        held_out,
        max_patches,
        seed,
    })
}

/// The training of a linear classifier; `None` for the method that trains none.
fn training(protocol: &Protocol) -> Option<Training> {
    match protocol {
        Protocol::Knn { .. } => None,
        Protocol::Linear { epochs, warmup_epochs, blrs, batch_size, weight_decay, seed, .. } => Some(Training {
            blrs: blrs.clone(),
            epochs: *epochs,
            warmup_epochs: *warmup_epochs,
            batch_size: *batch_size,
            weight_decay: *weight_decay,
            seed: *seed,
        }),
    }
}

/// Writes one line per model, below a line with what they share.
fn write_table(results: &[SegmentResult], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(first) = results.first() else {
        return Ok(());
    };
    let method = match &first.protocol {
        Protocol::Knn { k, .. } => format!("{k}-NN of patches"),
        Protocol::Linear { epochs, .. } => format!("a linear layer on patches, {epochs} epochs"),
    };
    writeln!(
        out,
        "segmentation by {method}, {} train and {} test images, {} classes{}",
        first.sets.train_images,
        first.sets.test_images,
        first.test_pixels.classes.values().filter(|class| class.pixels > 0).count(),
        first.model.unusual()
    )?;
    let rows = results.iter().map(|result| {
        [
            result.model.model.clone(),
            format!("{0}x{0}", result.grid),
            result.train_patches.to_string(),
            result.choice.as_ref().map_or("-".to_owned(), |choice| choice.blr.to_string()),
            percent(result.test_pixels.miou),
            percent(result.test_pixels.pixel_accuracy),
        ]
    });
    let titles = ["model", "patches", "train patches", "base lr", "mIoU", "pixel accuracy"];
    write!(out, "{}", table(titles, [Left, Left, Right, Right, Right, Right], rows.collect()))
}
