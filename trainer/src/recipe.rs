//! The recipe: an experiment as a typed TOML file, of pretraining ([`Recipe`]) or of fine-tuning
//! ([`FinetuneRecipe`](finetune::FinetuneRecipe)).
//!
//! A recipe is read from a file, changed by `--set section.key=value`, completed by the documented defaults and checked once. The resolved
//! recipe is printed and saved with the run; a run folder refuses a different one, naming the first field that differs, except for the few
//! settings that cannot change the result ([`Experiment::FREE`]). Folders, device and threads are not part of a recipe.
//!
//! Each section is a file. `[optim]`, `[schedule]` and `[run]` are shared by both kinds.

use std::collections::BTreeMap;
use std::path::Path;

use program::recipe;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use data::{Data, Missing};
pub(crate) use dist::{BucketType, Dist};
pub(crate) use method::{FocusMode, Loss, Mask, MaskKind, Mimic, MimicTokens, Mimicked, Target};
pub(crate) use model::Model;
pub(crate) use mr_mae::TeacherStats;
pub(crate) use optim::Optim;
pub(crate) use pretrain::Recipe;
pub(crate) use program::recipe::Error;
pub(crate) use run::Run;
pub(crate) use schedule::{ScheduleConfig, ScheduleKind};

pub(crate) mod any;
mod data;
mod difference;
mod dist;
pub(crate) mod finetune;
mod method;
mod model;
mod mr_mae;
mod optim;
mod pretrain;
mod run;
pub(crate) mod schedule;
pub(crate) mod spec;
#[cfg(test)]
mod tests;

/// What the recipes of both kinds of training have in common.
pub(crate) trait Experiment: Serialize + DeserializeOwned {
    /// Settings that may differ when a run is resumed, besides those in `run::FREE`: they change only how fast the run is and what it keeps,
    /// not what it computes.
    const FREE: &[&str];

    /// The command that runs it.
    const COMMAND: &str;

    /// Keys that only the other kind of training takes, in sections that both have. They are refused as such, and not offered where a key
    /// is unknown: a part of the list of keys, and what stays of it. See [`Error::not_offering`]; a part has enough neighbors to be found in one
    /// section alone.
    const NOT_OFFERED: &[(&str, &str)];

    /// Fills in the defaults that depend on other settings, then checks every setting.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Section`] for the first setting that is out of range or does not fit another.
    fn resolve(&mut self) -> Result<(), Error>;

    /// Whether a run of `self` may continue as `other` although the setting `name` differs, for reasons that [`Experiment::FREE`] cannot
    /// express.
    fn may_differ(&self, other: &Self, name: &str) -> bool;

    /// Reads `path`, applies `settings` (`section.key=value`), fills in defaults and checks the result.
    ///
    /// # Errors
    /// Any [`Error`].
    fn load(path: &Path, settings: &[String]) -> Result<Self, Error> {
        Self::parse(&recipe::read(path)?, &path.display().to_string(), settings)
    }

    /// Like [`Experiment::load`] for a text; `origin` is what messages call it.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Read`].
    fn parse(text: &str, origin: &str, settings: &[String]) -> Result<Self, Error> {
        let read = recipe::typed(text, origin, &recipe::parse_all(settings)?);
        let mut recipe: Self = read.map_err(|error: Error| error.not_offering(Self::NOT_OFFERED))?;
        recipe.resolve()?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML, every default spelled out.
    fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain tables of plain values")
    }

    /// Every setting by its dotted name, as TOML.
    fn settings(&self) -> BTreeMap<String, String> {
        let whole = toml::Value::try_from(self).expect("a recipe is plain tables of plain values");
        difference::leaves("", &whole)
    }

    /// The settings in which `self` and `other` differ and that a run may not change, in the order of their names: dotted name and both
    /// values as TOML.
    fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let value = |recipe: &Self| toml::Value::try_from(recipe).expect("a recipe is plain tables of plain values");
        let mut differences = difference::differences("", &value(self), &value(other));
        differences.retain(|(name, ..)| {
            let free =
                run::FREE.iter().chain(&dist::FREE).chain(&optim::FREE).chain(Self::FREE).any(|free| free == name);
            !free && !self.may_differ(other, name)
        });
        differences
    }
}
