//! Settings: a TOML file, `--set section.key=value`, flags as shorthands for it, and errors that name the setting.

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::path::{Path, PathBuf};

use schemas::plain_words;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The message for a count of 0.
pub const POSITIVE: &str = "must be at least 1";

/// Errors of settings. Every message names the setting and the accepted values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe file cannot be read.
    #[error("{path:?}: cannot read the recipe")]
    Read {
        /// The recipe file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not TOML, or has an unknown key, a missing key or a value of the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// The file.
        origin: String,
        /// The parser's message, which names the key.
        message: String,
    },
    /// A malformed argument of the command line, or a value of the wrong type.
    #[error("{given}: {problem}")]
    Form {
        /// The option and its argument.
        given: String,
        /// What is wrong with it, with an example of the right form.
        problem: String,
    },
    /// `--set` gives one setting two values.
    #[error("--set {key} is given twice; give it once")]
    Twice {
        /// Dotted name of the setting.
        key: String,
    },
    /// A setting without a default was not given.
    #[error("{field} is missing: give {flag}, or {field} in a recipe")]
    Missing {
        /// Dotted name of the setting.
        field: &'static str,
        /// The flag, with its value's name.
        flag: &'static str,
    },
    /// A value outside its range, or settings that exclude each other.
    #[error("{field} = {value}: {problem}")]
    Invalid {
        /// Dotted name of the setting.
        field: String,
        /// What it was.
        value: String,
        /// What it must be.
        problem: String,
    },
    /// Settings of a section that do not fit together.
    #[error("[{section}] {problem}")]
    Section {
        /// The section.
        section: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// Replaces the first text of each pair by the second in the keys that the message about an unknown key offers, which are in backticks, with
    /// a comma behind all but the last.
    #[must_use]
    pub fn not_offering(mut self, texts: &[(&str, &str)]) -> Error {
        if let Error::Parse { message: text, .. } | Error::Form { problem: text, .. } = &mut self
            && let Some((unknown, offered)) = text.split_once(", expected one of ")
        {
            let offered = texts.iter().fold(offered.to_owned(), |offered, (text, by)| offered.replace(text, by));
            *text = format!("{unknown}, expected one of {offered}");
        }
        self
    }
}

/// An [`Error::Invalid`].
pub fn invalid(field: impl Into<String>, value: impl Display, problem: impl Display) -> Error {
    Error::Invalid { field: field.into(), value: value.to_string(), problem: problem.to_string() }
}

/// An [`Error::Invalid`], unless `ok`.
pub fn require(ok: bool, field: &str, value: impl Display, problem: &str) -> Result<(), Error> {
    if ok { Ok(()) } else { Err(invalid(field, value, problem)) }
}

/// The text of a recipe file.
pub fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })
}

/// A value for one setting, from the command line.
#[derive(Debug, Clone)]
pub struct Setting {
    key: String,
    value: toml::Value,
    source: Source,
}

/// The argument of the command line that gave a value.
#[derive(Debug, Clone)]
enum Source {
    /// `--set`, with what was typed.
    Set(String),
    /// A flag, as messages show it.
    Flag(String),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Set(typed) => write!(f, "--set {typed}"),
            Source::Flag(flag) => f.write_str(flag),
        }
    }
}

impl Setting {
    /// The setting of a flag: `Setting::flag("--grid", "features.grid", &14)`. `flag` is its name in messages. A table sets its keys, and
    /// all other keys of the section to their defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that TOML cannot express.
    pub fn flag<T: Serialize + Debug>(
        flag: impl Into<String>,
        key: impl Into<String>,
        value: &T,
    ) -> Result<Setting, Error> {
        let key = key.into();
        match toml::Value::try_from(value) {
            Ok(value) => Ok(Setting { key, value, source: Source::Flag(flag.into()) }),
            Err(_) => {
                let given = format!("{value:?}");
                let is_number = given.starts_with(|c: char| c.is_ascii_digit());
                Err(invalid(key, given, if is_number { "must be less than 2^63" } else { "must be text in UTF-8" }))
            }
        }
    }

    /// The setting of a `--set section.key=value`. The value is TOML, or else the text itself (`run.precision=bf16`).
    ///
    /// # Errors
    /// [`Error::Form`]
    pub fn parse(typed: &str) -> Result<Setting, Error> {
        let bad = |problem: &str| Error::Form { given: format!("--set {typed}"), problem: problem.to_owned() };
        let form = |problem: &str| bad(&format!("{problem}; write it as section.key=value"));
        let (key, text) = typed.split_once('=').ok_or_else(|| form("has no '='"))?;
        let key = key.trim();
        if key.split('.').any(str::is_empty) {
            return Err(form("names no key"));
        }
        let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
            // A text with line breaks could add further keys, so only a single key is accepted.
            Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").expect("the only key"),
            _ if is_beyond_toml(text) => return Err(bad("is a number beyond 2^63 - 1")),
            _ => toml::Value::String(text.trim().to_owned()),
        };
        // A whole table would replace the section of the recipe and of other settings, and hide keys that are given twice.
        if let toml::Value::Table(values) = &value {
            let one = values.keys().next().map_or("name", String::as_str);
            return Err(bad(&format!("is a table; set its keys one by one, as --set {key}.{one}=VALUE")));
        }
        Ok(Setting { key: key.to_owned(), value, source: Source::Set(typed.to_owned()) })
    }

    /// Dotted names of the keys that it sets.
    fn keys(&self) -> Vec<String> {
        match &self.value {
            toml::Value::Table(values) => values.keys().map(|k| format!("{}.{k}", self.key)).collect(),
            _ => vec![self.key.clone()],
        }
    }

    /// Writes the value into `table`.
    fn apply(&self, table: &mut toml::Table) -> Result<(), Error> {
        let (sections, key) = match self.key.rsplit_once('.') {
            Some((sections, key)) => (Some(sections), key),
            None => (None, self.key.as_str()),
        };
        let mut inner = table;
        for section in sections.into_iter().flat_map(|path| path.split('.')) {
            inner =
                inner.entry(section).or_insert_with(|| toml::Table::new().into()).as_table_mut().ok_or_else(|| {
                    Error::Form { given: self.to_string(), problem: format!("{section} is not a section") }
                })?;
        }
        inner.insert(key.to_owned(), self.value.clone());
        Ok(())
    }
}

/// Parses every `--set`.
///
/// # Errors
/// [`Error::Form`]
pub fn parse_all(typed: &[String]) -> Result<Vec<Setting>, Error> {
    typed.iter().map(|typed| Setting::parse(typed)).collect()
}

/// Parses the recipe `text`, overridden by `settings`, as type `R`, without checking ranges. `origin` names the
/// text in messages, usually its file.
///
/// # Errors
/// [`Error::Parse`] for a bad text, [`Error::Form`] for a bad setting, [`Error::Twice`].
pub fn typed<R: DeserializeOwned>(text: &str, origin: &str, settings: &[Setting]) -> Result<R, Error> {
    let wrong = |error: toml::de::Error| Error::Parse {
        origin: origin.to_owned(),
        message: plain_words(error.to_string().trim()) + &elsewhere::<R>(error.message()),
    };
    let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
    // Parsed from the text, not from its table, so that the parser can show the line.
    let mut result = toml::from_str::<R>(text);
    let mut given = BTreeMap::new();
    for setting in settings {
        refuse_second(&mut given, setting)?;
        setting.apply(&mut table)?;
        let with = R::deserialize(toml::Value::Table(table.clone()));
        // One setting at a time, so that the message names it and not the file.
        if let (Ok(_), Err(error)) = (&result, &with) {
            let problem = plain_words(&error.to_string());
            let lines: Vec<_> = problem.lines().map(str::trim).collect();
            let problem = lines.join(" ").trim().to_owned() + &elsewhere::<R>(error.message());
            return Err(Error::Form { given: setting.to_string(), problem });
        }
        result = match (with, result) {
            // The recipe itself is wrong; the first message has the line.
            (Err(after), Err(before)) if after.message() == before.message() => Err(before),
            (with, _) => with,
        };
    }
    result.map_err(wrong)
}

/// Where else a recipe `R` has the key that `message` calls unknown, as the end of a message; empty if nowhere.
///
/// The parser knows, so it is asked with recipes of that key alone: in each section, and in each table of a section like `[teachers.ID]`.
fn elsewhere<R: DeserializeOwned>(message: &str) -> String {
    const NO_KEY: &str = "?";
    const ID: &str = "id";
    let refusal = |path: &[&str]| {
        let nest = |inner, name: &&str| toml::Table::from_iter([((*name).to_owned(), inner)]).into();
        let recipe = path.iter().rev().fold(toml::Value::Boolean(true), nest);
        let message = R::deserialize(recipe).err()?.message().to_owned();
        path.last().and_then(|key| message.starts_with(&format!("unknown field `{key}`")).then_some(message))
    };
    let Some(key) = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) else {
        return String::new();
    };
    let sections = refusal(&[NO_KEY]).unwrap_or_default();
    // Between backticks, after the key that there is not.
    let sections = sections.split('`').skip(3).step_by(2);
    let takes =
        |path: &[&str]| refusal(&[path, &[NO_KEY]].concat()).is_some() && refusal(&[path, &[key]].concat()).is_none();
    let places = sections.filter_map(|section| match () {
        () if takes(&[section]) => Some(format!("{section}.{key}")),
        () if takes(&[section, ID]) => Some(format!("{section}.ID.{key}")),
        () => None,
    });
    let places: Vec<String> = places.collect();
    if places.is_empty() { String::new() } else { format!("; there is {}", places.join(" and ")) }
}

/// Refuses a second value for a setting, and a value for a section together with one for a key of it, because it is unclear which is meant.
fn refuse_second<'s>(given: &mut BTreeMap<String, &'s Setting>, setting: &'s Setting) -> Result<(), Error> {
    for key in setting.keys() {
        let within = |other: &str| other == key || other.strip_prefix(&key).is_some_and(|k| k.starts_with('.'));
        if let Some((_, other)) = given.iter().find(|(other, _)| within(other)) {
            let (flag, set) = match (&other.source, &setting.source) {
                (Source::Flag(flag), Source::Set(_)) => (flag, setting),
                (Source::Set(_), Source::Flag(flag)) => (flag, *other),
                _ => return Err(Error::Twice { key }),
            };
            return Err(Error::Form {
                given: set.to_string(),
                problem: format!("{flag} says the same setting; give one of them"),
            });
        }
        given.insert(key, setting);
    }
    Ok(())
}

/// Whether a text is an integer beyond TOML's 64 bits, which is meant as a number and not as text.
fn is_beyond_toml(text: &str) -> bool {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let parsed = text.trim().parse::<i64>();
    parsed.is_err_and(|e| matches!(e.kind(), PosOverflow | NegOverflow))
}

#[cfg(test)]
mod tests;
