//! **The main job**: what is asked for → prepare → lock → plan → decode, run the teachers, encode → write → summary.
//!
//! ```text
//!                 batches                                                  rows, in order
//!  parts that ──────────────► threads ──────────────────────────────────────────────────► writers ──► part-00000.parquet
//!  lack something      read, hash, decode, draw views, render;             one for each file          part-00000.commit.json
//!                      every teacher; encode, compress
//! ```
//!
//! A batch is a range of samples of one part ([`batch`]). On a CPU each of N threads takes a whole batch through all stages, with one thread
//! for each operation of libtorch; on a GPU the same threads ask one more for the features ([`infer`]). [`parallel`] bounds what is in flight
//! and gives the results to the writers in the order of the plan. So a batch holds the same rows, and a file the same bytes, whatever the
//! threads did and however often the build was interrupted.
//!
//! A build can be killed at any moment. A part's files are independent of each other and become visible only when complete; the
//! next run builds what is missing ([`worklist`]).

use std::collections::BTreeSet;
use std::io::Write;
use std::thread;

use images::{DeepImages, ImageSource};
use models::hub::HubSettings;
use program::{ExitStatus, LogFormat, words::count};
use schemas::{Cache, TeacherIdentity, atomic, layout};

use crate::cli::BuildCacheArgs;
use crate::config::BuildConfig;

mod batch;
mod build;
mod calibrate;
mod decode;
mod dry_run;
mod features;
mod gpu;
mod identity;
mod infer;
mod lock;
mod network;
mod parallel;
mod probe;
mod progress;
pub(crate) mod recheck;
pub(crate) mod refuse;
mod resolve;
mod stored;
mod summary;
mod timing;
mod worklist;
mod write;

use batch::{Batch, batches};
pub(crate) use build::{Build, open_device, prepare};
use decode::{CommittedRows, DecodedSamples, Decoder};
pub(crate) use identity::Existing;
use infer::{Inference, with_inference};
use lock::Lock;
use network::sizes;
pub(crate) use parallel::Interrupted;
use parallel::{Ended, Stop, map_in_order};
use progress::Progress;
use summary::Summary;
use timing::{Stage, Timings};
use worklist::PartWork;
use write::{CommittedFile, FinishedBatch, PackedRow, WriterContext, Writers};

/// `pipeline build-cache`.
pub fn build_cache(
    args: &BuildCacheArgs,
    hub: &HubSettings,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // ---- What is asked for: settings, images, teachers -----------------------------------------------------------------------
    let mut config = BuildConfig::resolve(args)?;
    let device = open_device(&config)?;
    refuse::out_among_images(&config)?;
    let source = build::open_source(&config)?;
    let existing = Existing::look(&config.out)?;
    let identity = identity::cache_identity(&config, &source, &existing);
    config.part_samples = Some(identity.plan.part_samples);
    let build = prepare(config, device, Some(source), identity, existing, hub)?;
    if let Some(advice) = build.grid_advice() {
        tracing::warn!("{advice}");
    }
    if build.config.dry_run {
        return dry_run::report(&build, format, out);
    }
    run(&build, format, out)
}

/// Builds what the cache lacks.
pub(crate) fn run(build: &Build, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    // ---- The cache: created, or found to be the same build -------------------------------------------------------------------
    let (cache, _lock) = open_cache(build)?;
    refuse::lost_files(&cache)?;

    // ---- The plan: what is still missing -------------------------------------------------------------------------------------
    let work = build.worklist(&cache)?;
    if work.is_empty() {
        let summary = Summary::of_cache(&cache)?;
        summary.print(format, out)?;
        return Ok(summary.status());
    }
    if !build.still_the_source(&cache, &work)? {
        tracing::warn!("interrupted; run the same command to go on");
        return Ok(ExitStatus::Interrupted);
    }
    tracing::info!("{} of {} to build", work.len(), count(build.identity.plan.parts().into(), "part"));

    // ---- The build -----------------------------------------------------------------------------------------------------------
    let timings = Timings::default();
    let mut progress = begin_progress(build, &work);
    let (ended, committed) = build_parts(build, &cache, &work, &timings, &mut progress).inspect_err(|_| {
        tracing::warn!(
            "stopped: finished parts are kept, and once the cause is mended the same command goes on from there"
        )
    })?;

    // ---- What came of it -----------------------------------------------------------------------------------------------------
    if ended == Ended::Interrupted {
        let images = progress.images();
        drop(progress);
        warn_of_deep_images(&build.deep);
        let left: BTreeSet<u32> = build.worklist(&cache)?.iter().map(|w| w.part).collect();
        tracing::warn!("{}", interruption(&images_of_parts(build, &cache, &work)?, &left, images));
        return Ok(ExitStatus::Interrupted);
    }
    let summary = Summary::of_run(&cache, build, &progress, &timings, &committed)?;
    drop(progress);
    summary.print(format, out)?;
    warn_of_deep_images(&build.deep);
    Ok(summary.status())
}

/// Passes every batch of the parts in `work` through decoding, the teachers and encoding to the writers.
fn build_parts(
    build: &Build,
    cache: &Cache,
    work: &[PartWork],
    timings: &Timings,
    progress: &mut Progress,
) -> anyhow::Result<(Ended, Vec<CommittedFile>)> {
    let stages = Stages { decoder: build.decoder(timings), teachers: build.identities() };
    let cx = WriterContext { cache: cache.dir(), identity: &build.identity, timings };
    thread::scope(|scope| {
        let mut writers = Writers::start(scope, cx, &build.teachers);
        let ended = with_inference(build.compute, &|| build.networks(), timings, |inference| {
            map_in_order(
                batches(build, cache, work),
                inference,
                |inference, batch, stop| stages.run(batch, inference, stop),
                |finished| {
                    progress.batch(finished.batch.samples.clone(), finished.rows, finished.rejects.len());
                    writers.write(finished)
                },
            )
        });
        // A writer that failed is the cause of what else did.
        let committed = writers.finish()?;
        Ok((ended?, committed))
    })
}

/// What a batch passes through, from its samples to rows that are ready to be written: on one thread.
struct Stages<'a> {
    decoder: Decoder<'a>,
    /// In the order of the build's list.
    teachers: Vec<&'a TeacherIdentity>,
}

impl Stages<'_> {
    fn run(&self, batch: Batch, inference: &Inference<'_>, stop: &Stop) -> anyhow::Result<FinishedBatch> {
        // ---- read, hash, decode, draw views, render ----
        let part = &batch.part;
        let samples = batch.samples.clone().filter_map(|id| match &part.committed {
            None => Some((id, None)),
            // A sample without rows was rejected when the part's samples were built.
            Some(samples) => CommittedRows::of_sample(samples, id).map(|rows| (id, Some(rows))),
        });
        let sizes = sizes(part.teachers.iter().map(|&teacher| self.teachers[teacher]));
        let DecodedSamples { rows, packed, pixels, rejects } =
            self.decoder.samples(samples, self.decoder.views.views, &sizes, stop)?;

        // ---- every teacher that the part lacks; encode, sum, hash, compress ----
        let mut encoded = vec![Vec::new(); part.teachers.len()];
        if !rows.is_empty() {
            let features = inference.run(&part.teachers, &pixels, rows.len(), stop)?;
            for ((&teacher, features), encoded) in part.teachers.iter().zip(features).zip(&mut encoded) {
                stop.check()?;
                let encode = || features.encode(self.teachers[teacher], &rows);
                *encoded = self.decoder.timings.time(Stage::Encode, encode)?;
            }
        }
        let (count, packed) = (rows.len(), rows.into_iter().zip(packed));
        let samples = packed.map(|(row, image)| PackedRow { row, image }).collect();
        Ok(FinishedBatch { batch, samples, rejects, features: encoded, rows: count })
    }
}

/// Makes the cache, or compares the one that is there with what is asked for, and locks it.
fn open_cache(build: &Build) -> anyhow::Result<(Cache, Lock)> {
    let folder = &build.config.out;
    refuse::foreign_folder(folder)?;
    // Everything is compared before anything is written: a refused command must not leave half of what it asked for.
    let early = if folder.is_dir() { Some(Lock::take(folder)?) } else { None };
    build.refuse_changes()?;
    if layout::cache_json(folder).exists() && !schemas::has_parts(folder)? {
        tracing::info!(
            "{}: the build that was interrupted here had not finished a part; starting over",
            folder.display()
        );
        schemas::start_over(folder, &build.identity)?;
    }
    schemas::create_cache(folder, &build.identity)?;
    let lock = match early {
        Some(lock) => lock,
        None => Lock::take(folder)?,
    };
    for teacher in &build.teachers {
        schemas::add_teacher(folder, &teacher.identity)?;
        atomic::remove_stale(&layout::teacher_json(folder, &teacher.identity.id))?;
    }
    atomic::remove_stale(&layout::cache_json(folder))?;
    if let Some(source) = &build.source {
        schemas::write_skipped(folder, &skipped(source))?;
    }
    Ok((Cache::open(folder)?, lock))
}

fn begin_progress(build: &Build, work: &[PartWork]) -> Progress {
    let left: u64 = work.iter().map(|work| build.samples_in(work.part)).sum();
    let total = build.identity.plan.samples;
    let skipped = build.source.as_ref().map_or(0, |source| source.findings().skipped_count());
    Progress::new(total, total - left, build.identity.views.views, skipped)
}

/// The parts to build, and the images of each that this run has to deal with.
fn images_of_parts(build: &Build, cache: &Cache, work: &[PartWork]) -> anyhow::Result<Vec<(u32, u64)>> {
    let images = |PartWork { part, missing }: &PartWork| {
        let rejected = if missing.samples { 0 } else { cache.part_state(*part)?.samples.map_or(0, |s| s.rejects.rows) };
        Ok((*part, build.samples_in(*part) - rejected))
    };
    work.iter().map(images).collect()
}

/// What a cache notes of the pictures that its source holds and that are no samples.
fn skipped(source: &ImageSource) -> Vec<schemas::Skipped> {
    let skipped = source.findings().skipped.iter();
    skipped.map(|skipped| schemas::Skipped::new(&skipped.key, &skipped.reason, skipped.count)).collect()
}

/// What an interrupted run keeps and what it loses: `planned` are the parts that it had to build and their images, `left` those that are not
/// finished, `images` how many it has dealt with.
fn interruption(planned: &[(u32, u64)], left: &BTreeSet<u32>, images: u64) -> String {
    let done = planned.iter().filter(|(part, _)| !left.contains(part));
    let (parts, kept) = done.fold((0, 0), |(parts, kept), (_, of)| (parts + 1, kept + of));
    let lost = match images.saturating_sub(kept) {
        0 => String::new(),
        1 => "; 1 image of an unfinished part has to be computed again".to_owned(),
        lost => format!("; {lost} images of unfinished parts have to be computed again"),
    };
    let smaller = match lost.is_empty() {
        true => "",
        false => " (a build with a smaller --part-samples loses less)",
    };
    let finished = match parts {
        0 => "interrupted before this run had finished a part".to_owned(),
        _ => format!("interrupted; {} of {} are finished and kept", count(kept, "image"), count(parts, "part")),
    };
    format!("{finished}{lost}{smaller}; run the same command to go on")
}

/// Says how many images the depth window does not suit, if there are any.
fn warn_of_deep_images(deep: &DeepImages) {
    let (narrow, deep) = deep.narrow();
    if narrow > 0 {
        tracing::warn!(
            "{narrow} of {} read with more than 8 bits per sample keep at most 64 of 256 levels through the cache's depth window: build again \
             into another folder with --depth-window full-range, percentile:LOW,HIGH or another MIN,MAX",
            count(deep, "image")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_says_what_is_kept_and_what_is_lost() {
        let planned = [(0, 8), (1, 8), (2, 5)];
        let said = |left: &[u32], images| interruption(&planned, &left.iter().copied().collect(), images);
        let none = said(&[0, 1, 2], 7);
        assert!(none.contains("before this run had finished a part; 7 images"), "{none}");
        assert!(none.contains("--part-samples"), "{none}");
        let some = said(&[1, 2], 9);
        assert!(some.contains("8 images of 1 part are finished and kept; 1 image of an"), "{some}");
        let whole = said(&[2], 16);
        assert!(whole.contains("16 images of 2 parts") && !whole.contains("again"), "{whole}");
        let nothing = said(&[0, 1, 2], 0);
        assert!(!nothing.contains("computed again"), "{nothing}");
    }
}
