//! Finding a teacher that was given by path or by id.

use std::path::Path;

use anyhow::{Context, ensure};
use hub::{HubSettings, Resolved};
use program::fetch;
use schemas::TeacherId;

/// The file or folder of teacher `id`, given as `text`.
pub(crate) fn resolve(id: &TeacherId, text: &str, settings: &HubSettings) -> anyhow::Result<Resolved> {
    let resolved = fetch::resolve(text, settings).with_context(|| format!("teacher {id}"))?;
    ensure!(
        !is_run(&resolved.path),
        "teacher {id}: {text} is a run of trainer pretrain or finetune. To mimic its network, write it as a teacher first: trainer export \
         --run {text} --format timm --out DIR, and give DIR"
    );
    Ok(resolved)
}

/// Finds the weights of a teacher of a cache, where they were when it was built unless the user says otherwise with `flag`. A path that was given relative to
/// the folder of the build is looked for in the present one.
pub(crate) fn resolve_recorded(
    cache: &Path,
    id: &TeacherId,
    text: &str,
    flag: &str,
    settings: &HubSettings,
) -> anyhow::Result<Resolved> {
    resolve(id, text, settings).with_context(|| {
        let tried = match std::path::absolute(text) {
            Ok(tried) if Path::new(text).is_relative() => format!(" (looked for at {})", tried.display()),
            _ => String::new(),
        };
        format!(
            "{}: the weights of teacher {id} are not at {text}{tried}: {flag} {id}=DIR says where they are now",
            cache.display()
        )
    })
}

/// Whether a folder is what training leaves: a run, or a checkpoint of one.
fn is_run(path: &Path) -> bool {
    let has = |name: &str| path.join(name).is_file();
    has("recipe.toml") && has("LAST") || has("state.json") && has("model.safetensors")
}
