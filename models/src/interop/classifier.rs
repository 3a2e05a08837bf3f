//! Fine-tuned classifiers in other packages' files.

use serde_json::{Value, json};

use super::{Exported, Facts, Format, Part, Tensors, configs, names};
use crate::classifier::Pool;
use crate::encoder::EncoderConfig;
use crate::error::Result;
use crate::shapes::VitShapes;

/// What a classifier's tensors do not tell.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierFacts<'a> {
    /// What it stands on.
    pub encoder: &'a EncoderConfig,
    /// Which vector is classified.
    pub pool: Pool,
    /// The names of the classes, in the order of the scores.
    pub classes: &'a [String],
    /// Share of the shorter side that the central square of an evaluated image has.
    pub crop_pct: f64,
}

/// The classifier `tensors`, under its own names, as `format` has it: for timm's `VisionTransformer` or transformers'
/// `ViTForImageClassification`. Names and numbers only; nothing is written.
///
/// # Errors
/// [`Error::CannotExport`](crate::Error::CannotExport) if the format has no place for such a classifier.
pub fn export_classifier(tensors: &Tensors, facts: &ClassifierFacts, format: Format) -> Result<Exported> {
    let vit = match facts.encoder {
        EncoderConfig::Vit(vit) if vit.is_mae() => vit,
        EncoderConfig::Mcmae(_) => {
            return Err(format.refuses(
                "the classifier has MCMAE's convolution stages, and no package here builds those with a head. Its own file has the names of \
                 ConvMAE's fine-tuning model already",
            ));
        }
        EncoderConfig::Vit(_) => {
            return Err(format.refuses(
                "the classifier was fine-tuned from a teacher's tower, and only classifiers of students are exported. `trainer knn` and \
                 `trainer linprobe` read it",
            ));
        }
    };
    let encoder = Facts {
        img_size: vit.img_size,
        num_heads: vit.num_heads,
        // A classifier has no decoder; the field is not used.
        decoder_num_heads: vit.num_heads,
        norm_pix_loss: false,
        mask_ratio: 0.0,
        fusion: false,
    };
    let shapes = VitShapes::of(tensors)?;
    let copy = |tensors: &Tensors| -> Tensors {
        let named = |(name, tensor): (&String, &tch::Tensor)| (name.clone(), tensor.shallow_clone());
        tensors.iter().map(named).collect()
    };
    let (tensors, config, preprocessor) = match (format, facts.pool) {
        (Format::Timm, pool) => {
            let mut config = configs::timm(&shapes, &encoder);
            // timm puts the norm behind the mean of the patches by itself, and calls it fc_norm.
            let pooled = match pool {
                Pool::Mean => "avg",
                Pool::Cls => "token",
            };
            config["global_pool"] = json!(pooled);
            config["model_args"]["global_pool"] = json!(pooled);
            config["num_classes"] = json!(facts.classes.len());
            config["label_names"] = json!(facts.classes);
            config["pretrained_cfg"]["num_classes"] = json!(facts.classes.len());
            config["pretrained_cfg"]["crop_pct"] = json!(facts.crop_pct);
            (copy(tensors), config, None)
        }
        (Format::HfVit, Pool::Cls) => {
            if vit.img_size[0] != vit.img_size[1] {
                return Err(format.refuses("images are not square, which transformers' code assumes. Choose timm"));
            }
            let (mut encoder_tensors, head): (Tensors, Tensors) =
                copy(tensors).into_iter().partition(|(name, _)| Part::of(name) == Part::Encoder);
            encoder_tensors = names::to_hugging_face(&encoder_tensors, true)?;
            for (name, tensor) in head {
                encoder_tensors.insert(name.replacen("head.", "classifier.", 1), tensor);
            }
            let mut config = configs::hf_vit(&shapes, &encoder);
            config["architectures"] = json!(["ViTForImageClassification"]);
            let numbered = || facts.classes.iter().enumerate();
            let by_id: serde_json::Map<String, Value> =
                numbered().map(|(i, name)| (i.to_string(), json!(name))).collect();
            let by_label: serde_json::Map<String, Value> =
                numbered().map(|(i, name)| (name.clone(), json!(i))).collect();
            config["id2label"] = Value::Object(by_id);
            config["label2id"] = Value::Object(by_label);
            (encoder_tensors, config, Some(configs::hf_preprocessor(&encoder)))
        }
        (Format::HfVit, Pool::Mean) => {
            return Err(format.refuses(
                "the classifier reads the mean of the patches (model.pool = \"mean\"), and ViTForImageClassification reads CLS. Choose timm, \
                 or fine-tune with model.pool = \"cls\"",
            ));
        }
        (Format::HfMae | Format::Mae | Format::ConvMae, _) => {
            return Err(format
                .refuses("it is a format of pretraining, without a place for a classifier. Choose timm or hf-vit"));
        }
    };
    Ok(Exported { tensors, config, preprocessor, decoder: false })
}
