//! Rows of a cache computed again: are the features those of this network, on these crops of these images?
//!
//! Checksums find damage. They do not find features of another layer, weights that were exchanged behind a cache, or a library that computes something
//! else. A few rows, computed again, do.

use std::io::ErrorKind;
use std::iter;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use images::{ImageSource, SourceError};
use models::precision::Precision;
use schemas::{Cache, Codec, CodecError, RowKey, SampleRow, SamplesPart, TeacherIdentity, TeacherPart};
use serde::Serialize;
use tch::Device;

use super::build::{Build, open_device, prepare};
use super::calibrate::spread;
use super::decode::{CommittedRows, OtherImage};
use super::growth::{Opened, open_images};
use super::identity::Existing;
use super::infer::with_inference;
use super::network::{BuildTeacher, Network, Pixels, sizes};
use super::parallel::{Ended, Interrupted, map_in_order};
use super::resolve::resolve_recorded;
use super::timing::Timings;
use crate::Environment;
use crate::cli::VerifyArgs;
use crate::recipe::Recipe;

/// How far a teacher's rows are from what it computes now.
#[derive(Debug, Serialize)]
pub(crate) struct Recomputed {
    pub teacher: String,
    pub rows: u64,
    /// Relative 2-norm of the difference of a row's tokens: mean and largest.
    pub relative_l2_mean: f64,
    pub relative_l2_max: f64,
    /// What it may be, by codec, precision and device.
    pub relative_l2_allowed: f64,
    /// Least cosine of a row's tokens, all in one vector.
    pub cosine_min: f64,
    /// The rows that are further away, in words.
    pub problems: Vec<String>,
}

/// Computes `rows` rows of each teacher again.
pub(crate) fn check(cache: &Cache, args: &VerifyArgs, rows: u64, env: &Environment) -> anyhow::Result<Vec<Recomputed>> {
    let wanted = cache.teachers().values().filter(|t| args.teachers.is_empty() || args.teachers.contains(&t.id));
    let mut checked = Vec::new();
    // One by one: what is wrong with one says nothing about the others.
    for teacher in wanted {
        let recipe = Recipe::of_spot_check(args, cache.identity(), &[teacher])?;
        for (id, teacher) in &recipe.teachers {
            resolve_recorded(&args.cache, id, &teacher.path, "--weights", &env.hub)?;
        }
        let device = open_device(&recipe)?;
        let source = match &args.images {
            Some(images) => Some(in_order(cache, images)?),
            None => None,
        };
        checked.extend(check_one(cache, recipe, device, source, (&chosen(cache, args, rows), env))?);
    }
    Ok(checked)
}

/// The images, each at the place of its sample. Some may have changed or be gone.
fn in_order(cache: &Cache, images: &str) -> anyhow::Result<ImageSource> {
    let Opened { source, differs, in_order } = open_images(cache, images)?;
    match differs.filter(|_| !in_order) {
        None => Ok(source),
        Some(differs) => bail!("{differs}"),
    }
}

/// A part of the cache, open.
struct OpenPart {
    samples: SamplesPart,
    /// In the order of the teachers that are checked.
    teachers: Vec<TeacherPart>,
}

/// A row that is checked: its open part, sample and view.
type Chosen = (Arc<OpenPart>, u64, u16);

/// The rows in `chosen`, which are in order, of parts that are built. Each part is opened once.
fn opened<'a>(
    cache: &'a Cache,
    teachers: &'a [&TeacherIdentity],
    chosen: &'a [(u64, u16)],
) -> impl Iterator<Item = anyhow::Result<Chosen>> + 'a {
    let mut last: Option<(u32, Option<Arc<OpenPart>>)> = None;
    chosen.iter().filter_map(move |&(sample_id, view)| {
        let number = cache.identity().part_of(sample_id);
        let part = match &last {
            Some((open, part)) if *open == number => part.clone(),
            _ => match open(cache, teachers, number) {
                Ok(part) => {
                    let part = part.map(Arc::new);
                    last = Some((number, part.clone()));
                    part
                }
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok((part?, sample_id, view)))
    })
}

/// Opens a part; `None` if something of it is not built yet.
fn open(cache: &Cache, teachers: &[&TeacherIdentity], part: u32) -> anyhow::Result<Option<OpenPart>> {
    let state = cache.part_state(part)?;
    if state.samples.is_none() || teachers.iter().any(|teacher| !state.teachers.contains_key(&teacher.id)) {
        return Ok(None);
    }
    let teachers = teachers.iter().map(|teacher| cache.teacher_part(&teacher.id, part));
    Ok(Some(OpenPart { samples: cache.samples_part(part)?, teachers: teachers.collect::<schemas::Result<_>>()? }))
}

/// Batches of at most `size` rows; an error is a batch of its own.
fn in_batches(
    rows: impl Iterator<Item = anyhow::Result<Chosen>>,
    size: usize,
) -> impl Iterator<Item = anyhow::Result<Vec<Chosen>>> {
    let mut rows = rows.peekable();
    iter::from_fn(move || {
        rows.peek()?;
        Some(rows.by_ref().take(size).collect())
    })
}

/// A row to compute again, and what the cache has of it.
struct Stored {
    row: SampleRow,
    /// For each teacher the tokens, decoded.
    tokens: Vec<Vec<f32>>,
}

/// The samples and views to compute again, spread over the rows of the parts that are checked.
fn chosen(cache: &Cache, args: &VerifyArgs, rows: u64) -> Vec<(u64, u16)> {
    let identity = cache.identity();
    let parts = (0..identity.parts()).filter(|part| args.parts.is_empty() || args.parts.contains(part));
    let samples: Vec<u64> = parts.flat_map(|part| identity.range(part)).collect();
    let views = u64::from(identity.views.views);
    let row = |row: u64| (samples[(row / views) as usize], (row % views) as u16);
    spread(samples.len() as u64 * views, rows).map(row).collect()
}

fn check_one(
    cache: &Cache,
    recipe: Recipe,
    device: Device,
    source: Option<ImageSource>,
    (chosen, env): (&[(u64, u16)], &Environment),
) -> anyhow::Result<Vec<Recomputed>> {
    let build = prepare(recipe, true, device, source, cache.identity().clone(), Existing::of_cache(cache), env)?;
    // As they were stored, and not as the parameters of a new calibration would have it.
    let teachers: Vec<&TeacherIdentity> =
        build.teachers.iter().map(|teacher| cache.teacher(&teacher.identity.id)).collect::<Result<_, _>>()?;
    let mut checked: Vec<Recomputed> = teachers
        .iter()
        .map(|teacher| Recomputed {
            teacher: teacher.id.to_string(),
            rows: 0,
            relative_l2_mean: 0.0,
            relative_l2_max: 0.0,
            relative_l2_allowed: allowed(cache, teacher, &build),
            cosine_min: 1.0,
            problems: Vec::new(),
        })
        .collect();
    for ((now, then), checked) in build.teachers.iter().zip(&teachers).zip(&mut checked) {
        if now.identity.weights_sha256 != then.weights_sha256 {
            checked.problems.push(format!(
                "teacher {}: these are other weights (SHA-256 {}) than those of the cache ({}); --weights {}=DIR says where they are",
                then.id, now.identity.weights_sha256, then.weights_sha256, then.id
            ));
        }
    }
    if checked.iter().any(|checked| !checked.problems.is_empty()) {
        return Ok(checked);
    }

    let (timings, views) = (Timings::default(), build.identity.views.views);
    let decoder = build.decoder(&timings);
    let (sizes, all) = (sizes(teachers.iter().copied()), (0..teachers.len()).collect::<Vec<_>>());
    let networks = || {
        let network = |teacher: &BuildTeacher| Network { stored: None, ..teacher.network() };
        build.teachers.iter().map(network).collect::<Vec<_>>()
    };
    let ended = with_inference(build.compute, &networks, &timings, |inference| {
        map_in_order(
            in_batches(opened(cache, &teachers, chosen), build.batch_size as usize),
            inference,
            |inference, chosen, stop| {
                let (mut stored, mut pixels) = (Vec::new(), Pixels::new());
                let mut found = Found::default();
                for (part, sample_id, view) in &chosen {
                    // A sample that was rejected has no rows.
                    let Some(committed) = CommittedRows::of_sample(&part.samples, *sample_id) else { continue };
                    let decoded = match decoder.samples([(*sample_id, Some(committed))], views, &sizes, stop) {
                        Err(error) if is_of_image(&error) => {
                            found.unusable.push((*sample_id, *view, format!("{error:#}")));
                            continue;
                        }
                        decoded => decoded?,
                    };
                    for (size, images) in decoded.pixels {
                        pixels.entry(size).or_default().extend(images.into_iter().nth((*view).into()));
                    }
                    let row = decoded.rows.into_iter().nth((*view).into()).context("a row for each view")?;
                    let at = committed.first_row() + usize::from(*view);
                    let tokens = teachers
                        .iter()
                        .zip(&part.teachers)
                        .map(|(teacher, part)| read(teacher, part, at, &row.row_key()));
                    stored.push(Stored { tokens: tokens.collect::<anyhow::Result<_>>()?, row });
                }
                if stored.is_empty() {
                    return Ok(found);
                }
                let features = inference.run(&all, &pixels, stored.len(), stop)?;
                for (slot, mut features) in features.into_iter().enumerate() {
                    let computed = features.tokens()?;
                    for (stored, computed) in stored.iter().zip(computed.chunks_exact(computed.len() / stored.len())) {
                        let difference = Difference::between(&stored.tokens[slot], computed);
                        found.rows.push((slot, stored.row.clone(), difference));
                    }
                }
                Ok(found)
            },
            |found| {
                for (sample_id, view, problem) in found.unusable {
                    let problem = |teacher| {
                        format!(
                            "teacher {teacher}, sample {sample_id}, view {view}: cannot be computed again: {problem}"
                        )
                    };
                    checked.iter_mut().for_each(|checked| checked.problems.push(problem(&checked.teacher)));
                }
                found.rows.into_iter().for_each(|(slot, row, difference)| checked[slot].add(&row, difference));
                Ok(())
            },
        )
    })?;
    if ended == Ended::Interrupted {
        return Err(Interrupted.into());
    }
    for checked in &mut checked {
        checked.relative_l2_mean /= checked.rows.max(1) as f64;
    }
    Ok(checked)
}

/// What a batch gives.
#[derive(Default)]
struct Found {
    /// With the teacher's place in the list.
    rows: Vec<(usize, SampleRow, Difference)>,
    /// Sample, view, and why its image is not that of the row any more.
    unusable: Vec<(u64, u16, String)>,
}

/// Whether an image is at fault that has changed or is gone, and not the disk or the network.
fn is_of_image(error: &anyhow::Error) -> bool {
    error.is::<OtherImage>()
        || error.chain().any(|cause| match cause.downcast_ref() {
            Some(SourceError::Gone { .. }) => true,
            Some(SourceError::Io { source, .. }) => source.kind() == ErrorKind::NotFound,
            _ => false,
        })
}

/// The stored tokens of row `at`, which is that of `key`.
fn read(teacher: &TeacherIdentity, part: &TeacherPart, at: usize, key: &RowKey) -> anyhow::Result<Vec<f32>> {
    let row = part.read_row(at)?;
    ensure!(
        (row.key.sample_id, row.key.view) == (key.sample_id, key.view),
        "{}: row {at} is not of sample {}, view {}",
        part.path().display(),
        key.sample_id,
        key.view
    );
    let mut tokens = Vec::new();
    teacher.decode_tokens(&row.tokens, &mut tokens)?;
    Ok(tokens)
}

/// Between stored and computed tokens.
#[derive(Clone, Copy, Debug)]
struct Difference {
    relative_l2: f64,
    cosine: f64,
}

impl Difference {
    fn between(stored: &[f32], computed: &[f32]) -> Difference {
        let (mut square, mut of_stored, mut of_computed, mut product) = (0.0, 0.0, 0.0, 0.0);
        for (&a, &b) in stored.iter().zip(computed) {
            let (a, b) = (f64::from(a), f64::from(b));
            square += (a - b).powi(2);
            of_stored += a * a;
            of_computed += b * b;
            product += a * b;
        }
        let norms = (of_stored * of_computed).sqrt();
        Difference {
            relative_l2: if square == 0.0 { 0.0 } else { (square / of_computed).sqrt() },
            cosine: if norms > 0.0 { product / norms } else { f64::from(u8::from(square == 0.0)) },
        }
    }
}

impl Recomputed {
    fn add(&mut self, row: &SampleRow, found: Difference) {
        let Difference { relative_l2, cosine } = found;
        self.rows += 1;
        self.relative_l2_mean += relative_l2;
        self.relative_l2_max = self.relative_l2_max.max(relative_l2);
        self.cosine_min = self.cosine_min.min(cosine);
        // Not a number is not within the bound either.
        if relative_l2.is_nan() || relative_l2 > self.relative_l2_allowed {
            self.problems.push(format!(
                "teacher {}, sample {}, view {} ({:?}): computed again, the features differ by {relative_l2:.1e} (relative L2, at most {:.1e} is rounding; cosine {cosine:.4}): \
                 they are of another network, layer or image",
                self.teacher, row.sample_id, row.view.index, row.key, self.relative_l2_allowed
            ));
        }
    }
}

/// The relative 2-norm that rounding explains: what the codec loses, and what two ways to compute the same differ by.
fn allowed(cache: &Cache, teacher: &TeacherIdentity, build: &Build) -> f64 {
    let codec = match &teacher.codec {
        Codec::F32 => 0.0,
        // Half a unit in the last place is 4.9e-4 and 3.9e-3.
        Codec::F16 => 1e-3,
        Codec::Bf16 => 8e-3,
        // Single rows lose more than the worst part does on average.
        Codec::I8(_) => 3.0 * measured_loss(cache, teacher).unwrap_or(0.02),
    };
    let same_device = (teacher.device == "cpu") == (build.compute.device == Device::Cpu);
    let of = |precision: &str| match precision.parse() {
        // Other shapes of products: 1e-6; another library: some times that.
        Ok(Precision::F32) => {
            if same_device {
                1e-4
            } else {
                5e-4
            }
        }
        Ok(Precision::Tf32) => 5e-3,
        Ok(Precision::Bf16) | Err(_) => 3e-2,
    };
    codec + of(&teacher.precision)
}

/// The largest relative 2-norm that the builder measured of a part.
fn measured_loss(cache: &Cache, teacher: &TeacherIdentity) -> Option<f64> {
    let of_part = |part| -> Option<f64> {
        let state = cache.part_state(part).ok()?;
        let CodecError { sq, sq_error, .. } = state.teachers.get(&teacher.id)?.codec_error.as_ref()?;
        let (all, lost): (f64, f64) = (sq.iter().sum(), sq_error.iter().sum());
        (all > 0.0).then(|| (lost / all).sqrt())
    };
    (0..cache.identity().parts()).filter_map(of_part).reduce(f64::max)
}
