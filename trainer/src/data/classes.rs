//! Which class of one set of labeled images is which class of another, and how the classes are numbered: the one rule behind k-NN, linear
//! probe and fine-tuning.
//!
//! A source *names* its classes (class folders, names in a Parquet file, labels that are text) or only *numbers* them (integers in a column
//! or in `.cls` members). Two sources are matched like this, unless `--match-classes` says otherwise:
//!
//! | `--train` | `--test` | a class of one is the class of the other if |
//! |---|---|---|
//! | names | names | the names are the same |
//! | numbers | numbers | the numbers are equal |
//! | names | numbers | the name is that number; refused if the number could as well be the name's place in the list |
//!
//! *The same name* means: equal; else equal in Unicode's terms (composed and decomposed accents); else both decimal numbers of one value
//! (`007` and `7`). Names that differ only in case or in compatibility forms of characters are a question to the user, and so are names that
//! match in more than one way. Sets without a class in common are refused; classes that only the test set has are counted and reported.
//!
//! The training set numbers the classes: class `i` is its label `i`, whether it is in use or not. For names that is their order in the
//! source (folders sorted by code point as torchvision's `ImageFolder` sorts them, a `ClassLabel` as it lists them). Classes of the test set
//! alone follow. `Numbering` says whether classes without an image keep their places.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use images::ImageSource;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use unicode_normalization::UnicodeNormalization;

/// How many of the test images that could be decoded are of classes that no train image has that could be.
///
/// `told` of these images are of classes that the training set lacks, and the user has been warned of them. The other images are of classes
/// whose training images all failed to decode; this function warns of those.
///
/// # Errors
/// If all are: then no image can be given its own class, and a share of 0 would say nothing about the features.
pub(crate) fn count_of_unseen_classes(train: &[i64], test: &[i64], told: usize) -> anyhow::Result<usize> {
    let seen: BTreeSet<_> = train.iter().collect();
    let count = test.iter().filter(|label| !seen.contains(label)).count();
    ensure!(
        count < test.len(),
        "no test image is of a class that a train image has, of those images that can be decoded"
    );
    if count > told {
        warn!(
            "{} of classes of which no train image can be decoded: all of them count as wrong",
            match count - told {
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
    /// By name where both sources have names, else by number; refused where that is not clear.
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
    /// They do: class `i` is the training set's label `i`. For a classifier's outputs.
    Labels,
    /// They do not: the classes in use are numbered from 0, in the same order. For what looks at the images alone.
    InUse,
}

/// One of the two sets.
pub(crate) struct Set<'a> {
    /// The option that named it, for messages.
    pub(crate) option: &'static str,
    pub(crate) source: &'a ImageSource,
}

/// The classes of a training set and a test set in common terms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Classes {
    names: Vec<String>,
    train: BTreeMap<i32, i64>,
    test: BTreeMap<i32, i64>,
    in_use: usize,
    unseen_images: usize,
}

impl Classes {
    /// Matches the classes of two sets and numbers them; see the head of this module.
    ///
    /// # Errors
    /// If an image has no label, the sets have no class in common, or the rule does not decide; each says which setting does.
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
        let mut found = number(&train, &test, &pairs, numbering)?;
        found.unseen_images = unseen_images;
        info!(
            "classes: {} in {}, {} in {}, {in_both} in both",
            train.images.len(),
            train.option,
            test.images.len(),
            test.option
        );
        if numbering == Numbering::Labels && found.names.len() > found.in_use {
            info!(
                "{} of the {} classes have no image; their places are kept, so that class i is label i of {}",
                found.names.len() - found.in_use,
                found.names.len(),
                train.option
            );
        }
        Ok(found)
    }

    /// How many there are, those included that have no image but keep their place.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Test images of classes that no training image has.
    pub(crate) fn unseen_images(&self) -> usize {
        self.unseen_images
    }

    /// Their names, in the order of their numbers; a number's name is its decimal text.
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

    /// The same classes in the order `stored`, which the outputs of a classifier that exists have. As they were if `stored` lacks one that
    /// is in use: then it is of other images.
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

/// What a source says of its classes.
struct Side<'a> {
    option: &'static str,
    /// By label; empty where the source has numbers alone.
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
            let of_number = by_value(train, test, matching)?;
            let labels = test.images.keys();
            Ok(labels.map(|&l| (l, of_number.get(&l).copied())).collect())
        }
        (false, true, _) => {
            let of_number = by_value(test, train, matching)?;
            let number: BTreeMap<i32, i32> = of_number.iter().map(|(&n, &l)| (l, n)).collect();
            let labels = test.images.keys();
            // A number that no training image has is still a number.
            let own = |l: i32| decimal(&test.names[l as usize])?.parse().ok();
            Ok(labels.map(|&l| (l, number.get(&l).copied().or_else(|| own(l)))).collect())
        }
    }
}

/// A decimal number without leading zeros; `None` for any other name.
fn decimal(name: &str) -> Option<&str> {
    let is_number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let digits = is_number.then(|| name.trim_start_matches('0'))?;
    Some(if digits.is_empty() { "0" } else { digits })
}

/// For the numbers in use of one side the labels of the other whose names are these numbers.
fn by_value(named: &Side, numbered: &Side, matching: Matching) -> anyhow::Result<BTreeMap<i32, i32>> {
    let mut of_number: BTreeMap<i32, i32> = BTreeMap::new();
    for (name, label) in named.names.iter().zip(0..) {
        let Some(number) = decimal(name).and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        let Some(other) = of_number.insert(number, label) else {
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
    let same_either_way = |number: &i32| of_number.get(number) == Some(number);
    if matching == Matching::Auto && could_be_places && !numbered.images.keys().all(same_either_way) {
        bail!(
            "{}, and {}. Number i may be the class at place i of the names, counted from 0, or not: nothing in the two sets says so. \
             Give --match-classes number if it is; --match-classes name if a class of that name is meant; or give both sets names",
            named.describe(),
            numbered.describe()
        );
    }
    Ok(of_number)
}

/// What two names that are the same have in common.
fn same(name: &str) -> String {
    match decimal(name) {
        // No other name begins like this.
        Some(digits) => format!("\0{digits}"),
        None => name.nfc().collect(),
    }
}

/// What two names have in common that differ in case or in compatibility forms.
fn similar(name: &str) -> String {
    // Up and down again, since some letters are one of several lower-case ones.
    let folded = name.nfkc().collect::<String>();
    let folded = folded.to_uppercase().to_lowercase();
    same(&folded.nfkc().collect::<String>())
}

fn by_name(train: &Side, test: &Side, matching: Matching) -> anyhow::Result<Pairs> {
    for side in [train, test] {
        refuse_one_name_twice(side)?;
    }
    let places: BTreeMap<&str, i32> = train.names.iter().map(String::as_str).zip(0..).collect();
    let of_exact: BTreeSet<i32> = (test.names.iter()).filter_map(|name| places.get(name.as_str()).copied()).collect();
    let mut pairs: Pairs = (test.images.keys())
        .map(|&label| {
            let name = test.names[label as usize].as_str();
            (label, places.get(name).copied())
        })
        .collect();
    loosely(train, test, &mut pairs, &of_exact, same)?;
    match matching {
        Matching::Similar => loosely(train, test, &mut pairs, &of_exact, similar)?,
        Matching::Auto => {
            let mut meant = pairs.clone();
            loosely(train, test, &mut meant, &of_exact, similar)?;
            let asked: Vec<_> = (meant.iter()).filter(|(label, partner)| pairs[label] != **partner).collect();
            if let [(label, Some(partner)), ..] = asked[..] {
                bail!(
                    "{:?} of {} and {:?} of {} differ only in case or in the form of their characters ({} such classes). Give \
                     --match-classes similar if they are one class, --match-classes name if they are two, or rename one",
                    test.name(*label),
                    test.option,
                    train.name(*partner),
                    train.option,
                    asked.len()
                );
            }
        }
        Matching::Name | Matching::Number => {}
    }
    Ok(pairs)
}

/// Pairs what has no pair yet with the training set's class of the same `key`, unless that has one of its very name.
fn loosely(
    train: &Side,
    test: &Side,
    pairs: &mut Pairs,
    of_exact: &BTreeSet<i32>,
    key: fn(&str) -> String,
) -> anyhow::Result<()> {
    let taken: BTreeSet<i32> = pairs.values().flatten().chain(of_exact).copied().collect();
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

/// Refuses two names of one source that a reader cannot tell apart: images of one class would be of two.
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
        _ => {
            ". If label i of one is label i of the other all the same, whatever they are called, give --match-classes number"
        }
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
    let mut twice = BTreeSet::new();
    if let Some(name) = names.iter().find(|name| !twice.insert(*name)) {
        bail!("two classes would be called {name:?}: rename one of them in {} or {}", train.option, test.option);
    }
    let place: BTreeMap<i32, i64> = kept.iter().copied().zip(0..).collect();
    let behind: BTreeMap<i32, i64> = alone.iter().copied().zip(kept.len() as i64..).collect();
    let of_test = |(label, partner): (&i32, &Option<i32>)| match partner {
        Some(partner) => (*label, place[partner]),
        None => (*label, behind[label]),
    };
    Ok(Classes {
        train: train.images.keys().map(|&l| (l, place[&l])).collect(),
        test: pairs.iter().map(of_test).collect(),
        in_use: in_use.len() + alone.len(),
        unseen_images: 0,
        names,
    })
}

/// Refuses numbers that are names of things rather than classes from 0 on: nearly all outputs of a classifier would stand for nothing.
fn refuse_sparse(train: &Side, last: i32, in_use: usize) -> anyhow::Result<()> {
    /// Outputs that no classifier is too small for.
    const MOST: usize = 1 << 16;
    /// Beyond them, outputs for each class in use.
    const EACH: usize = 16;
    let outputs = last as usize + 1;
    ensure!(
        outputs <= MOST || outputs <= EACH.saturating_mul(in_use),
        "{}: labels go up to {last}, and {in_use} of them are in use. A classifier has an output for each label from 0, so that output i \
         is label i; number the classes from 0 without such gaps, or give them names",
        train.option
    );
    Ok(())
}
