//! The model card in an exported folder.

use std::fmt::Write;

use models::interop::{Exported, Format};
use schemas::DepthWindow;

use crate::cli::ExportArgs;
use crate::pretrained::student::Student;
use crate::recipe::Experiment;

/// The parts of a student, for people.
pub(super) fn parts(decoder: bool) -> &'static str {
    if decoder { "encoder and decoder" } else { "encoder" }
}

/// How images of more than 8 bits per sample become the input.
pub(super) fn deep_input(window: DepthWindow) -> (&'static str, String) {
    let what = match window {
        DepthWindow::HighByte => "the high byte".to_owned(),
        DepthWindow::FullRange => "from each image's own least and greatest sample to 0 and 255".to_owned(),
        DepthWindow::Percentile(low, high) => {
            format!("from the percentiles {low} and {high} of each image's own samples to 0 and 255")
        }
        DepthWindow::Levels(min, max) => format!("from {min} and {max} to 0 and 255, clipped"),
    };
    ("images of more than 8 bits", format!("{what} (depth window `{window}`)"))
}

/// What the folder holds, where it is from and how it is loaded, in the form that model hubs read.
pub(super) fn card(args: &ExportArgs, student: &Student, exported: &Exported, window: DepthWindow) -> String {
    let folder = args.out.file_name().unwrap_or_default().to_string_lossy();
    let recipe = &student.recipe;
    let library = match args.format {
        Format::Timm => "library_name: timm\n",
        Format::HfMae | Format::HfVit => "library_name: transformers\n",
        Format::Mae | Format::ConvMae => "",
    };
    let teachers = match &recipe.mimic.teachers[..] {
        [] => "a masked autoencoder (MAE), no teacher".to_owned(),
        teachers => format!(
            "MR-MAE (arXiv 2303.05475): a masked autoencoder whose visible tokens mimic {}",
            teachers.join(" and ")
        ),
    };
    let numbers: usize = exported.tensors.values().map(tch::Tensor::numel).sum();
    let mut card = format!(
        "---\n{library}pipeline_tag: image-feature-extraction\ntags:\n- mae\n- mr-mae\n---\n\n# {folder}\n\n\
         The {} of a vision model pretrained without labels: {teachers}.\n\n",
        parts(exported.decoder)
    );
    let step = student.step.map_or("not recorded".to_owned(), |step| step.to_string());
    let facts = [
        ("format", args.format.to_string()),
        ("numbers", numbers.to_string()),
        ("input", "RGB in 0..1, ImageNet's mean and deviation subtracted and divided by".to_owned()),
        deep_input(window),
        ("optimization steps", step),
        ("recipe, SHA-256", student.recipe_digest()),
        ("checkpoint, SHA-256", student.sha256.clone()),
    ];
    card.push_str("| | |\n|---|---|\n");
    if args.unfused {
        card.push_str(
            "| multi-layer fusion | left out: the last norm was trained on the sum of several blocks and gets the last block alone, so \
             these are not the features that pretraining trained; fine-tune it, or compare with `trainer knn --model unfused:RUN` |\n",
        );
    }
    for (what, value) in facts {
        // Writing to a string does not fail.
        let _ = writeln!(card, "| {what} | {value} |");
    }
    let _ = write!(
        card,
        "\n## Loading it\n\n```python\n{}```\n\n## Recipe\n\n```toml\n{}\n```\n",
        snippet(args.format, exported.decoder, &folder),
        recipe.to_toml().trim()
    );
    card
}

/// Python that loads the folder `folder`, which lies in the working directory.
fn snippet(format: Format, decoder: bool, folder: &str) -> String {
    // A string of Python: JSON's escapes are Python's.
    let quoted = |text: String| serde_json::Value::String(text).to_string();
    let path = quoted(folder.to_owned());
    match (format, decoder) {
        (Format::Timm, _) => format!(
            "import timm\nimport torch\n\n\
             model = timm.create_model({}, pretrained=True, num_classes=0, global_pool=\"\").eval()\n\
             imgs = torch.zeros(1, *model.pretrained_cfg[\"input_size\"])\n\
             tokens = model(imgs)  # [N, 1 + L, D], CLS first, after the norm\n",
            quoted(format!("local-dir:{folder}"))
        ),
        (Format::HfMae, true) => format!(
            "import torch\nfrom transformers import ViTMAEForPreTraining\n\n\
             model = ViTMAEForPreTraining.from_pretrained({path}).eval()\n\
             imgs = torch.zeros(1, 3, model.config.image_size, model.config.image_size)\n\
             out = model(imgs)  # out.loss, out.logits [N, L, 3 p p], out.mask\n"
        ),
        (Format::HfMae, false) => format!(
            "import torch\nfrom transformers import ViTMAEModel\n\n\
             # Nothing masked, and the patches in order.\n\
             model = ViTMAEModel.from_pretrained({path}, mask_ratio=0.0).eval()\n\
             patches = (model.config.image_size // model.config.patch_size) ** 2\n\
             imgs = torch.zeros(1, 3, model.config.image_size, model.config.image_size)\n\
             noise = torch.arange(patches).float().expand(len(imgs), -1)\n\
             tokens = model(imgs, noise=noise).last_hidden_state  # [N, 1 + L, D], CLS first, after the norm\n"
        ),
        (Format::HfVit, _) => format!(
            "import torch\nfrom transformers import ViTModel\n\n\
             model = ViTModel.from_pretrained({path}, add_pooling_layer=False).eval()\n\
             imgs = torch.zeros(1, 3, model.config.image_size, model.config.image_size)\n\
             tokens = model(imgs).last_hidden_state  # [N, 1 + L, D], CLS first, after the norm\n"
        ),
        (Format::Mae | Format::ConvMae, _) => format!(
            "import torch\nfrom safetensors.torch import load_file\n\n\
             # The form that the reference code reads; config.json has the arguments of its constructor.\n\
             torch.save({{\"model\": load_file({})}}, {})\n",
            quoted(format!("{folder}/model.safetensors")),
            quoted(format!("{folder}.pth"))
        ),
    }
}
