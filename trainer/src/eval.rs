//! What features know: k-nearest neighbours on students, teachers and raw pixels.

pub mod features;
pub mod knn;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::Context;
use images::ImageSource;
use models::hub::HubSettings;
use schemas::atomic;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cli::KnnArgs;
use features::{Images, Model};
use knn::{Accuracy, Labelled};

/// The result's name in a run folder.
pub const KNN_FILE: &str = "eval/knn.json";
/// The same for the student before its first step.
pub const KNN_UNTRAINED_FILE: &str = "eval/knn-untrained.json";

/// What `trainer knn` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnnResult {
    /// What was evaluated.
    pub model: String,
    /// Images that voted.
    pub train_images: usize,
    /// Images that were classified.
    pub test_images: usize,
    /// Test images whose very bytes are among the train images too: each is its own nearest neighbour.
    pub test_images_in_train: usize,
    /// Images that could not be decoded and took no part.
    pub skipped_images: usize,
    /// Classes of the two sets together.
    pub classes: usize,
    /// Neighbours that voted.
    pub k: u32,
    /// Per kind of feature: `cls` and `mean` (of patch tokens), both after the final norm, or `pixels`.
    pub accuracy: BTreeMap<String, Accuracy>,
}

/// `trainer knn`: features of both sets, then the vote.
pub fn run_knn(args: &KnnArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    let device = torch_ext::resolve_device(&args.device.device)?;
    let models = args
        .models
        .iter()
        .map(|spec| Model::load(spec, hub, device))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.device.loader_threads())
        .build()?;
    let (train, test) = (
        ImageSource::open(&args.train)?,
        ImageSource::open(&args.test)?,
    );
    let classes = Classes::of(&[&train, &test])?;
    info!(
        "{} models, {} train and {} test images of {} classes",
        models.len(),
        train.len(),
        test.len(),
        classes.0.len()
    );

    let extract = |name: &str, source: &ImageSource| {
        let images = features::extract(&models, source, args.batch_size, args.precision, &pool)?;
        if !images.skipped.is_empty() {
            warn!(
                "{name}: {} images cannot be used, the first is {}",
                images.skipped.len(),
                images.skipped[0]
            );
        }
        anyhow::Ok(images)
    };
    let (train_images, test_images) = (extract("--train", &train)?, extract("--test", &test)?);
    let (train_labels, test_labels) = (
        classes.labels(&train, &train_images)?,
        classes.labels(&test, &test_images)?,
    );

    let seen: BTreeSet<_> = train_images.hashes.iter().collect();
    let test_images_in_train = test_images
        .hashes
        .iter()
        .filter(|hash| seen.contains(hash))
        .count();
    if test_images_in_train > 0 {
        warn!(
            "{test_images_in_train} test images are among the train images too; their votes say nothing"
        );
    }
    let mut results = Vec::with_capacity(models.len());
    for (i, model) in models.iter().enumerate() {
        let mut accuracy = BTreeMap::new();
        for (kind, features) in &train_images.features[i] {
            let train = Labelled {
                features: features.shallow_clone(),
                labels: train_labels.clone(),
            };
            let test = Labelled {
                features: test_images.features[i][kind].shallow_clone(),
                labels: test_labels.clone(),
            };
            accuracy.insert(
                kind.clone(),
                knn::knn(&train, &test, args.k, classes.0.len())?,
            );
        }
        let result = KnnResult {
            model: model.describe(),
            train_images: train_images.idxs.len(),
            test_images: test_images.idxs.len(),
            test_images_in_train,
            skipped_images: train_images.skipped.len() + test_images.skipped.len(),
            classes: classes.0.len(),
            k: args.k,
            accuracy,
        };
        if let Some(run) = model.run_folder() {
            let name = if model.untrained() {
                KNN_UNTRAINED_FILE
            } else {
                KNN_FILE
            };
            let json = serde_json::to_string_pretty(&result)?;
            atomic::write(&run.join(name), json.as_bytes())?;
        }
        results.push(result);
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        write_table(&results, out)?;
    }
    Ok(())
}

/// One line a model and kind of feature, under what they share.
fn write_table(results: &[KnnResult], out: &mut dyn Write) -> std::io::Result<()> {
    let Some(first) = results.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "{}-NN, {} train and {} test images, {} classes",
        first.k, first.train_images, first.test_images, first.classes
    )?;
    let width = results.iter().map(|r| r.model.chars().count()).max();
    let width = width.unwrap_or(0).max("model".len());
    writeln!(
        out,
        "{:<width$}  {:<8} {:>8} {:>10}",
        "model", "features", "top-1", "balanced"
    )?;
    for result in results {
        for (kind, accuracy) in &result.accuracy {
            writeln!(
                out,
                "{:<width$}  {kind:<8} {:>7.2}% {:>9.2}%",
                result.model,
                100.0 * accuracy.top1,
                100.0 * accuracy.balanced
            )?;
        }
    }
    Ok(())
}

/// The classes of several sources in common terms: their names where every source names them, else their numbers.
struct Classes(BTreeMap<String, i64>);

impl Classes {
    fn of(sources: &[&ImageSource]) -> anyhow::Result<Classes> {
        let mut names = BTreeSet::new();
        for source in sources {
            for i in 0..source.len() {
                names.insert(class_name(source, i)?);
            }
        }
        Ok(Classes(names.into_iter().zip(0..).collect()))
    }

    /// The classes of a source's images.
    fn labels(&self, source: &ImageSource, images: &Images) -> anyhow::Result<Vec<i64>> {
        images
            .idxs
            .iter()
            .map(|&i| Ok(self.0[&class_name(source, i)?]))
            .collect()
    }
}

/// What image `i`'s class is called; its number where the source has no names.
fn class_name(source: &ImageSource, i: usize) -> anyhow::Result<String> {
    let label = source.label(i).with_context(|| {
        format!(
            "image {} has no label; k-NN needs one for every image",
            source.key(i)
        )
    })?;
    let name = usize::try_from(label)
        .ok()
        .and_then(|label| source.label_names().get(label));
    Ok(name.cloned().unwrap_or_else(|| label.to_string()))
}
