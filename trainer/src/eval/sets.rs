//! The images of an evaluation: two sets, their labels, and the part of a result that says which they are.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use images::ImageSource;
use program::words::count;
use schemas::ContentHash;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::features::{self, Extraction, Images};
use super::frozen::Frozen;
use crate::cli::LabeledArgs;
use crate::data::classes::{Classes, Matching, Numbering, Set, count_of_unseen_classes};
use crate::dist::World;
use crate::recipe::Dist;

/// Two sets of images that have labels, and the classes that occur in either.
pub(crate) struct LabeledSets {
    pub train: ImageSource,
    pub test: ImageSource,
    pub classes: Classes,
    args: LabeledArgs,
}

/// Features of the images of [`LabeledSets`] that can be used, and their classes.
pub(crate) struct LabeledFeatures {
    pub train: Images,
    pub test: Images,
    /// The class of each training image.
    pub train_labels: Vec<i64>,
    /// The class of each test image.
    pub test_labels: Vec<i64>,
    /// What results say of the images.
    pub sets: SetFacts,
    /// What results say of the classes.
    pub classes: ClassFacts,
}

/// Which images were used: fields of every result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SetFacts {
    /// The images of which the classifier was made, as `--train` named them.
    pub train: String,
    /// The images that were classified, as `--test` named them.
    pub test: String,
    pub train_images: usize,
    pub test_images: usize,
    /// Test images that are byte for byte among the train images too.
    pub test_images_in_train: usize,
    /// Images that could not be decoded and took no part.
    pub skipped_images: usize,
}

/// Which classes were told apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassFacts {
    /// Classes of the two sets together.
    pub classes: usize,
    /// How their classes were matched, unless by the default rule.
    #[serde(default, skip_serializing_if = "Matching::is_auto")]
    pub match_classes: Matching,
    /// Test images of classes that no train image has: all count as wrong.
    #[serde(default)]
    pub test_images_of_unseen_classes: usize,
}

impl SetFacts {
    /// The fields that belong to the question: see [`record::save`](super::record::save).
    pub(crate) const QUESTION: [&str; 4] = ["train", "test", "train_images", "test_images"];

    /// Facts of two sets by the contents of the images that were used. Warns if test images are among the training images.
    pub(crate) fn new(
        (train, test): (&str, &str),
        train_hashes: &[ContentHash],
        test_hashes: &[ContentHash],
        skipped_images: usize,
    ) -> SetFacts {
        SetFacts {
            train: train.to_owned(),
            test: test.to_owned(),
            train_images: train_hashes.len(),
            test_images: test_hashes.len(),
            test_images_in_train: count_in_train(train_hashes, test_hashes),
            skipped_images,
        }
    }
}

impl ClassFacts {
    /// The fields that belong to the question: see [`record::save`](super::record::save).
    pub(crate) const QUESTION: [&str; 2] = ["classes", "match_classes"];
}

impl LabeledSets {
    /// Opens both sets for `frozen`.
    ///
    /// # Errors
    /// If a set cannot be opened, or the classes of the two cannot be matched.
    pub(crate) fn open(args: &LabeledArgs, frozen: &Frozen) -> anyhow::Result<LabeledSets> {
        let train = ImageSource::open(&args.train)?.decoded_by(frozen.decoder);
        let test = ImageSource::open(&args.test)?.decoded_by(frozen.decoder);
        let set = |option, source| Set { option, source };
        let classes =
            Classes::of(&set("--train", &train), &set("--test", &test), args.match_classes, Numbering::InUse)?;
        info!(
            "{}, {} train and {} test images of {} classes",
            count(frozen.models.len() as u64, "model"),
            train.len(),
            test.len(),
            classes.len()
        );
        Ok(LabeledSets { train, test, classes, args: args.clone() })
    }

    /// Computes the features of both sets by each of the models. The processes of `world` share the images; rank 0 gets all features, and the
    /// others none.
    ///
    /// # Errors
    /// If no image of a set can be read, the features are too many, no test image is of a class of the training images, or other processes
    /// evaluate something else.
    pub(crate) fn features(
        &self,
        frozen: &Frozen,
        of_train: &Extraction,
        of_test: &Extraction,
        world: &World,
    ) -> anyhow::Result<Option<LabeledFeatures>> {
        world.agree(&self.agreed(frozen, of_train))?;
        world.connect(frozen.device, Dist::default().timeout())?;
        let extract = |name: &str, source: &ImageSource, extraction: &Extraction| {
            let images =
                features::extract(&frozen.models, source, extraction, &frozen.pool, world).context(name.to_owned())?;
            report_skipped(name, &images.skipped);
            anyhow::Ok(images)
        };
        let train = extract("--train", &self.train, of_train)?;
        let test = extract("--test", &self.test, of_test)?;
        if !world.is_main() {
            return Ok(None);
        }
        let train_labels = self.classes.of_train(&self.train, train.idxs.iter().copied())?;
        let test_labels = self.classes.of_test(&self.test, test.idxs.iter().copied())?;
        let skipped = train.skipped.len() + test.skipped.len();
        let sets = SetFacts::new((&self.args.train, &self.args.test), &train.hashes, &test.hashes, skipped);
        let classes = ClassFacts {
            classes: self.classes.len(),
            match_classes: self.args.match_classes,
            test_images_of_unseen_classes: count_of_unseen_classes(
                &train_labels,
                &test_labels,
                self.classes.unseen_images(),
            )?,
        };
        Ok(Some(LabeledFeatures { train, test, train_labels, test_labels, sets, classes }))
    }

    /// What all processes must have in common.
    fn agreed(&self, frozen: &Frozen, of_train: &Extraction) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::from([
            ("--train".to_owned(), images_fact(&self.train)),
            ("--test".to_owned(), images_fact(&self.test)),
            ("--depth-window".to_owned(), frozen.decoder.window().to_string()),
            ("--precision".to_owned(), frozen.precision.name().to_owned()),
            ("--features".to_owned(), of_train.kinds.join(",")),
            ("--batch-size".to_owned(), of_train.batch_size.to_string()),
            ("--views".to_owned(), of_train.views.count.to_string()),
            ("--seed".to_owned(), of_train.views.seed.to_string()),
        ]);
        let models = frozen.models.iter().enumerate();
        facts.extend(models.map(|(i, model)| (format!("model {}", i + 1), model.digest().to_owned())));
        facts
    }
}

/// What tells a set of images from others, for records and for processes that must have the same.
pub(crate) fn images_fact(source: &ImageSource) -> String {
    let identity = source.identity();
    format!("{} images in a {} source (SHA-256 {})", identity.samples, identity.kind, identity.digest)
}

/// Warns how many images of a set cannot be used, with the reason for the first.
pub(crate) fn report_skipped(name: &str, skipped: &[String]) {
    if let Some(first) = skipped.first() {
        warn!("{name}: {} cannot be used, the first is {first}", count(skipped.len() as u64, "image"));
    }
}

/// Counts the test images that are byte for byte among the train images, and warns if there are any.
fn count_in_train(train: &[ContentHash], test: &[ContentHash]) -> usize {
    let seen: BTreeSet<_> = train.iter().collect();
    let count = test.iter().filter(|hash| seen.contains(hash)).count();
    if count > 0 {
        warn!(
            "{} also in the train set: this part of the accuracy says nothing about unseen images",
            match count {
                1 => "1 test image is".to_owned(),
                count => format!("{count} test images are"),
            }
        );
    }
    count
}
