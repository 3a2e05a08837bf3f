//! Classes as sources state them: whole numbers, or names that are numbered in the order of their bytes.

use std::collections::HashMap;

/// Maximum number of distinct class names. Text with more distinct values is not taken as a label: every name is stored in the cache's
/// identity.
pub(super) const MAX_NAMES: usize = 1 << 16;

/// What stands at one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// 0 or above.
    Number(i32),
    /// Index into [`Names`], in order of appearance.
    Name(u32),
}

/// Names of classes, in order of appearance.
#[derive(Default)]
pub(super) struct Names {
    index: HashMap<String, u32>,
}

impl Names {
    /// `None` if there are too many.
    pub(super) fn add(&mut self, name: &str) -> Option<Class> {
        if let Some(&index) = self.index.get(name) {
            return Some(Class::Name(index));
        }
        let index = self.index.len();
        if index == MAX_NAMES {
            return None;
        }
        self.index.insert(name.to_owned(), index as u32);
        Some(Class::Name(index as u32))
    }

    /// The names sorted bytewise, and for each index in order of appearance its place among them: a training and a test set with the
    /// same classes agree.
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

/// What a text says, where a class is expected.
#[derive(Debug, PartialEq)]
pub(super) enum Text<'a> {
    /// A whole number in any spelling: `7`, `007`, `7.0`, `7e0`.
    Whole(i64),
    /// Another number: no class.
    Fraction,
    /// A name, without the blanks and quotation marks around it.
    Name(&'a str),
    /// Nothing, several lines, or a list or object in JSON: no class.
    Other,
}

pub(super) fn read_text(text: &str) -> Text<'_> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0' || c == '\u{feff}');
    let bare = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .filter(|text| !text.contains(['"', '\\']));
    let text = bare.unwrap_or(text);
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
    if text.is_empty() || text.starts_with(['{', '[']) || text.contains(['\n', '\r', '\0']) {
        return Text::Other;
    }
    Text::Name(text)
}

/// The whole number that a float is, if it is one and small enough to be exact.
pub(super) fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_numbers_names_or_neither() {
        for text in [
            "7",
            " 7\n",
            "007",
            "7.0",
            "7.",
            "7e0",
            "\"7\"",
            "+7",
            "7\0\0",
            "\u{feff}7\r\n",
        ] {
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
        for text in ["", " \n", "\"\"", "[1, 2]", "{\"label\": 3}", "a\nb"] {
            assert_eq!(read_text(text), Text::Other, "{text:?}");
        }
    }

    #[test]
    fn names_are_numbered_in_the_order_of_their_bytes() {
        let mut names = Names::default();
        let classes: Vec<_> = ["dog", "cat", "dog", "Ant"]
            .iter()
            .map(|name| names.add(name).unwrap())
            .collect();
        let (sorted, places) = names.sorted();
        assert_eq!(sorted, ["Ant", "cat", "dog"]);
        let labels: Vec<_> = classes
            .iter()
            .map(|class| match class {
                Class::Name(index) => places[*index as usize],
                Class::Number(_) => unreachable!("only names were added"),
            })
            .collect();
        assert_eq!(labels, [2, 1, 2, 0]);
    }
}
