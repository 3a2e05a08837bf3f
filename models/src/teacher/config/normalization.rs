//! How pixels are normalized: from the files beside the weights, else from the options, else by the family where it has one answer.

use super::Config;
use crate::error::{Error, Result};
use crate::json::Json;
use crate::pixels::{IMAGENET_MEAN, IMAGENET_STD};
use crate::teacher::layout::{Family, Layout};
use crate::teacher::options::{Assumed, TeacherOptions, mean_problem, std_problem};
use crate::weights::Weights;

/// Mean and standard deviation of each channel, for pixels in 0..1.
pub(in crate::teacher) type Normalization = ([f64; 3], [f64; 3]);

const IMAGENET: Normalization = (IMAGENET_MEAN, IMAGENET_STD);
const OPENAI_CLIP: Normalization = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
const HALF: Normalization = ([0.5; 3], [0.5; 3]);
const NONE: Normalization = ([0.0; 3], [1.0; 3]);

/// The widths of DINOv3 (L and 7B) that are published twice, for photos and for satellite images, with other constants.
const DINOV3_WIDTHS_WITH_TWO: [i64; 2] = [1024, 4096];

/// Files round these constants to four digits. Those of two publishers differ by three times as much in some channel.
const ROUNDING: f64 = 1e-3;

/// Sizes that OpenAI's own archives keep as buffers; who builds the network from one drops them.
const OPENAI_BUFFERS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// What the flags look like, as a part of a question.
const FLAGS: &str = "or name them with the teacher (in pipeline: --mean R,G,B --std R,G,B, or mean and std under [teachers.ID] in a \
                     recipe)";

/// What one file says.
struct Statement {
    file: Json,
    normalization: Normalization,
}

impl Config {
    /// The normalization of a tower of `width`.
    ///
    /// # Errors
    /// If two sources say different things, or nothing says it and published files of this layout differ.
    pub(super) fn normalization(
        &self,
        weights: &Weights,
        layout: &Layout,
        width: i64,
        options: &TeacherOptions,
        assumed: &mut Vec<Assumed>,
    ) -> Result<Normalization> {
        let stated = self.stated_normalizations()?;
        if let Some((first, others)) = stated.split_first() {
            return agreed(first, others, options);
        }
        let file = &self.preprocessor;
        match (options.mean, options.std) {
            (Some(mean), Some(std)) => {
                return plausible(file, ["the mean asked for,", "the std asked for,"], (mean, std));
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(file.missing("the std that belongs to the mean asked for", "Give both"));
            }
            (None, Some(_)) => {
                return Err(file.missing("the mean that belongs to the std asked for", "Give both"));
            }
        }
        let mut assume = |normalization: Normalization, reason: &str, doubtful| {
            let (mean, std) = normalization;
            assumed.push(Assumed {
                settings: "mean and std",
                text: format!("mean {mean:?} and std {std:?}, {reason}"),
                doubtful,
            });
            Ok(normalization)
        };
        let ask = |fact: &str| {
            Err(file.missing(
                "image_mean and image_std",
                &format!(
                    "{fact}. Copy the preprocessor_config.json that was published with the weights beside them, {FLAGS}"
                ),
            ))
        };
        match layout.family {
            Family::Clip if layout.is_openai() && has_all(weights, layout, &OPENAI_BUFFERS) => {
                assume(OPENAI_CLIP, "those of OpenAI's archives", false)
            }
            Family::Clip => {
                ask("CLIP towers are published with OpenAI's constants (0.48145466,0.4578275,0.40821073 and \
                 0.26862954,0.26130258,0.27577711) and with 0.5 and 0.5, LAION-2B's L/14 for one")
            }
            Family::Siglip => assume(HALF, "those of every published SigLIP", false),
            Family::Dinov2 => assume(IMAGENET, "ImageNet's, as every published DINOv2 has", false),
            Family::Dinov3 if DINOV3_WIDTHS_WITH_TWO.contains(&width) => ask(
                "This size is published for photos, with ImageNet's constants (0.485,0.456,0.406 and 0.229,0.224,0.225), and for \
                 satellite images, with others",
            ),
            Family::Dinov3 => assume(IMAGENET, "ImageNet's, as every published DINOv3 of this size has", false),
            Family::Vit if layout.is_mae() => assume(IMAGENET, "ImageNet's, as masked autoencoders have", false),
            Family::Vit if layout.is_hugging_face() || layout.is_classifier(weights) => ask(
                "ViTs are published with ImageNet's constants (0.485,0.456,0.406 and 0.229,0.224,0.225: DeiT, DINO, MAE) and with 0.5 and \
                 0.5 (AugReg and most of timm's)",
            ),
            Family::Vit => assume(
                IMAGENET,
                "ImageNet's, as DINO and MAE are published in this layout; timm's AugReg and SAM towers want 0.5 and 0.5",
                true,
            ),
        }
    }

    /// What each of the files says.
    fn stated_normalizations(&self) -> Result<Vec<Statement>> {
        let preprocessor = &self.preprocessor;
        let mut stated = Vec::new();
        if preprocessor.exists {
            let rescaled = preprocessor.flag("do_rescale")?.unwrap_or(true);
            let factor = preprocessor.number("rescale_factor")?.unwrap_or(1.0 / 255.0);
            if !rescaled || (factor * 255.0 - 1.0).abs() > 1e-6 {
                return Err(preprocessor.wrong(format!(
                    "pixels are scaled by {factor} (do_rescale {rescaled}); only towers that take pixels divided by 255 are supported. \
                     Write the mean and std of pixels in 0..1 there, with rescale_factor {}",
                    1.0 / 255.0
                )));
            }
            if preprocessor.flag("do_normalize")? == Some(false) {
                stated.push(Statement { file: preprocessor.part(""), normalization: NONE });
            }
        }
        // timm's folders keep it in config.json, those of its first versions beside the architecture; open_clip's in a file of their
        // own.
        let flat = match self.config.value.get("architecture") {
            Some(_) => "",
            None => "/pretrained_cfg",
        };
        for (file, mean_key, std_key) in [
            (preprocessor.part(""), "image_mean", "image_std"),
            (self.config.part("/pretrained_cfg"), "mean", "std"),
            (self.config.part(flat), "mean", "std"),
            (self.open_clip.part("/preprocess_cfg"), "mean", "std"),
        ] {
            if file.path == preprocessor.path && !stated.is_empty() {
                continue;
            }
            match (file.channels(mean_key)?, file.channels(std_key)?) {
                (Some(mean), Some(std)) => {
                    let normalization = plausible(&file, [mean_key, std_key], (mean, std))?;
                    stated.push(Statement { file, normalization });
                }
                (None, None) => {}
                (mean, _) => {
                    let (there, absent) = match mean {
                        Some(_) => (mean_key, std_key),
                        None => (std_key, mean_key),
                    };
                    return Err(file.wrong(format!(
                        "says {there} and not {absent}; write both, for one means nothing without the other"
                    )));
                }
            }
        }
        Ok(stated)
    }
}

/// The first statement, if neither another file nor the options contradict it.
fn agreed(first: &Statement, others: &[Statement], options: &TeacherOptions) -> Result<Normalization> {
    let (mean, std) = first.normalization;
    let same = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < ROUNDING);
    let other = others.iter().find(|s| !same(s.normalization.0, mean) || !same(s.normalization.1, std));
    let against = match other {
        Some(other) => {
            let (mean, std) = other.normalization;
            Some(format!("{:?} says mean {mean:?} and std {std:?}", other.file.path))
        }
        None => {
            [("mean", options.mean, mean), ("std", options.std, std)].into_iter().find_map(|(what, asked, found)| {
                let asked = asked.filter(|asked| !same(*asked, found))?;
                Some(format!("the {what} asked for is {asked:?}"))
            })
        }
    };
    match against {
        None => Ok(first.normalization),
        Some(against) => Err(first
            .file
            .wrong(format!("says mean {mean:?} and std {std:?}, but {against}. Correct the one that is wrong"))),
    }
}

fn has_all(weights: &Weights, layout: &Layout, names: &[&str]) -> bool {
    names.iter().all(|name| layout.has_beside(weights, name))
}

/// The statement of `origin` with the name of its keys, refused where no pixels in 0..1 can have it.
fn plausible(
    origin: &Json,
    [mean_key, std_key]: [&str; 2],
    (mean, std): Normalization,
) -> Result<Normalization, Error> {
    let problems = [(mean_key, mean, mean_problem(mean)), (std_key, std, std_problem(std))];
    for (key, values, problem) in problems {
        if let Some(problem) = problem {
            return Err(origin.wrong(format!("{key} {values:?} {problem}")));
        }
    }
    Ok((mean, std))
}
