//! One vector per image from a student, a teacher, or the pixels themselves: the whole image seen at once, nothing masked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use images::{ImageSource, RgbImage, draw_view};
use models::encoder::Encoder;
use models::hub::HubSettings;
use models::mae::Mae;
use models::mr_mae::is_mimic_param;
use models::params::ParamStore;
use models::precision::Precision;
use models::teacher::Teacher;
use models::weights::Weights;
use rayon::prelude::*;
use schemas::{ContentHash, ViewPolicy};
use tch::{Device, Kind, Tensor};
use torch_ext::tensor_bytes_mut;
use tracing::{info, warn};

use crate::checkpoint;
use crate::config::Recipe;
use crate::data::Problem;
use crate::init;
use crate::interrupt::{self, Interrupted};
use crate::resolve::resolve;
use crate::run_folder;
use crate::step::Normalise;
use crate::teachers::to_device;

mod mcmae;

/// Side of the raw-pixel baseline's images.
const PIXELS_SIZE: u32 = 32;

/// Whatever gives features.
#[derive(Debug)]
pub struct Model {
    network: Network,
    normalise: Normalise,
    device: Device,
    description: String,
    run: Option<PathBuf>,
    untrained: bool,
    ema: bool,
}

#[derive(Debug)]
enum Network {
    Student { encoder: Encoder, img_size: u32 },
    Teacher(Teacher),
    Pixels { size: u32 },
}

const GIB: f64 = (1u64 << 30) as f64;

/// Per kind of feature its values, f32, on the CPU.
pub type ByKind = BTreeMap<String, Tensor>;

/// Features of the images of a source that can be used.
#[derive(Debug)]
pub struct Images {
    /// Of each model, in the order in which the models were given: `[V, N, D]`.
    pub features: Vec<ByKind>,
    /// Each one's place in the source.
    pub idxs: Vec<usize>,
    /// Each one's content.
    pub hashes: Vec<ContentHash>,
    /// What is wrong with the others, by key.
    pub skipped: Vec<String>,
}

impl Model {
    /// A run folder (its newest whole checkpoint), a student's file, a teacher's folder, file or id on a hub, or `pixels[:SIZE]`.
    ///
    /// After `untrained:`, the student that the recipe's seed makes, whatever has been trained since; after `ema:`, a run's moving
    /// average.
    pub fn load(spec: &str, hub: &HubSettings, device: Device) -> anyhow::Result<Model> {
        let (spec, untrained) = match spec.strip_prefix("untrained:") {
            Some(spec) => (spec, true),
            None => (spec, false),
        };
        let (spec, ema) = match spec.strip_prefix("ema:") {
            Some(spec) => (spec, true),
            None => (spec, false),
        };
        let path = Path::new(spec);
        ensure!(
            !ema || (!untrained && path.join(run_folder::RECIPE).is_file()),
            "--model ema:{spec}: only a run folder has a moving average, and this is none"
        );
        let (network, description) = if spec == "pixels" || spec.starts_with("pixels:") {
            ensure!(
                !untrained,
                "--model untrained:{spec}: only a student can be untrained"
            );
            pixels(spec)?
        } else if path.join(run_folder::RECIPE).is_file() {
            student_of_run(path, untrained, ema, hub, device)?
        } else if let Some(student) = student_of_file(path, untrained, hub, device)? {
            student
        } else {
            ensure!(
                !untrained,
                "--model untrained:{spec}: only a student can be untrained, and this is none"
            );
            let resolved = resolve(spec, hub).with_context(|| {
                format!("--model {spec} (a path, a teacher's id, or the word pixels)")
            })?;
            match Teacher::load(&resolved.path, device) {
                Ok(teacher) => {
                    let arch = &teacher.info().arch;
                    let description = format!("teacher {} ({arch})", resolved.source);
                    (Network::Teacher(teacher), description)
                }
                Err(unknown @ models::Error::UnknownLayout { .. }) => {
                    let found = mcmae::of_file(&resolved.path, device)?.ok_or(unknown)?;
                    (found, format!("ConvMAE {}", resolved.source))
                }
                Err(error) => return Err(error.into()),
            }
        };
        let run = path
            .join(run_folder::RECIPE)
            .is_file()
            .then(|| path.to_path_buf());
        Ok(Model {
            network,
            normalise: Normalise::imagenet(device),
            device,
            description,
            run,
            untrained,
            ema,
        })
    }

    /// For people: what it is and where from.
    pub fn describe(&self) -> String {
        self.description.clone()
    }

    /// The run it belongs to, if it was given as one.
    pub fn run_folder(&self) -> Option<&Path> {
        self.run.as_deref()
    }

    /// Whether it is a student before its first step.
    pub fn untrained(&self) -> bool {
        self.untrained
    }

    /// Whether it is a student's moving average.
    pub fn ema(&self) -> bool {
        self.ema
    }

    /// Side of its square input, in pixels.
    fn input_size(&self) -> u32 {
        match &self.network {
            Network::Student { img_size, .. } => *img_size,
            Network::Teacher(teacher) => teacher.info().input_size,
            Network::Pixels { size } => *size,
        }
    }

    /// `pixels` `[N, S, S, 3]` u8 on the CPU → per kind of feature `[N, D]` f32 on the CPU.
    fn features(&self, pixels: &Tensor, precision: Precision) -> anyhow::Result<ByKind> {
        let _no_grad = tch::no_grad_guard();
        let pixels = to_device(pixels, self.device)?;
        let features = match &self.network {
            Network::Student { encoder, .. } => {
                let _scope = precision.guard(self.device);
                let tokens = encoder.forward_features(&self.normalise.forward(&pixels)); // [N, P + L, D], after the norm
                let prefix = i64::from(encoder.cls_token());
                let patches = tokens.narrow(1, prefix, tokens.size()[1] - prefix);
                let mean = ("mean", patches.mean_dim(1, false, None));
                match encoder.cls_token() {
                    true => vec![("cls", tokens.select(1, 0)), mean],
                    false => vec![mean],
                }
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
        let to_cpu = |(kind, t): (&str, Tensor)| {
            (
                kind.to_owned(),
                t.to_kind(Kind::Float).to_device(Device::Cpu),
            )
        };
        Ok(features.into_iter().map(to_cpu).collect())
    }
}

/// The raw-pixel baseline: `pixels` or `pixels:SIZE`.
fn pixels(spec: &str) -> anyhow::Result<(Network, String)> {
    let size = match spec.split_once(':') {
        None => PIXELS_SIZE,
        Some((_, size)) => size
            .parse()
            .ok()
            .filter(|size| (1..=1024).contains(size))
            .with_context(|| {
                format!(
                    "--model {spec}: the size after the colon is a number of pixels from 1 to 1024"
                )
            })?,
    };
    Ok((
        Network::Pixels { size },
        format!("raw pixels at {size}x{size}"),
    ))
}

/// The student of a run folder's newest whole checkpoint, or its moving average.
fn student_of_run(
    run: &Path,
    untrained: bool,
    ema: bool,
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<(Network, String)> {
    let recipe = run_folder::load_recipe(run)?;
    if untrained {
        let description = format!("untrained student of {}", run.display());
        return Ok((untrained_student(&recipe, hub, device)?, description));
    }
    let checkpoint = checkpoint::load_last(run, &mut |notice| warn!("{notice}"))?;
    let checkpoint =
        checkpoint.with_context(|| format!("{run:?}: this run has no checkpoint yet"))?;
    let (what, tensors) = match ema {
        false => ("student", checkpoint.model),
        true => (
            "average",
            checkpoint.ema.with_context(|| {
                format!("--model ema:{}: this run keeps no moving average; its recipe has no optim.ema_decay", run.display())
            })?,
        ),
    };
    let description = format!(
        "{what} of {} after step {}",
        run.display(),
        checkpoint.state.step
    );
    Ok((
        student(&recipe, tensors, &description, device)?,
        description,
    ))
}

/// The student in a checkpoint's model file, which holds its recipe; `None` if the file is another kind of weights, or no file.
fn student_of_file(
    path: &Path,
    untrained: bool,
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<Option<(Network, String)>> {
    if !path.is_file() {
        return Ok(None);
    }
    let weights = Weights::read(path)?;
    let Some(recipe) = weights.metadata().get(checkpoint::RECIPE_KEY) else {
        return Ok(None);
    };
    let origin = path.display().to_string();
    let recipe = Recipe::parse(recipe, &origin, &[])?;
    if untrained {
        return Ok(Some((
            untrained_student(&recipe, hub, device)?,
            format!("untrained student of {origin}"),
        )));
    }
    let tensors = weights
        .tensors()
        .iter()
        .map(|(name, t)| (name.clone(), t.shallow_clone()))
        .collect();
    Ok(Some((
        student(&recipe, tensors, &origin, device)?,
        format!("student {origin}"),
    )))
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
        encoder: mae.into_encoder(),
        img_size: recipe.model.img_size,
    })
}

/// The encoder of a recipe before its first step: as its seed makes it, or as what it starts from.
fn untrained_student(
    recipe: &Recipe,
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<Network> {
    let params = ParamStore::new(device, recipe.run.seed);
    let mae = Mae::new(&params.root(), &recipe.mae_config())?;
    if let Some(begin) = init::open(recipe, hub)? {
        begin.load(&params, recipe)?;
    }
    Ok(Network::Student {
        encoder: mae.into_encoder(),
        img_size: recipe.model.img_size,
    })
}

/// Which parts of an image are seen.
#[derive(Debug, Clone)]
pub struct Views {
    /// How a view is drawn.
    pub policy: ViewPolicy,
    /// What it is drawn with, besides the image's content and the view's number.
    pub seed: u64,
    /// How many, `V`, at least 1.
    pub count: u16,
}

impl Views {
    /// The central square, once.
    pub const CENTER: Views = Views {
        policy: ViewPolicy::Center,
        seed: 0,
        count: 1,
    };
}

/// What [`extract`] computes, besides of what.
#[derive(Debug, Clone)]
pub struct Extraction {
    /// Which parts of an image are seen; each has features of its own.
    pub views: Views,
    /// The kinds of feature that are kept; all when empty.
    pub kinds: Vec<String>,
    /// Most bytes of features.
    pub max_bytes: u64,
    /// Images per forward pass.
    pub batch_size: u32,
    /// What networks compute in.
    pub precision: Precision,
}

/// Features by each of `models` of every image of `source` that can be read. `pool` decodes one batch ahead; an image is decoded
/// once, whatever the number of models and views.
///
/// # Errors
/// When no image can be read, when a model has none of the kinds asked for, and when the features are too large to be kept.
pub fn extract(
    models: &[Model],
    source: &ImageSource,
    extraction: &Extraction,
    pool: &rayon::ThreadPool,
) -> anyhow::Result<Images> {
    let views = &extraction.views;
    let (batch_size, precision) = (extraction.batch_size, extraction.precision);
    let sizes: BTreeSet<u32> = models.iter().map(Model::input_size).collect();
    let (batches_tx, batches_rx) = crossbeam_channel::bounded(1);
    std::thread::scope(|scope| {
        let sizes = &sizes;
        scope.spawn(move || {
            for start in (0..source.len()).step_by(batch_size as usize) {
                let idxs = start..source.len().min(start + batch_size as usize);
                let decoded: Vec<_> = pool.install(|| {
                    idxs.into_par_iter()
                        .map(|i| (i, read_views(source, i, views, sizes)))
                        .collect()
                });
                if batches_tx.send(decoded).is_err() {
                    return; // The receiver has failed and says why.
                }
            }
        });

        let mut images = Images {
            features: vec![],
            idxs: vec![],
            hashes: vec![],
            skipped: vec![],
        };
        let mut room = Room::default();
        let mut done = 0;
        // By value: when this side fails, the channel closes and the decoder stops.
        for decoded in batches_rx {
            let before = done;
            done += decoded.len();
            let first_row = images.idxs.len();
            let mut rendered = Vec::with_capacity(decoded.len());
            for (i, result) in decoded {
                match result {
                    Ok((hash, imgs)) => {
                        images.idxs.push(i);
                        images.hashes.push(hash);
                        rendered.push(imgs);
                    }
                    Err(e) => images.skipped.push(format!("{}: {e:#}", source.key(i))),
                }
            }
            for view in 0..usize::from(if rendered.is_empty() { 0 } else { views.count }) {
                let batches = sizes
                    .iter()
                    .map(|&size| Ok((size, batch_of(&rendered, view, size)?)))
                    .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
                let mut features = Vec::with_capacity(models.len());
                for model in models {
                    let mut of_model = model.features(&batches[&model.input_size()], precision)?;
                    if !extraction.kinds.is_empty() {
                        let all: Vec<String> = of_model.keys().cloned().collect();
                        of_model.retain(|kind, _| extraction.kinds.contains(kind));
                        ensure!(
                            !of_model.is_empty(),
                            "{} has no features called {}; it has {}",
                            model.describe(),
                            extraction.kinds.join(" or "),
                            all.join(" and ")
                        );
                    }
                    features.push(of_model);
                }
                room.put(&features, source.len(), view, first_row, extraction)?;
            }
            if done * 10 / source.len() != before * 10 / source.len() {
                info!("features of {done} of {} images", source.len());
            }
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
        }
        if images.idxs.is_empty() {
            let first = images.skipped.first().map(|e| format!("; the first: {e}"));
            let why = first.unwrap_or_default();
            return Err(Problem::NoImages { why }.into());
        }
        images.features = room.finish(images.idxs.len());
        Ok(images)
    })
}

/// The features of all images, allocated once when their widths are known: joining parts at the end would need twice the memory.
#[derive(Default)]
struct Room(Vec<ByKind>);

impl Room {
    /// Writes the features `[n, D]` of the images from `first_row` on, by model and kind, in a view.
    fn put(
        &mut self,
        features: &[ByKind],
        images: usize,
        view: usize,
        first_row: usize,
        extraction: &Extraction,
    ) -> anyhow::Result<()> {
        if self.0.is_empty() {
            let views = i64::from(extraction.views.count);
            let width: i64 = features
                .iter()
                .flat_map(BTreeMap::values)
                .map(|t| t.size()[1])
                .sum();
            let bytes = images as u128
                * u128::from(views as u64)
                * width as u128
                * size_of::<f32>() as u128;
            ensure!(
                bytes <= u128::from(extraction.max_bytes),
                "{images} images x {views} views x {width} numbers are {:.1} GiB of features, more than the {:.1} GiB allowed: take \
                 fewer views, one kind of feature or one model at a time, or allow more where there is the memory",
                bytes as f64 / GIB,
                extraction.max_bytes as f64 / GIB
            );
            let allocate = |t: &Tensor| {
                Tensor::empty(
                    [views, images as i64, t.size()[1]],
                    (Kind::Float, Device::Cpu),
                )
            };
            self.0 = features
                .iter()
                .map(|of_model| {
                    of_model
                        .iter()
                        .map(|(kind, t)| (kind.clone(), allocate(t)))
                        .collect()
                })
                .collect();
        }
        for (room, features) in self.0.iter_mut().zip(features) {
            for (kind, t) in features {
                let n = t.size()[0];
                room.get(kind)
                    .context("a model has the same kinds of feature for every image")?
                    .get(view as i64)
                    .narrow(0, first_row as i64, n)
                    .copy_(t);
            }
        }
        Ok(())
    }

    /// `[V, N, D]` of the `used` images.
    fn finish(self, used: usize) -> Vec<ByKind> {
        let cut = |(kind, t): (String, Tensor)| (kind, t.narrow(1, 0, used as i64));
        self.0
            .into_iter()
            .map(|of_model| of_model.into_iter().map(cut).collect())
            .collect()
    }
}

/// One image's views at every size that a model wants.
type Rendered = BTreeMap<u32, Vec<RgbImage>>;

/// `[N, size, size, 3]` u8 on the CPU.
fn batch_of(rendered: &[Rendered], view: usize, size: u32) -> anyhow::Result<Tensor> {
    let side = i64::from(size);
    let shape = [rendered.len() as i64, side, side, 3];
    let mut batch = Tensor::empty(shape, (Kind::Uint8, Device::Cpu));
    let image_bytes = (3 * side * side) as usize;
    for (slot, imgs) in tensor_bytes_mut(&mut batch)?
        .chunks_exact_mut(image_bytes)
        .zip(rendered)
    {
        slot.copy_from_slice(&imgs[&size][view].data);
    }
    Ok(batch)
}

fn read_views(
    source: &ImageSource,
    i: usize,
    views: &Views,
    sizes: &BTreeSet<u32>,
) -> anyhow::Result<(ContentHash, Rendered)> {
    let bytes = source.read(i)?;
    let hash = ContentHash::of(&bytes);
    let img = images::decode(&bytes)?;
    let render = |size: u32| -> anyhow::Result<(u32, Vec<RgbImage>)> {
        let views = (0..views.count).map(|index| {
            let view = draw_view(
                &views.policy,
                views.seed,
                &hash,
                index,
                img.width,
                img.height,
            );
            images::render(&img, &view, size)
        });
        Ok((size, views.collect::<Result<_, _>>()?))
    };
    let rendered = sizes
        .iter()
        .map(|&size| render(size))
        .collect::<anyhow::Result<_>>()?;
    Ok((hash, rendered))
}
