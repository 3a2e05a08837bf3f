//! A recipe of either kind. The kinds are told apart by the sections and settings that only one of them has.

use std::path::Path;

use program::recipe::{self, Error};

use super::{Experiment, Recipe};
use crate::recipe::finetune::FinetuneRecipe;

#[cfg(test)]
mod tests;

/// Sections and dotted settings that pretraining does not have.
const FINETUNE_ONLY: [&str; 4] = ["augment", "encoder", "model.pool", "optim.layer_decay"];

/// Sections that fine-tuning does not have.
const PRETRAIN_ONLY: [&str; 5] = ["data", "mimic", "target", "loss", "mask"];

/// A recipe.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AnyRecipe {
    /// The recipe of `trainer pretrain`.
    Pretrain(Box<Recipe>),
    /// The recipe of `trainer finetune`.
    Finetune(Box<FinetuneRecipe>),
}

impl AnyRecipe {
    /// Reads `path`, applies `settings` (`section.key=value`) and checks the result.
    pub(crate) fn load(path: &Path, settings: &[String]) -> Result<AnyRecipe, Error> {
        AnyRecipe::parse(&recipe::read(path)?, &path.display().to_string(), settings)
    }

    /// Like [`AnyRecipe::load`] for a text; `origin` is what messages call it.
    ///
    /// If the text has a section that only pretraining has, it is a recipe of pretraining. Otherwise, if the text or `settings` have a
    /// setting that only fine-tuning has, it is one of fine-tuning. Otherwise it is read as a recipe of pretraining and, if that fails, as
    /// one of fine-tuning. An unknown key is reported with the keys that both
    /// kinds take.
    pub(crate) fn parse(text: &str, origin: &str, settings: &[String]) -> Result<AnyRecipe, Error> {
        let finetune = || {
            let recipe = FinetuneRecipe::parse(text, origin, settings)?;
            Ok(AnyRecipe::Finetune(Box::new(recipe)))
        };
        let pretrain = || Recipe::parse(text, origin, settings).map(|recipe| AnyRecipe::Pretrain(Box::new(recipe)));
        if has_any(&PRETRAIN_ONLY, text, &[]) {
            return pretrain();
        }
        if has_any(&FINETUNE_ONLY, text, settings) {
            return finetune();
        }
        if has_any(&PRETRAIN_ONLY, "", settings) {
            return pretrain();
        }
        pretrain().or_else(|error| finetune().map_err(|other| of_either(error, &other)))
    }

    /// The command that runs it.
    pub(crate) fn command(&self) -> &'static str {
        match self {
            AnyRecipe::Pretrain(_) => Recipe::COMMAND,
            AnyRecipe::Finetune(_) => FinetuneRecipe::COMMAND,
        }
    }

    /// The resolved recipe as TOML, every default spelled out.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            AnyRecipe::Pretrain(recipe) => recipe.to_toml(),
            AnyRecipe::Finetune(recipe) => recipe.to_toml(),
        }
    }
}

/// Reads a recipe of kind `R`; one of the other kind is told apart from a damaged one.
pub(crate) fn load<R: Experiment>(path: &Path, settings: &[String]) -> anyhow::Result<R> {
    R::load(path, settings).map_err(|error| match AnyRecipe::load(path, &[]) {
        Ok(other) if other.command() != R::COMMAND => anyhow::Error::from(error).context(format!(
            "{path:?}: is a recipe of `trainer {}`, not of `trainer {}`",
            other.command(),
            R::COMMAND
        )),
        _ => error.into(),
    })
}

/// The error of a recipe whose kind does not show.
fn of_either(mut pretraining: Error, finetuning: &Error) -> Error {
    if let (
        Error::Parse { message: text, .. } | Error::Form { problem: text, .. },
        Error::Parse { message: other, .. } | Error::Form { problem: other, .. },
    ) = (&mut pretraining, finetuning)
        && let Some(unknown) = other.lines().last().filter(|line| line.starts_with("unknown key"))
        && text.contains("unknown key")
        && !text.ends_with(unknown)
    {
        *text = format!("{text}; in a recipe of fine-tuning: {unknown}");
    }
    pretraining
}

/// Whether `text` or `settings` have one of `names`, which are sections or dotted settings.
fn has_any(names: &[&str], text: &str, settings: &[String]) -> bool {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let in_text = |name: &str| match name.split_once('.') {
        None => table.contains_key(name),
        Some((section, key)) => table.get(section).is_some_and(|section| section.get(key).is_some()),
    };
    let in_settings = |name: &str| {
        settings.iter().any(|setting| {
            let rest = setting.trim_start().strip_prefix(name);
            rest.is_some_and(|rest| rest.trim_start().starts_with(['.', '=']))
        })
    };
    names.iter().any(|name| in_text(name) || in_settings(name))
}
