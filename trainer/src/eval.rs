//! What features know: k-nearest neighbours on students, teachers and raw pixels.

pub mod features;
pub mod knn;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::Context;
use images::ImageSource;
use schemas::atomic;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cli::KnnArgs;
use features::{Images, Model};
use knn::{Accuracy, Labelled};

/// The result's name in a run folder.
pub const KNN_FILE: &str = "eval/knn.json";

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
pub fn run_knn(args: &KnnArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let device = torch_ext::resolve_device(&args.device.device)?;
    let model = Model::load(&args.model, args.untrained, device)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.device.loader_threads())
        .build()?;
    let (train, test) = (
        ImageSource::open(&args.train)?,
        ImageSource::open(&args.test)?,
    );
    let classes = Classes::of(&[&train, &test])?;
    info!(
        "{}: {} train and {} test images of {} classes",
        model.describe(),
        train.len(),
        test.len(),
        classes.0.len()
    );

    let extract = |name: &str, source: &ImageSource| {
        let images = features::extract(&model, source, args.batch_size, args.precision, &pool)?;
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

    let mut accuracy = BTreeMap::new();
    for (kind, features) in &train_images.features {
        let train = Labelled {
            features: features.shallow_clone(),
            labels: train_labels.clone(),
        };
        let test = Labelled {
            features: test_images.features[kind].shallow_clone(),
            labels: test_labels.clone(),
        };
        accuracy.insert(
            kind.clone(),
            knn::knn(&train, &test, args.k, classes.0.len())?,
        );
    }

    let seen: BTreeSet<_> = train_images.hashes.iter().collect();
    let result = KnnResult {
        model: model.describe(),
        train_images: train_images.idxs.len(),
        test_images: test_images.idxs.len(),
        test_images_in_train: test_images
            .hashes
            .iter()
            .filter(|hash| seen.contains(hash))
            .count(),
        skipped_images: train_images.skipped.len() + test_images.skipped.len(),
        classes: classes.0.len(),
        k: args.k,
        accuracy,
    };
    if result.test_images_in_train > 0 {
        warn!(
            "{} test images are among the train images too; their votes say nothing",
            result.test_images_in_train
        );
    }
    let json = serde_json::to_string_pretty(&result)?;
    if let Some(run) = model.run_folder() {
        let name = if args.untrained {
            "eval/knn-untrained.json"
        } else {
            KNN_FILE
        };
        atomic::write(&run.join(name), json.as_bytes())?;
    }
    if args.json {
        writeln!(out, "{json}")?;
    } else {
        write_table(&result, out)?;
    }
    Ok(())
}

fn write_table(result: &KnnResult, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}", result.model)?;
    writeln!(
        out,
        "{}-NN, {} train and {} test images, {} classes",
        result.k, result.train_images, result.test_images, result.classes
    )?;
    writeln!(out, "{:<10} {:>8} {:>10}", "features", "top-1", "balanced")?;
    for (kind, accuracy) in &result.accuracy {
        writeln!(
            out,
            "{kind:<10} {:>7.2}% {:>9.2}%",
            100.0 * accuracy.top1,
            100.0 * accuracy.balanced
        )?;
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
