//! `trainer knn`: weighted k-nearest neighbors on frozen features.

use std::collections::BTreeMap;
use std::io::Write;

use hub::HubSettings;
use images::ImageSource;
use program::table::{Left, Right, percent, table};
use program::words::count;
use schemas::DepthWindow;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cli::KnnArgs;
use crate::data::classes::Matching;
use crate::data::classes::count_of_unseen_classes;
use crate::eval::features::{self, Extraction, Fusion, Model, Views};
use crate::eval::knn::{self as vote, Accuracy, Labeled};
use crate::eval::record;
use crate::eval::sets::{classes, count_in_train, recorded, refuse_repeated, report_skipped, unusual};
use crate::pretrained::depth_window;

/// The result of `trainer knn`, one per model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KnnResult {
    pub model: String,
    /// The images that voted, as `--train` named them.
    pub train: String,
    /// The images that were classified, as `--test` named them.
    pub test: String,
    pub train_images: usize,
    /// Images that were classified.
    pub test_images: usize,
    /// Test images that are byte for byte among the train images too: each is its own nearest neighbor.
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
    pub k: u32,
    /// Per kind of feature: `cls` and `mean` (of patch tokens), both after the final norm, or `pixels`.
    pub accuracy: BTreeMap<String, Accuracy>,
}

/// `trainer knn`: features of both sets, then the vote.
pub(crate) fn knn(args: &KnnArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<()> {
    refuse_repeated(&args.models)?;
    let device = torch_ext::resolve_device(&args.device.device)?;
    args.precision.prepare(device)?;
    let models = args.models.iter().map(|spec| Model::load(spec, hub, device)).collect::<anyhow::Result<Vec<_>>>()?;
    features::require_kinds(&models, &args.features)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.device.loader_threads(device)).build()?;
    let names: Vec<&str> = args.models.iter().map(String::as_str).collect();
    let decoder = depth_window::decoder(args.depth_window, &names)?;
    let (train, test) =
        (ImageSource::open(&args.train)?.decoded_by(decoder), ImageSource::open(&args.test)?.decoded_by(decoder));
    let classes = classes(args.match_classes, &train, &test)?;
    info!(
        "{}, {} train and {} test images of {} classes",
        count(models.len() as u64, "model"),
        train.len(),
        test.len(),
        classes.len()
    );

    let extraction = Extraction {
        views: Views::CENTER,
        kinds: args.features.clone(),
        max_bytes: u64::MAX,
        batch_size: args.batch_size,
        precision: args.precision,
    };
    let extract = |name: &str, source: &ImageSource| {
        let images = features::extract(&models, source, &extraction, &pool)?;
        report_skipped(name, &images.skipped);
        anyhow::Ok(images)
    };
    let (train_images, test_images) = (extract("--train", &train)?, extract("--test", &test)?);
    let (train_labels, test_labels) = (
        classes.of_train(&train, train_images.idxs.iter().copied())?,
        classes.of_test(&test, test_images.idxs.iter().copied())?,
    );

    if let Some(few) = too_few(args.k, train_images.idxs.len()) {
        warn!("{few}");
    }
    let test_images_in_train = count_in_train(&train_images.hashes, &test_images.hashes);
    let of_unseen_classes = count_of_unseen_classes(&train_labels, &test_labels, classes.unseen_images())?;
    let mut results = Vec::with_capacity(models.len());
    for (i, model) in models.iter().enumerate() {
        let mut accuracy = BTreeMap::new();
        for (kind, features) in &train_images.features[i] {
            let train = Labeled { features: features.get(0), labels: train_labels.clone() };
            let test = Labeled { features: test_images.features[i][kind].get(0), labels: test_labels.clone() };
            accuracy.insert(kind.clone(), vote::knn(&train, &test, args.k, classes.len())?);
        }
        let result = KnnResult {
            model: model.describe(),
            train: args.train.clone(),
            test: args.test.clone(),
            train_images: train_images.idxs.len(),
            test_images: test_images.idxs.len(),
            test_images_in_train,
            skipped_images: train_images.skipped.len() + test_images.skipped.len(),
            classes: classes.len(),
            match_classes: args.match_classes,
            fusion: model.fusion(),
            depth_window: decoder.window(),
            precision: recorded(args.precision),
            test_images_of_unseen_classes: of_unseen_classes,
            k: args.k,
            accuracy,
        };
        record::save(
            model,
            "knn",
            &[
                "train",
                "test",
                "k",
                "train_images",
                "test_images",
                "classes",
                "match_classes",
                "fusion",
                "depth_window",
                "precision",
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
        first.train_images,
        first.test_images,
        first.classes,
        unusual(first.depth_window, first.precision.as_deref())
    )?;
    let row = |model: &str, kind: &str, found: &Accuracy| {
        [model.to_owned(), kind.to_owned(), percent(found.top1), percent(found.balanced)]
    };
    let rows =
        results.iter().flat_map(|result| result.accuracy.iter().map(|(kind, found)| row(&result.model, kind, found)));
    let titles = ["model", "features", "top-1", "balanced"];
    write!(out, "{}", table(titles, [Left, Left, Right, Right], rows.collect()))
}

#[cfg(test)]
mod tests;
