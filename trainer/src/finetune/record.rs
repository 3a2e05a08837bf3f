//! What a fine-tuning writes down: what it was made from, its best weights, its result.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use images::ImageSource;
use models::params::ParamStore;
use models::weights;
use schemas::atomic::{self, AtomicFile};
use sha2::{Digest, Sha256};
use tch::Tensor;

use super::evaluate::{self, FINETUNE_FILE, FinetuneResult};
use super::init::Start;
use super::recipe::FinetuneRecipe;
use super::{BEST, CLASSES};
use crate::checkpoint;
use crate::classes::{Classes, Matching};
use crate::depth;
use crate::run_folder::RunFolder;

/// What the weights of a run depend on besides its recipe.
pub(super) fn facts(
    start: &Start,
    train: &ImageSource,
    test: &ImageSource,
    classes: &Classes,
    matching: Matching,
) -> BTreeMap<String, String> {
    let images = |source: &ImageSource| {
        let identity = source.identity();
        format!("{} images in a {} source (SHA-256 {})", identity.samples, identity.kind, identity.digest)
    };
    let mut facts = BTreeMap::from([
        ("init".to_owned(), format!("SHA-256 {}", start.sha256)),
        ("train".to_owned(), images(train)),
        ("test".to_owned(), images(test)),
        ("classes".to_owned(), format!("{} classes, {}", classes.len(), digest(classes.names()))),
        ("image_code".to_owned(), images::IMAGE_CODE.to_owned()),
    ]);
    let window = train.decoder().window();
    if !window.is_high_byte() {
        facts.insert(depth::FACT.to_owned(), window.to_string());
    }
    if !matching.is_auto() {
        facts.insert("match_classes".to_owned(), format!("{matching:?}"));
    }
    facts
}

/// The names of the classes of a run, in the order of its classifier's outputs; `None` if the folder has no such file.
pub(crate) fn classes(run: &Path) -> anyhow::Result<Option<Vec<String>>> {
    /// More than this is no list of names of classes.
    const MOST_BYTES: u64 = 1 << 28;
    let file = run.join(CLASSES);
    if !file.is_file() {
        return Ok(None);
    }
    let cannot = || format!("{file:?}: cannot be read");
    let size = std::fs::metadata(&file).with_context(cannot)?.len();
    ensure!(size <= MOST_BYTES, "{file:?}: has {size} bytes, more than names of classes");
    let text = std::fs::read(&file).with_context(cannot)?;
    let names = serde_json::from_slice(&text);
    Ok(Some(names.with_context(|| format!("{file:?}: is no list of names"))?))
}

/// SHA-256 of names, each ended by a line feed.
pub(super) fn digest(names: &[String]) -> String {
    let mut digest = Sha256::new();
    for name in names {
        digest.update(name);
        digest.update("\n");
    }
    format!("SHA-256 {}", schemas::hex(&digest.finalize()))
}

/// Gives the parameters named in `values` these values, in place, and returns copies of those they had.
pub(super) fn exchange_values(params: &ParamStore, values: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut before = BTreeMap::new();
    for (name, mut param) in params.trainable() {
        if let Some(value) = values.get(&name) {
            before.insert(name, param.detach().copy());
            param.copy_(value);
        }
    }
    before
}

/// Publishes the weights as the best so far.
pub(super) fn save_best(run: &RunFolder, params: &ParamStore, recipe: &FinetuneRecipe) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(&run.path().join(BEST))?;
    let header = Some((checkpoint::RECIPE_KEY, recipe.to_toml()));
    let header = header.as_ref().map(|(key, text)| (*key, text.as_str()));
    weights::write(&mut file, &params.tensors(), header)?;
    file.flush()?;
    Ok(file.publish()?)
}

/// Puts the result into the run folder and tells it.
pub(super) fn publish(run: &RunFolder, result: &FinetuneResult, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(result)?;
    atomic::write(&run.path().join(FINETUNE_FILE), text.as_bytes())?;
    if json {
        writeln!(out, "{text}")?;
    } else {
        evaluate::write_table(result, out)?;
    }
    Ok(())
}
