//! `trainer config`: the resolved recipe.

use std::io::Write;

use crate::cli::RecipeArgs;
use crate::recipe::any::AnyRecipe;

/// Prints the recipe with its settings and every default, as TOML.
pub(crate) fn config(args: &RecipeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let recipe = AnyRecipe::load(&args.recipe, &args.set)?;
    Ok(out.write_all(recipe.to_toml().as_bytes())?)
}
