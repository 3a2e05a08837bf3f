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

use std::cell::RefCell;
use std::io::Write;
use std::iter;
use std::thread;

use anyhow::Context;
use images::DeepImages;
use program::{ExitStatus, LogFormat, words::count};
use schemas::{Cache, SetAside};

use crate::Environment;
use crate::cli::BuildCacheArgs;
use crate::division::Division;
use crate::recipe::Recipe;

mod batch;
mod break_even;
mod build;
mod calibrate;
mod contents;
mod decode;
mod dry_run;
mod features;
mod gpu;
pub(crate) mod growth;
mod identity;
mod infer;
mod interruption;
mod lock;
mod network;
mod open;
mod parallel;
mod probe;
mod progress;
mod queue;
pub(crate) mod recheck;
pub(crate) mod refuse;
mod reject_quota;
mod repair;
mod resolve;
mod reuse;
mod saved;
mod space;
pub(crate) mod spot_check;
mod stages;
mod summary;
mod timing;
mod unstorable;
mod workers;
mod worklist;
mod write;

use batch::batches;
pub(crate) use build::{Build, open_device, open_source, prepare, run_alike};
pub(crate) use calibrate::{calibrated, spread};
use contents::Contents;
pub(crate) use dry_run::report as forecast;
pub(crate) use growth::Grown;
pub(crate) use identity::Existing;
use infer::with_inference;
pub(crate) use lock::{Busy, is_being_built, join_builders, refuse_builders, unfinished};
pub(crate) use parallel::Interrupted;
pub(crate) use parallel::{Ended, Stop, map_in_order};
use progress::Progress;
use queue::{Queue, Waited, WantedParts};
use reject_quota::RejectQuota;
pub(crate) use reject_quota::TooManyRejects;
pub(crate) use resolve::resolve_recorded;
use saved::SavedBatches;
pub(crate) use space::NoRoom;
use space::{DiskWatch, Space};
use stages::Stages;
use summary::Summary;
use timing::Timings;
use workers::Leases;
use worklist::PartWork;
use write::{CommittedFile, WriterContext, Writers};

/// `pipeline build-cache`.
pub fn build_cache(
    args: &BuildCacheArgs,
    env: &Environment,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // ---- What is asked for: settings, images, teachers -----------------------------------------------------------------------
    let mut recipe = Recipe::of_build(args)?;
    let device = open_device(&recipe)?;
    if !(args.repair && schemas::holds_parts(&recipe.cache.out)?) {
        refuse::foreign_folder(&recipe.cache.out)?;
    }
    refuse::out_among_images(&recipe)?;
    refuse::reuse_of_itself(&recipe)?;
    let source = build::open_source(&recipe)?;
    let aside = match args.repair {
        true => SetAside::damaged_identities(&recipe.cache.out)?,
        false => SetAside::default(),
    };
    let existing = Existing::look(&recipe.cache.out)?;
    let purpose = if args.repair { growth::Purpose::Repair } else { growth::Purpose::Finish };
    let (source, identity) = growth::of_build(&recipe, purpose, source, &existing)?;
    recipe.cache.part_samples = Some(identity.plan.part_samples);
    let build = prepare(recipe, args.dry_run, device, Some(source), identity, existing, env)?;
    if let Some(advice) = build.grid_advice() {
        tracing::warn!("{advice}");
    }
    if args.dry_run {
        return dry_run::report(&build, format, out);
    }
    if args.repair {
        repair::take_out_damage(&build, aside)?;
    }
    run(&build, format, out)
}

/// Builds what the cache lacks; also the second half of `add-teacher`. Other processes may build it too.
pub(crate) fn run(build: &Build, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    // ---- The cache: created, or found to be the same build -------------------------------------------------------------------
    let leases = Leases::new(&build.recipe.cache.out, build.recipe.run.patience());
    let (cache, _lock) = open::open_cache(build, &leases)?;
    refuse::lost_files(&cache)?;

    // ---- The parts: what is still missing, and which of it is for this process ---------------------------------------------------
    let work = build.worklist(&cache)?;
    let others_are_at_work = !leases.living(None)?.is_empty();
    // The first of them has looked.
    if !others_are_at_work && build.recheck_source(&cache, &work)? == Ended::Interrupted {
        tracing::warn!("interrupted; run the same command to go on");
        return Ok(ExitStatus::Interrupted);
    }
    if work.is_empty() {
        leases.clear_ended()?;
        if !others_are_at_work {
            SavedBatches::new(cache.dir(), &build.identity).clear()?;
            schemas::remove_all_stale(cache.dir())?;
        }
        leases.remove_if_unused();
        let summary = Summary::of_cache(&cache)?;
        summary.print(format, out)?;
        if build.recipe.data.max_rejects.is_some() {
            RejectQuota::new(build, &cache)?;
        }
        return Ok(summary.status());
    }
    if build.identity.dedup && work.iter().any(|work| work.missing.samples) {
        let source = build.source.as_ref().context("a build reads images")?;
        let Some(contents) = Contents::read(&cache, source, build.recipe.run.threads)? else {
            tracing::warn!("interrupted; run the same command to go on");
            return Ok(ExitStatus::Interrupted);
        };
        let _ = build.contents.set(contents);
    }
    // A cache with too many of them is not built on.
    let mut quota = RejectQuota::new(build, &cache)?;
    let space = Space::of(build, &work, probe::packed_bytes(build)?)?;
    space.announce(build)?;
    probe::announce_time(build, &work, &space)?;
    let parts = WantedParts { build, cache: &cache };
    let mut queue = Queue::new(&parts, &leases, build.division, DiskWatch::new(build, &work, &space))?;
    tracing::info!("{} of {} to build", work.len(), count(build.identity.parts().into(), "part"));

    // ---- The build -----------------------------------------------------------------------------------------------------------
    let timings = Timings::default();
    let mut progress = begin_progress(build, &queue, &work);
    let mut counts = Counts { progress: &mut progress, quota: &mut quota };
    let built = build_queue(build, &cache, &mut queue, &mut counts, &timings);
    let (ended, committed) = built.map_err(|mut error| match error.downcast_mut::<TooManyRejects>() {
        Some(rejects) => {
            // What was being written when it stopped may be finished by now.
            rejects.is_begun = schemas::has_parts(cache.dir()).unwrap_or(true);
            error
        }
        None => {
            tracing::warn!(
                "stopped: finished parts are kept, and once the cause is fixed the same command goes on from there"
            );
            error
        }
    })?;

    // ---- What came of it -----------------------------------------------------------------------------------------------------
    if ended == Ended::Interrupted {
        let images = progress.images();
        drop(progress);
        warn_of_deep_images(&build.deep);
        interruption::warn(build, &cache, &queue, images)?;
        return Ok(ExitStatus::Interrupted);
    }
    drop(queue);
    let summary = Summary::of_run(&cache, build, &progress, &timings, &committed)?;
    drop(progress);
    summary.print(format, out)?;
    warn_of_deep_images(&build.deep);
    tell_what_others_have(build, &cache)?;
    if build.worklist(&cache)?.is_empty() {
        contents::forget(&cache)?;
        if leases.living(None)?.is_empty() {
            schemas::remove_all_stale(cache.dir())?;
        }
        leases.remove_if_unused();
    }
    // Other workers may have met as many again as this one.
    RejectQuota::new(build, &cache)?;
    Ok(summary.status())
}

/// What a build counts as it goes.
struct Counts<'a> {
    progress: &'a mut Progress,
    quota: &'a mut RejectQuota,
}

/// Builds the parts of the queue until every part of the cache is finished, by this process or another, or this process has done its share.
fn build_queue(
    build: &Build,
    cache: &Cache,
    queue: &mut Queue<'_>,
    counts: &mut Counts<'_>,
    timings: &Timings,
) -> anyhow::Result<(Ended, Vec<CommittedFile>)> {
    let mut committed = Vec::new();
    let mut first = None;
    loop {
        let (ended, files) = build_parts(build, cache, first.take(), queue, counts, timings)?;
        committed.extend(files);
        if ended == Ended::Interrupted {
            return Ok((ended, committed));
        }
        match queue.wait()? {
            Waited::AllDone => return Ok((Ended::Finished, committed)),
            Waited::Interrupted => return Ok((Ended::Interrupted, committed)),
            Waited::Part(work) => first = Some(work),
        }
    }
}

/// Passes every batch of `first` and of the parts that the queue gives through decoding, the teachers and encoding to the writers.
fn build_parts(
    build: &Build,
    cache: &Cache,
    first: Option<PartWork>,
    queue: &mut Queue<'_>,
    counts: &mut Counts<'_>,
    timings: &Timings,
) -> anyhow::Result<(Ended, Vec<CommittedFile>)> {
    let saved = SavedBatches::new(cache.dir(), &build.identity);
    let stages = Stages {
        decoder: build.decoder(timings),
        teachers: build.identities(),
        saved: &saved,
        reuse: build.reuse.as_ref(),
    };
    let committed = queue.committed();
    let cx = WriterContext { cache: cache.dir(), identity: &build.identity, timings, committed: &committed };
    // Parts are taken and given back on this thread alone.
    let queue = RefCell::new(queue);
    let parts = first.map(Ok).into_iter().chain(iter::from_fn(|| queue.borrow_mut().next().transpose()));
    thread::scope(|scope| {
        let mut writers = Writers::start(scope, cx, &build.teachers);
        let ended = with_inference(build.compute, &|| build.networks(), timings, |inference| {
            map_in_order(
                batches(build, cache, parts),
                inference,
                |inference, batch, stop| stages.run(batch, inference, stop),
                |finished| {
                    counts.progress.batch(finished.batch.samples.clone(), finished.rows, finished.rejects.len());
                    counts.quota.add(&finished.rejects)?;
                    writers.write(finished)?;
                    queue.borrow_mut().settle()
                },
            )
        });
        // Report a failure of a writer first: the others follow from it.
        let files = writers.finish()?;
        queue.borrow_mut().settle()?;
        Ok((ended?, files))
    })
}

fn begin_progress(build: &Build, queue: &Queue<'_>, work: &[PartWork]) -> Progress {
    let mine = queue.range();
    let total = mine.clone().map(|part| build.samples_in(part)).sum();
    let left: u64 =
        work.iter().map(|work| work.part).filter(|part| mine.contains(part)).map(|part| build.samples_in(part)).sum();
    let skipped = build.source.as_ref().map_or(0, |source| source.findings().skipped_count());
    Progress::new(total, total - left, build.identity.views.views, skipped)
}

/// A worker that has done its share says what is left to the others.
fn tell_what_others_have(build: &Build, cache: &Cache) -> anyhow::Result<()> {
    let Division::Share(share) = build.division else {
        return Ok(());
    };
    match build.worklist(cache)?.len() {
        0 => tracing::info!("worker {share}: every part of the cache is finished"),
        left => tracing::info!(
            "worker {share}: its share is finished; left to the other workers: {}",
            count(left as u64, "part")
        ),
    }
    Ok(())
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
