//! The common parts of `knn`, `linprobe` and `segment`: two sets of labeled images, and the messages about them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use images::ImageSource;
use models::precision::Precision;
use program::words::count;
use schemas::{ContentHash, DepthWindow};
use tracing::warn;

use crate::data::classes::{Classes, Matching, Numbering, Set};

/// Refuses a model that is given twice, however its path is written: its result would be written twice or overwrite itself.
pub(crate) fn refuse_repeated(models: &[String]) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for model in models {
        let (prefix, path) = model.rsplit_once(':').unwrap_or(("", model));
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        if let Some(before) = seen.insert((prefix, path), model) {
            bail!(
                "--model {model} is given twice{}",
                match before == model {
                    true => String::new(),
                    false => format!(", first as {before}"),
                }
            );
        }
    }
    Ok(())
}

/// A precision as results record it; `None` for f32, the default.
pub(crate) fn recorded(precision: Precision) -> Option<String> {
    (precision != Precision::F32).then(|| precision.name().to_owned())
}

/// The depth window and precision for the head of a table, as far as they are not the defaults.
pub(crate) fn unusual(window: DepthWindow, precision: Option<&str>) -> String {
    let window = (!window.is_high_byte()).then(|| format!(", depth window {window}"));
    let precision = precision.map(|precision| format!(", in {precision}"));
    window.unwrap_or_default() + &precision.unwrap_or_default()
}

/// Warns how many images of a set cannot be used, with the reason for the first.
pub(crate) fn report_skipped(name: &str, skipped: &[String]) {
    if let Some(first) = skipped.first() {
        warn!("{name}: {} cannot be used, the first is {first}", count(skipped.len() as u64, "image"));
    }
}

/// The classes that have an image in either set.
pub(crate) fn classes(matching: Matching, train: &ImageSource, test: &ImageSource) -> anyhow::Result<Classes> {
    let set = |option, source| Set { option, source };
    let (train, test) = (set("--train", train), set("--test", test));
    Classes::of(&train, &test, matching, Numbering::InUse)
}

/// Counts the test images that are byte for byte among the train images, and warns if there are any.
pub(crate) fn count_in_train(train: &[ContentHash], test: &[ContentHash]) -> usize {
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
