//! The linear probe of MAE (He et al. 2022, appendix A.1): a linear classifier over frozen features, trained with LARS.
//!
//! The reference computes the features of a new random crop in every epoch, and trains one head at one learning rate. Here the frozen
//! network runs once over a few fixed random crops of every image, which take turns by epoch, and one pass over these features
//! trains a head for each of several learning rates. The rate is chosen on a held-out part of the *training* images; then all heads
//! are trained again on all training images. The test images play no part in the choice.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::ensure;
use hub::HubSettings;
use program::table::{Left, Right, percent, table};
use schemas::ViewPolicy;
use serde::{Deserialize, Serialize};
use tch::Device;
use tracing::{info, warn};

use crate::cli::LinprobeArgs;
use crate::data::sampler::Epoch;
use crate::dist::{Place, World, in_world, resolve_device};
use crate::eval::features::{self, Extraction, Images, Views};
use crate::eval::frozen::{Frozen, ModelFacts};
use crate::eval::heads::{self, Training};
use crate::eval::probe::{Probe, Sets, Split, probe};
use crate::eval::record;
use crate::eval::sets::{ClassFacts, LabeledSets, SetFacts};

#[cfg(test)]
mod tests;

/// The result of `trainer linprobe`, one per model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinprobeResult {
    #[serde(flatten)]
    pub model: ModelFacts,
    #[serde(flatten)]
    pub sets: SetFacts,
    #[serde(flatten)]
    pub classes: ClassFacts,
    /// Those of the training images on which the learning rate was chosen; 0 if only one rate was tried.
    pub held_out_images: usize,
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

/// `trainer linprobe`: features of both sets, then the heads. `place` says which process of many this is.
pub(crate) fn linprobe(
    args: &LinprobeArgs,
    hub: &HubSettings,
    place: Option<&Place>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let device = resolve_device(&args.network.device.device, place)?;
    in_world(place, |world| evaluate(args, hub, world, device, out))
}

/// Evaluates as one of the processes of `world`: all compute features, and rank 0 alone trains the heads and writes.
fn evaluate(
    args: &LinprobeArgs,
    hub: &HubSettings,
    world: &World,
    device: Device,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let training = training(args)?;
    let frozen = Frozen::load(&args.models, &args.network, hub, device, world.local_size())?;
    features::require_kinds(&frozen.models, &args.features)?;
    let sets = LabeledSets::open(&args.labeled, &frozen)?;
    // Checked before features are computed for hours.
    heads::require_a_step(sets.train.len(), training.batch_size)?;
    let extraction = |views| Extraction {
        views,
        kinds: args.features.clone(),
        max_bytes: args.feature_gib.saturating_mul(1 << 30),
        batch_size: args.network.batch_size,
        precision: frozen.precision,
    };
    let of_train = extraction(train_views(args));
    let Some(found) = sets.features(&frozen, &of_train, &extraction(Views::CENTER), world)? else {
        return Ok(());
    };
    let split = split(&found.train, args)?;
    let epoch = Epoch::of(split.all.len() as u64, training.batch_size as u64);
    if let Some(left_over) = epoch.left_over() {
        info!("{left_over}");
    }

    let mut results = Vec::with_capacity(frozen.models.len());
    for (i, model) in frozen.models.iter().enumerate() {
        let mut probes = BTreeMap::new();
        for (kind, features) in &found.train.features[i] {
            let test_features = &found.test.features[i][kind];
            let set = Sets { train: (features, &found.train_labels), test: (test_features, &found.test_labels) };
            let probe = probe(&set, &split, found.classes.classes, &training, frozen.device)?;
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
            model: frozen.facts(model),
            sets: found.sets.clone(),
            classes: found.classes.clone(),
            held_out_images: split.held_out.len(),
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
        let own = ["protocol", "held_out_images", "features{}"];
        let question = [&SetFacts::QUESTION[..], &ClassFacts::QUESTION, &ModelFacts::QUESTION, &own].concat();
        record::save(model, "linprobe", &question, &result)?;
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
        first.sets.train_images,
        first.sets.test_images,
        first.classes.classes,
        first.held_out_images,
        first.model.unusual()
    )?;
    let row = |model: &str, kind: &str, probe: &Probe| {
        let test = &probe.test;
        let [top1, top5, balanced] = [test.top1, test.top5, test.balanced].map(percent);
        [model.to_owned(), kind.to_owned(), probe.blr.to_string(), top1, top5, balanced]
    };
    let rows = results
        .iter()
        .flat_map(|result| result.features.iter().map(|(kind, probe)| row(&result.model.model, kind, probe)));
    let titles = ["model", "features", "base lr", "top-1", "top-5", "balanced"];
    write!(out, "{}", table(titles, [Left, Left, Right, Right, Right, Right], rows.collect()))
}
