//! The network named by `--model`, as a feature extractor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::classifier::{Classifier, Pool};
use models::encoder::Encoder;
use models::mae::Mae;
use models::mimic::{HeadKind, MimicHead};
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
use crate::recipe::any::AnyRecipe;
use crate::recipe::finetune::FinetuneRecipe;
use crate::recipe::spec::Spec;
use crate::recipe::{MimicTokens, Recipe};

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
    digest: String,
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
        heads: Heads,
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
        let (mut network, mut description, digest) = if spec.is_pixels() {
            ensure!(!spec.untrained, "--model {given}: only a student can be untrained");
            ensure!(!spec.ema, "--model {given}: only a run folder has a moving average");
            let (network, description) = pixels(spec.name)?;
            (network, description.clone(), description)
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
        let (untrained, ema) = (spec.untrained, spec.ema);
        Ok(Model { network, normalize, device, description, run, untrained, ema, fusion, digest })
    }

    /// The student of `recipe` as it is while it is trained: with copies of `tensors`, the parameters of its network.
    ///
    /// # Errors
    /// If they are not the network's.
    pub(crate) fn of_student(recipe: &Recipe, tensors: Tensors, device: Device) -> anyhow::Result<Model> {
        let description = "the student in training".to_owned();
        Ok(Model {
            network: Network::student(recipe, tensors, &description, device)?,
            normalize: Normalize::imagenet(device),
            device,
            digest: description.clone(),
            description,
            run: None,
            untrained: false,
            ema: false,
            fusion: None,
        })
    }

    /// A description for people: what the model is and where it comes from.
    pub(crate) fn describe(&self) -> String {
        self.description.clone()
    }

    /// What tells its weights from others: their SHA-256 where it is known, else where they are from.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
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
    pub(crate) fn input_size(&self) -> u32 {
        match &self.network {
            Network::Student { img_size, .. } | Network::Classifier { img_size, .. } => *img_size,
            Network::Teacher(teacher) => teacher.info().input_size,
            Network::Pixels { size } => *size,
        }
    }

    /// The kinds of feature that [`Model::features`] gives unless asked for others.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let cls = match &self.network {
            Network::Student { encoder, .. } => encoder.cls_token(),
            Network::Classifier { classifier, .. } => classifier.pool() == Pool::Cls,
            Network::Teacher(teacher) => teacher.pools_cls(),
            Network::Pixels { .. } => return vec!["pixels".to_owned()],
        };
        let kinds: &[&str] = if cls { &["cls", "mean"] } else { &["mean"] };
        kinds.iter().map(|&kind| kind.to_owned()).collect()
    }

    /// The kinds that it gives only when they are asked for: every patch token, and the predictions of a student's mimic heads.
    pub(crate) fn further_kinds(&self) -> Vec<String> {
        let heads = match &self.network {
            Network::Student { heads, .. } => heads.as_slice(),
            Network::Classifier { .. } | Network::Teacher(_) | Network::Pixels { .. } => &[],
        };
        std::iter::once(PATCHES.to_owned()).chain(heads.iter().map(|head| head.kind.clone())).collect()
    }

    /// The patches of `pixels` `[N, S, S, 3]` u8 on the CPU: `[N, L, D]` f32 on the CPU, row by row from the top left. They are tokens after
    /// the last norm, without CLS and registers; of raw pixels they are the normalized colors.
    pub(crate) fn patches(&self, pixels: &Tensor, precision: Precision) -> anyhow::Result<Tensor> {
        let mut features = self.features(pixels, precision, &[PATCHES.to_owned()])?;
        let flat = features.remove(PATCHES).context("every model has patches")?; // [N, L * D]
        let width = match features.get("mean") {
            Some(mean) => mean.size()[1],
            None => 3,
        };
        Ok(flat.view([flat.size()[0], -1, width]))
    }

    /// How many numbers an image has in each of these kinds of feature, or in all of [`Self::kinds`] if there are none: counted on a black image.
    pub(crate) fn widths(&self, kinds: &[String]) -> anyhow::Result<BTreeMap<String, i64>> {
        let side = i64::from(self.input_size());
        let black = Tensor::zeros([1, side, side, 3], (Kind::Uint8, Device::Cpu));
        let features = self.kept(&black, Precision::F32, kinds)?;
        Ok(features.into_iter().map(|(kind, t)| (kind, t.size()[1])).collect())
    }

    /// [`Self::features`] of these kinds alone, or of all of [`Self::kinds`] if there are none.
    pub(super) fn kept(&self, pixels: &Tensor, precision: Precision, kinds: &[String]) -> anyhow::Result<ByKind> {
        let mut features = self.features(pixels, precision, kinds)?;
        features.retain(|kind, _| kinds.is_empty() || kinds.contains(kind));
        Ok(features)
    }

    /// `pixels` `[N, S, S, 3]` u8 on the CPU → per kind of feature `[N, D]` f32 on the CPU: all of [`Self::kinds`], and those of
    /// [`Self::further_kinds`] that are in `wanted`. `patches` are `[N, L * D]`, row by row from the top left.
    pub(super) fn features(&self, pixels: &Tensor, precision: Precision, wanted: &[String]) -> anyhow::Result<ByKind> {
        let _no_grad = tch::no_grad_guard();
        let pixels = to_device(pixels, self.device)?;
        let with_patches = wanted.iter().any(|kind| kind == PATCHES);
        let features: Vec<(&str, Tensor)> = match &self.network {
            Network::Student { encoder, fused, heads, .. } => {
                let _scope = precision.guard(self.device);
                let tokens = encoder.forward_features(&self.normalize.forward(&pixels), *fused); // [N, P + L, D], after the norm
                let prefix = i64::from(encoder.cls_token());
                let patches = tokens.narrow(1, prefix, tokens.size()[1] - prefix);
                let flat = with_patches.then(|| (PATCHES, patches.flatten(1, -1)));
                let cls = encoder.cls_token().then(|| tokens.select(1, 0));
                let mean = patches.mean_dim(1, false, None);
                let predicted = heads.iter().filter(|head| wanted.contains(&head.kind)).filter_map(|head| {
                    let predicted = match (&head.layers, head.of_cls) {
                        (_, true) => head.forward(cls.as_ref()?),
                        // A linear head of the mean is the mean of its predictions.
                        (Layers::Linear { .. }, false) => head.forward(&mean),
                        (Layers::Mlp(_), false) => head.forward(&patches).mean_dim(1, false, Kind::Float),
                    };
                    Some((&*head.kind, predicted))
                });
                let predicted: Vec<_> = predicted.collect();
                let cls = cls.map(|cls| ("cls", cls));
                cls.into_iter().chain([("mean", mean)]).chain(flat).chain(predicted).collect()
            }
            Network::Classifier { classifier, .. } => {
                let _scope = precision.guard(self.device);
                let features = classifier.forward_features(&self.normalize.forward(&pixels));
                let cls = features.cls.map(|cls| ("cls", cls));
                let flat = with_patches.then(|| (PATCHES, features.patches.flatten(1, -1)));
                cls.into_iter().chain([("mean", features.mean)]).chain(flat).collect()
            }
            Network::Teacher(teacher) => {
                let pixels = pixels.permute([0, 3, 1, 2]).contiguous();
                let features = teacher.image_features(&pixels, precision)?;
                let cls = features.cls.map(|cls| ("cls", cls));
                let flat = with_patches.then(|| (PATCHES, features.patches.flatten(1, -1)));
                cls.into_iter().chain([("mean", features.mean)]).chain(flat).collect()
            }
            Network::Pixels { .. } => {
                let pixels = self.normalize.forward(&pixels);
                let flat = with_patches.then(|| (PATCHES, pixels.permute([0, 2, 3, 1]).flatten(1, -1)));
                [("pixels", pixels.flatten(1, -1))].into_iter().chain(flat).collect()
            }
        };
        let to_cpu = |(kind, t): (&str, Tensor)| (kind.to_owned(), t.to_kind(Kind::Float).to_device(Device::Cpu));
        Ok(features.into_iter().map(to_cpu).collect())
    }
}

/// The kind of feature that has every patch token.
const PATCHES: &str = "patches";

/// A head that predicts a teacher's features, as the targets were normalized.
#[derive(Debug)]
pub(super) struct Head {
    /// `head.TEACHER`, or `head.TEACHER.cls`.
    kind: String,
    of_cls: bool,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    /// `weight [K, D]` and `bias [K]`.
    Linear {
        weight: Tensor,
        bias: Tensor,
    },
    Mlp(MimicHead),
}

type Heads = Vec<Head>;

impl Head {
    /// `[.., D] → [.., K]`
    fn forward(&self, tokens: &Tensor) -> Tensor {
        match &self.layers {
            Layers::Linear { weight, bias } => tokens.to_kind(Kind::Float).matmul(&weight.tr()) + bias,
            Layers::Mlp(head) => head.forward(tokens),
        }
    }
}

/// The mimic heads of a student whose encoder's tokens mimic.
///
/// # Errors
/// If tensors of an MLP head are missing or do not fit together.
fn heads(recipe: &Recipe, tensors: &Tensors, origin: &str, device: Device) -> anyhow::Result<Heads> {
    let mut heads = Heads::new();
    if recipe.mimic.tokens != MimicTokens::Visible {
        return Ok(heads);
    }
    let on_device = |t: &Tensor| t.to_device(device).to_kind(Kind::Float);
    for id in &recipe.mimic.teachers {
        for of_cls in [false, true] {
            let prefix = format!("mimic_{}heads.{id}.", if of_cls { "cls_" } else { "" });
            let tensor = |name: &str| tensors.get(&format!("{prefix}{name}"));
            let layers = match recipe.mimic_of(id).head {
                HeadKind::Linear => match (tensor("weight"), tensor("bias")) {
                    (Some(weight), Some(bias)) => Layers::Linear { weight: on_device(weight), bias: on_device(bias) },
                    _ => continue,
                },
                kind @ HeadKind::Mlp { .. } => match tensor("fc2.weight") {
                    Some(last) => {
                        let params = ParamStore::frozen(device);
                        let (dim, width) = (recipe.mae_config().encoder.embed_dim(), last.size()[0]);
                        let head = MimicHead::new(&params.root(), kind, dim, width);
                        let names = params.tensors().into_keys();
                        let own = names.filter_map(|name| Some((tensor(&name)?.shallow_clone(), name)));
                        params.load(&format!("{origin}, {prefix}"), &own.map(|(t, name)| (name, t)).collect())?;
                        Layers::Mlp(head)
                    }
                    None => continue,
                },
            };
            heads.push(Head { kind: format!("head.{id}{}", if of_cls { ".cls" } else { "" }), of_cls, layers });
        }
    }
    heads.sort_by(|a, b| a.kind.cmp(&b.kind));
    Ok(heads)
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
    /// The network on `device`, its description for people, and what tells its weights from others.
    fn of(pretrained: Pretrained, device: Device) -> anyhow::Result<(Network, String, String)> {
        let (found, source) = match pretrained {
            Pretrained::Trained(found) => {
                let (description, digest) = (found.describe(), found.sha256.clone());
                let network = match &found.recipe {
                    AnyRecipe::Pretrain(recipe) => Network::student(recipe, found.tensors, &description, device)?,
                    AnyRecipe::Finetune(recipe) => Network::classifier(recipe, &found, device)?,
                };
                return Ok((network, description, digest));
            }
            Pretrained::Foreign { found, source } => (found, source),
        };
        match found.network {
            models::pretrained::Network::Tower(tower) => {
                let teacher = Teacher::new(*tower, Layer::default(), device);
                let description = format!("teacher {source} ({})", teacher.info().arch);
                let digest = teacher.info().weights_sha256.clone();
                Ok((Network::Teacher(teacher), description, digest))
            }
            models::pretrained::Network::Student(student) => {
                let description = format!("{} {source}", student.layout);
                let imported::Student { encoder, img_size, fused } = imported::student(&student, &found.path, device)?;
                let network = Network::Student { encoder, img_size, fused, heads: Heads::new() };
                Ok((network, description.clone(), description))
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
        let heads = heads(recipe, &tensors, origin, device)?;
        tensors.retain(|name, _| !is_mimic_param(name));
        params.load(origin, &tensors)?;
        Ok(Network::Student {
            fused: mae.config().encoder.is_fused(),
            encoder: mae.into_encoder(),
            img_size: recipe.model.img_size,
            heads,
        })
    }
}
