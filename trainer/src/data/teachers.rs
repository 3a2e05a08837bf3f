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
use schemas::{Cache, Codec, TeacherId, TeacherIdentity, ViewPolicy};
use tch::{Device, Kind, Tensor};
use torch_ext::to_device;

use crate::data::Problem;
use crate::data::batch::{MaskInput, MimicBatch, Patches, RowShape, RowsBatch, TeacherShape};
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
    /// Its rows, unless all its features come from the network.
    cached: Option<Rows>,
    /// The network, if it runs inside the loop: for images with a fresh view, or if there are no rows for all.
    network: Option<Teacher>,
}

/// A teacher's rows of each cache; those of codec `i8` are dequantized on the device.
#[derive(Debug)]
struct Rows {
    of_cache: Vec<Arc<TeacherRows>>,
    dequantize: Option<Dequantize>,
}

impl Rows {
    fn open(caches: &[Arc<Cache>], cached: &TeacherIdentity, device: Device) -> Rows {
        Rows {
            of_cache: caches.iter().map(|cache| Arc::new(TeacherRows::new(cache, cached))).collect(),
            dequantize: match &cached.codec {
                Codec::I8(affine) => Some(Dequantize::new(affine, device)),
                Codec::F32 | Codec::F16 | Codec::Bf16 => None,
            },
        }
    }
}

impl RunTeacher {
    /// Its rows in each cache; `None` where all its features come from the network.
    pub(crate) fn rows(&self) -> Option<&[Arc<TeacherRows>]> {
        self.cached.as_ref().map(|rows| &rows.of_cache[..])
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
/// the folder) as networks, the others as rows of the caches. A network takes the place of the rows; with fresh views (`data.fresh`) every teacher
/// needs one, and has its rows too, unless all views are fresh.
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
    let fresh = recipe.data.fresh;
    if fresh > 0.0 {
        require_fresh(fresh, caches, named.iter().filter(|name| !folders.contains_key(name.as_str())).copied())?;
    }
    let mut teachers = Vec::new();
    for name in named {
        let mimicked = recipe.mimic.teachers.contains(name);
        let mimics_cls = mimicked && recipe.mimic_of(name).share * recipe.loss.w_cls > 0.0;
        let focuses = recipe.mask.teacher.as_ref() == Some(name);
        let id = TeacherId::new(name.as_str())?;
        let known = joined::teacher(caches, &id)?;
        let network = match folders.get(name.as_str()) {
            Some(folder) => Some(open_online(name, folder, known, caches, hub, device)?),
            None => None,
        };
        // A network takes the place of the rows, unless it is there for a part of the views.
        let from_rows = match (known, &network) {
            (_, Some(_)) if fresh == 0.0 || fresh == 1.0 => None,
            (Some(known), _) => Some(known),
            (None, _) => {
                let first = &caches[0];
                let known = first.teachers().keys().cloned().collect();
                return Err(Problem::from(schemas::Error::NoSuchTeacher { path: first.dir().into(), id, known }).into());
            }
        };
        let cached = match from_rows {
            Some(known) => {
                require_grid(known, recipe, view_grid)?;
                Some((known, Rows::open(caches, known, device)))
            }
            None => None,
        };
        let row_shape = |(known, rows): &(&TeacherIdentity, Rows)| {
            let first = &rows.of_cache[0];
            RowShape {
                width: known.width,
                kind: first.kind(),
                outliers: first.outliers(),
                tokens: mimicked.then_some(Patches::of_targets(recipe)),
                cls: mimics_cls.then(|| first.cls_kind()),
                cls_attn: focuses,
            }
        };
        let online = network.as_ref().map(Teacher::info);
        let (width, weights_sha256) = match (&cached, online) {
            (Some((known, _)), _) => (known.width, known.weights_sha256.clone()),
            (None, Some(info)) => (info.width, info.weights_sha256.clone()),
            (None, None) => unreachable!("a teacher without rows has a network"),
        };
        teachers.push(RunTeacher {
            width,
            weights_sha256,
            origin: match (&cached, &network) {
                (Some((known, _)), None) => format!("cached as {}", known.codec.name()),
                (Some((known, _)), Some(_)) => format!("cached as {}, and online for fresh views", known.codec.name()),
                (None, _) => "online".to_owned(),
            },
            shape: TeacherShape {
                rows: cached.as_ref().map(row_shape),
                // The input size at which its grid is the one that the student's is, or is cut from.
                input_size: online.map(|info| view_grid * info.patch_size),
            },
            cached: cached.map(|(_, rows)| rows),
            network,
            id,
            mimicked,
            mimics_cls,
            focuses,
        });
    }
    Ok(teachers)
}

/// Refuses fresh views if a teacher cannot run inside the loop, or if no view can be fresh.
fn require_fresh<'a>(
    fresh: f64,
    caches: &[Arc<Cache>],
    without_network: impl Iterator<Item = &'a String>,
) -> anyhow::Result<()> {
    let missing: Vec<String> = without_network.map(|name| format!("--online-teacher {name}=DIR")).collect();
    ensure!(
        missing.is_empty(),
        "data.fresh = {fresh}: no row has the features of a fresh view, so every teacher of the run has to run inside the loop for them. \
         Give {}, or leave data.fresh out",
        missing.join(" ")
    );
    ensure!(
        matches!(caches[0].identity().views.policy, ViewPolicy::Rrc { .. }),
        "data.fresh = {fresh}: the views of {:?} are not drawn at random (--view-policy), so a fresh one would be the same again. Leave data.fresh \
         out, or build the cache with --view-policy rrc",
        caches[0].dir()
    );
    Ok(())
}

/// Opens the network of teacher `name`, which is the one that the caches were built with if they have it.
fn open_online(
    name: &str,
    folder: &str,
    known: Option<&TeacherIdentity>,
    caches: &[Arc<Cache>],
    hub: &HubSettings,
    device: Device,
) -> anyhow::Result<Teacher> {
    let (network, resolved) =
        load_online(folder, known, hub, device).with_context(|| format!("--online-teacher {name}={folder}"))?;
    tracing::info!("teacher {name} runs online, from {}", resolved.source);
    if let Some(known) = known {
        ensure!(
            network.info().weights_sha256 == known.weights_sha256,
            "--online-teacher {name}={folder}: its weights are not those the cache was built with (SHA-256 {}, {:?} says {})",
            network.info().weights_sha256,
            caches[0].dir().join("teachers").join(name).join("teacher.json"),
            known.weights_sha256,
        );
    }
    Ok(network)
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
    // Where a teacher has rows too, its network runs for the images with a fresh view alone.
    let fresh: Vec<i64> = (0..).zip(&batch.fresh).filter(|(_, fresh)| **fresh).map(|(image, _)| image).collect();
    let fresh = (!fresh.is_empty()).then(|| to_device(&Tensor::from_slice(&fresh), device)).transpose()?;
    let visible = masking_before.as_ref().filter(|_| at == Patches::Visible).map(|masking| &masking.ids_keep);
    for (teacher, loaded) in teachers.iter().zip(&batch.teachers) {
        let rows = match (&loaded.rows, &teacher.cached) {
            (Some(loaded), Some(Rows { dequantize, .. })) => Some(of_rows(loaded, dequantize.as_ref(), device)?),
            _ => None,
        };
        let of_network = |which: Option<&Tensor>| {
            let (Some(pixels), Some(network)) = (&loaded.pixels, &teacher.network) else {
                unreachable!("a batch is allocated by the shapes of its teachers");
            };
            let rows = |x: &Tensor| which.map_or_else(|| x.shallow_clone(), |which| x.index_select(0, which));
            let pixels = which.map_or_else(|| pixels.shallow_clone(), |which| pixels.narrow(0, 0, which.size()[0]));
            let patches = patches.as_ref().map(rows);
            run_network(network, &pixels, patches.as_ref(), visible.map(rows).as_ref(), device)
        };
        let OfTeacher { tokens, cls, cls_attn } = match rows {
            Some(rows) if teacher.network.is_none() => rows,
            Some(rows) => match &fresh {
                Some(fresh) => rows.in_full_precision().replaced_by(&of_network(Some(fresh))?, fresh),
                None => rows.in_full_precision(),
            },
            None => of_network(None)?,
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

/// One teacher's features of a batch, on the device, as far as they are used.
struct OfTeacher {
    /// `[N, keep, K]` at the visible patches, or `[N, L, K]` at all.
    tokens: Option<Tensor>,
    /// `[N, K]`
    cls: Option<Tensor>,
    /// `[N, L]`, f16.
    cls_attn: Option<Tensor>,
}

impl OfTeacher {
    /// Tokens in f32, as the network gives them; which changes no value.
    fn in_full_precision(self) -> OfTeacher {
        let full = |x: Option<Tensor>| x.map(|x| x.to_kind(Kind::Float));
        OfTeacher { tokens: full(self.tokens), cls: full(self.cls), cls_attn: self.cls_attn }
    }

    /// With the features of the images `which` from `other`, as far as they are used here.
    fn replaced_by(self, other: &OfTeacher, which: &Tensor) -> OfTeacher {
        let replaced = |x: Option<Tensor>, other: &Option<Tensor>| match (x, other) {
            (Some(x), Some(other)) => Some(x.index_copy(0, which, other)),
            (x, _) => x,
        };
        OfTeacher {
            tokens: replaced(self.tokens, &other.tokens),
            cls: replaced(self.cls, &other.cls),
            cls_attn: replaced(self.cls_attn, &other.cls_attn),
        }
    }
}

/// The features of rows, in the type they are stored in.
fn of_rows(loaded: &RowsBatch, dequantize: Option<&Dequantize>, device: Device) -> anyhow::Result<OfTeacher> {
    let on_device = |t: &Option<Tensor>| t.as_ref().map(|t| to_device(t, device)).transpose();
    let (tokens, outliers) = (on_device(&loaded.tokens)?, on_device(&loaded.outliers)?);
    let tokens = match dequantize {
        Some(dequantize) => tokens.map(|t| dequantize.forward(&t, outliers.as_ref())),
        None => tokens,
    };
    Ok(OfTeacher { tokens, cls: on_device(&loaded.cls)?, cls_attn: on_device(&loaded.cls_attn)? })
}

/// The features of `pixels [N, T, T, 3]` by the network itself, at the student's `patches [N, L, C]` of the view, as the means of each C, or at
/// all, and of those at the `visible [N, keep]` ones if given.
fn run_network(
    network: &Teacher,
    pixels: &Tensor,
    patches: Option<&Tensor>,
    visible: Option<&Tensor>,
    device: Device,
) -> anyhow::Result<OfTeacher> {
    let pixels = to_device(pixels, device)?.permute([0, 3, 1, 2]).contiguous(); // [N, 3, T, T]
    // f32, since this is what a cache is measured against; and the attention rounded as a cache rounds it, so that
    // both draw the same masks.
    let output = network.forward(&pixels, Precision::F32)?;
    let cls_attn = output.cls_attn.to_kind(Kind::Half);
    let wanted = match (patches, visible) {
        (Some(patches), Some(visible)) => Some(gather_rows(patches, visible)),
        (Some(patches), None) => Some(patches.shallow_clone()),
        (None, visible) => visible.map(|visible| visible.unsqueeze(-1)),
    };
    Ok(OfTeacher {
        tokens: Some(match wanted {
            Some(wanted) => mean_at(&output.tokens, &wanted),
            None => output.tokens,
        }),
        cls: Some(output.cls),
        cls_attn: Some(match patches {
            Some(patches) => mean_at(&cls_attn.unsqueeze(-1), patches).squeeze_dim(-1),
            None => cls_attn,
        }),
    })
}

/// The means of the rows of `x [N, L, K]` at each C of `patches [N, T, C]`: `[N, T, K]`, in the type of `x`.
fn mean_at(x: &Tensor, patches: &Tensor) -> Tensor {
    let (n, t, covered) = patches.size3().expect("patches are [N, T, C]");
    let rows = gather_rows(x, &patches.flatten(1, 2));
    match covered {
        1 => rows,
        _ => rows.view([n, t, covered, -1]).mean_dim(2, false, Kind::Float).to_kind(x.kind()),
    }
}

/// Patches along one side of the views that the teachers see: those of the student, or with `data.random_shift` those of the teachers
/// that the recipe names and the cache has (`known`), or of all that the cache has if it has none of those.
///
/// # Errors
/// If a grid is not larger than the student's although it is to be cut from it, not twice as large although the student is to see it at half the
/// resolution, if grids differ, or if there is none.
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
    if first.grid <= recipe.grid() {
        return Err(grid_problem(first, recipe).into());
    }
    ensure!(
        recipe.data.half_resolution == 0.0 || first.grid == 2 * recipe.grid(),
        "data.half_resolution: a view has to have twice as many patches along a side as the student's {}, and teacher {} has {}. Build the cache with \
         --grid {}, or leave data.half_resolution out",
        recipe.grid(),
        first.id,
        first.grid,
        2 * recipe.grid(),
    );
    Ok(first.grid)
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
