//! Whatever gives features, by what it is called on the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::classifier::Classifier;
use models::encoder::Encoder;
use models::mae::Mae;
use models::mr_mae::is_mimic_param;
use models::params::ParamStore;
use models::precision::Precision;
use models::teacher::Teacher;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{ByKind, mcmae};
use crate::data::normalize::Normalize;
use crate::pretrained::trained::{self, Trained};
use crate::pretrained::{finetune_init, init};
use crate::recipe::Recipe;
use crate::recipe::any::AnyRecipe;
use crate::recipe::finetune::FinetuneRecipe;
use program::fetch::resolve;
use torch_ext::to_device;

/// Side of the raw-pixel baseline's images.
const PIXELS_SIZE: u32 = 32;

/// Whatever gives features.
#[derive(Debug)]
pub(crate) struct Model {
    network: Network,
    normalise: Normalize,
    device: Device,
    description: String,
    run: Option<PathBuf>,
    untrained: bool,
    ema: bool,
    fusion: Option<Fusion>,
}

/// How a student is evaluated that was pretrained with multi-layer fusion, whose last norm belongs to the sum of several blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fusion {
    /// As it was trained: the sum goes through the norm.
    Fused,
    /// The last block alone does, as in other packages' networks.
    Unfused,
}

#[derive(Debug)]
pub(super) enum Network {
    Student {
        encoder: Encoder,
        img_size: u32,
        fused: bool,
    },
    /// A fine-tuned network, without its head.
    Classifier {
        classifier: Classifier,
        img_size: u32,
        normalisation: [[f32; 3]; 2],
    },
    Teacher(Teacher),
    Pixels {
        size: u32,
    },
}

impl Model {
    /// A run folder (its newest whole checkpoint) of `trainer pretrain` or `trainer finetune`, a file of such a checkpoint, a teacher's
    /// folder, file or id on a hub, or `pixels[:SIZE]`.
    ///
    /// After `untrained:`, the student that the recipe's seed makes, whatever has been trained since; after `ema:`, a run's moving
    /// average; after `unfused:`, a student of multi-layer fusion without it, which is evaluated as it was trained otherwise. They may be
    /// combined.
    pub(crate) fn load(spec: &str, hub: &HubSettings, device: Device) -> anyhow::Result<Model> {
        let (given, mut spec) = (spec, spec);
        let [mut untrained, mut ema, mut unfused] = [false; 3];
        while let Some((prefix, rest)) = spec.split_once(':') {
            *match prefix {
                "untrained" => &mut untrained,
                "ema" => &mut ema,
                "unfused" => &mut unfused,
                _ => break,
            } = true;
            spec = rest;
        }
        let path = Path::new(spec);
        ensure!(
            !spec.is_empty(),
            "--model {given:?}: nothing is named; give a run folder, a checkpoint's file, a teacher's folder, file or id, or the word pixels"
        );
        ensure!(
            !ema || (!untrained && trained::is_run(path)),
            "--model ema:{spec}: only a run folder has a moving average, and this is none"
        );
        let (mut network, mut description) = if spec == "pixels" || spec.starts_with("pixels:") {
            ensure!(!untrained, "--model untrained:{spec}: only a student can be untrained");
            pixels(spec)?
        } else if let Some(found) = trained_network(path, untrained, ema, hub, device)? {
            found
        } else {
            ensure!(!untrained, "--model untrained:{spec}: {}", trained::not_untrained(path));
            let resolved = resolve(spec, hub)
                .with_context(|| format!("--model {spec} (a path, a teacher's id, or the word pixels)"))?;
            match Teacher::load(&resolved.path, device) {
                Ok(teacher) => {
                    let arch = &teacher.info().arch;
                    let description = format!("teacher {} ({arch})", resolved.source);
                    (Network::Teacher(teacher), description)
                }
                Err(unknown @ models::Error::UnknownLayout { .. }) => {
                    let mcmae::Student { encoder, img_size, fused } =
                        mcmae::of_file(&resolved.path, device)?.ok_or(unknown)?;
                    (Network::Student { encoder, img_size, fused }, format!("ConvMAE {}", resolved.source))
                }
                Err(error) => return Err(error.into()),
            }
        };
        let mut fusion = None;
        if let Network::Student { fused, .. } = &mut network
            && *fused
        {
            *fused = !unfused;
            let (found, how) = match unfused {
                true => (Fusion::Unfused, "unfused"),
                false => (Fusion::Fused, "fused"),
            };
            fusion = Some(found);
            description = format!("{description}, {how}");
        }
        ensure!(
            !unfused || fusion.is_some(),
            "--model {given}: only a student that was pretrained with multi-layer fusion (model.fusion, model.stage_fusion) can be \
             evaluated without it"
        );
        let run = trained::is_run(path).then(|| path.to_path_buf());
        let normalise = match &network {
            Network::Classifier { normalisation, .. } => Normalize::of(*normalisation, device),
            _ => Normalize::imagenet(device),
        };
        Ok(Model { network, normalise, device, description, run, untrained, ema, fusion })
    }

    /// For people: what it is and where from.
    pub(crate) fn describe(&self) -> String {
        self.description.clone()
    }

    /// The run it belongs to, if it was given as one.
    pub(crate) fn run_folder(&self) -> Option<&Path> {
        self.run.as_deref()
    }

    /// Whether it is a student before its first step.
    pub(crate) fn untrained(&self) -> bool {
        self.untrained
    }

    /// Whether it is a student's moving average.
    pub(crate) fn ema(&self) -> bool {
        self.ema
    }

    /// Whether a student of multi-layer fusion is evaluated with it; `None` for what has none.
    pub(crate) fn fusion(&self) -> Option<Fusion> {
        self.fusion
    }

    /// Side of its square input, in pixels.
    pub(super) fn input_size(&self) -> u32 {
        match &self.network {
            Network::Student { img_size, .. } | Network::Classifier { img_size, .. } => *img_size,
            Network::Teacher(teacher) => teacher.info().input_size,
            Network::Pixels { size } => *size,
        }
    }

    /// `pixels` `[N, S, S, 3]` u8 on the CPU → per kind of feature `[N, D]` f32 on the CPU.
    pub(super) fn features(&self, pixels: &Tensor, precision: Precision) -> anyhow::Result<ByKind> {
        let _no_grad = tch::no_grad_guard();
        let pixels = to_device(pixels, self.device)?;
        let features = match &self.network {
            Network::Student { encoder, fused, .. } => {
                let _scope = precision.guard(self.device);
                let tokens = encoder.forward_features(&self.normalise.forward(&pixels), *fused); // [N, P + L, D], after the norm
                let prefix = i64::from(encoder.cls_token());
                let patches = tokens.narrow(1, prefix, tokens.size()[1] - prefix);
                let mean = ("mean", patches.mean_dim(1, false, None));
                match encoder.cls_token() {
                    true => vec![("cls", tokens.select(1, 0)), mean],
                    false => vec![mean],
                }
            }
            Network::Classifier { classifier, .. } => {
                let _scope = precision.guard(self.device);
                let found = classifier.forward_features(&self.normalise.forward(&pixels));
                let cls = found.cls.map(|cls| ("cls", cls));
                cls.into_iter().chain([("mean", found.mean)]).collect()
            }
            Network::Teacher(teacher) => {
                let pixels = pixels.permute([0, 3, 1, 2]).contiguous();
                let features = teacher.image_features(&pixels, precision)?;
                vec![("cls", features.cls), ("mean", features.mean)]
            }
            Network::Pixels { .. } => {
                vec![("pixels", self.normalise.forward(&pixels).flatten(1, -1))]
            }
        };
        let to_cpu = |(kind, t): (&str, Tensor)| (kind.to_owned(), t.to_kind(Kind::Float).to_device(Device::Cpu));
        Ok(features.into_iter().map(to_cpu).collect())
    }
}

/// The raw-pixel baseline: `pixels` or `pixels:SIZE`.
fn pixels(spec: &str) -> anyhow::Result<(Network, String)> {
    let size = match spec.split_once(':') {
        None => PIXELS_SIZE,
        Some((_, size)) => size.parse().ok().filter(|size| (1..=1024).contains(size)).with_context(|| {
            format!("--model {spec}: the size after the colon is a number of pixels from 1 to 1024")
        })?,
    };
    Ok((Network::Pixels { size }, format!("raw pixels at {size}x{size}")))
}

/// The network of a run folder or of a checkpoint's model file, which holds its recipe; `None` if `path` is neither.
fn trained_network(
    path: &Path,
    untrained: bool,
    ema: bool,
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<Option<(Network, String)>> {
    let place = path.display().to_string();
    if untrained && trained::is_run(path) {
        let recipe = trained::pretraining(&trained::recipe_of(path)?, &place)?;
        let description = format!("untrained student of {place}");
        return Ok(Some((untrained_student(&recipe, hub, device)?, description)));
    }
    let Some(found) = Trained::read(path, ema)? else {
        return Ok(None);
    };
    if untrained {
        let recipe = trained::pretraining(&found.recipe, &place)?;
        let description = format!("untrained student of {place}");
        return Ok(Some((untrained_student(&recipe, hub, device)?, description)));
    }
    let description = found.describe();
    let network = match &found.recipe {
        AnyRecipe::Pretrain(recipe) => student(recipe, found.tensors, &description, device)?,
        AnyRecipe::Finetune(recipe) => classifier(recipe, &found, device)?,
    };
    Ok(Some((network, description)))
}

/// A fine-tuned network.
fn classifier(recipe: &FinetuneRecipe, found: &Trained, device: Device) -> anyhow::Result<Network> {
    let config = trained::backbone(recipe, &found.place)?;
    config.check(&found.tensors).with_context(|| found.place.clone())?;
    let params = ParamStore::frozen(device);
    let pool = recipe.model.pool.into();
    let classifier = Classifier::new(&params, config, pool, found.n_classes()?)?;
    params.load(&found.place, &found.tensors)?;
    let (mean, std) = config.normalization();
    Ok(Network::Classifier {
        classifier,
        img_size: finetune_init::img_size(config)?,
        normalisation: [mean, std].map(|of| of.map(|v| v as f32)),
    })
}

/// The encoder of a recipe with `tensors`; mimic heads, which pretraining alone uses, are left out.
fn student(
    recipe: &Recipe,
    mut tensors: BTreeMap<String, Tensor>,
    origin: &str,
    device: Device,
) -> anyhow::Result<Network> {
    let params = ParamStore::frozen(device);
    let mae = Mae::new(&params.root(), &recipe.mae_config())?;
    tensors.retain(|name, _| !is_mimic_param(name));
    params.load(origin, &tensors)?;
    Ok(Network::Student {
        fused: mae.config().encoder.is_fused(),
        encoder: mae.into_encoder(),
        img_size: recipe.model.img_size,
    })
}

/// The encoder of a recipe before its first step: as its seed makes it, or as what it starts from.
fn untrained_student(recipe: &Recipe, hub: &HubSettings, device: Device) -> anyhow::Result<Network> {
    let params = ParamStore::new(device, recipe.run.seed);
    let mae = Mae::new(&params.root(), &recipe.mae_config())?;
    if let Some(begin) = init::open(recipe, hub)? {
        begin.load(&params, recipe)?;
    }
    Ok(Network::Student {
        fused: mae.config().encoder.is_fused(),
        encoder: mae.into_encoder(),
        img_size: recipe.model.img_size,
    })
}
