//! The network named by `--model`, as a feature extractor.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::classifier::{Classifier, Pool};
use models::encoder::Encoder;
use models::mae::Mae;
use models::mr_mae::is_mimic_param;
use models::params::{ParamStore, Tensors};
use models::precision::Precision;
use models::pretrained::Wanted;
use models::teacher::{Layer, Teacher};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::to_device;

use super::{ByKind, imported};
use crate::data::normalize::Normalize;
use crate::pretrained::trained::{self, Trained};
use crate::pretrained::{Door, Pretrained, finetune_init};
use crate::recipe::Recipe;
use crate::recipe::any::AnyRecipe;
use crate::recipe::finetune::FinetuneRecipe;
use crate::recipe::spec::Spec;

/// What `--model` accepts, for messages.
const TAKES: &str = "a run folder, a checkpoint's file, a teacher's folder, file or id, a student's file of another package, or the word pixels";
/// Side of the raw-pixel baseline's images.
const PIXELS_SIZE: u32 = 32;

#[derive(Debug)]
pub(crate) struct Model {
    network: Network,
    normalize: Normalize,
    device: Device,
    description: String,
    run: Option<PathBuf>,
    untrained: bool,
    ema: bool,
    fusion: Option<Fusion>,
}

/// How to evaluate a student that was pretrained with multi-layer fusion, and whose last norm was trained on the sum of several blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fusion {
    /// As it was trained: the sum of the blocks goes through the norm.
    Fused,
    /// Only the last block goes through the norm, as in other packages' networks.
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
        normalization: [[f32; 3]; 2],
    },
    Teacher(Teacher),
    Pixels {
        size: u32,
    },
}

impl Model {
    /// Loads a run folder (its newest whole checkpoint) of `trainer pretrain` or `trainer finetune`, a file of such a checkpoint, a teacher's
    /// folder, file or id on a hub, or `pixels[:SIZE]`.
    ///
    /// The prefix `untrained:` selects the student with its initial weights, `ema:` a run's moving average, and `unfused:` a student of
    /// multi-layer fusion without fusion (the default is as it was trained). Prefixes may be combined.
    pub(crate) fn load(given: &str, hub: &HubSettings, device: Device) -> anyhow::Result<Model> {
        let spec = Spec::parse(given);
        let (mut network, mut description) = if spec.is_pixels() {
            ensure!(!spec.untrained, "--model {given}: only a student can be untrained");
            ensure!(!spec.ema, "--model {given}: only a run folder has a moving average");
            pixels(spec.name)?
        } else {
            let door = Door { option: "--model", takes: TAKES, wanted: Wanted::TowerFirst, hub };
            Network::of(door.open(&spec)?, device)?
        };
        let mut fusion = None;
        if let Network::Student { fused, .. } = &mut network
            && *fused
        {
            *fused = !spec.unfused;
            let (chosen, how) = match spec.unfused {
                true => (Fusion::Unfused, "unfused"),
                false => (Fusion::Fused, "fused"),
            };
            fusion = Some(chosen);
            description = format!("{description}, {how}");
        }
        ensure!(
            !spec.unfused || fusion.is_some(),
            "--model {given}: only a student that was pretrained with multi-layer fusion (model.fusion, model.stage_fusion) can be \
             evaluated without it"
        );
        let run = trained::is_run(spec.path()).then(|| spec.path().to_path_buf());
        let normalize = match &network {
            Network::Classifier { normalization, .. } => Normalize::of(*normalization, device),
            _ => Normalize::imagenet(device),
        };
        Ok(Model { network, normalize, device, description, run, untrained: spec.untrained, ema: spec.ema, fusion })
    }

    /// A description for people: what the model is and where it comes from.
    pub(crate) fn describe(&self) -> String {
        self.description.clone()
    }

    /// The run folder, if the model was given as one.
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

    /// Whether a student of multi-layer fusion is evaluated with it; `None` for models without fusion.
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

    /// The kinds of feature that it has, as [`Model::features`] gives them.
    pub(super) fn kinds(&self) -> &'static [&'static str] {
        let cls = match &self.network {
            Network::Student { encoder, .. } => encoder.cls_token(),
            Network::Classifier { classifier, .. } => classifier.pool() == Pool::Cls,
            Network::Teacher(teacher) => teacher.pools_cls(),
            Network::Pixels { .. } => return &["pixels"],
        };
        if cls { &["cls", "mean"] } else { &["mean"] }
    }

    /// `pixels` `[N, S, S, 3]` u8 on the CPU → per kind of feature `[N, D]` f32 on the CPU.
    pub(super) fn features(&self, pixels: &Tensor, precision: Precision) -> anyhow::Result<ByKind> {
        let _no_grad = tch::no_grad_guard();
        let pixels = to_device(pixels, self.device)?;
        let features = match &self.network {
            Network::Student { encoder, fused, .. } => {
                let _scope = precision.guard(self.device);
                let tokens = encoder.forward_features(&self.normalize.forward(&pixels), *fused); // [N, P + L, D], after the norm
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
                let features = classifier.forward_features(&self.normalize.forward(&pixels));
                let cls = features.cls.map(|cls| ("cls", cls));
                cls.into_iter().chain([("mean", features.mean)]).collect()
            }
            Network::Teacher(teacher) => {
                let pixels = pixels.permute([0, 3, 1, 2]).contiguous();
                let features = teacher.image_features(&pixels, precision)?;
                let cls = features.cls.map(|cls| ("cls", cls));
                cls.into_iter().chain([("mean", features.mean)]).collect()
            }
            Network::Pixels { .. } => {
                vec![("pixels", self.normalize.forward(&pixels).flatten(1, -1))]
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

impl Network {
    /// The network on `device`, and its description for people.
    fn of(pretrained: Pretrained, device: Device) -> anyhow::Result<(Network, String)> {
        let (found, source) = match pretrained {
            Pretrained::Trained(found) => {
                let description = found.describe();
                let network = match &found.recipe {
                    AnyRecipe::Pretrain(recipe) => Network::student(recipe, found.tensors, &description, device)?,
                    AnyRecipe::Finetune(recipe) => Network::classifier(recipe, &found, device)?,
                };
                return Ok((network, description));
            }
            Pretrained::Foreign { found, source } => (found, source),
        };
        match found.network {
            models::pretrained::Network::Tower(tower) => {
                let teacher = Teacher::new(*tower, Layer::default(), device);
                let description = format!("teacher {source} ({})", teacher.info().arch);
                Ok((Network::Teacher(teacher), description))
            }
            models::pretrained::Network::Student(student) => {
                let description = format!("{} {source}", student.layout);
                let imported::Student { encoder, img_size, fused } = imported::student(&student, &found.path, device)?;
                Ok((Network::Student { encoder, img_size, fused }, description))
            }
        }
    }

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
            normalization: [mean, std].map(|values| values.map(|v| v as f32)),
        })
    }

    /// The encoder of a recipe, with `tensors`; mimic heads, which only pretraining uses, are left out.
    fn student(recipe: &Recipe, mut tensors: Tensors, origin: &str, device: Device) -> anyhow::Result<Network> {
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
}
