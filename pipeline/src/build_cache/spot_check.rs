//! Rows of a cache computed again: are the features those of this network, on these crops of these images?
//!
//! Checksums find damage. They do not find features of another layer, weights that were exchanged behind a cache, or a library that computes something
//! else. A few rows, computed again, do.

use anyhow::Context;
use images::ImageSource;
use models::precision::Precision;
use schemas::{Cache, Codec, CodecError, RowKey, SampleRow, TeacherIdentity};
use serde::Serialize;
use tch::Device;

use super::build::{Build, open_device, prepare};
use super::calibrate::spread;
use super::decode::CommittedRows;
use super::growth::open_images;
use super::identity::Existing;
use super::infer::with_inference;
use super::network::{BuildTeacher, Network, Pixels, sizes};
use super::parallel::{Ended, Interrupted, map_in_order};
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
        let device = open_device(&recipe)?;
        let source = match &args.images {
            Some(images) => Some(open_images(cache, images)?.0),
            None => None,
        };
        checked.extend(check_one(cache, recipe, device, source, (&chosen(cache, args, rows), env))?);
    }
    Ok(checked)
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
            chosen.chunks(build.batch_size as usize).map(Ok),
            inference,
            |inference, chosen, stop| {
                let (mut stored, mut pixels) = (Vec::new(), Pixels::new());
                for &(sample_id, view) in chosen {
                    let part = cache.identity().part_of(sample_id);
                    let state = cache.part_state(part)?;
                    if state.samples.is_none() || teachers.iter().any(|t| !state.teachers.contains_key(&t.id)) {
                        continue;
                    }
                    let samples = cache.samples_part(part)?;
                    // A sample that was rejected has no rows.
                    let Some(committed) = CommittedRows::of_sample(&samples, sample_id) else { continue };
                    let decoded = decoder.samples([(sample_id, Some(committed))], views, &sizes, stop)?;
                    for (size, images) in decoded.pixels {
                        pixels.entry(size).or_default().extend(images.into_iter().nth(view.into()));
                    }
                    let row = decoded.rows.into_iter().nth(view.into()).context("a row for each view")?;
                    let tokens = teachers.iter().map(|teacher| read(cache, teacher, part, &row.row_key()));
                    stored.push(Stored { tokens: tokens.collect::<anyhow::Result<_>>()?, row });
                }
                if stored.is_empty() {
                    return Ok(Vec::new());
                }
                let features = inference.run(&all, &pixels, stored.len(), stop)?;
                let mut found = Vec::new();
                for (slot, mut features) in features.into_iter().enumerate() {
                    let computed = features.tokens()?;
                    for (stored, computed) in stored.iter().zip(computed.chunks_exact(computed.len() / stored.len())) {
                        let difference = Difference::between(&stored.tokens[slot], computed);
                        found.push((slot, stored.row.clone(), difference));
                    }
                }
                Ok(found)
            },
            |found| {
                found.into_iter().for_each(|(slot, row, difference)| checked[slot].add(&row, difference));
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

/// The stored tokens of a row.
fn read(cache: &Cache, teacher: &TeacherIdentity, part: u32, key: &RowKey) -> anyhow::Result<Vec<f32>> {
    let features = cache.teacher_part(&teacher.id, part)?;
    let at = (0..features.rows())
        .find(|&row| features.key(row).is_ok_and(|found| (found.sample_id, found.view) == (key.sample_id, key.view)));
    let at = at.with_context(|| format!("{}: no row of sample {}", features.path().display(), key.sample_id))?;
    let mut tokens = Vec::new();
    teacher.decode_tokens(&features.read_row(at)?.tokens, &mut tokens)?;
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
