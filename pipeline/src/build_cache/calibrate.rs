//! The first pass of codec `i8`: the ranges of each channel, over some images of the data set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail};
use models::teacher::Teacher;
use program::words::count;
use schemas::{Affine, Cache, CacheIdentity, Calibrator, Codec, SamplesPart, TeacherId, TeacherIdentity};

use super::decode::{CommittedRows, DecodedSamples, Decoder};
use super::features::Features;
use super::identity::{self, ForwardPass};
use super::infer::{Compute, with_inference};
use super::network::{BuildTeacher, Network};
use super::parallel::{Ended, Interrupted, map_in_order};

/// A teacher that is loaded, whose codec may still have to be calibrated.
#[derive(Debug)]
pub(crate) struct PreparedTeacher {
    pub id: TeacherId,
    /// Where the weights came from.
    pub source: String,
    pub model: Teacher,
    /// Side of the square that it is shown, in pixels.
    pub input_size: u32,
    pub pass: ForwardPass,
    /// Nothing for `i8` whose parameters are to be found.
    pub codec: Option<Codec>,
}

/// Which images a calibration looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampling<'a> {
    /// At most this many, spread evenly over the data set.
    pub images: u64,
    pub batch_size: u32,
    pub identity: &'a CacheIdentity,
    /// The cache that has the images, where there is no data set.
    pub cache: &'a Path,
}

impl Sampling<'_> {
    /// The images to look at, in order.
    fn sample_ids(&self) -> Vec<u64> {
        spread(self.identity.samples(), self.images).collect()
    }

    /// The part that holds a sample.
    fn part(&self, sample_id: u64) -> u32 {
        self.identity.part_of(sample_id)
    }

    /// The cache's parts that hold some samples.
    fn parts(&self, samples: &[u64]) -> anyhow::Result<BTreeMap<u32, SamplesPart>> {
        let cache = Cache::open(self.cache)?;
        let numbers: BTreeSet<u32> = samples.iter().map(|&id| self.part(id)).collect();
        numbers.into_iter().map(|part| Ok((part, cache.samples_part(part)?))).collect()
    }
}

/// At most `count` of `samples` samples, spread evenly.
pub(crate) fn spread(samples: u64, count: u64) -> impl Iterator<Item = u64> {
    let count = count.min(samples);
    // In u128: neither number is bounded.
    (0..count).map(move |i| (u128::from(i) * u128::from(samples) / u128::from(count)) as u64)
}

/// The parameters that a teacher of the cache in `out` was calibrated with, over at most `images` images.
///
/// # Errors
/// A teacher that was stored otherwise.
pub(crate) fn calibrated(out: &Path, id: &TeacherId, images: u64) -> anyhow::Result<Option<Affine>> {
    match existing(out, id, images)? {
        Existing::Nothing => Ok(None),
        Existing::Parameters(affine) => Ok(Some(affine)),
        Existing::Other { problem, .. } => bail!(problem),
    }
}

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

pub(super) fn existing(out: &Path, id: &TeacherId, images: u64) -> anyhow::Result<Existing> {
    let file = schemas::layout::teacher_json(out, id);
    if !storage::exists(&file)? || !schemas::teacher_has_parts(out, id)? {
        return Ok(Existing::Nothing);
    }
    let Some(TeacherIdentity { codec, .. }) = schemas::read_teacher(out, id)? else {
        return Ok(Existing::Nothing);
    };
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

/// Finds the parameters of every teacher that has none yet.
pub(super) fn calibrate(
    teachers: Vec<PreparedTeacher>,
    decoder: &Decoder<'_>,
    sampling: Sampling<'_>,
    compute: Compute,
) -> anyhow::Result<Vec<BuildTeacher>> {
    let uncalibrated: Vec<&PreparedTeacher> = teachers.iter().filter(|teacher| teacher.codec.is_none()).collect();
    let networks = || uncalibrated.iter().map(|teacher| teacher.network()).collect::<Vec<_>>();
    let mut parameters = measure(&networks, decoder, sampling, compute)?.into_iter();
    let calibrated = teachers.into_iter().map(|teacher| {
        let PreparedTeacher { id, source, model, pass, codec, .. } = teacher;
        let codec = match codec {
            Some(codec) => codec,
            None => Codec::I8(parameters.next().flatten().with_context(|| {
                let images = count(sampling.images, "image");
                format!("none of {images} can be used, so the ranges of teacher {id} cannot be calibrated")
            })?),
        };
        let identity = identity::teacher_identity(&id, &source, model.info(), codec, pass)?;
        Ok(BuildTeacher { identity, model })
    });
    calibrated.collect()
}

impl PreparedTeacher {
    /// What one more thread needs to run it.
    fn network(&self) -> Network {
        Network { id: self.id.clone(), model: self.model.shallow_clone(), input_size: self.input_size, stored: None }
    }
}

/// The parameters of each of the networks; nothing without a usable image.
fn measure(
    networks: &dyn Fn() -> Vec<Network>,
    decoder: &Decoder<'_>,
    sampling: Sampling<'_>,
    compute: Compute,
) -> anyhow::Result<Vec<Option<Affine>>> {
    let all = networks();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let sizes: Vec<u32> = all.iter().map(|network| network.input_size).collect::<BTreeSet<_>>().into_iter().collect();
    let teachers: Vec<usize> = (0..all.len()).collect();
    let mut calibrators: Vec<Calibrator> =
        all.iter().map(|network| Calibrator::new(network.model.info().width as usize)).collect();
    let samples = sampling.sample_ids();
    let batches = samples.chunks(sampling.batch_size as usize).map(Ok);
    let add = |(decoded, mut features): (DecodedSamples, Vec<Features>)| {
        for ((features, calibrator), network) in features.iter_mut().zip(&mut calibrators).zip(&all) {
            let tokens = features.tokens()?; // [N, L, D]
            for (row, tokens) in decoded.rows.iter().zip(tokens.chunks_exact(tokens.len() / decoded.rows.len())) {
                match calibrator.add(tokens) {
                    // The build will reject it.
                    Err(error) if error.is_unstorable() => continue,
                    added => added.with_context(|| {
                        format!("teacher {}, image {:?} (sample {})", network.id, row.key, row.sample_id)
                    })?,
                }
            }
        }
        Ok(())
    };
    let ended = with_inference(compute, networks, decoder.timings, |inference| {
        map_in_order(
            batches,
            inference,
            |inference, samples, stop| {
                let parts = if decoder.source.is_some() { BTreeMap::new() } else { sampling.parts(samples)? };
                let samples = samples.iter().filter_map(|&id| match parts.get(&sampling.part(id)) {
                    None => Some((id, None)),
                    // A sample without rows was rejected.
                    Some(part) => CommittedRows::of_sample(part, id).map(|committed| (id, Some(committed))),
                });
                let mut decoded = decoder.samples(samples, 1, &sizes, stop)?;
                if decoded.rows.is_empty() {
                    return Ok((decoded, Vec::new()));
                }
                let features = inference.run(&teachers, &decoded.pixels, decoded.rows.len(), stop)?;
                decoded.pixels.clear();
                Ok((decoded, features))
            },
            add,
        )
    })?;
    if ended == Ended::Interrupted {
        bail!(Interrupted);
    }
    let parameters = calibrators.iter().map(Calibrator::finish);
    Ok(parameters.zip(&all).map(|(affine, network)| affine.inspect(|affine| announce(&network.id, affine))).collect())
}

fn announce(id: &TeacherId, affine: &Affine) {
    tracing::info!(
        "teacher {id}: i8 calibrated over {}; {} of {} channels have heavy tails and stay f16",
        count(affine.images, "image"),
        affine.outliers.len(),
        affine.width()
    );
}
