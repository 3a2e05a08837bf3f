//! The linear probe of MAE (He et al. 2022, appendix A.1): a linear classifier over frozen features, trained with LARS.
//!
//! The reference computes the features of a new random crop in every epoch, and trains one head at one learning rate. Here the frozen
//! network runs once over a few fixed random crops of every image, which take turns by epoch, and one pass over these features
//! trains a head for each of several learning rates. The rate is chosen on a held-out part of the *training* images; then all heads
//! are trained again on all training images. The test images play no part in the choice.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, ensure};
use hub::HubSettings;
use images::ImageSource;
use program::table::{Left, Right, percent, table};
use program::words::count;
use schemas::{DepthWindow, ViewPolicy};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cli::LinprobeArgs;
use crate::data::classes::Matching;
use crate::data::classes::count_of_unseen_classes;
use crate::data::sampler::Epoch;
use crate::eval::features::{self, Extraction, Fusion, Images, Model, Views};
use crate::eval::heads::{self, Training};
use crate::eval::probe::{Probe, Sets, Split, probe};
use crate::eval::record;
use crate::eval::sets::{classes, count_in_train, recorded, refuse_repeated, report_skipped, unusual};
use crate::pretrained::depth_window;

#[cfg(test)]
mod tests;

/// The result of `trainer linprobe`, one per model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinprobeResult {
    pub model: String,
    /// The images to train on, as `--train` named them.
    pub train: String,
    /// The images that were classified, as `--test` named them.
    pub test: String,
    /// Images to train on, the held-out ones included.
    pub train_images: usize,
    /// Those of the training images on which the learning rate was chosen; 0 if only one rate was tried.
    pub held_out_images: usize,
    /// Images that were classified.
    pub test_images: usize,
    /// Test images that are byte for byte among the train images too.
    pub test_images_in_train: usize,
    /// Images that could not be decoded and took no part.
    pub skipped_images: usize,
    /// Classes of the two sets together.
    pub classes: usize,
    /// How their classes were matched, unless by the default rule.
    #[serde(default, skip_serializing_if = "Matching::is_auto")]
    pub match_classes: Matching,
    /// Whether a student of multi-layer fusion was evaluated with it. Absent for models without fusion, and in results of older versions,
    /// which evaluated every student without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fusion: Option<Fusion>,
    /// The window through which images of more than 8 bits per sample were seen; absent for `high-byte`.
    #[serde(default, skip_serializing_if = "DepthWindow::is_high_byte")]
    pub depth_window: DepthWindow,
    /// Precision of the network; absent for f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Test images of classes that no train image has: all count as wrong.
    #[serde(default)]
    pub test_images_of_unseen_classes: usize,
    /// How the heads were trained.
    pub protocol: Protocol,
    /// Per kind of feature: `cls` and `mean` (of patch tokens), both after the final norm, or `pixels`.
    pub features: BTreeMap<String, Probe>,
}

/// How the heads were trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Protocol {
    /// Passes over the training images.
    pub epochs: u64,
    /// Epochs of linear learning-rate warm-up.
    pub warmup_epochs: f64,
    /// Base learning rates that were tried; absent in results of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blrs: Vec<f64>,
    pub batch_size: usize,
    /// Weight decay.
    pub weight_decay: f64,
    /// Fixed random crops of each training image; 0 if only the central square was used.
    pub views: u16,
    /// Seed of crops, order, initial weights and the choice of held-out images.
    pub seed: u64,
}

/// `trainer linprobe`: features of both sets, then the heads.
pub(crate) fn linprobe(args: &LinprobeArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    refuse_repeated(&args.models)?;
    let training = training(args)?;
    let device = torch_ext::resolve_device(&args.device.device)?;
    args.precision.prepare(device)?;
    let models = args.models.iter().map(|spec| Model::load(spec, hub, device)).collect::<anyhow::Result<Vec<_>>>()?;
    features::require_kinds(&models, &args.features)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.device.loader_threads(device)).build()?;
    let names: Vec<&str> = args.models.iter().map(String::as_str).collect();
    let decoder = depth_window::decoder(args.depth_window, &names)?;
    let (train_source, test_source) =
        (ImageSource::open(&args.train)?.decoded_by(decoder), ImageSource::open(&args.test)?.decoded_by(decoder));
    // Checked before features are computed for hours.
    heads::require_a_step(train_source.len(), training.batch_size)?;
    let classes = classes(args.match_classes, &train_source, &test_source)?;
    info!(
        "{}, {} train and {} test images of {} classes",
        count(models.len() as u64, "model"),
        train_source.len(),
        test_source.len(),
        classes.len()
    );

    let extract = |name: &str, source: &ImageSource, views: Views| {
        let extraction = Extraction {
            views,
            kinds: args.features.clone(),
            max_bytes: args.feature_gib.saturating_mul(1 << 30),
            batch_size: args.batch_size,
            precision: args.precision,
        };
        let images = features::extract(&models, source, &extraction, &pool).context(name.to_owned())?;
        report_skipped(name, &images.skipped);
        anyhow::Ok(images)
    };
    let train_images = extract("--train", &train_source, train_views(args))?;
    let test_images = extract("--test", &test_source, Views::CENTER)?;
    let (train_labels, test_labels) = (
        classes.of_train(&train_source, train_images.idxs.iter().copied())?,
        classes.of_test(&test_source, test_images.idxs.iter().copied())?,
    );
    let test_images_in_train = count_in_train(&train_images.hashes, &test_images.hashes);
    let of_unseen_classes = count_of_unseen_classes(&train_labels, &test_labels, classes.unseen_images())?;
    let split = split(&train_images, args)?;
    let epoch = Epoch::of(split.all.len() as u64, training.batch_size as u64);
    if let Some(left_over) = epoch.left_over() {
        info!("{left_over}");
    }

    let mut results = Vec::with_capacity(models.len());
    for (i, model) in models.iter().enumerate() {
        let mut probes = BTreeMap::new();
        for (kind, features) in &train_images.features[i] {
            let test_features = &test_images.features[i][kind];
            let set = Sets { train: (features, &train_labels), test: (test_features, &test_labels) };
            let probe = probe(&set, &split, classes.len(), &training, device)?;
            if let [lowest, .., highest] = training.blrs[..]
                && (probe.blr == lowest || probe.blr == highest)
            {
                warn!(
                    "{kind} of {}: the best base learning rate, {}, is the lowest or the highest of those tried; try others with --blr",
                    model.describe(),
                    probe.blr
                );
            }
            probes.insert(kind.clone(), probe);
        }
        let result = LinprobeResult {
            model: model.describe(),
            train: args.train.clone(),
            test: args.test.clone(),
            train_images: train_images.idxs.len(),
            held_out_images: split.held_out.len(),
            test_images: test_images.idxs.len(),
            test_images_in_train,
            skipped_images: train_images.skipped.len() + test_images.skipped.len(),
            classes: classes.len(),
            match_classes: args.match_classes,
            fusion: model.fusion(),
            depth_window: decoder.window(),
            precision: recorded(args.precision),
            test_images_of_unseen_classes: of_unseen_classes,
            protocol: Protocol {
                epochs: training.epochs,
                warmup_epochs: training.warmup_epochs,
                blrs: training.blrs.clone(),
                batch_size: training.batch_size,
                weight_decay: training.weight_decay,
                views: args.views,
                seed: training.seed,
            },
            features: probes,
        };
        record::save(
            model,
            "linprobe",
            &[
                "train",
                "test",
                "protocol",
                "train_images",
                "held_out_images",
                "test_images",
                "classes",
                "match_classes",
                "fusion",
                "depth_window",
                "precision",
                "features{}",
            ],
            &result,
        )?;
        results.push(result);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        write_table(&results, out)?;
    }
    Ok(())
}

/// The settings of the heads, checked.
fn training(args: &LinprobeArgs) -> anyhow::Result<Training> {
    let mut blrs = args.blrs.clone();
    blrs.sort_by(f64::total_cmp);
    blrs.dedup();
    ensure!(blrs.iter().all(|blr| blr.is_finite() && *blr > 0.0), "--blr: learning rates must be positive");
    ensure!(
        (0.0..args.epochs as f64).contains(&args.warmup_epochs),
        "--warmup-epochs {}: must be zero or more, and less than --epochs {}",
        args.warmup_epochs,
        args.epochs
    );
    ensure!(
        args.weight_decay >= 0.0 && args.weight_decay.is_finite(),
        "--weight-decay {}: must be zero or positive",
        args.weight_decay
    );
    ensure!(
        args.held_out > 0.0 && args.held_out <= 0.5,
        "--held-out {}: must be a share of the training images, above 0 and at most 0.5",
        args.held_out
    );
    Ok(Training {
        blrs,
        epochs: args.epochs.into(),
        warmup_epochs: args.warmup_epochs,
        batch_size: args.probe_batch as usize,
        weight_decay: args.weight_decay,
        seed: args.seed,
    })
}

/// The views that heads are trained on: torchvision's default crops, as in MAE's probe, or the central square.
fn train_views(args: &LinprobeArgs) -> Views {
    match args.views {
        0 => Views::CENTER,
        count => Views {
            policy: ViewPolicy::Rrc { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.5 },
            seed: args.seed,
            count,
        },
    }
}

/// Which training images choose the learning rate; with one learning rate none do.
fn split(images: &Images, args: &LinprobeArgs) -> anyhow::Result<Split> {
    if args.blrs.len() == 1 {
        return Ok(Split::without_choice(images.idxs.len()));
    }
    let split = Split::of(&images.hashes, args.seed, args.held_out);
    ensure!(
        !split.held_out.is_empty(),
        "--held-out {} of {} images holds out none; hold out more, or give one --blr, which needs no choice",
        args.held_out,
        split.all.len()
    );
    Ok(split)
}

/// Writes one line per model and kind of feature, below a line with what they share.
fn write_table(results: &[LinprobeResult], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(first) = results.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "linear probe, {} epochs, {} train and {} test images, {} classes; base lr chosen on {} held-out train images{}",
        first.protocol.epochs,
        first.train_images,
        first.test_images,
        first.classes,
        first.held_out_images,
        unusual(first.depth_window, first.precision.as_deref())
    )?;
    let row = |model: &str, kind: &str, probe: &Probe| {
        let test = &probe.test;
        let [top1, top5, balanced] = [test.top1, test.top5, test.balanced].map(percent);
        [model.to_owned(), kind.to_owned(), probe.blr.to_string(), top1, top5, balanced]
    };
    let rows =
        results.iter().flat_map(|result| result.features.iter().map(|(kind, probe)| row(&result.model, kind, probe)));
    let titles = ["model", "features", "base lr", "top-1", "top-5", "balanced"];
    write!(out, "{}", table(titles, [Left, Left, Right, Right, Right, Right], rows.collect()))
}
