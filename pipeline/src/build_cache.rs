//! **The main job**: what is asked for → prepare → lock → plan → decode, run the teachers, encode → write → summary.
//!
//! ```text
//!                 batches                                                  rows, in order
//!  parts that ──────────────► threads ──────────────────────────────────────────────────► writers ──► part-00000.parquet
//!  lack something      read, hash, decode, draw views, render;             one for each file          part-00000.commit.json
//!                      every teacher; encode, compress
//! ```
//!
//! A batch is a range of samples of one part (`batch`). On a CPU each of N threads takes a whole batch through all stages, running
//! libtorch single-threaded; on a GPU these threads send pixels to one inference thread (`infer`). `parallel` bounds what is in flight
//! and gives the results to the writers in the order of the plan. So a batch holds the same rows, and a file the same bytes, whatever the
//! threads did and however often the build was interrupted.
//!
//! A build can be killed at any moment. A part's files are independent of each other and become visible only when complete; the
//! next run builds what is missing (`worklist`).

use std::io::Write;
use std::thread;

use hub::HubSettings;
use images::DeepImages;
use program::{ExitStatus, LogFormat, words::count};
use schemas::{Cache, TeacherIdentity};

use crate::cli::BuildCacheArgs;
use crate::recipe::Recipe;

mod batch;
mod build;
mod calibrate;
mod decode;
mod dry_run;
mod features;
mod gpu;
mod identity;
mod infer;
mod interruption;
mod lock;
mod network;
mod open;
mod parallel;
mod probe;
mod progress;
pub(crate) mod recheck;
pub(crate) mod refuse;
mod resolve;
mod summary;
mod timing;
mod worklist;
mod write;

use batch::{Batch, batches};
pub(crate) use build::{Build, open_device, prepare};
use decode::{CommittedRows, DecodedSamples, Decoder};
pub(crate) use identity::Existing;
use infer::{Inference, with_inference};
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
    let mut recipe = Recipe::of_build(args)?;
    let device = open_device(&recipe)?;
    refuse::foreign_folder(&recipe.cache.out)?;
    refuse::out_among_images(&recipe)?;
    let source = build::open_source(&recipe)?;
    let existing = Existing::look(&recipe.cache.out)?;
    let identity = identity::cache_identity(&recipe, &source, &existing);
    recipe.cache.part_samples = Some(identity.plan.part_samples);
    let build = prepare(recipe, args.dry_run, device, Some(source), identity, existing, hub)?;
    if let Some(advice) = build.grid_advice() {
        tracing::warn!("{advice}");
    }
    if args.dry_run {
        return dry_run::report(&build, format, out);
    }
    run(&build, format, out)
}

/// Builds what the cache lacks; also the second half of `add-teacher`.
pub(crate) fn run(build: &Build, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    // ---- The cache: created, or found to be the same build -------------------------------------------------------------------
    let (cache, _lock) = open::open_cache(build)?;
    refuse::lost_files(&cache)?;

    // ---- The plan: what is still missing -------------------------------------------------------------------------------------
    let work = build.worklist(&cache)?;
    if work.is_empty() {
        let summary = Summary::of_cache(&cache)?;
        summary.print(format, out)?;
        return Ok(summary.status());
    }
    if build.recheck_source(&cache, &work)? == Ended::Interrupted {
        tracing::warn!("interrupted; run the same command to go on");
        return Ok(ExitStatus::Interrupted);
    }
    tracing::info!("{} of {} to build", work.len(), count(build.identity.plan.parts().into(), "part"));

    // ---- The build -----------------------------------------------------------------------------------------------------------
    let timings = Timings::default();
    let mut progress = begin_progress(build, &work);
    let (ended, committed) = build_parts(build, &cache, &work, &timings, &mut progress).inspect_err(|_| {
        tracing::warn!(
            "stopped: finished parts are kept, and once the cause is fixed the same command goes on from there"
        )
    })?;

    // ---- What came of it -----------------------------------------------------------------------------------------------------
    if ended == Ended::Interrupted {
        let images = progress.images();
        drop(progress);
        warn_of_deep_images(&build.deep);
        interruption::warn(build, &cache, &work, images)?;
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
        // Report a failure of a writer first: the others follow from it.
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
        let (row_count, rows) = (rows.len(), rows.into_iter().zip(packed));
        let samples = rows.map(|(row, image)| PackedRow { row, image }).collect();
        Ok(FinishedBatch { batch, samples, rejects, features: encoded, rows: row_count })
    }
}

fn begin_progress(build: &Build, work: &[PartWork]) -> Progress {
    let left: u64 = work.iter().map(|work| build.samples_in(work.part)).sum();
    let total = build.identity.plan.samples;
    let skipped = build.source.as_ref().map_or(0, |source| source.findings().skipped_count());
    Progress::new(total, total - left, build.identity.views.views, skipped)
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
