//! The teachers of a run, whose features come from the cache or from the network itself, run inside the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use hub::{HubSettings, Resolved};
use models::blocks::ForwardOptions;
use models::masking::Masking;
use models::mr_mae::{Batch, Targets};
use models::precision::Precision;
use models::teacher::{Teacher, TeacherOptions};
use models::teacher_drop::TeacherDrop;
use models::tokens::gather_rows;
use schemas::{Cache, Codec, TeacherId, TeacherIdentity};
use tch::{Device, Kind, Tensor};
use torch_ext::to_device;

use crate::data::Problem;
use crate::data::batch::{MaskInput, MimicBatch, Patches, TeacherBatch, TeacherShape};
use crate::data::dequantize::Dequantize;
use crate::data::joined;
use crate::data::masking::masking;
use crate::data::rows::TeacherRows;
use crate::recipe::Recipe;
use program::fetch::resolve;

/// One teacher of a run.
#[derive(Debug)]
pub(crate) struct RunTeacher {
    /// Its name in the cache and in the recipe.
    pub id: TeacherId,
    /// Width K of its tokens.
    pub width: u32,
    /// Whether its tokens are mimicked.
    pub mimicked: bool,
    /// Whether its CLS token is mimicked too.
    pub mimics_cls: bool,
    /// Whether its attention chooses the visible patches.
    pub focuses: bool,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// Where its features come from, for the run's record: the cache with its codec, or the network.
    pub origin: String,
    /// What the loader loads for it.
    pub shape: TeacherShape,
    source: Source,
}

/// Where a teacher's features come from.
#[derive(Debug)]
enum Source {
    /// Rows of each cache; those of codec `i8` are dequantized on the device.
    Cached { rows: Vec<Arc<TeacherRows>>, dequantize: Option<Dequantize> },
    /// The network, run inside the loop.
    Online(Box<Teacher>),
}

impl RunTeacher {
    /// Its rows in each cache; `None` where it runs online.
    pub(crate) fn rows(&self) -> Option<&[Arc<TeacherRows>]> {
        match &self.source {
            Source::Cached { rows, .. } => Some(rows),
            Source::Online(_) => None,
        }
    }
}

/// The teachers' features of a batch, on the device.
#[derive(Debug)]
pub(crate) struct Features {
    /// Per mimicked teacher `[N, keep, K]` at the visible patches, or `[N, L, K]` at all, in the type it is stored in.
    pub tokens: BTreeMap<String, Tensor>,
    /// At which patches the tokens are.
    pub at: Patches,
    /// Per teacher whose CLS token is mimicked `[N, K]`.
    pub cls: BTreeMap<String, Tensor>,
    /// `[N, L]`, the attention of the teacher that focuses the mask.
    pub cls_attn: Option<Tensor>,
    /// What decides which teachers are dropped, if any are: [`MimicBatch::teacher_drop`] on the device, and [`MimicBatch::mean_kept`].
    pub teacher_drop: Option<(Tensor, f64)>,
}

impl Features {
    /// The network's input for these features.
    pub(crate) fn batch<'a>(&'a self, imgs: &'a Tensor, masking: &'a Masking, pass: ForwardOptions<'a>) -> Batch<'a> {
        let targets = match self.at {
            Patches::Visible => Targets::Visible(&self.tokens),
            Patches::All => Targets::All(&self.tokens),
        };
        let drop = |(uniform, mean_kept): &'a (Tensor, f64)| TeacherDrop { uniform, mean_kept: *mean_kept };
        let teacher_drop = self.teacher_drop.as_ref().map(drop);
        Batch { imgs, masking, targets, cls_targets: &self.cls, teacher_drop, pass }
    }
}

/// Opens every teacher that the recipe names: those of `online` (`ID=DIR`, where a model's id on a hub may stand for
/// the folder) as networks, the others as rows of the caches.
///
/// A network must be the one that the cache was built with (SHA-256 of its weights), if the cache has it; one that the cache
/// does not have can be used online too. A grid other than [`view_grid`] is refused.
pub(crate) fn open(
    recipe: &Recipe,
    caches: &[Arc<Cache>],
    online: &[String],
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<Vec<RunTeacher>> {
    let mut folders = BTreeMap::new();
    for argument in online {
        let (id, folder) =
            argument.split_once('=').with_context(|| format!("--online-teacher {argument}: write ID=DIR"))?;
        ensure!(folders.insert(id, folder).is_none(), "--online-teacher names {id} twice");
    }
    let named: BTreeSet<&String> = recipe.mimic.teachers.iter().chain(&recipe.mask.teacher).collect();
    if let Some(stray) = folders.keys().find(|id| !named.iter().any(|name| name == *id)) {
        bail!("--online-teacher {stray}: the recipe uses no such teacher (mimic.teachers, mask.teacher)");
    }

    let view_grid = view_grid(recipe, caches.first().map_or(&BTreeMap::new(), |cache| cache.teachers()))?;
    let mut teachers = Vec::new();
    for name in named {
        let mimicked = recipe.mimic.teachers.contains(name);
        let mimics_cls = mimicked && recipe.mimic_of(name).share * recipe.loss.w_cls > 0.0;
        let focuses = recipe.mask.teacher.as_ref() == Some(name);
        let id = TeacherId::new(name.as_str())?;
        let cached = joined::teacher(caches, &id)?;
        let teacher = match (folders.get(name.as_str()), cached) {
            (Some(folder), _) => {
                let (network, resolved) = load_online(folder, cached, hub, device)
                    .with_context(|| format!("--online-teacher {name}={folder}"))?;
                tracing::info!("teacher {name} runs online, from {}", resolved.source);
                let info = network.info();
                if let Some(cached) = cached {
                    ensure!(
                        info.weights_sha256 == cached.weights_sha256,
                        "--online-teacher {name}={folder}: its weights are not those the cache was built with (SHA-256 {}, {:?} says {})",
                        info.weights_sha256,
                        caches[0].dir().join("teachers").join(name).join("teacher.json"),
                        cached.weights_sha256,
                    );
                }
                RunTeacher {
                    width: info.width,
                    weights_sha256: info.weights_sha256.clone(),
                    origin: "online".to_owned(),
                    // The input size at which its grid is the one that the student's is, or is cut from.
                    shape: TeacherShape::Online { input_size: view_grid * info.patch_size },
                    source: Source::Online(Box::new(network)),
                    id,
                    mimicked,
                    mimics_cls,
                    focuses,
                }
            }
            (None, Some(cached)) => {
                require_grid(cached, recipe, view_grid)?;
                let rows: Vec<_> = caches.iter().map(|cache| Arc::new(TeacherRows::new(cache, cached))).collect();
                let first = &rows[0];
                RunTeacher {
                    width: cached.width,
                    weights_sha256: cached.weights_sha256.clone(),
                    origin: format!("cached as {}", cached.codec.name()),
                    shape: TeacherShape::Cached {
                        width: cached.width,
                        kind: first.kind(),
                        outliers: first.outliers(),
                        tokens: mimicked.then_some(Patches::of_targets(recipe)),
                        cls: mimics_cls.then(|| first.cls_kind()),
                        cls_attn: focuses,
                    },
                    source: Source::Cached {
                        rows,
                        dequantize: match &cached.codec {
                            Codec::I8(affine) => Some(Dequantize::new(affine, device)),
                            Codec::F32 | Codec::F16 | Codec::Bf16 => None,
                        },
                    },
                    id,
                    mimicked,
                    mimics_cls,
                    focuses,
                }
            }
            (None, None) => {
                let first = &caches[0];
                let known = first.teachers().keys().cloned().collect();
                return Err(Problem::from(schemas::Error::NoSuchTeacher { path: first.dir().into(), id, known }).into());
            }
        };
        teachers.push(teacher);
    }
    Ok(teachers)
}

/// Loads a network to run inside the loop. If the cache has the teacher, its features are those of the cached layer.
fn load_online(
    given: &str,
    cached: Option<&TeacherIdentity>,
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<(Teacher, Resolved)> {
    let mut options = TeacherOptions::default();
    if let Some(cached) = cached {
        let place = || format!("teacher.json of {}", cached.id);
        options.layer = cached.layer.parse().map_err(anyhow::Error::msg).with_context(place)?;
        let activation = cached.activation.parse().map_err(anyhow::Error::msg);
        options.activation = Some(activation.with_context(place)?);
        (options.mean, options.std) = (Some(cached.mean), Some(cached.std));
        options.norm_eps = Some(cached.norm_eps);
        options.num_heads = cached.heads();
    }
    let resolved = resolve(given, hub)?;
    Ok((Teacher::load_with(&resolved.path, &options, device)?, resolved))
}

/// The features of a batch, in the order of `teachers`, and its masks.
pub(crate) fn features(
    recipe: &Recipe,
    teachers: &[RunTeacher],
    batch: &MimicBatch,
    device: Device,
) -> anyhow::Result<(Features, Masking)> {
    let at = Patches::of_targets(recipe);
    let masking_before = match batch.mask {
        MaskInput::Order(_) => Some(masking(recipe, &batch.mask, None, device)?),
        MaskInput::Noise(_) => None,
    };
    let patches = batch.patches.as_ref().map(|patches| to_device(patches, device)).transpose()?;
    let uniform = batch.teacher_drop.as_ref().map(|uniform| to_device(uniform, device)).transpose()?;
    let teacher_drop = uniform.map(|uniform| (uniform, batch.mean_kept));
    let mut features = Features { tokens: BTreeMap::new(), at, cls: BTreeMap::new(), cls_attn: None, teacher_drop };
    for (teacher, loaded) in teachers.iter().zip(&batch.teachers) {
        let (tokens, cls, cls_attn) = match (loaded, &teacher.source) {
            (TeacherBatch::Cached { tokens, outliers, cls, cls_attn }, Source::Cached { dequantize, .. }) => {
                let on_device = |t: &Option<Tensor>| t.as_ref().map(|t| to_device(t, device)).transpose();
                let (tokens, outliers) = (on_device(tokens)?, on_device(outliers)?);
                let tokens = match dequantize {
                    Some(dequantize) => tokens.map(|t| dequantize.forward(&t, outliers.as_ref())),
                    None => tokens,
                };
                (tokens, on_device(cls)?, on_device(cls_attn)?)
            }
            (TeacherBatch::Online { pixels }, Source::Online(network)) => {
                let pixels = to_device(pixels, device)?.permute([0, 3, 1, 2]).contiguous(); // [N, 3, T, T]
                // f32, since this is what a cache is measured against; and the attention rounded as a cache rounds it, so that
                // both draw the same masks.
                let output = network.forward(&pixels, Precision::F32)?;
                let cls_attn = output.cls_attn.to_kind(Kind::Half);
                let cls_attn = match &patches {
                    Some(patches) => cls_attn.gather(1, patches, false),
                    None => cls_attn,
                };
                let visible = masking_before.as_ref().filter(|_| at == Patches::Visible).map(|m| &m.ids_keep);
                let wanted = match (&patches, visible) {
                    (Some(patches), Some(visible)) => Some(patches.gather(1, visible, false)),
                    (Some(patches), None) => Some(patches.shallow_clone()),
                    (None, visible) => visible.map(Tensor::shallow_clone),
                };
                let tokens = match wanted {
                    Some(wanted) => gather_rows(&output.tokens, &wanted),
                    None => output.tokens,
                };
                (Some(tokens), Some(output.cls), Some(cls_attn))
            }
            _ => unreachable!("a batch is allocated by the shapes of its teachers"),
        };
        if let Some(tokens) = tokens.filter(|_| teacher.mimicked) {
            features.tokens.insert(teacher.id.to_string(), tokens);
        }
        if let Some(cls) = cls.filter(|_| teacher.mimics_cls) {
            features.cls.insert(teacher.id.to_string(), cls);
        }
        if teacher.focuses {
            features.cls_attn = cls_attn;
        }
    }
    let masking = match masking_before {
        Some(masking) => masking,
        None => masking(recipe, &batch.mask, features.cls_attn.as_ref(), device)?,
    };
    Ok((features, masking))
}

/// Patches along one side of the views that the teachers see: those of the student, or with `data.random_shift` those of the teachers
/// that the recipe names and the cache has (`known`), or of all that the cache has if it has none of those.
///
/// # Errors
/// If a grid is not larger than the student's although it is to be cut from it, if grids differ, or if there is none.
pub(crate) fn view_grid(recipe: &Recipe, known: &BTreeMap<TeacherId, TeacherIdentity>) -> anyhow::Result<u32> {
    if !recipe.data.random_shift {
        return Ok(recipe.grid());
    }
    let is_named =
        |id: &TeacherId| recipe.mimic.teachers.iter().chain(&recipe.mask.teacher).any(|name| name == id.as_str());
    let (named, others): (Vec<_>, Vec<_>) = known.values().partition(|teacher| is_named(&teacher.id));
    let candidates = if named.is_empty() { others } else { named };
    let first = candidates.first().context(
        "data.random_shift: the cache has no teacher, whose grid would say how large the views are of which the student sees a part",
    )?;
    for teacher in &candidates {
        ensure!(
            teacher.grid == first.grid,
            "data.random_shift: teachers {} and {} have grids of {}x{} and {}x{} patches. One view is cut for all of them: build the cache with one \
             --grid for all",
            first.id,
            teacher.id,
            first.grid,
            first.grid,
            teacher.grid,
            teacher.grid,
        );
    }
    match first.grid > recipe.grid() {
        true => Ok(first.grid),
        false => Err(grid_problem(first, recipe).into()),
    }
}

/// Refuses a cached teacher whose grid is not `view_grid`.
pub(crate) fn require_grid(cached: &TeacherIdentity, recipe: &Recipe, view_grid: u32) -> Result<(), Problem> {
    match cached.grid == view_grid {
        true => Ok(()),
        false => Err(grid_problem(cached, recipe)),
    }
}

fn grid_problem(cached: &TeacherIdentity, recipe: &Recipe) -> Problem {
    Problem::Grid {
        teacher: cached.id.to_string(),
        teacher_grid: cached.grid,
        student_grid: recipe.grid(),
        img_size: recipe.model.img_size,
        patch_size: recipe.model.patch_size,
        shifts: recipe.data.random_shift,
    }
}
