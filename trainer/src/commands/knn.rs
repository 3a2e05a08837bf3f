//! `trainer knn`: weighted k-nearest neighbors on frozen features.

use std::collections::BTreeMap;
use std::io::Write;

use hub::HubSettings;
use program::table::{Left, Right, percent, table};
use program::words::count;
use serde::{Deserialize, Serialize};
use tch::Device;
use tracing::warn;

use crate::cli::KnnArgs;
use crate::dist::{Place, World, in_world, resolve_device};
use crate::eval::features::{self, Extraction, Views};
use crate::eval::frozen::{Frozen, ModelFacts};
use crate::eval::knn::{self as vote, Accuracy, Labeled};
use crate::eval::record;
use crate::eval::sets::{ClassFacts, LabeledSets, SetFacts};

/// The result of `trainer knn`, one per model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KnnResult {
    #[serde(flatten)]
    pub model: ModelFacts,
    #[serde(flatten)]
    pub sets: SetFacts,
    #[serde(flatten)]
    pub classes: ClassFacts,
    pub k: u32,
    /// Per kind of feature: `cls` and `mean` (of patch tokens), both after the final norm, or `pixels`.
    pub accuracy: BTreeMap<String, Accuracy>,
}

/// `trainer knn`: features of both sets, then the vote. `place` says which process of many this is.
pub(crate) fn knn(args: &KnnArgs, hub: &HubSettings, place: Option<&Place>, out: &mut dyn Write) -> anyhow::Result<()> {
    let device = resolve_device(&args.network.device.device, place)?;
    in_world(place, |world| evaluate(args, hub, world, device, out))
}

/// Evaluates as one of the processes of `world`: all compute features, and rank 0 alone votes and writes.
fn evaluate(
    args: &KnnArgs,
    hub: &HubSettings,
    world: &World,
    device: Device,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let frozen = Frozen::load(&args.models, &args.network, hub, device, world.local_size())?;
    features::require_kinds(&frozen.models, &args.features)?;
    let sets = LabeledSets::open(&args.labeled, &frozen)?;
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: args.features.clone(),
        max_bytes: u64::MAX,
        batch_size: args.network.batch_size,
        precision: frozen.precision,
    };
    let Some(found) = sets.features(&frozen, &extraction, &extraction, world)? else {
        return Ok(());
    };
    if let Some(few) = too_few(args.k, found.train.idxs.len()) {
        warn!("{few}");
    }
    let mut results = Vec::with_capacity(frozen.models.len());
    for (i, model) in frozen.models.iter().enumerate() {
        let mut accuracy = BTreeMap::new();
        for (kind, features) in &found.train.features[i] {
            let train = Labeled { features: features.get(0), labels: found.train_labels.clone() };
            let test = Labeled { features: found.test.features[i][kind].get(0), labels: found.test_labels.clone() };
            accuracy.insert(kind.clone(), vote::knn(&train, &test, args.k, found.classes.classes)?);
        }
        let result = KnnResult {
            model: frozen.facts(model),
            sets: found.sets.clone(),
            classes: found.classes.clone(),
            k: args.k,
            accuracy,
        };
        let question = [&SetFacts::QUESTION[..], &ClassFacts::QUESTION, &ModelFacts::QUESTION, &["k"]].concat();
        record::save(model, "knn", &question, &result)?;
        results.push(result);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        write_table(&results, out)?;
    }
    Ok(())
}

/// A message if there are fewer train images than neighbors; `None` if there are enough.
fn too_few(k: u32, train_images: usize) -> Option<String> {
    (train_images < k as usize).then(|| {
        format!(
            "--k {k}: --train has {} that can be used, so that all of them vote for every test image; give a smaller --k",
            count(train_images as u64, "image")
        )
    })
}

/// Writes one line per model and kind of feature, below a line with what they share.
fn write_table(results: &[KnnResult], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(first) = results.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "{}-NN, {} train and {} test images, {} classes{}",
        first.k,
        first.sets.train_images,
        first.sets.test_images,
        first.classes.classes,
        first.model.unusual()
    )?;
    let row = |model: &str, kind: &str, found: &Accuracy| {
        [model.to_owned(), kind.to_owned(), percent(found.top1), percent(found.balanced)]
    };
    let rows = results
        .iter()
        .flat_map(|result| result.accuracy.iter().map(|(kind, found)| row(&result.model.model, kind, found)));
    let titles = ["model", "features", "top-1", "balanced"];
    write!(out, "{}", table(titles, [Left, Left, Right, Right], rows.collect()))
}

#[cfg(test)]
mod tests;
