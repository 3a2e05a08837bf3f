//! `trainer export`: a student, or a fine-tuned classifier, as a folder that timm, transformers or the reference code loads.
//!
//! ```text
//! DIR/model.safetensors          the tensors under the package's names
//!     config.json                what the package builds them into
//!     preprocessor_config.json   how an image becomes its input, where the package has such a file
//!     README.md                  what it is, where it is from, how to load it
//! ```
//!
//! The folder appears when all of it is written.

use std::fs;
use std::io::{BufWriter, ErrorKind, IntoInnerError, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use models::interop::{self, Exported, Facts};
use models::weights;
use program::LogFormat;
use schemas::DepthWindow;
use schemas::atomic::{self, AtomicDir, AtomicFile};
use serde::Serialize;

use crate::cli::ExportArgs;
use crate::pretrained::depth_window::{self, CONFIG};
use crate::pretrained::student::{Student, read_trained};
use crate::recipe::any::AnyRecipe;
use crate::recipe::spec::Spec;
use crate::train::checkpoint;

mod card;
mod classifier;
#[cfg(test)]
mod tests;

/// The name of transformers' preprocessing.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
/// The name of the model card.
pub(crate) const CARD: &str = "README.md";

/// transformers refuses files whose header does not name the framework that the tensors are laid out for.
const HEADER: (&str, &str) = ("format", "pt");

/// `trainer export`.
pub(crate) fn export(args: &ExportArgs, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<()> {
    refuse_foreign_folder(&args.out)?;
    let spec = Spec::parse(&args.run);
    let found = read_trained("--run", &Spec { ema: spec.ema || args.ema, ..spec })?;
    let unfused = unfused_as_typed(args, &spec);
    let args = &ExportArgs { run: spec.name.to_owned(), unfused: spec.unfused || args.unfused, ..args.clone() };
    let student = match &found.recipe {
        AnyRecipe::Finetune(_) => return classifier::export(args, found, &unfused, format, out),
        AnyRecipe::Pretrain(recipe) => Student::of((**recipe).clone(), found),
    };
    let facts = Facts::of(&student.recipe.mae_config(), student.recipe.mask.ratio);
    let exported = interop::export(&student.tensors, &facts, args.format, args.decoder())
        .with_context(|| student.origin.clone())?;
    // ConvMAE's pretraining network is the only one that sums its stages; other networks with a decoder have been refused.
    let loses_fusion = facts.fusion && !args.decoder();
    ensure!(
        !loses_fusion || args.unfused,
        "{}: it was pretrained with multi-layer fusion (model.fusion, model.stage_fusion), and its last norm belongs to the sum of several \
         blocks, which a {} encoder does not build: it would compute other features than the student. Give --unfused to export it all the \
         same, to fine-tune it or to have the features of `trainer knn --model unfused:RUN`",
        student.origin,
        args.format
    );
    ensure!(loses_fusion || !args.unfused, "{unfused}: there is no multi-layer fusion to leave out of this export");
    let window = depth_window::window_of(&args.run)?.unwrap_or_default();
    write(&args.out, &exported, window, &card::card(args, &student, &exported, window))?;
    let parts = card::parts(exported.decoder).to_owned();
    Summary::of(args, &student.origin, parts, &exported).write(format, out)
}

/// What asks for an export without fusion.
fn unfused_as_typed(args: &ExportArgs, spec: &Spec) -> String {
    if args.unfused { "--unfused".to_owned() } else { format!("--run {}", spec.given) }
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    out: &'a Path,
    format: String,
    origin: &'a str,
    parts: String,
    tensors: usize,
    numbers: usize,
}

impl<'a> Summary<'a> {
    fn of(args: &'a ExportArgs, origin: &'a str, parts: String, exported: &Exported) -> Self {
        Summary {
            out: &args.out,
            format: args.format.to_string(),
            origin,
            parts,
            tensors: exported.tensors.len(),
            numbers: exported.tensors.values().map(tch::Tensor::numel).sum(),
        }
    }

    fn write(&self, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<()> {
        match format {
            LogFormat::Text => writeln!(
                out,
                "{}: {} of {}, {}, {} tensors, {} numbers",
                self.out.display(),
                self.format,
                self.origin,
                self.parts,
                self.tensors,
                self.numbers
            )?,
            LogFormat::Json => writeln!(out, "{}", serde_json::to_string(self)?)?,
        }
        Ok(())
    }
}

/// Refuses a folder with anything in it: it would be another model's, or this one's with the user's changes.
fn refuse_foreign_folder(folder: &Path) -> anyhow::Result<()> {
    match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("--out {folder:?}: cannot be read")),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("--out {folder:?}: is not empty; give a new folder"),
        },
    }
}

/// Publishes an export. A depth window other than the default goes into its configuration, which other packages pass over and
/// [`depth_window::window_of`] reads.
fn write(folder: &Path, exported: &Exported, window: DepthWindow, card: &str) -> anyhow::Result<()> {
    atomic::remove_stale(folder)?;
    // An empty folder makes way for the finished one; one that has been filled meanwhile stays and is reported.
    if folder.is_dir() {
        fs::remove_dir(folder).with_context(|| format!("--out {folder:?}: is in the way"))?;
    }
    let unfinished = AtomicDir::create(folder)?;
    let path = unfinished.path().join(checkpoint::MODEL);
    let mut file = BufWriter::new(AtomicFile::create(&path)?);
    let cannot = || format!("{:?}: cannot be written", folder.join(checkpoint::MODEL));
    weights::write(&mut file, &exported.tensors, Some(HEADER)).with_context(cannot)?;
    let file = file.into_inner().map_err(IntoInnerError::into_error);
    file.with_context(cannot)?.publish()?;
    let mut config = exported.config.clone();
    if !window.is_high_byte() {
        config[depth_window::FACT] = window.to_string().into();
    }
    let mut json = vec![(CONFIG, &config)];
    json.extend(exported.preprocessor.iter().map(|value| (PREPROCESSOR, value)));
    for (name, value) in json {
        let text = serde_json::to_string_pretty(value)? + "\n";
        atomic::write(&unfinished.path().join(name), text.as_bytes())?;
    }
    atomic::write(&unfinished.path().join(CARD), card.as_bytes())?;
    Ok(unfinished.publish()?)
}
