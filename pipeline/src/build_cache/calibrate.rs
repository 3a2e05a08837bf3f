//! The first pass of codec `i8`: the ranges of each channel, over some images of the data set.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail};
use program::words::count;
use schemas::{Affine, Cache, Calibrator, Codec, SamplesPart, TeacherIdentity};
use tch::Device;

use super::decode::{Decoded, Decoder, Job, Known};
use super::infer::{Batch, BuildTeacher, infer};
use super::{Build, flow};
use crate::build_cache::timing::Timings;
use crate::config::CodecName;

/// What a cache in `out` has of a teacher's `i8`.
pub(super) enum Existing {
    /// Nothing. So too for a teacher without a part: its parameters may be of other weights or images, and nothing was encoded with them.
    Nothing,
    Parameters(Affine),
    /// The teacher is there and was stored otherwise.
    Other {
        codec: Codec,
        problem: String,
    },
}

pub(super) fn existing(out: &Path, id: &schemas::TeacherId, images: u64) -> anyhow::Result<Existing> {
    let file = schemas::layout::teacher_json(out, id);
    if !file.exists() || !schemas::teacher_has_parts(out, id)? {
        return Ok(Existing::Nothing);
    }
    let cache = schemas::Cache::open(out)?;
    let codec = cache.teacher(id)?.codec.clone();
    let advice = "leave the setting as it was, or build into another folder";
    Ok(match codec {
        // A pass may have found fewer usable images than it was to look at.
        Codec::I8(affine) if affine.images <= images => Existing::Parameters(affine),
        Codec::I8(ref affine) => Existing::Other {
            problem: format!(
                "{}: teacher {id} was calibrated over {}, and {images} are asked for (features.calibration_images); {advice}",
                file.display(),
                count(affine.images, "image")
            ),
            codec,
        },
        codec => Existing::Other {
            problem: format!("{}: codec is {codec} in the cache and i8 was asked for; {advice}", file.display()),
            codec,
        },
    })
}

/// Calibrates every teacher whose codec is `i8` and that has no parameters yet.
pub(super) fn calibrate(build: &mut Build, images: u64) -> anyhow::Result<()> {
    let wanted: Vec<usize> = (0..build.teachers.len()).filter(|&t| build.teachers[t].1.awaits_calibration).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    debug_assert_eq!(build.config.codec, CodecName::I8);
    let batches = batches(build, &wanted, images)?;
    for t in wanted {
        let (identity, teacher) = &build.teachers[t];
        let calibrator = run(build, identity, teacher, &batches)?;
        let affine = calibrator.finish().with_context(|| {
            format!(
                "none of {} can be used, so the ranges of teacher {} cannot be calibrated",
                count(images, "image"),
                identity.id
            )
        })?;
        tracing::info!(
            "teacher {}: i8 calibrated over {}; {} of {} channels have heavy tails and stay f16",
            identity.id,
            count(affine.images, "image"),
            affine.outliers.len(),
            affine.width()
        );
        let (identity, teacher) = &mut build.teachers[t];
        identity.codec = Codec::I8(affine.clone());
        teacher.codec = Codec::I8(affine);
        teacher.awaits_calibration = false;
    }
    Ok(())
}

/// View 0 of images spread evenly over the data set, in batches.
fn batches(build: &Build, teachers: &[usize], images: u64) -> anyhow::Result<Vec<Batch>> {
    let timings = Timings::default();
    let decoder = Decoder::new(build, &timings);
    let sizes = flow::sizes(teachers.iter().map(|&t| &build.teachers[t].0));
    let samples = build.identity.plan.samples;
    let count = images.min(samples);
    let mut batches: Vec<Batch> = Vec::new();
    let mut pending = Vec::new();
    let mut open = None;
    for i in 0..count {
        // In u128: neither number is bounded.
        let sample_id = (u128::from(i) * u128::from(samples) / u128::from(count)) as u64;
        let known = match build.source {
            Some(_) => None,
            None => known(build, &mut open, sample_id)?,
        };
        // Without a data set, a sample without rows is one that was rejected.
        if build.source.is_some() || known.is_some() {
            let job = Job { seq: i, sample_id, known, sizes: sizes.clone() };
            if let Decoded::Rows { rows, .. } = decoder.run(job)? {
                pending.extend(rows.into_iter().take(1));
            }
        }
        if pending.len() == build.batch_size as usize || i + 1 == count {
            let rows = std::mem::take(&mut pending);
            if !rows.is_empty() {
                batches.push(Batch::new(batches.len() as u64, rows, sizes.clone()));
            }
        }
    }
    Ok(batches)
}

/// The committed rows of a sample. `open` keeps the part that was read last.
fn known(build: &Build, open: &mut Option<(u32, Arc<SamplesPart>)>, sample_id: u64) -> anyhow::Result<Option<Known>> {
    let number = u32::try_from(sample_id / build.identity.plan.part_samples)?;
    let part = match open {
        Some((open, part)) if *open == number => Arc::clone(part),
        _ => {
            let part = Arc::new(Cache::open(&build.config.out)?.samples_part(number)?);
            *open = Some((number, Arc::clone(&part)));
            part
        }
    };
    let first_row = part.rows().partition_point(|row| row.sample_id < sample_id);
    let of_sample = part.rows()[first_row..].iter().take_while(|row| row.sample_id == sample_id);
    let rows = of_sample.count();
    Ok((rows > 0).then_some(Known { part, first_row, rows }))
}

/// The batches through one teacher, on as many lanes as the build has; the features are added in order.
fn run(
    build: &Build,
    identity: &TeacherIdentity,
    teacher: &BuildTeacher,
    batches: &[Batch],
) -> anyhow::Result<Calibrator> {
    let lanes = if build.device == Device::Cpu { build.config.threads.min(batches.len()).max(1) } else { 1 };
    let precision = build.config.precision;
    let width = identity.width as usize;
    let mut calibrator = Calibrator::new(width);
    // One batch per lane at a time: the features of a few batches are in memory, and not those of all.
    for batches in batches.chunks(lanes) {
        let handles: Vec<_> = batches.iter().map(|_| teacher.shallow_clone()).collect();
        let features = thread::scope(|scope| {
            let lanes: Vec<_> = batches
                .iter()
                .zip(handles)
                .map(|(batch, teacher)| {
                    scope.spawn(move || {
                        let teacher = teacher;
                        torch_ext::set_num_threads(1)?;
                        infer(batch, &teacher, precision, &Timings::default())
                    })
                })
                .collect();
            let join = |lane: thread::ScopedJoinHandle<'_, anyhow::Result<_>>| match lane.join() {
                Ok(features) => features,
                Err(_) => bail!("the calibration panicked, which is a bug"),
            };
            lanes.into_iter().map(join).collect::<anyhow::Result<Vec<_>>>()
        })?;
        for (batch, features) in batches.iter().zip(features) {
            for (row, tokens) in batch.rows.iter().zip(features.rows_of_tokens(batch)) {
                calibrator.add(tokens).with_context(|| {
                    format!("teacher {}, image {:?} (sample {})", identity.id, row.key, row.sample_id)
                })?;
            }
        }
    }
    Ok(calibrator)
}
