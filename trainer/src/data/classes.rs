//! Which class of one set of labeled images is which class of another, and how the classes are numbered: the one rule behind k-NN, linear
//! probe and fine-tuning.
//!
//! A source *names* its classes (class folders, names in a Parquet file, labels that are text) or only *numbers* them (integers in a column
//! or in `.cls` members). Two sources are matched like this, unless `--match-classes` says otherwise:
//!
//! | `--train` | `--test` | two classes are the same if |
//! |---|---|---|
//! | names | names | the names are the same |
//! | numbers | numbers | the numbers are equal |
//! | names | numbers | the name is that number; refused if the number could as well be the name's place in the list |
//!
//! *The same name* means: equal; else equal as Unicode text (composed and decomposed accents); else both decimal numbers of one value
//! (`007` and `7`). If names differ only in case or in compatibility forms of characters, or match in more than one way, the user has to
//! decide. Sets without a class in common are refused; classes that only the test set has are counted and reported.
//!
//! The training set numbers the classes: class `i` is its label `i`, whether it is in use or not. Names are numbered in the order of the
//! source (folders sorted by code point as torchvision's `ImageFolder` sorts them, a `ClassLabel` as it lists them). Classes that only the
//! test set has follow. `Numbering` says whether classes without an image keep their places.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use images::ImageSource;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use unicode_normalization::UnicodeNormalization;

/// Counts the decoded test images whose class has no decoded train image.
///
/// The user has already been warned of `reported` of these images, whose classes the training set lacks. The classes of the others have
/// training images, none of which could be decoded; this function warns of those.
///
/// # Errors
/// If all test images are of this kind: then none can be classified correctly, and an accuracy of 0 would say nothing about the features.
pub(crate) fn count_of_unseen_classes(train: &[i64], test: &[i64], reported: usize) -> anyhow::Result<usize> {
    let seen: BTreeSet<_> = train.iter().collect();
    let count = test.iter().filter(|label| !seen.contains(label)).count();
    ensure!(
        count < test.len(),
        "no test image that can be decoded is of a class with a train image that can be decoded"
    );
    if count > reported {
        warn!(
            "{} of a class without a train image that can be decoded: all of these count as wrong",
            match count - reported {
                1 => "1 test image is".to_owned(),
                more => format!("{more} test images are"),
            }
        );
    }
    Ok(count)
}

#[cfg(test)]
mod tests;

/// How the classes of two sources are matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// By name where both sources have names, else by number; ambiguous cases are refused.
    #[default]
    Auto,
    /// By name; the name of a numbered class is its number, and names that differ in case are different classes.
    Name,
    /// By name, where case and compatibility forms of characters make no difference.
    Similar,
    /// By number; the number of a named class is its place in the list of names, from 0.
    Number,
}

impl Matching {
    /// Whether it is the default, which results and runs do not mention.
    pub(crate) fn is_auto(&self) -> bool {
        *self == Matching::Auto
    }
}

/// Whether classes without an image in either set keep their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// They keep them: class `i` is the training set's label `i`. A classifier's outputs are numbered like this.
    Labels,
    /// They do not: the classes in use are numbered from 0, in the same order. k-NN and linear probes use this.
    InUse,
}

/// One of the two sets.
pub(crate) struct Set<'a> {
    /// The option that named it, for messages.
    pub(crate) option: &'static str,
    pub(crate) source: &'a ImageSource,
}

/// The classes of a training set and a test set under one numbering.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Classes {
    names: Vec<String>,
    train: BTreeMap<i32, i64>,
    test: BTreeMap<i32, i64>,
    in_use: usize,
    unseen_images: usize,
}

/// What is said of classes without an image.
fn places_kept(empty: usize, all: usize) -> String {
    match empty {
        1 => format!("1 of the {all} classes has no image; its place is kept"),
        empty => format!("{empty} of the {all} classes have no image; their places are kept"),
    }
}

impl Classes {
    /// Matches the classes of two sets and numbers them; see the head of this module.
    ///
    /// # Errors
    /// If an image has no label, the sets have no class in common, or the rule does not decide; the message names the setting that does.
    pub(crate) fn of(train: &Set, test: &Set, matching: Matching, numbering: Numbering) -> anyhow::Result<Classes> {
        let (train, test) = (Side::of(train)?, Side::of(test)?);
        let pairs = pair(&train, &test, matching)?;
        let seen = |label: &i32| {
            let partner = pairs.get(label).copied().flatten();
            partner.is_some_and(|label| train.images.contains_key(&label))
        };
        let in_both = test.images.keys().filter(|label| seen(label)).count();
        if in_both == 0 {
            bail!(nothing_in_common(&train, &test, matching));
        }
        let unseen: Vec<i32> = (test.images.keys().copied()).filter(|label| !seen(label)).collect();
        let unseen_images = unseen.iter().map(|label| test.images[label]).sum();
        if !unseen.is_empty() {
            warn!(
                "{} of the {} classes of {} ({}), with {unseen_images} of its {} images, are classes that no image of {} has: all of \
                 these images count as wrong",
                unseen.len(),
                test.images.len(),
                test.option,
                listed(unseen.iter().map(|&label| test.name(label))),
                test.images.values().sum::<usize>(),
                train.option,
            );
        }
        let mut classes = number(&train, &test, &pairs, numbering)?;
        classes.unseen_images = unseen_images;
        info!(
            "classes: {} in {}, {} in {}, {in_both} in both",
            train.images.len(),
            train.option,
            test.images.len(),
            test.option
        );
        if numbering == Numbering::Labels && classes.names.len() > classes.in_use {
            info!(
                "{}, so that class i is label i of {}",
                places_kept(classes.names.len() - classes.in_use, classes.names.len()),
                train.option
            );
        }
        Ok(classes)
    }

    /// The number of classes, including those that have no image but keep their place.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Test images of classes that no training image has.
    pub(crate) fn unseen_images(&self) -> usize {
        self.unseen_images
    }

    /// The names of the classes, in the order of their numbers; a number's name is its decimal text.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The class of each of the images `idxs` of the training set.
    pub(crate) fn of_train(
        &self,
        source: &ImageSource,
        idxs: impl IntoIterator<Item = usize>,
    ) -> anyhow::Result<Vec<i64>> {
        labels(&self.train, source, idxs)
    }

    /// The class of each of the images `idxs` of the test set.
    pub(crate) fn of_test(
        &self,
        source: &ImageSource,
        idxs: impl IntoIterator<Item = usize>,
    ) -> anyhow::Result<Vec<i64>> {
        labels(&self.test, source, idxs)
    }

    /// The same classes in the order `stored` of an existing classifier's outputs. They are returned unchanged if `stored` lacks a class that
    /// is in use: then the classifier is for other images.
    pub(crate) fn in_order_of(self, stored: &[String]) -> Classes {
        let places: BTreeMap<&str, i64> = stored.iter().map(String::as_str).zip(0..).collect();
        let moved = |labels: &BTreeMap<i32, i64>| -> Option<BTreeMap<i32, i64>> {
            let place = |class: &i64| places.get(self.names[*class as usize].as_str()).copied();
            (labels.iter()).map(|(label, class)| Some((*label, place(class)?))).collect()
        };
        match (moved(&self.train), moved(&self.test)) {
            (Some(train), Some(test)) => Classes { names: stored.to_vec(), train, test, ..self },
            _ => self,
        }
    }
}

fn labels(
    classes: &BTreeMap<i32, i64>,
    source: &ImageSource,
    idxs: impl IntoIterator<Item = usize>,
) -> anyhow::Result<Vec<i64>> {
    let class = |idx| {
        let label = source.label(idx);
        let class = label.and_then(|label| classes.get(&label));
        class.copied().with_context(|| format!("image {} has no class", source.key(idx)))
    };
    idxs.into_iter().map(class).collect()
}

/// The labels of one source, with their names.
struct Side<'a> {
    option: &'static str,
    /// Names by label; empty if the source only has numbers.
    names: &'a [String],
    /// Images of each label that has any.
    images: BTreeMap<i32, usize>,
}

impl<'a> Side<'a> {
    fn of(set: &Set<'a>) -> anyhow::Result<Side<'a>> {
        let (option, source) = (set.option, set.source);
        let names = source.label_names();
        let mut images = BTreeMap::new();
        let unlabeled: Vec<usize> = (0..source.len())
            .filter(|&idx| match source.label(idx) {
                Some(label) => {
                    *images.entry(label).or_default() += 1;
                    false
                }
                None => true,
            })
            .collect();
        if let Some(&first) = unlabeled.first() {
            bail!(
                "{option}: image {} has no label, and every image needs one ({} of {} have none). In a folder, the images of each class \
                 lie in a folder of its own; in tar shards each has a member .cls; a Parquet file has a column of labels",
                source.key(first),
                unlabeled.len(),
                source.len()
            );
        }
        let side = Side { option, names, images };
        let last = side.images.keys().next_back().copied().unwrap_or_default();
        ensure!(
            !side.is_named() || (last as usize) < names.len(),
            "{option}: there is a label {last}, but the source names {} classes, labels 0 to {}",
            names.len(),
            names.len() - 1
        );
        Ok(side)
    }

    fn is_named(&self) -> bool {
        !self.names.is_empty()
    }

    fn name(&self, label: i32) -> String {
        match self.names.get(label as usize) {
            Some(name) => name.clone(),
            None => label.to_string(),
        }
    }

    /// For messages: how many classes, and the first of them.
    fn describe(&self) -> String {
        let first = listed(self.images.keys().map(|&label| self.name(label)));
        let what = match self.is_named() {
            true => "names",
            false => "only numbers",
        };
        format!("{} has {what} for its {} classes ({first})", self.option, self.images.len())
    }
}

/// The first few of `names`, quoted.
fn listed(names: impl Iterator<Item = String>) -> String {
    const FEW: usize = 4;
    let mut names: Vec<String> = names.take(FEW + 1).map(|name| format!("{name:?}")).collect();
    if names.len() > FEW {
        names[FEW] = "...".to_owned();
    }
    names.join(", ")
}

/// For each label of the test set its label in the training set, if it has one there.
type Pairs = BTreeMap<i32, Option<i32>>;

fn pair(train: &Side, test: &Side, matching: Matching) -> anyhow::Result<Pairs> {
    match (train.is_named(), test.is_named(), matching) {
        (false, false, _) | (_, _, Matching::Number) => {
            let exists = |label: i32| !train.is_named() || (label as usize) < train.names.len();
            let labels = test.images.keys();
            Ok(labels.map(|&l| (l, exists(l).then_some(l))).collect())
        }
        (true, true, _) => by_name(train, test, matching),
        (true, false, _) => {
            let label_of_number = by_value(train, test, matching)?;
            let labels = test.images.keys();
            Ok(labels.map(|&l| (l, label_of_number.get(&l).copied())).collect())
        }
        (false, true, _) => {
            let label_of_number = by_value(test, train, matching)?;
            let number_of_label: BTreeMap<i32, i32> = label_of_number.iter().map(|(&n, &l)| (l, n)).collect();
            let labels = test.images.keys();
            // A number that no training image has is still a number.
            let own = |l: i32| decimal(&test.names[l as usize])?.parse().ok();
            Ok(labels.map(|&l| (l, number_of_label.get(&l).copied().or_else(|| own(l)))).collect())
        }
    }
}

/// A decimal number without leading zeros; `None` for any other name.
fn decimal(name: &str) -> Option<&str> {
    let is_number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let digits = is_number.then(|| name.trim_start_matches('0'))?;
    Some(if digits.is_empty() { "0" } else { digits })
}

/// Maps numbers to the labels of `named` whose names are these numbers.
///
/// # Errors
/// If two names are a number that `numbered` has, or if the numbers could also be places in the list of names.
fn by_value(named: &Side, numbered: &Side, matching: Matching) -> anyhow::Result<BTreeMap<i32, i32>> {
    let mut label_of_number: BTreeMap<i32, i32> = BTreeMap::new();
    for (name, label) in named.names.iter().zip(0..) {
        let Some(number) = decimal(name).and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        let Some(other) = label_of_number.insert(number, label) else {
            continue;
        };
        ensure!(
            !numbered.images.contains_key(&number),
            "{}: the names {:?} and {name:?} are both the number {number} that {} has. Rename one of them",
            named.option,
            named.name(other),
            numbered.option
        );
    }
    let mut numbers = numbered.images.keys();
    let could_be_places = numbers.all(|&number| (number as usize) < named.names.len());
    let same_either_way = |number: &i32| label_of_number.get(number) == Some(number);
    if matching == Matching::Auto && could_be_places && !numbered.images.keys().all(same_either_way) {
        bail!(
            "{}, and {}. Number i may be the class at place i of the names, counted from 0, or not: nothing in the two sets says so. \
             Give --match-classes number if it is; --match-classes name if a class of that name is meant; or give both sets names",
            named.describe(),
            numbered.describe()
        );
    }
    Ok(label_of_number)
}

/// A key that is equal for names that count as the same.
fn same(name: &str) -> String {
    match decimal(name) {
        // No name begins with a NUL, so numbers have keys of their own.
        Some(digits) => format!("\0{digits}"),
        None => name.nfc().collect(),
    }
}

/// A key that is equal for names that differ only in case or in compatibility forms.
fn similar(name: &str) -> String {
    // To upper case first, since some letters have several lower-case forms.
    let folded = name.nfkc().collect::<String>();
    let folded = folded.to_uppercase().to_lowercase();
    same(&folded.nfkc().collect::<String>())
}

fn by_name(train: &Side, test: &Side, matching: Matching) -> anyhow::Result<Pairs> {
    for side in [train, test] {
        refuse_one_name_twice(side)?;
    }
    let places: BTreeMap<&str, i32> = train.names.iter().map(String::as_str).zip(0..).collect();
    let exact: BTreeSet<i32> = (test.names.iter()).filter_map(|name| places.get(name.as_str()).copied()).collect();
    let mut pairs: Pairs = (test.images.keys())
        .map(|&label| {
            let name = test.names[label as usize].as_str();
            (label, places.get(name).copied())
        })
        .collect();
    loosely(train, test, &mut pairs, &exact, same)?;
    match matching {
        Matching::Similar => loosely(train, test, &mut pairs, &exact, similar)?,
        Matching::Auto => {
            let mut similar_pairs = pairs.clone();
            loosely(train, test, &mut similar_pairs, &exact, similar)?;
            let undecided: Vec<_> =
                (similar_pairs.iter()).filter(|(label, partner)| pairs[label] != **partner).collect();
            if let [(label, Some(partner)), ..] = undecided[..] {
                bail!(
                    "{:?} of {} and {:?} of {} differ only in case or in the form of their characters ({} such classes). Give \
                     --match-classes similar if they are one class, --match-classes name if they are two, or rename one",
                    test.name(*label),
                    test.option,
                    train.name(*partner),
                    train.option,
                    undecided.len()
                );
            }
        }
        Matching::Name | Matching::Number => {}
    }
    Ok(pairs)
}

/// Pairs each test class that has no partner yet with the training class of the same `key`. The training classes `exact` are left out, since
/// the test set has their exact names.
fn loosely(
    train: &Side,
    test: &Side,
    pairs: &mut Pairs,
    exact: &BTreeSet<i32>,
    key: fn(&str) -> String,
) -> anyhow::Result<()> {
    let taken: BTreeSet<i32> = pairs.values().flatten().chain(exact).copied().collect();
    let mut free: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (name, label) in train.names.iter().zip(0..) {
        if !taken.contains(&label) {
            free.entry(key(name)).or_default().push(label);
        }
    }
    let mut wanted: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (label, _) in pairs.iter().filter(|(_, partner)| partner.is_none()) {
        let key = key(&test.names[*label as usize]);
        if free.contains_key(&key) {
            wanted.entry(key).or_default().push(*label);
        }
    }
    for (key, wanted) in wanted {
        let (&[label], &[partner]) = (&wanted[..], &free[&key][..]) else {
            bail!(
                "{} of {} could each be {} of {}. Rename them, or give --match-classes name to take names that differ as different \
                 classes, or --match-classes number",
                listed(wanted.iter().map(|&label| test.name(label))),
                test.option,
                listed(free[&key].iter().map(|&label| train.name(label))),
                train.option
            );
        };
        pairs.insert(label, Some(partner));
    }
    Ok(())
}

/// Refuses two names of one source that look the same: the images of one class would be split into two.
fn refuse_one_name_twice(side: &Side) -> anyhow::Result<()> {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for name in side.names {
        if let Some(other) = seen.insert(name.nfc().collect(), name) {
            bail!(
                "{}: two classes have one name, {}, written as {} and as {}. Rename or merge them",
                side.option,
                name,
                other.escape_unicode(),
                name.escape_unicode()
            );
        }
    }
    Ok(())
}

fn nothing_in_common(train: &Side, test: &Side, matching: Matching) -> String {
    let hint = match matching {
        Matching::Number => "",
        _ => ". If label i means the same class in both, whatever its names, give --match-classes number",
    };
    format!(
        "no class of {} is one of {}: {}, and {}{hint}",
        test.option,
        train.option,
        train.describe(),
        test.describe()
    )
}

/// Numbers the classes: the training set's labels first, then those of the test set alone.
fn number(train: &Side, test: &Side, pairs: &Pairs, numbering: Numbering) -> anyhow::Result<Classes> {
    let partners = pairs.values().flatten().copied();
    let in_use: BTreeSet<i32> = train.images.keys().copied().chain(partners).collect();
    let alone: Vec<i32> = (pairs.iter()).filter(|(_, partner)| partner.is_none()).map(|(&label, _)| label).collect();
    let kept: Vec<i32> = match numbering {
        Numbering::InUse => in_use.iter().copied().collect(),
        Numbering::Labels if train.is_named() => (0..train.names.len() as i32).collect(),
        Numbering::Labels => {
            let last = in_use.last().copied().unwrap_or_default();
            refuse_sparse(train, last, in_use.len())?;
            (0..=last).collect()
        }
    };
    let mut names: Vec<String> = kept.iter().map(|&label| train.name(label)).collect();
    names.extend(alone.iter().map(|&label| test.name(label)));
    let mut seen = BTreeSet::new();
    if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
        bail!("two classes would be called {name:?}: rename one of them in {} or {}", train.option, test.option);
    }
    let place: BTreeMap<i32, i64> = kept.iter().copied().zip(0..).collect();
    let place_of_alone: BTreeMap<i32, i64> = alone.iter().copied().zip(kept.len() as i64..).collect();
    let test_class = |(label, partner): (&i32, &Option<i32>)| match partner {
        Some(partner) => (*label, place[partner]),
        None => (*label, place_of_alone[label]),
    };
    Ok(Classes {
        train: train.images.keys().map(|&l| (l, place[&l])).collect(),
        test: pairs.iter().map(test_class).collect(),
        in_use: in_use.len() + alone.len(),
        unseen_images: 0,
        names,
    })
}

/// Refuses labels with such wide gaps that nearly all outputs of a classifier would be unused, such as ids of things.
fn refuse_sparse(train: &Side, last: i32, in_use: usize) -> anyhow::Result<()> {
    /// This many outputs are always allowed.
    const ALWAYS_ALLOWED: usize = 1 << 16;
    /// More are allowed up to this many for each class in use.
    const PER_CLASS: usize = 16;
    let outputs = last as usize + 1;
    ensure!(
        outputs <= ALWAYS_ALLOWED || outputs <= PER_CLASS.saturating_mul(in_use),
        "{}: labels go up to {last}, and {in_use} of them are in use. A classifier has an output for each label from 0, so that output i \
         is label i; number the classes from 0 without such gaps, or give them names",
        train.option
    );
    Ok(())
}
