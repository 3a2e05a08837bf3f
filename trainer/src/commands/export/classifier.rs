//! A fine-tuned classifier as a folder of another package.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use models::interop::{self, ClassifierFacts, Exported, Format};
use program::LogFormat;
use schemas::DepthWindow;
use tch::Tensor;

use super::card::deep_input;
use super::{Summary, write};
use crate::cli::ExportArgs;
use crate::pretrained::depth_window;
use crate::pretrained::student::digest_of;
use crate::pretrained::trained::{self, Trained};
use crate::recipe::Experiment;
use crate::recipe::any::AnyRecipe;
use crate::recipe::finetune::FinetuneRecipe;
use crate::train::finetuned::{self, CLASSES};

/// Writes the classifier `found`. `unfused` is what asks for an export without fusion, if anything does.
pub(super) fn export(
    args: &ExportArgs,
    found: Trained,
    unfused: &str,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let AnyRecipe::Finetune(recipe) = &found.recipe else {
        unreachable!("the caller has looked at the recipe");
    };
    ensure!(!args.with_decoder, "--with-decoder: {} is a classifier, which has no decoder", found.place);
    ensure!(!args.unfused, "{unfused}: {} is a classifier, which has no multi-layer fusion", found.place);
    let backbone = trained::backbone(recipe, &found.place)?;
    backbone.check(&found.tensors).with_context(|| found.place.clone())?;
    let n_classes = usize::try_from(found.n_classes()?)?;
    let classes = match finetuned::classes_near(Path::new(&args.run))? {
        Some(names) if names.len() == n_classes => names,
        Some(names) => bail!(
            "{:?}: {CLASSES} has {} names, and the classifier {n_classes} scores: the two are not of one run",
            args.run,
            names.len()
        ),
        // A file that has left its run: by number.
        None => (0..n_classes).map(|i| i.to_string()).collect(),
    };
    let facts = ClassifierFacts {
        encoder: backbone,
        pool: recipe.model.pool.into(),
        classes: &classes,
        crop_pct: recipe.augment.crop_pct,
    };
    let exported =
        interop::export_classifier(&found.tensors, &facts, args.format).with_context(|| found.place.clone())?;
    let window = depth_window::window_of(&args.run)?.unwrap_or_default();
    let card = card(args, recipe, &found, &exported, n_classes, window);
    write(&args.out, &exported, window, &card)?;
    let parts = format!("encoder and head of {n_classes} classes");
    Summary::of(args, &found.describe(), parts, &exported).write(format, out)
}

/// What the folder holds, where it is from and how it is loaded, in the form that model hubs read.
fn card(
    args: &ExportArgs,
    recipe: &FinetuneRecipe,
    found: &Trained,
    exported: &Exported,
    n_classes: usize,
    window: DepthWindow,
) -> String {
    let folder = args.out.file_name().unwrap_or_default().to_string_lossy();
    // A string of Python: JSON's escapes are Python's.
    let quoted = |text: &str| serde_json::Value::String(text.to_owned()).to_string();
    let (library, snippet) = match args.format {
        Format::Timm => (
            "timm",
            format!(
                "import timm\nimport torch\n\n\
                 model = timm.create_model({}, pretrained=True).eval()\n\
                 imgs = torch.zeros(1, *model.pretrained_cfg[\"input_size\"])\n\
                 scores = model(imgs)  # [N, {n_classes}]\n",
                quoted(&format!("local-dir:{folder}"))
            ),
        ),
        _ => (
            "transformers",
            format!(
                "import torch\nfrom transformers import ViTForImageClassification\n\n\
                 model = ViTForImageClassification.from_pretrained({}).eval()\n\
                 imgs = torch.zeros(1, 3, model.config.image_size, model.config.image_size)\n\
                 scores = model(imgs).logits  # [N, {n_classes}], named by model.config.id2label\n",
                quoted(&folder)
            ),
        ),
    };
    let numbers: usize = exported.tensors.values().map(Tensor::numel).sum();
    let step = found.step.map_or("not recorded".to_owned(), |step| step.to_string());
    let toml = recipe.to_toml();
    let mut card = format!(
        "---\nlibrary_name: {library}\npipeline_tag: image-classification\ntags:\n- mae\n- mr-mae\n---\n\n# {folder}\n\n\
         A vision model fine-tuned on labeled images of {n_classes} classes.\n\n| | |\n|---|---|\n"
    );
    for (what, value) in [
        ("format", args.format.to_string()),
        ("numbers", numbers.to_string()),
        ("input", "RGB in 0..1, ImageNet's mean and deviation subtracted and divided by".to_owned()),
        deep_input(window),
        ("optimization steps", step),
        ("recipe, SHA-256", digest_of(&toml)),
        ("checkpoint, SHA-256", found.sha256.clone()),
    ] {
        // Writing to a string does not fail.
        let _ = writeln!(card, "| {what} | {value} |");
    }
    let _ = write!(card, "\n## Loading it\n\n```python\n{snippet}```\n\n## Recipe\n\n```toml\n{}\n```\n", toml.trim());
    card
}
