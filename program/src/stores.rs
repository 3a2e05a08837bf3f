//! Object stores as the programs reach them.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use storage::{CacheFolder, Settings};

/// Tells [`storage`] what the environment says, where files wait for their upload, and where blocks of objects are kept. A program calls this
/// once, before it opens a file.
///
/// # Errors
/// A folder for blocks that cannot be used.
pub fn open(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    scratch: PathBuf,
    cache: Option<CacheFolder>,
) -> anyhow::Result<()> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let mut settings = Settings::from_vars(variables.into_iter().filter_map(text));
    settings.scratch = Some(scratch);
    let shown = cache.as_ref().map(|cache| cache.folder.display().to_string());
    settings.cache = cache;
    storage::configure(settings).with_context(|| match shown {
        Some(folder) => format!("--cache-dir {folder}"),
        None => "object stores".to_owned(),
    })
}
