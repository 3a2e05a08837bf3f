//! `[model] init`: starting from a student that exists instead of the seed alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hub::HubSettings;
use models::interop::{self, Loaded};
use models::params::ParamStore;
use models::weights::Weights;
use tracing::{info, warn};

use super::trained;
use crate::recipe::Recipe;
use crate::recipe::any::AnyRecipe;
use crate::recipe::spec::Spec;
use crate::train::checkpoint;
use program::fetch::resolve;

#[cfg(test)]
mod tests;

/// Weights to start from.
pub(crate) struct Begin {
    weights: Weights,
    /// As the recipe has it, with the commit where it is a hub's.
    source: String,
}

/// Reads what `recipe.model.init` names; `None` if it names nothing.
pub(crate) fn open(recipe: &Recipe, hub: &HubSettings) -> anyhow::Result<Option<Begin>> {
    let Some(spec) = &recipe.model.init else {
        return Ok(None);
    };
    let context = || format!("model.init = {spec:?}");
    let Spec { name, ema, .. } = Spec::parse(spec);
    let (path, source) = if trained::is_run(Path::new(name)) {
        (newest(Path::new(name), ema).with_context(context)?, spec.clone())
    } else {
        ensure!(!ema, "{}: {}", context(), trained::no_average(Path::new(name)));
        let resolved = resolve(spec, hub).with_context(context)?;
        (resolved.path, resolved.source)
    };
    let weights = Weights::read(&path).with_context(context)?;
    Ok(Some(Begin { weights, source }))
}

/// The weights of a run's newest whole checkpoint, or their moving average.
fn newest(run: &Path, ema: bool) -> anyhow::Result<PathBuf> {
    let last = checkpoint::load_last(run, &mut |notice| warn!("{notice}"))?;
    let last = last.context("this run has no checkpoint yet")?;
    ensure!(!ema || last.ema.is_some(), "{}", trained::keeps_no_average(run));
    let file = if ema { checkpoint::EMA } else { checkpoint::MODEL };
    Ok(checkpoint::folder(run, last.state.step).join(file))
}

impl Begin {
    /// What a resume compares: other weights under the same name would make another run.
    pub(crate) fn fact(&self) -> (String, String) {
        ("init.weights_sha256".to_owned(), self.weights.sha256().to_owned())
    }

    /// Puts the weights into a student of `recipe` on `params`, and logs which of its tensors come from them.
    pub(crate) fn load(&self, params: &ParamStore, recipe: &Recipe) -> anyhow::Result<()> {
        let context = || format!("model.init = {:?}", self.source);
        let imported = interop::import(&self.weights).with_context(context)?;
        self.check_heads(recipe, imported.has_decoder()).with_context(context)?;
        let origin = self.weights.path().display().to_string();
        let loaded = interop::load_into(params, &imported.tensors, &origin).with_context(context)?;
        info!(
            "starting from {} ({}, SHA-256 {}): taken {}; fresh {}; left out {}",
            self.source,
            imported.layout,
            self.weights.sha256(),
            list(&loaded.taken),
            list(&loaded.fresh),
            list(&imported.ignored),
        );
        Ok(())
    }

    /// Numbers of heads show in no shape: a checkpoint's recipe says them, or the file beside the weights.
    fn check_heads(&self, recipe: &Recipe, decoder: bool) -> anyhow::Result<()> {
        let model = &recipe.model;
        let decoder_heads = decoder.then_some(model.decoder_num_heads);
        let Some(before) = self.weights.metadata().get(checkpoint::RECIPE_KEY) else {
            let heads = (model.num_heads.into(), decoder_heads.map(i64::from));
            return Ok(interop::check_beside(self.weights.path(), heads.0, heads.1)?);
        };
        let AnyRecipe::Pretrain(before) = AnyRecipe::parse(before, &self.weights.path().display().to_string(), &[])?
        else {
            bail!("it is a fine-tuned network; give a run of `trainer pretrain`, or weights of another package");
        };
        let before = before.model;
        for (field, written, wanted) in [
            ("num_heads", before.num_heads, Some(model.num_heads)),
            ("decoder_num_heads", before.decoder_num_heads, decoder_heads),
        ] {
            ensure!(
                wanted.is_none_or(|wanted| wanted == written),
                "it was trained with model.{field} = {written}; set it to that: its weights mean nothing else"
            );
        }
        Ok(())
    }
}

/// `cls_token (1), blocks (144)`, or `nothing`.
fn list(names: &[String]) -> String {
    let modules = Loaded::modules(names);
    if modules.is_empty() {
        return "nothing".to_owned();
    }
    let module = |(name, count): &(String, usize)| format!("{name} ({count})");
    modules.iter().map(module).collect::<Vec<_>>().join(", ")
}
