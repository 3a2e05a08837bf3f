//! **The main job**: plan → read and decode → run the teachers → encode → write → commit.
//!
//! ```text
//!         jobs               tasks: batches, cut by the plan         rows, in order
//!  plan ────────► workers ────────────────────────────► workers ────────────────────► writers ──► part-00000.parquet
//!        read, hash, decode,                    teacher, encode              one per file         part-00000.commit.json
//!        draw views, render                  (GPU: lane + workers)
//! ```
//!
//! One thread, in `flow`, gives out work and takes results; it puts them back into the plan's order before anything depends on
//! order. So a batch holds the same rows, and a file the same bytes, whatever the threads did and however often the build was
//! interrupted. What is in flight is bounded, and with it memory.
//!
//! A build can be killed at any moment. A part's files are independent of each other and become visible only when complete; the
//! next run builds what is missing (`worklist`).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::thread;

use anyhow::{Context, ensure};
use crossbeam_channel::{bounded, never, unbounded};
use hub::HubSettings;
use images::{DeepImages, ImageSource};
use models::teacher::{Teacher, TeacherOptions};
use program::{ExitStatus, LogFormat, words::count};
use schemas::{Cache, CacheIdentity, Codec, TeacherId, TeacherIdentity, atomic, layout};
use tch::Device;

use crate::cli::BuildCacheArgs;
use crate::config::{self, BuildConfig, CodecName};

mod calibrate;
pub(crate) mod decode;
mod dry_run;
pub(crate) mod flow;
mod identity;
pub(crate) mod infer;
mod lock;
mod progress;
pub(crate) mod recheck;
pub(crate) mod refuse;
mod reorder;
mod resolve;
mod summary;
pub(crate) mod timing;
mod workers;
pub(crate) mod worklist;
mod write;

use decode::Decoder;
use flow::{Ended, Flow};
pub(crate) use identity::Existing;
use identity::ForwardPass;
use infer::BuildTeacher;
use lock::Lock;
use progress::Progress;
use summary::Summary;
use timing::Timings;
use workers::{Event, Queues, Settings};
use worklist::{Outputs, PartWork};
use write::{Committed, WriterContext};

/// Batches that a GPU lane may have ahead of it, beside the one it computes: one to start on, one being put together.
const GPU_BATCHES_AHEAD: usize = 3;

/// Images that a dry run calibrates codec `i8` on.
const DRY_CALIBRATION_IMAGES: u64 = 8;

/// Everything that is known before the first byte is written.
pub(crate) struct Build {
    pub config: BuildConfig,
    pub device: Device,
    /// The data set; absent where all images that are needed are packed.
    pub source: Option<ImageSource>,
    pub identity: CacheIdentity,
    /// How image files become pixels, as the identity says.
    pub decoder: images::Decoder,
    /// Counts over all images decoded.
    pub deep: DeepImages,
    /// In order of id.
    pub teachers: Vec<(TeacherIdentity, BuildTeacher)>,
    pub batch_size: u32,
    /// What the cache says that is there.
    pub existing: Existing,
    /// Teachers of the cache whose codec is not the one asked for, in words.
    pub other_codecs: Vec<String>,
}

/// `pipeline build-cache`.
pub fn build_cache(
    args: &BuildCacheArgs,
    hub: &HubSettings,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // ---- What is asked for: settings, images, teachers -----------------------------------------------------------------------
    let mut config = BuildConfig::resolve(args)?;
    // Before anything else touches libtorch: it looks for its CUDA half only once.
    let device = torch_ext::resolve_device(&config.device)?;
    config.precision.prepare(device)?;
    refuse::out_among_images(&config)?;
    let source = open_source(&config)?;
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
    let folder = &build.config.out;
    refuse::foreign_folder(folder)?;
    // Everything is compared before anything is written: a refused command must not leave half of what it asked for.
    let early = match folder.is_dir() {
        true => Some(Lock::take(folder)?),
        false => None,
    };
    build.refuse_changes()?;
    if layout::cache_json(folder).exists() && !schemas::has_parts(folder)? {
        tracing::info!(
            "{}: the build that was interrupted here had not finished a part; starting over",
            folder.display()
        );
        schemas::start_over(folder, &build.identity)?;
    }
    schemas::create_cache(folder, &build.identity)?;
    let _lock = match early {
        Some(lock) => lock,
        None => Lock::take(folder)?,
    };
    for (teacher, _) in &build.teachers {
        schemas::add_teacher(folder, teacher)?;
        atomic::remove_stale(&layout::teacher_json(folder, &teacher.id))?;
    }
    atomic::remove_stale(&layout::cache_json(folder))?;
    if let Some(source) = &build.source {
        schemas::write_skipped(folder, &skipped(source))?;
    }
    let cache = Cache::open(folder)?;

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

    // Parts to build, and the images of each that this run has to deal with.
    let mut planned = Vec::new();
    for PartWork { part, missing } in &work {
        let rejected = match missing.samples {
            true => 0,
            false => cache.part_state(*part)?.samples.map_or(0, |s| s.rejects.rows),
        };
        planned.push((*part, build.samples_in(*part) - rejected));
    }

    // ---- The build -----------------------------------------------------------------------------------------------------------
    let timings = Timings::default();
    let samples_left: u64 = work.iter().map(|w| build.samples_in(w.part)).sum();
    let total = build.identity.plan.samples;
    let mut progress = Progress::new(total, total - samples_left, build.identity.views.views);
    if let Some(source) = &build.source {
        progress.skipped(source.findings().skipped_count());
    }
    let (ended, committed) = run_stages(build, &cache, work, &timings, &mut progress).inspect_err(|_| {
        tracing::warn!(
            "stopped: finished parts are kept, and once the cause is mended the same command goes on from there"
        )
    })?;

    if ended == Ended::Interrupted {
        let images = progress.images();
        drop(progress);
        warn_of_deep_images(&build.deep);
        let left: BTreeSet<u32> = build.worklist(&cache)?.iter().map(|w| w.part).collect();
        tracing::warn!("{}", interruption(&planned, &left, images));
        return Ok(ExitStatus::Interrupted);
    }

    // ---- What came of it -----------------------------------------------------------------------------------------------------
    let summary = Summary::of_run(&cache, build, &progress, &timings, &committed)?;
    drop(progress);
    summary.print(format, out)?;
    warn_of_deep_images(&build.deep);
    Ok(summary.status())
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

/// Opens the data set.
fn open_source(config: &BuildConfig) -> anyhow::Result<ImageSource> {
    let images = config.images.as_deref().context("a build reads images")?;
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
    let source = match config.limit {
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
        Err(MissingFact { .. } | MissingFacts(_)) if layout::teacher_json(out, id).exists() => {
            let cache = Cache::open(out)?;
            let begun = cache.teachers().get(id).context("a teacher without a record")?;
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
    config: BuildConfig,
    device: Device,
    source: Option<ImageSource>,
    identity: CacheIdentity,
    existing: Existing,
    hub: &HubSettings,
) -> anyhow::Result<Build> {
    let decoder = images::Decoder::of_cache(&identity.image_code, identity.depth_window)
        .with_context(|| {
            format!(
                "{}: its crops were made by image code {:?}, this program has {:?}: rows of one cache would be of different pixels. Use the \
                 version that built the cache, or build it again",
                config.out.display(),
                identity.image_code,
                images::IMAGE_CODE
            )
        })?;
    if let Some(rules) = decoder.earlier_rules() {
        tracing::warn!(
            "{} was begun with earlier rules for images, and goes on with them: {rules}. Build into another folder for today's",
            config.out.display()
        );
    }
    // All of them are found before the first is loaded: what is wrong with the second should not show after minutes.
    let mut found = Vec::new();
    for (id, teacher) in &config.teachers {
        found.push(resolve::resolve(id, &teacher.path, hub)?);
    }
    let mut models = Vec::new();
    for ((id, teacher), resolved) in config.teachers.iter().zip(found) {
        let model = load_teacher(&config.out, id, &resolved.path, &teacher.options, device)
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
        models.push((id, resolved.source, model));
    }
    let grid = identity::choose_grid(config.grid, &existing, models.iter().map(|(_, _, model)| model.info()))?;
    let default_batch = if device == Device::Cpu { config::BATCH_SIZE_CPU } else { config::BATCH_SIZE_CUDA };
    let batch_size = config.batch_size.unwrap_or(default_batch);

    let mut teachers = Vec::new();
    let mut other_codecs = Vec::new();
    for (id, source, model) in models {
        let (codec, awaits_calibration) = match config.codec {
            CodecName::F32 => (Codec::F32, false),
            CodecName::F16 => (Codec::F16, false),
            CodecName::Bf16 => (Codec::Bf16, false),
            CodecName::I8 => {
                match calibrate::existing(&config.out, id, config.calibration_images)? {
                    calibrate::Existing::Parameters(affine) => (Codec::I8(affine), false),
                    // Stands in until the calibration below.
                    calibrate::Existing::Nothing => (Codec::F32, true),
                    calibrate::Existing::Other { codec, problem } => {
                        other_codecs.push(problem);
                        (codec, false)
                    }
                }
            }
        };
        let pass = ForwardPass { grid, batch_size, device };
        let teacher = identity::teacher_identity(id, &source, model.info(), &config, codec.clone(), pass)?;
        let input_size = teacher.input_size;
        teachers.push((teacher, BuildTeacher { id: id.clone(), model, input_size, codec, awaits_calibration }));
    }
    let device_name = match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    };
    tracing::info!("the recipe in full:\n{}", config.to_toml(grid, batch_size, &device_name));
    let mut build = Build {
        config,
        device,
        source,
        identity,
        decoder,
        deep: DeepImages::default(),
        teachers,
        batch_size,
        existing,
        other_codecs,
    };
    // A dry run wants sizes and speed, for which any few images do.
    let images = match build.config.dry_run {
        true => DRY_CALIBRATION_IMAGES.min(build.config.calibration_images),
        false => build.config.calibration_images,
    };
    calibrate::calibrate(&mut build, images)?;
    // The images of the calibration are counted when the build comes to them.
    build.deep = DeepImages::default();
    Ok(build)
}

impl Build {
    /// What the usual input would cost, where the grid is a teacher's own and at least twice as many patches: DINOv2 is trained at
    /// 518 pixels in the end and used at 224.
    pub(crate) fn grid_advice(&self) -> Option<String> {
        const USUAL_INPUT: u32 = 224;
        // A typing error costs hours: attention grows with the square of the patches.
        const FAR_BEYOND: u32 = 4;
        let beyond = self.teachers.iter().find(|(teacher, network)| {
            let info = network.model.info();
            teacher.grid >= FAR_BEYOND * (info.input_size / info.patch_size).max(1)
        });
        if let Some((teacher, network)) = beyond {
            let info = network.model.info();
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
        if self.config.grid.is_some() || layout::cache_json(&self.config.out).exists() {
            return None;
        }
        self.teachers.iter().find_map(|(teacher, network)| {
            let native = network.model.info().input_size;
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

    /// What the cache lacks.
    pub(crate) fn worklist(&self, cache: &Cache) -> schemas::Result<Vec<PartWork>> {
        let wanted: BTreeSet<TeacherId> = self.teachers.iter().map(|(teacher, _)| teacher.id.clone()).collect();
        let committed = (0..self.identity.plan.parts()).map(|part| {
            let state = cache.part_state(part)?;
            Ok(Outputs { samples: state.samples.is_some(), teachers: state.teachers.into_keys().collect() })
        });
        Ok(worklist::worklist(&wanted, &committed.collect::<schemas::Result<Vec<_>>>()?))
    }

    fn samples_in(&self, part: u32) -> u64 {
        let range = self.identity.plan.range(part);
        range.end - range.start
    }
}

/// Starts the threads of every stage, lets [`Flow`] pass the work through them, and waits for the writers' last commits.
fn run_stages(
    build: &Build,
    cache: &Cache,
    work: Vec<PartWork>,
    timings: &Timings,
    progress: &mut Progress,
) -> anyhow::Result<(Ended, Vec<Committed>)> {
    let on_cpu = build.device == Device::Cpu;
    let threads = build.config.threads;
    let decoder = Decoder::new(build, timings);
    let codecs: Vec<Codec> = build.teachers.iter().map(|(_, teacher)| teacher.codec.clone()).collect();
    let settings = Settings { precision: build.config.precision, codecs: &codecs, timings };
    let writers = WriterContext { cache: cache.dir(), identity: &build.identity, timings };

    // Unbounded channels, bounded contents: `Flow` gives out work only while what is in flight fits its window, so that neither a
    // worker nor the flow itself ever waits for the other. The writers' channels are bounded: they are where pressure comes back.
    let (jobs_tx, jobs) = unbounded();
    let (tasks_tx, tasks) = unbounded();
    let (events_tx, events) = unbounded();
    let (commits_tx, commits) = unbounded();
    let (features_tx, features) = unbounded();
    let (samples_tx, samples_rx) = bounded(write::QUEUE);

    let ended = thread::scope(|scope| {
        // ---- read, decode, render; encode; on a CPU also infer ----
        let features = if on_cpu { never() } else { features };
        for _ in 0..threads {
            let teachers = on_cpu.then(|| build.teacher_handles());
            let queues = Queues {
                features: features.clone(),
                tasks: tasks.clone(),
                jobs: jobs.clone(),
                events: events_tx.clone(),
            };
            let decoder = &decoder;
            scope.spawn(move || workers::work(queues, decoder, teachers, settings));
        }
        // ---- infer on a GPU ----
        if !on_cpu {
            let (tasks, events, teachers) = (tasks.clone(), events_tx.clone(), build.teacher_handles());
            scope.spawn(move || workers::lane(tasks, features_tx, events, teachers, settings));
        }
        // ---- write and commit ----
        let (failed, committed) = (events_tx.clone(), commits_tx.clone());
        scope.spawn(move || workers::report_failure(&failed, || write::write_samples(writers, samples_rx, &committed)));
        let mut features_tx = Vec::new();
        for (teacher, _) in &build.teachers {
            let (sender, rows) = bounded(write::QUEUE);
            features_tx.push(sender);
            let (failed, committed) = (events_tx.clone(), commits_tx.clone());
            scope.spawn(move || {
                workers::report_failure(&failed, || write::write_features(writers, teacher, rows, &committed))
            });
        }
        drop((events_tx, commits_tx));

        // ---- pass the work through them ----
        let lanes = if on_cpu { threads } else { GPU_BATCHES_AHEAD };
        let ended = Flow::new(build, cache, work, flow::window(build, lanes)).run(
            flow::Ends { jobs: jobs_tx, tasks: tasks_tx, samples: samples_tx, features: features_tx, events: &events },
            progress,
        );
        // Whatever is still queued after a failure or an interruption is not to be worked off.
        jobs.try_iter().for_each(drop);
        tasks.try_iter().for_each(drop);
        ended
    })?;
    // The writers have gone through their queues by now; one may have failed on its very last part.
    if let Some(error) =
        events.try_iter().find_map(|event| if let Event::Failed(error) = event { Some(error) } else { None })
    {
        return Err(error);
    }
    Ok((ended, commits.try_iter().collect()))
}

impl Build {
    /// Handles on all teachers for one more thread.
    pub(crate) fn teacher_handles(&self) -> Vec<BuildTeacher> {
        self.teachers.iter().map(|(_, teacher)| teacher.shallow_clone()).collect()
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
