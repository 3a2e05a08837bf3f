//! From what was typed to typed settings: the file, `--set`, and the errors that name a setting.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use schemas::plain_words;
use serde::de::DeserializeOwned;

/// What a count of 0 is told.
pub(crate) const POSITIVE: &str = "must be at least 1";

/// What can be wrong with a recipe. Every message names the setting and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path:?}: cannot read the recipe")]
    Read {
        /// The recipe file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// The file, with the settings applied to it.
        origin: String,
        /// The parser's message, which names the key.
        message: String,
    },
    /// `--set` without `=`, or through something that is not a section.
    #[error(
        "--set {setting}: {problem}; write it as section.key=value, for example optim.batch_size=64"
    )]
    Set {
        /// What was typed.
        setting: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `--set` of a key that there is not, or with a value that its type does not have.
    #[error("--set {setting}: {problem}")]
    SetValue {
        /// What was typed.
        setting: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two values for one setting: which of them is meant is not ours to guess.
    #[error("--set {key} is given twice; give it once")]
    Twice {
        /// Dotted name of the setting.
        key: String,
    },
    /// A value outside its range, or two settings that exclude each other.
    #[error("{field} = {value}: {problem}")]
    Invalid {
        /// Dotted name of the setting.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it must be.
        problem: String,
    },
    /// There is no such network.
    #[error("[model] {0}")]
    Model(models::Error),
}

/// The text of a recipe.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// A recipe as its type has it, with `settings` applied, not yet checked.
pub(crate) fn typed<R: DeserializeOwned>(
    text: &str,
    origin: &str,
    settings: &[String],
) -> Result<R, Error> {
    let parse_error = |message: String| Error::Parse {
        origin: origin.to_owned(),
        message,
    };
    let mut table: toml::Table =
        toml::from_str(text).map_err(|e| parse_error(plain_words(&e.to_string())))?;
    let mut before = table.clone();
    let mut given = BTreeSet::new();
    for setting in settings {
        let key = setting.split('=').next().unwrap_or_default().trim();
        let within = |other: &&str| other.strip_prefix(key).is_some_and(|k| k.starts_with('.'));
        if given.iter().any(within) || !given.insert(key) {
            return Err(Error::Twice {
                key: key.to_owned(),
            });
        }
        apply(&mut table, setting)?;
        // One at a time, so that the message names the setting and not the file.
        let checked = R::deserialize(toml::Value::Table(table.clone()));
        if let Err(e) = checked
            && R::deserialize(toml::Value::Table(before.clone())).is_ok()
        {
            let problem = plain_words(&e.to_string());
            let lines: Vec<_> = problem.lines().map(str::trim).collect();
            return Err(Error::SetValue {
                setting: setting.clone(),
                problem: lines.join(" ").trim().to_owned(),
            });
        }
        before.clone_from(&table);
    }
    R::deserialize(toml::Value::Table(table))
        .map_err(|e| parse_error(plain_words(e.to_string().trim())))
}

/// An error that names `field`, unless `ok`.
pub(crate) fn require(
    ok: bool,
    field: &'static str,
    value: impl ToString,
    problem: &str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(Error::Invalid {
            field,
            value: value.to_string(),
            problem: problem.into(),
        })
    }
}

/// Whether a text is an integer beyond TOML's, which have 64 bits with the sign: it is meant as a number and not as a word.
fn is_beyond_toml(text: &str) -> bool {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let parsed = text.trim().parse::<i64>();
    parsed.is_err_and(|e| matches!(e.kind(), PosOverflow | NegOverflow))
}

/// Sets `section.key` of `table` to a TOML value, or to a bare string when it is not one (`run.precision=bf16`).
fn apply(table: &mut toml::Table, setting: &str) -> Result<(), Error> {
    let problem = |problem: &str| Error::Set {
        setting: setting.to_owned(),
        problem: problem.to_owned(),
    };
    let (key, text) = setting
        .split_once('=')
        .ok_or_else(|| problem("has no '='"))?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        // A text with line breaks could smuggle in further keys; only the one asked for is taken.
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").expect("the only key"),
        _ if is_beyond_toml(text) => return Err(problem("is a number beyond 2^63 - 1")),
        _ => toml::Value::String(text.trim().to_owned()),
    };
    // Whole, it would replace what the recipe and other settings say of the section, and hide its keys from the check of what is given twice.
    if let toml::Value::Table(values) = &value {
        let one = values.keys().next().map_or("name", String::as_str);
        return Err(problem(&format!(
            "is a table; set its keys one by one, as --set {}.{one}=VALUE",
            key.trim()
        )));
    }
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path
        .pop()
        .filter(|k| !k.is_empty())
        .ok_or_else(|| problem("names no key"))?;
    let mut table = table;
    for section in path {
        table = table
            .entry(section)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| problem("goes through a key that is not a section"))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}
