//! Names with which data sets separate training and test images.

use std::collections::BTreeMap;

/// Words that name a split, and the split.
const WORDS: [(&str, &str); 24] = [
    ("train", "train"),
    ("training", "train"),
    ("trn", "train"),
    ("test", "test"),
    ("testing", "test"),
    ("tst", "test"),
    ("val", "validation"),
    ("valid", "validation"),
    ("validate", "validation"),
    ("validation", "validation"),
    ("dev", "validation"),
    ("eval", "evaluation"),
    ("evaluation", "evaluation"),
    ("trainval", "trainval"),
    ("holdout", "holdout"),
    ("heldout", "holdout"),
    ("unlabeled", "unlabeled"),
    ("unlabelled", "unlabeled"),
    ("unsupervised", "unlabeled"),
    ("query", "query"),
    ("gallery", "gallery"),
    ("minival", "validation"),
    ("trainset", "train"),
    ("testset", "test"),
];

/// Words that may accompany the split in the name of its folder.
const NEUTRAL: [&str; 14] = [
    "image",
    "images",
    "img",
    "imgs",
    "jpeg",
    "jpegimages",
    "set",
    "data",
    "dataset",
    "split",
    "ilsvrc",
    "coco",
    "voc",
    "subset",
];

fn words(name: &str) -> impl Iterator<Item = String> + '_ {
    name.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn split_of_word(word: &str) -> Option<&'static str> {
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, split)| *split)
}

/// The split of a folder's name: `train`, `val2017`, `ILSVRC2012_img_train`. A folder `train station` is a class.
pub(super) fn of_folder(name: &str) -> Option<&'static str> {
    let mut found = None;
    for word in words(name) {
        match split_of_word(&word) {
            Some(split) if found.is_none() || found == Some(split) => found = Some(split),
            // `test-dev` belongs to a test server.
            Some("validation") if found == Some("test") => {}
            Some(_) => return None,
            None if NEUTRAL.contains(&&*word) => {}
            None => return None,
        }
    }
    found
}

/// The split of a shard's name: the word in `imagenet-train-0003.tar`, or the text before the numbers in
/// `en-00000-of-00002.parquet`, as Hugging Face names splits.
pub(super) fn of_shard(name: &str) -> Option<String> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let by_word: Vec<&str> = words(stem).filter_map(|word| split_of_word(&word)).collect();
    if let [first, rest @ ..] = by_word.as_slice()
        && rest.iter().all(|other| other == first)
    {
        return Some((*first).to_owned());
    }
    let parts: Vec<&str> = stem.rsplitn(4, '-').collect();
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    match parts.as_slice() {
        [total, "of", number, split] if is_number(total) && is_number(number) => Some((*split).to_owned()),
        _ => by_word.first().map(|_| by_word.join("-")),
    }
}

/// Files or folders by split. If there is more than one split, the user has to choose.
#[derive(Default)]
pub(super) struct Splits {
    by_split: BTreeMap<String, Vec<String>>,
}

impl Splits {
    pub(super) fn add(&mut self, split: impl Into<String>, name: impl Into<String>) {
        self.by_split.entry(split.into()).or_default().push(name.into());
    }

    /// Whether there is more than one split.
    pub(super) fn is_choice(&self) -> bool {
        self.by_split.len() > 1
    }

    /// `train (2 files), test (1 file)`; `unit` is in the singular.
    pub(super) fn list(&self, unit: &str) -> String {
        let count = |n: usize| match n {
            1 => format!("1 {unit}"),
            n => format!("{n} {unit}s"),
        };
        self.by_split
            .iter()
            .map(|(split, names)| format!("{split} ({})", count(names.len())))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// For every split a pattern that matches all its files and no others, below `folder`.
    pub(super) fn patterns(&self, folder: &str) -> Vec<String> {
        self.by_split
            .iter()
            .map(|(split, names)| {
                let others = self.by_split.iter().filter(|(other, _)| *other != split).flat_map(|(_, names)| names);
                format!("{folder}/{}", pattern(names, others))
            })
            .collect()
    }
}

/// A glob for these names, or braces if no glob separates them from the others.
fn pattern<'a>(names: &[String], mut others: impl Iterator<Item = &'a String>) -> String {
    let [first, rest @ ..] = names else {
        return String::new();
    };
    if rest.is_empty() {
        return first.clone();
    }
    let common = |one: &str, other: &str, from_end: bool| {
        let (mut one, mut other) = (one.chars(), other.chars());
        let mut bytes = 0;
        loop {
            let pair = match from_end {
                true => (one.next_back(), other.next_back()),
                false => (one.next(), other.next()),
            };
            match pair {
                (Some(a), Some(b)) if a == b => bytes += a.len_utf8(),
                _ => return bytes,
            }
        }
    };
    let (mut head, mut tail) = (first.as_str(), first.as_str());
    for name in rest {
        head = &head[..common(head, name, false)];
        tail = &tail[tail.len() - common(tail, name, true)..];
    }
    // Leading digits that all shard numbers happen to share do not belong to the name.
    let head = head.trim_end_matches(|c: char| c.is_ascii_digit());
    let tail = tail.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_clear = |name: &&String| name.starts_with(head) && name.ends_with(tail);
    if others.any(|name| is_clear(&name)) {
        return format!("{{{}}}", names.join(","));
    }
    format!("{head}*{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_splits_and_folders_that_are_classes() {
        for (name, split) in [
            ("train", "train"),
            ("Training", "train"),
            ("train2017", "train"),
            ("train_images", "train"),
            ("ILSVRC2012_img_train", "train"),
            ("val", "validation"),
            ("valid", "validation"),
            ("test-dev2017", "test"),
            ("unlabeled", "unlabeled"),
            ("unlabelled", "unlabeled"),
        ] {
            assert_eq!(of_folder(name), Some(split), "{name}");
        }
        for name in ["cat", "train station", "bullet_train", "test tube", "valley", "n01440764", "0"] {
            assert_eq!(of_folder(name), None, "{name}");
        }
    }

    #[test]
    fn shards_are_named_after_their_split() {
        let split = |name: &str| of_shard(name);
        for (name, expected) in [
            ("train-00000-of-00002.parquet", "train"),
            ("imagenet1k-validation-0007.tar", "validation"),
            ("test.parquet", "test"),
            ("valid_03.tar", "validation"),
            ("en-00000-of-00002.parquet", "en"),
            ("my-set-00000-of-00002.parquet", "my-set"),
            ("train-test-000.tar", "train-test"),
        ] {
            assert_eq!(split(name).as_deref(), Some(expected), "{name}");
        }
        for name in ["0000.parquet", "part_8.tar", "trains.tar", "latest.tar", "cc3m-00001.tar"] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn a_pattern_means_one_split() {
        let mut splits = Splits::default();
        for name in ["train-000.tar", "train-001.tar", "test.tar", "trainval-0.tar", "trainval-1.tar"] {
            splits.add(of_shard(name).unwrap(), name);
        }
        assert_eq!(splits.patterns("d"), ["d/test.tar", "d/train-*.tar", "d/trainval-*.tar"]);
        let mut splits = Splits::default();
        for name in ["a_train.tar", "b_train.tar", "a_test.tar", "b_test.tar"] {
            splits.add(of_shard(name).unwrap(), name);
        }
        assert_eq!(splits.patterns("d"), ["d/*_test.tar", "d/*_train.tar"]);
        let mut splits = Splits::default();
        for name in ["1train.tar", "train2.tar", "1test.tar"] {
            splits.add(of_shard(name).unwrap(), name);
        }
        assert_eq!(splits.patterns("d"), ["d/1test.tar", "d/{1train.tar,train2.tar}"]);
    }
}
