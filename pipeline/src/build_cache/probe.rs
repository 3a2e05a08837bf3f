//! What an image costs on this machine: a few are decoded and run through the teachers.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use indicatif::HumanDuration;
use program::words::count;
use schemas::Pack;
use serde::Serialize;
use tch::Device;

use super::break_even::BreakEven;
use super::build::Build;
use super::infer::{Inference, with_inference};
use super::network::sizes;
use super::parallel::{Ended, Interrupted, Stop, map_in_order};
use super::space::Space;
use super::timing::Timings;
use super::worklist::PartWork;

/// Rows that each thread computes for the estimate: seconds on a CPU, and more than one so that weights are reused as in a build.
const PROBE_ROWS: usize = 4;

/// From a short measurement on this machine, now.
#[derive(Debug, Serialize)]
pub(crate) struct Time {
    pub seconds: f64,
    pub images: u64,
    pub images_per_second: f64,
    pub measured_on_images: u64,
    pub decode_ms_per_image: f64,
    pub teachers_ms_per_image: f64,
    /// Threads of the teachers, or the GPU.
    pub teachers_on: String,
}

/// Seconds an image takes.
pub(crate) struct Probe {
    images: usize,
    /// Read, decode and render all views, on one thread.
    decode_seconds: f64,
    /// Average bytes of a packed image, over the images tried; 0 if images are not packed.
    pub packed_bytes: u64,
    /// All views through all teachers and encoded, on all lanes together.
    teachers_seconds: f64,
}

impl Probe {
    /// The time that `images` images take, of which `forward_rows` rows go through a teacher.
    pub(crate) fn time(&self, build: &Build, images: u64, forward_rows: u64) -> Time {
        let views = u64::from(build.identity.views.views);
        let all_rows = (images * views * build.teachers.len() as u64).max(1);
        let teachers_seconds = self.teachers_seconds * forward_rows as f64 / all_rows as f64;
        let threads = build.recipe.run.threads;
        let decode_seconds = self.decode_seconds / threads as f64;
        // On a CPU the workers share decoding and teachers; on a GPU the two run beside each other.
        let seconds_per_image = match build.compute.device {
            Device::Cpu => decode_seconds + teachers_seconds,
            _ => decode_seconds.max(teachers_seconds),
        };
        Time {
            seconds: (seconds_per_image * images as f64).min(1e10),
            images,
            images_per_second: 1.0 / seconds_per_image,
            measured_on_images: self.images as u64,
            decode_ms_per_image: 1e3 * self.decode_seconds,
            teachers_ms_per_image: 1e3 * self.teachers_seconds,
            teachers_on: match build.compute.device {
                Device::Cpu => format!("{threads} threads"),
                _ => "the GPU".to_owned(),
            },
        }
    }
}

/// Average bytes of a packed image, over a few of them; 0 if images are not packed.
pub(crate) fn packed_bytes(build: &Build) -> anyhow::Result<u64> {
    if build.identity.pack == Pack::None || build.source.is_none() {
        return Ok(0);
    }
    let timings = Timings::default();
    let samples = images(build);
    let step = (samples.end - samples.start).div_ceil(PROBE_ROWS as u64);
    let probes = samples.step_by(step as usize).map(|sample| (sample, None));
    let decoded = build.decoder(&timings).samples(probes, 1, &[], &Stop::default())?;
    let packed: Vec<u64> = decoded.packed.iter().flatten().map(|image| image.len() as u64).collect();
    Ok(packed.iter().sum::<u64>().checked_div(packed.len() as u64).unwrap_or(0))
}

/// Says how long the build of `work` takes, and when the cache pays, from a measurement that takes a small share of that time. A build that is
/// over sooner than that says nothing.
pub(crate) fn announce_time(build: &Build, work: &[PartWork], space: &Space) -> anyhow::Result<()> {
    /// Times as many rows as the measurement computes.
    const WORTH_MEASURING: u64 = 64;
    let lanes = if build.compute.device == Device::Cpu { build.compute.threads } else { 1 };
    let images: u64 = work.iter().map(|work| build.samples_in(work.part)).sum();
    let rows: u64 = space.teachers.iter().map(|of| of.rows).max().unwrap_or(0);
    if build.source.is_none() || rows < WORTH_MEASURING * (2 * PROBE_ROWS * lanes) as u64 {
        return Ok(());
    }
    let time = measure(build)?.time(build, images, space.teachers.iter().map(|of| of.rows).sum());
    tracing::info!(
        "about {} for {} at {:.2} img/s, alone: decoding {:.1} ms on one thread, teachers {:.1} ms on {}",
        HumanDuration(Duration::from_secs_f64(time.seconds)),
        count(images, "image"),
        time.images_per_second,
        time.decode_ms_per_image,
        time.teachers_ms_per_image,
        time.teachers_on
    );
    match BreakEven::measure(build, time.teachers_ms_per_image / 1e3)? {
        Ok(break_even) => tracing::info!("{}", break_even.text()),
        Err(why) => tracing::info!("from which epoch on the cache pays is not known: {why}"),
    }
    Ok(())
}

/// The images to measure with: those that were appended last, since earlier ones may be gone from the source.
fn images(build: &Build) -> Range<u64> {
    build.identity.generation_samples(build.identity.generations.len())
}

/// Decodes a few images and runs them through the teachers, on as many threads at once as the build would have.
pub(crate) fn measure(build: &Build) -> anyhow::Result<Probe> {
    let timings = Timings::default();
    let decoder = build.decoder(&timings);
    let identities = build.identities();
    let teachers: Vec<usize> = (0..identities.len()).collect();
    let (sizes, views) = (sizes(identities.iter().copied()), build.identity.views.views);

    // Spread over the data set, since neighbors are often alike. The first one only warms up.
    let samples = images(build);
    let probes = (PROBE_ROWS as u64 + 1).min(samples.end - samples.start);
    let step = (samples.end - samples.start) / probes;
    let decode = |probes: Range<u64>| {
        let probes = probes.map(|probe| (samples.start + probe * step, None));
        decoder.samples(probes, views, &sizes, &Stop::default())
    };
    if probes > 1 {
        decode(0..1)?;
    }
    let began = Instant::now();
    let mut decoded = decode(1.min(probes - 1)..probes)?;
    let decode_seconds = began.elapsed().as_secs_f64();
    let images = decoded.rows.len() / usize::from(views);
    ensure!(images > 0, "none of the {probes} images tried could be used, so the time cannot be measured");
    let packed: usize = decoded.packed.iter().flatten().map(Vec::len).sum();
    decoded.rows.truncate(PROBE_ROWS);
    decoded.pixels.values_mut().for_each(|images| images.truncate(PROBE_ROWS));
    let rows = &decoded.rows[..];

    // All threads at once, for they share the memory's bandwidth; twice, for the first pass allocates and plans.
    let lanes = if build.compute.device == Device::Cpu { build.compute.threads } else { 1 };
    let seconds = with_inference(build.compute, &|| build.networks(), &timings, |inference| {
        let mut inference: Vec<_> = inference.into_iter().take(lanes).collect();
        let mut fastest = f64::INFINITY;
        for _ in 0..2 {
            let began = Instant::now();
            let pass = |inference: &mut &mut Inference<'_>, _, stop: &Stop| {
                let features = inference.run(&teachers, &decoded.pixels, rows.len(), stop)?;
                for (teacher, features) in identities.iter().zip(features) {
                    features.encode(teacher, rows)?;
                }
                Ok(())
            };
            if map_in_order((0..lanes).map(Ok), inference.iter_mut().collect(), pass, Ok)? == Ended::Interrupted {
                bail!(Interrupted);
            }
            fastest = fastest.min(began.elapsed().as_secs_f64());
        }
        Ok(fastest)
    })?;
    Ok(Probe {
        images,
        packed_bytes: (packed / images) as u64,
        decode_seconds: decode_seconds / images as f64,
        teachers_seconds: seconds / (rows.len() * lanes) as f64 * f64::from(views),
    })
}
