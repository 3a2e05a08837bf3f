//! What a build is, once everything that it depends on has been found: images, teachers, identities.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use hub::HubSettings;
use images::{DeepImages, ImageSource};
use models::teacher::{Teacher, TeacherOptions};
use program::words::count;
use schemas::{Cache, CacheIdentity, Codec, TeacherId, TeacherIdentity, layout};
use tch::Device;

use super::calibrate::{self, PreparedTeacher};
use super::contents::Contents;
use super::decode::Decoder;
use super::identity::{self, Existing, ForwardPass};
use super::infer::Compute;
use super::network::{BuildTeacher, Network};
use super::resolve;
use super::reuse::Reuse;
use super::timing::Timings;
use super::worklist::{self, Outputs, PartWork};
use crate::Environment;
use crate::division::{Division, Share};
use crate::recipe::{CodecName, Recipe};

/// Images that a dry run calibrates codec `i8` on.
const DRY_CALIBRATION_IMAGES: u64 = 8;

/// Everything that is known before the first byte is written.
#[derive(Debug)]
pub(crate) struct Build {
    pub recipe: Recipe,
    pub compute: Compute,
    /// The data set; absent where all images that are needed are packed.
    pub source: Option<ImageSource>,
    pub identity: CacheIdentity,
    /// How image files become pixels, as the identity says.
    pub decoder: images::Decoder,
    /// Counts over all images decoded.
    pub deep: DeepImages,
    /// In order of id.
    pub teachers: Vec<BuildTeacher>,
    pub batch_size: u32,
    /// What the cache says that is there.
    pub existing: Existing,
    /// Teachers of the cache whose codec is not the one asked for, in words.
    pub other_codecs: Vec<String>,
    /// How its parts are divided among the processes that build it.
    pub division: Division,
    /// The contents of all images, once a build that stores each once has read them.
    pub contents: OnceLock<Contents>,
    /// The cache whose features are taken over.
    pub reuse: Option<Reuse>,
}

/// Finds the device and has libtorch compute on it in the build's precision.
pub(crate) fn open_device(recipe: &Recipe) -> anyhow::Result<Device> {
    // Before anything else touches libtorch: it looks for its CUDA half only once.
    let name = &recipe.run.device;
    let device = torch_ext::resolve_device(name).with_context(|| format!("run.device = {name:?}"))?;
    let precision = recipe.precision_on(device);
    if recipe.features.precision.is_none() && device.is_cuda() {
        tracing::info!(
            "teachers run in {precision}, the default on a GPU; --precision f32 computes them as a CPU does"
        );
    }
    precision.prepare(device)?;
    Ok(device)
}

/// Teachers by how they run: those of one group can share a build.
pub(crate) fn run_alike<'a>(teachers: impl IntoIterator<Item = &'a TeacherIdentity>) -> Vec<Vec<&'a TeacherIdentity>> {
    let mut alike: BTreeMap<_, Vec<&TeacherIdentity>> = BTreeMap::new();
    for teacher in teachers {
        let TeacherIdentity { grid, batch_size, precision, device, codec, .. } = teacher;
        alike.entry((grid, batch_size, precision, device, codec.to_string())).or_default().push(teacher);
    }
    alike.into_values().collect()
}

/// Opens the data set.
pub(crate) fn open_source(recipe: &Recipe) -> anyhow::Result<ImageSource> {
    let images = recipe.data.images.as_deref().context("a build reads images")?;
    let source = ImageSource::open(images)?;
    tracing::info!(
        "{images}: {}, {}{}",
        source.kind(),
        count(source.len() as u64, "image"),
        match source.files() {
            0 => String::new(),
            files => format!(" in {}", count(files as u64, "file")),
        }
    );
    let source = match recipe.data.limit {
        Some(limit) => source.limit(limit),
        None => source,
    };
    ensure!(!source.is_empty(), "{images}: no images here");
    Ok(source)
}

/// Loads a teacher. What its files and `options` leave open is what the cache in `out` was begun with, if it has this teacher.
fn load_teacher(
    out: &Path,
    id: &TeacherId,
    path: &Path,
    options: &TeacherOptions,
    device: Device,
) -> anyhow::Result<Teacher> {
    use models::Error::{MissingFact, MissingFacts};
    match Teacher::load_with(path, options, device) {
        Err(missing @ (MissingFact { .. } | MissingFacts(_))) => {
            let Some(begun) = schemas::read_teacher(out, id)? else {
                return Err(missing.into());
            };
            let (mean, std) = match (options.mean, options.std) {
                (None, None) => (Some(begun.mean), Some(begun.std)),
                given => given,
            };
            let begun = TeacherOptions {
                layer: options.layer,
                activation: options.activation.or(begun.activation.parse().ok()),
                mean,
                std,
                norm_eps: options.norm_eps.or(Some(begun.norm_eps)),
                num_heads: options.num_heads.or(begun.heads()),
            };
            Ok(Teacher::load_with(path, &begun, device)?)
        }
        other => Ok(other?),
    }
}

/// Finds and opens the teachers and settles what depends on them. Writes nothing, apart from what a hub's cache lacks.
pub(crate) fn prepare(
    recipe: Recipe,
    dry_run: bool,
    device: Device,
    source: Option<ImageSource>,
    identity: CacheIdentity,
    existing: Existing,
    env: &Environment,
) -> anyhow::Result<Build> {
    let decoder = decoder(&recipe, &identity)?;
    let compute = Compute {
        device,
        precision: recipe.precision_on(device),
        threads: recipe.run.threads,
        pause_per_row: env.pause_per_row,
    };
    let models = load_teachers(&recipe, device, &env.hub)?;
    let grid = identity::choose_grid(recipe.features.grid, &existing, models.iter().map(|(_, _, model)| model.info()))?;
    let batch_size = recipe.batch_size_on(device);

    let (mut prepared, mut other_codecs) = (Vec::new(), Vec::new());
    for (id, source, model) in models {
        let (codec, problem) = codec(&recipe, &id, &model.info().weights_sha256)?;
        other_codecs.extend(problem);
        let pass = ForwardPass { grid, batch_size, device, precision: compute.precision };
        let input_size = identity::input_size(&id, model.info(), grid)?;
        prepared.push(PreparedTeacher { id, source, model, input_size, pass, codec });
    }
    // Teachers of a cache that run unlike each other come here one group after the other.
    let ids: Vec<&str> = prepared.iter().map(|teacher| teacher.id.as_str()).collect();
    tracing::info!(
        "the recipe in full for teacher{} {} of {}:\n{}",
        if ids.len() == 1 { "" } else { "s" },
        ids.join(" and "),
        recipe.cache.out.display(),
        recipe.to_toml(grid, device)
    );

    let division = division(&recipe, env)?;

    // A dry run wants sizes and speed, for which any few images do.
    let images = if dry_run { DRY_CALIBRATION_IMAGES } else { u64::MAX }.min(recipe.features.calibration_images);
    // The images of the calibration are counted when the build comes to them.
    let (timings, uncounted) = (Timings::default(), DeepImages::default());
    let pixels = Decoder::new(source.as_ref(), &identity, decoder, &uncounted, &timings);
    let sampling = calibrate::Sampling { images, batch_size, identity: &identity, cache: &recipe.cache.out };
    let teachers = calibrate::calibrate(prepared, &pixels, sampling, compute)?;
    let identities: Vec<_> = teachers.iter().map(|teacher| &teacher.identity).collect();
    let reuse = recipe.cache.reuse.as_ref().map(|folder| Reuse::open(folder, &identity, &identities)).transpose()?;
    Ok(Build {
        recipe,
        compute,
        source,
        identity,
        decoder,
        deep: DeepImages::default(),
        teachers,
        batch_size,
        existing,
        other_codecs,
        division,
        contents: OnceLock::new(),
        reuse,
    })
}

/// How the parts are divided: as the recipe says, else as a scheduler states.
fn division(recipe: &Recipe, env: &Environment) -> anyhow::Result<Division> {
    if let Some(division) = recipe.run.worker {
        return Ok(division);
    }
    let (share, stated) = match &env.share {
        None => return Ok(Division::Leases),
        Some(Ok(stated)) => stated,
        Some(Err(contradiction)) => bail!("{contradiction}"),
    };
    tracing::info!(
        "this is worker {share} by {stated}: it builds its share of the parts, and the others theirs (--worker leases: each takes the parts that nobody \
         has)"
    );
    Ok(Division::Share(*share))
}

/// How the cache's images become pixels.
fn decoder(recipe: &Recipe, identity: &CacheIdentity) -> anyhow::Result<images::Decoder> {
    let decoder = images::Decoder::of_cache(&identity.image_code, identity.depth_window).with_context(|| {
        format!(
            "{}: its crops were made by image code {:?}, this program has {:?}: rows of one cache would be of different pixels. Use the \
             version that built the cache, or build it again",
            recipe.cache.out.display(),
            identity.image_code,
            images::IMAGE_CODE
        )
    })?;
    if let Some(rules) = decoder.earlier_rules() {
        tracing::warn!(
            "{} was begun with earlier rules for images, and goes on with them: {rules}. Build into another folder for today's",
            recipe.cache.out.display()
        );
    }
    Ok(decoder)
}

/// The teachers asked for, each with where it came from.
fn load_teachers(
    recipe: &Recipe,
    device: Device,
    hub: &HubSettings,
) -> anyhow::Result<Vec<(TeacherId, String, Teacher)>> {
    // All of them are found before the first is loaded: what is wrong with the second should not show after minutes.
    let mut found = Vec::new();
    for (id, teacher) in &recipe.teachers {
        found.push(resolve::resolve(id, &teacher.path, hub)?);
    }
    let mut models = Vec::new();
    for ((id, teacher), resolved) in recipe.teachers.iter().zip(found) {
        let model = load_teacher(&recipe.cache.out, id, &resolved.path, &teacher.options(), device)
            .with_context(|| format!("teacher {id}"))?;
        for assumed in &model.info().assumed {
            let settings = assumed.settings;
            if assumed.doubtful {
                tracing::warn!(
                    "teacher {id}: ASSUMED {assumed}. No file beside the weights says it: give {settings} (--help), or the same values to \
                     confirm them"
                );
            } else {
                tracing::info!("teacher {id}: assumed {assumed}; no file says otherwise");
            }
        }
        models.push((id.clone(), resolved.source, model));
    }
    Ok(models)
}

/// How a teacher's features are stored, or nothing where that has to be calibrated; and why the cache's own codec is not the one asked for.
fn codec(recipe: &Recipe, id: &TeacherId, weights: &str) -> anyhow::Result<(Option<Codec>, Option<String>)> {
    Ok(match recipe.features.codec {
        CodecName::F32 => (Some(Codec::F32), None),
        CodecName::F16 => (Some(Codec::F16), None),
        CodecName::Bf16 => (Some(Codec::Bf16), None),
        CodecName::I8 => match calibrate::existing(&recipe.cache.out, id, recipe.features.calibration_images)? {
            calibrate::Existing::Parameters(affine) => (Some(Codec::I8(affine)), None),
            // What is taken over is of the ranges that it was stored with.
            calibrate::Existing::Nothing => (reused_codec(recipe, id, weights)?, None),
            calibrate::Existing::Other { codec, problem } => (Some(codec), Some(problem)),
        },
    })
}

/// The parameters of `i8` that the cache to be reused has for these weights.
fn reused_codec(recipe: &Recipe, id: &TeacherId, weights: &str) -> anyhow::Result<Option<Codec>> {
    let Some(folder) = &recipe.cache.reuse else {
        return Ok(None);
    };
    let there = schemas::read_teacher(folder, id)?.filter(|there| there.weights_sha256 == weights);
    Ok(there.map(|there| there.codec).filter(|codec| matches!(codec, Codec::I8(_))))
}

impl Build {
    /// The parts of one of several workers: of those that were appended last, or of a cache that was not appended to.
    pub(super) fn shared_parts(&self, share: Share) -> Range<u32> {
        let appended = self.identity.generation_parts(self.identity.generations.len());
        let Range { start, end } = share.of(appended.end - appended.start);
        // What earlier ones lack, if anything, goes to the first worker.
        let start = if share.index == 0 { 0 } else { appended.start + start };
        start..appended.start + end
    }

    /// What decodes this build's images.
    pub(crate) fn decoder<'a>(&'a self, timings: &'a Timings) -> Decoder<'a> {
        let decoder = Decoder::new(self.source.as_ref(), &self.identity, self.decoder, &self.deep, timings);
        Decoder { contents: self.contents.get(), ..decoder }
    }

    /// What one more thread needs to run the teachers.
    pub(crate) fn networks(&self) -> Vec<Network> {
        self.teachers.iter().map(BuildTeacher::network).collect()
    }

    /// What the teachers are, in their order.
    pub(crate) fn identities(&self) -> Vec<&TeacherIdentity> {
        self.teachers.iter().map(|teacher| &teacher.identity).collect()
    }

    /// What the cache lacks.
    pub(crate) fn worklist(&self, cache: &Cache) -> schemas::Result<Vec<PartWork>> {
        let mut committed = cache.part_states()?;
        // A dry run does not write what it would append.
        committed.resize_with(self.identity.parts() as usize, Default::default);
        let committed = committed.into_iter();
        let committed = committed
            .map(|state| Outputs { samples: state.samples.is_some(), teachers: state.teachers.into_keys().collect() });
        Ok(worklist::worklist(&self.wanted(), &committed.collect::<Vec<_>>()))
    }

    /// What a cache that is not there lacks.
    pub(crate) fn whole_worklist(&self) -> Vec<PartWork> {
        worklist::worklist(&self.wanted(), &vec![Outputs::default(); self.identity.parts() as usize])
    }

    /// What a part lacks that has `has`, if anything.
    pub(crate) fn work_of_part(&self, part: u32, has: &Outputs) -> Option<PartWork> {
        worklist::work_of_part(&self.wanted(), part, has)
    }

    pub(crate) fn wanted(&self) -> BTreeSet<TeacherId> {
        self.teachers.iter().map(|teacher| teacher.identity.id.clone()).collect()
    }

    pub(super) fn samples_in(&self, part: u32) -> u64 {
        let range = self.identity.range(part);
        range.end - range.start
    }

    /// What the usual input would cost, where the grid is a teacher's own and at least twice as many patches: DINOv2 is trained at
    /// 518 pixels in the end and used at 224.
    pub(crate) fn grid_advice(&self) -> Option<String> {
        const USUAL_INPUT: u32 = 224;
        // A typing error costs hours: attention grows with the square of the patches.
        const FAR_BEYOND: u32 = 4;
        let beyond = self.teachers.iter().find(|BuildTeacher { identity: teacher, model }| {
            let info = model.info();
            teacher.grid >= FAR_BEYOND * (info.input_size / info.patch_size).max(1)
        });
        if let Some(BuildTeacher { identity: teacher, model }) = beyond {
            let info = model.info();
            let native = info.input_size / info.patch_size;
            return Some(format!(
                "teacher {}: grid {} is {} patches an image, {:.0} times as many as its own {native} x {native}, and attention costs the \
                 square of that",
                teacher.id,
                teacher.grid,
                teacher.grid.pow(2),
                f64::from(teacher.grid.pow(2)) / f64::from(native.pow(2).max(1))
            ));
        }
        if self.recipe.features.grid.is_some()
            || storage::exists(&layout::cache_json(&self.recipe.cache.out)).unwrap_or(false)
        {
            return None;
        }
        self.teachers.iter().find_map(|BuildTeacher { identity: teacher, model }| {
            let native = model.info().input_size;
            let usual = (USUAL_INPUT / teacher.patch_size).max(1);
            let (patches, fewer) = (teacher.grid.pow(2), usual.pow(2));
            (teacher.input_size == native && patches >= 2 * fewer).then(|| {
                format!(
                    "teacher {}: its native grid is taken, {} x {} patches of {native} px; --grid {usual} ({} px) costs {:.0} % of that, in time \
                     and on disk",
                    teacher.id,
                    teacher.grid,
                    teacher.grid,
                    usual * teacher.patch_size,
                    100.0 * f64::from(fewer) / f64::from(patches)
                )
            })
        })
    }
}
