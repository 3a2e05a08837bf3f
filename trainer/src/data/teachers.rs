//! The teachers of a run: their features from the cache, or from the network itself inside the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use hub::{HubSettings, Resolved};
use models::blocks::Pass;
use models::masking::Masking;
use models::mr_mae::Batch;
use models::precision::Precision;
use models::teacher::{Teacher, TeacherOptions};
use schemas::{Cache, Codec, TeacherId, TeacherIdentity};
use tch::{Device, Kind, Tensor};
use torch_ext::to_device;

use crate::data::Problem;
use crate::data::batch::{MimicBatch, TeacherBatch, TeacherShape};
use crate::data::dequantize::Dequantize;
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
    /// What the loader brings for it.
    pub shape: TeacherShape,
    source: Source,
}

/// Where a teacher's features come from.
#[derive(Debug)]
enum Source {
    /// Rows of the cache; those of codec `i8` are dequantized on the device.
    Cached { rows: Arc<TeacherRows>, dequantize: Option<Dequantize> },
    /// The network, run inside the loop.
    Online(Box<Teacher>),
}

impl RunTeacher {
    /// Its rows in the cache; `None` where it runs online.
    pub(crate) fn rows(&self) -> Option<Arc<TeacherRows>> {
        match &self.source {
            Source::Cached { rows, .. } => Some(Arc::clone(rows)),
            Source::Online(_) => None,
        }
    }
}

/// What a teacher says about a batch, on the device.
#[derive(Debug)]
pub(crate) struct Features {
    /// Per mimicked teacher `[N, L, K]`, in the type it is stored in.
    pub tokens: BTreeMap<String, Tensor>,
    /// Per teacher whose CLS token is mimicked `[N, K]`.
    pub cls: BTreeMap<String, Tensor>,
    /// `[N, L]` of the teacher that focuses.
    pub cls_attn: Option<Tensor>,
}

impl Features {
    /// The network's input for these features.
    pub(crate) fn batch<'a>(&'a self, imgs: &'a Tensor, masking: &'a Masking, pass: Pass<'a>) -> Batch<'a> {
        Batch { imgs, masking, targets: &self.tokens, cls_targets: &self.cls, pass }
    }
}

/// Opens every teacher that the recipe names: those of `online` (`ID=DIR`, where a model's id on a hub may stand for
/// the folder) as networks, the others as rows of the cache.
///
/// A network must be the one that the cache was built with (SHA-256 of its weights), if the cache knows it; one the cache does
/// not have can be used online all the same. A grid other than the student's is refused.
pub(crate) fn open(
    recipe: &Recipe,
    cache: &Arc<Cache>,
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

    let mut teachers = Vec::new();
    for name in named {
        let mimicked = recipe.mimic.teachers.contains(name);
        let (share, _, _) = recipe.mimic_of(name);
        let mimics_cls = mimicked && share * recipe.loss.w_cls > 0.0;
        let focuses = recipe.mask.teacher.as_ref() == Some(name);
        let id = TeacherId::new(name.as_str())?;
        let cached = cache.teachers().get(&id);
        let teacher = match (folders.get(name.as_str()), cached) {
            (Some(folder), _) => {
                let (network, found) = load_online(folder, cached, hub, device)
                    .with_context(|| format!("--online-teacher {name}={folder}"))?;
                tracing::info!("teacher {name} runs online, from {}", found.source);
                let info = network.info();
                if let Some(cached) = cached {
                    ensure!(
                        info.weights_sha256 == cached.weights_sha256,
                        "--online-teacher {name}={folder}: its weights are not those the cache was built with (SHA-256 {}, {:?} says {})",
                        info.weights_sha256,
                        cache.dir().join("teachers").join(name).join("teacher.json"),
                        cached.weights_sha256,
                    );
                }
                RunTeacher {
                    width: info.width,
                    weights_sha256: info.weights_sha256.clone(),
                    origin: "online".to_owned(),
                    // Any teacher is given the pixels at which its grid is the student's.
                    shape: TeacherShape::Online { input_size: recipe.grid() * info.patch_size },
                    source: Source::Online(Box::new(network)),
                    id,
                    mimicked,
                    mimics_cls,
                    focuses,
                }
            }
            (None, Some(cached)) => {
                require_grid(cached, recipe)?;
                let rows = TeacherRows::new(cache, cached);
                RunTeacher {
                    width: cached.width,
                    weights_sha256: cached.weights_sha256.clone(),
                    origin: format!("cached as {}", cached.codec.name()),
                    shape: TeacherShape::Cached {
                        width: cached.width,
                        kind: rows.kind(),
                        outliers: rows.outliers(),
                        tokens: mimicked,
                        cls: mimics_cls.then(|| rows.cls_kind()),
                        cls_attn: focuses,
                    },
                    source: Source::Cached {
                        rows: Arc::new(rows),
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
                let known = cache.teachers().keys().cloned().collect();
                return Err(Problem::from(schemas::Error::NoSuchTeacher { path: cache.dir().into(), id, known }).into());
            }
        };
        teachers.push(teacher);
    }
    Ok(teachers)
}

/// A network to run inside the loop: its features are those of the cache's layer, if the cache knows it.
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
    let found = resolve(given, hub)?;
    Ok((Teacher::load_with(&found.path, &options, device)?, found))
}

/// The features of a batch, in the order of `teachers`.
pub(crate) fn features(teachers: &[RunTeacher], batch: &MimicBatch, device: Device) -> anyhow::Result<Features> {
    let mut features = Features { tokens: BTreeMap::new(), cls: BTreeMap::new(), cls_attn: None };
    for (teacher, loaded) in teachers.iter().zip(&batch.teachers) {
        let (tokens, cls, cls_attn) = match (loaded, &teacher.source) {
            (TeacherBatch::Cached { tokens, outliers, cls, cls_attn }, Source::Cached { dequantize, .. }) => {
                let move_it = |t: &Option<Tensor>| t.as_ref().map(|t| to_device(t, device)).transpose();
                let (tokens, outliers) = (move_it(tokens)?, move_it(outliers)?);
                let tokens = match dequantize {
                    Some(dequantize) => tokens.map(|t| dequantize.forward(&t, outliers.as_ref())),
                    None => tokens,
                };
                (tokens, move_it(cls)?, move_it(cls_attn)?)
            }
            (TeacherBatch::Online { pixels }, Source::Online(network)) => {
                let pixels = to_device(pixels, device)?.permute([0, 3, 1, 2]).contiguous(); // [N, 3, T, T]
                // f32, since this is what a cache is measured against; and the attention rounded as a cache rounds it, so that
                // both draw the same masks.
                let output = network.forward(&pixels, Precision::F32)?;
                (Some(output.tokens), Some(output.cls), Some(output.cls_attn.to_kind(Kind::Half)))
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
    Ok(features)
}

/// Refuses a cached teacher whose patches are not the student's.
pub(crate) fn require_grid(cached: &TeacherIdentity, recipe: &Recipe) -> Result<(), Problem> {
    match cached.grid == recipe.grid() {
        true => Ok(()),
        false => Err(Problem::Grid {
            teacher: cached.id.to_string(),
            teacher_grid: cached.grid,
            student_grid: recipe.grid(),
            img_size: recipe.model.img_size,
            patch_size: recipe.model.patch_size,
        }),
    }
}
