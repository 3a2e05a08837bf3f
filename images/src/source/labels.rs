//! Classes as sources state them: whole numbers, or names that are numbered in the order of their bytes.

use std::collections::{BTreeMap, HashMap};

use unicode_normalization::UnicodeNormalization;

/// Maximum number of distinct class names. Text with more distinct values is not taken as a label: every name is stored in the cache's
/// identity.
pub(super) const MAX_NAMES: usize = 1 << 16;

/// Class names of images, in order of appearance.
#[derive(Default)]
pub(super) struct Names {
    index: HashMap<String, u32>,
}

impl Names {
    /// The index of a name; a new name is added. `None` if there are too many.
    pub(super) fn add(&mut self, name: &str) -> Option<u32> {
        if let Some(&index) = self.index.get(name) {
            return Some(index);
        }
        let index = self.index.len();
        if index == MAX_NAMES {
            return None;
        }
        self.index.insert(name.to_owned(), index as u32);
        Some(index as u32)
    }

    /// The names sorted bytewise, and for each index in order of appearance its place among them. So a training and a test set with the
    /// same classes have the same labels.
    pub(super) fn sorted(self) -> (Vec<String>, Vec<i32>) {
        let mut names: Vec<(String, u32)> = self.index.into_iter().collect();
        names.sort_unstable();
        let mut places = vec![0; names.len()];
        for (place, (_, index)) in (0..).zip(&names) {
            places[*index as usize] = place;
        }
        (names.into_iter().map(|(name, _)| name).collect(), places)
    }
}

/// Words in the names of columns and members that usually hold classes.
const LABEL_WORDS: [&str; 28] = [
    "label",
    "labels",
    "lbl",
    "cls",
    "class",
    "classes",
    "classid",
    "classname",
    "labelid",
    "category",
    "categories",
    "cat",
    "target",
    "targets",
    "y",
    "gt",
    "species",
    "breed",
    "genus",
    "family",
    "synset",
    "wnid",
    "genre",
    "style",
    "digit",
    "variety",
    "diagnosis",
    "disease",
];

/// Whether a column or member has a label's name: `label_idx`, `classId`, `coarse-label`, `y`.
pub(super) fn is_like_a_label(name: &str) -> bool {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        let starts_word = c.is_uppercase() && was_lower;
        was_lower = c.is_lowercase();
        if !c.is_alphabetic() || starts_word {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
    }
    words.iter().any(|word| LABEL_WORDS.contains(&&**word))
}

/// Largest number of names in a sentence.
const LISTED: usize = 8;

/// Names in quotation marks, the first few of many.
pub(super) fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut names: Vec<_> = names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// Classes that differ only in case, spaces or the form of characters (`é` as one character or two, `ﬁ` or `fi`), and are probably meant
/// to be one.
pub(super) fn near_twins(names: &[String]) -> Option<String> {
    let mut alike: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in names {
        let words: Vec<_> = name.split_whitespace().collect();
        let key: String = words.join(" ").nfkc().collect();
        let key = key.to_lowercase();
        alike.entry(key).or_default().push(name);
    }
    let twins: Vec<_> = alike
        .into_values()
        .filter(|names| names.len() > 1)
        .map(|names| {
            // Two names of different forms may look the same.
            let show = |name: &&String| match name.is_ascii() {
                true => format!("{name:?}"),
                false => format!("{name:?} ({})", name.escape_default()),
            };
            let names: Vec<_> = names.iter().map(show).collect();
            names.join(" and ")
        })
        .collect();
    let more = twins.len().saturating_sub(LISTED);
    (!twins.is_empty()).then(|| {
        format!(
            "classes whose names differ only in case, spaces or the form of characters are classes of their own: {}{}. Rename one of each if they are meant to be the same",
            twins[..twins.len() - more].join("; "),
            if more > 0 { format!("; {more} more") } else { String::new() }
        )
    })
}

/// A name without the blanks and the one pair of quotation marks around it, which every source ignores.
pub(super) fn bare(text: &str) -> &str {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0' || c == '\u{feff}');
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .filter(|text| !text.contains(['"', '\\']))
        .unwrap_or(text)
}

/// The value of a text in a place for classes.
#[derive(Debug, PartialEq)]
pub(super) enum Text<'a> {
    /// A whole number in any spelling: `7`, `007`, `7.0`, `7e0`.
    Whole(i64),
    /// Another number, which is not a class.
    Fraction,
    /// A name, without the blanks and quotation marks around it.
    Name(&'a str),
    /// Empty text, several lines, several numbers, or a list or object in JSON, which are not classes.
    Other,
}

pub(super) fn read_text(text: &str) -> Text<'_> {
    let text = bare(text);
    if let Ok(number) = text.parse::<i64>() {
        return Text::Whole(number);
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && let Ok(number) = text.parse::<f64>()
    {
        return match whole(number) {
            Some(number) => Text::Whole(number),
            None => Text::Fraction,
        };
    }
    let is_list =
        text.contains([',', ';', '|']) && text.split([',', ';', '|']).all(|part| part.trim().parse::<f64>().is_ok());
    if text.is_empty() || is_list || text.starts_with(['{', '[']) || text.contains(['\n', '\r', '\0']) {
        return Text::Other;
    }
    Text::Name(text)
}

/// A float as a whole number, if it is one and small enough to be exact.
pub(super) fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_look_or_read_alike_are_named() {
        let note = |names: &[&str]| near_twins(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(note(&["cat", "dog", "fish"]), None);
        for twins in [
            ["Dog", "dog"],
            ["hot dog", "hot  dog"],
            ["caf\u{e9}", "cafe\u{301}"],
            ["fish", "\u{fb01}sh"],
            ["\u{ff21}", "a"],
        ] {
            let said = note(&[twins[0], twins[1], "other"]).unwrap();
            assert!(!said.contains("other"), "{said}");
        }
        // Where both look the same, their characters are spelled out.
        let said = note(&["caf\u{e9}", "cafe\u{301}"]).unwrap();
        assert!(said.contains(r"caf\u{e9}") && said.contains(r"cafe\u{301}"), "{said}");
    }

    #[test]
    fn texts_are_numbers_names_or_neither() {
        for text in ["7", " 7\n", "007", "7.0", "7.", "7e0", "\"7\"", "+7", "7\0\0", "\u{feff}7\r\n"] {
            assert_eq!(read_text(text), Text::Whole(7), "{text:?}");
        }
        for text in ["1.5", "-0.5", "1e400", "99999999999999999999"] {
            assert_eq!(read_text(text), Text::Fraction, "{text}");
        }
        for (text, name) in [
            ("cat", "cat"),
            (" tabby cat \n", "tabby cat"),
            ("\"cat\"\n", "cat"),
            ("n01440764", "n01440764"),
            ("nan", "nan"),
            ("3D model", "3D model"),
            ("-", "-"),
        ] {
            assert_eq!(read_text(text), Text::Name(name), "{text}");
        }
        for text in ["", " \n", "\"\"", "[1, 2]", "{\"label\": 3}", "a\nb", "3,4", "1 | 0", "0.5;0.5"] {
            assert_eq!(read_text(text), Text::Other, "{text:?}");
        }
    }

    #[test]
    fn names_are_numbered_in_the_order_of_their_bytes() {
        let mut names = Names::default();
        let classes: Vec<_> = ["dog", "cat", "dog", "Ant"].iter().map(|name| names.add(name).unwrap()).collect();
        let (sorted, places) = names.sorted();
        assert_eq!(sorted, ["Ant", "cat", "dog"]);
        let labels: Vec<_> = (classes.iter()).map(|index| places[*index as usize]).collect();
        assert_eq!(labels, [2, 1, 2, 0]);
    }
}
