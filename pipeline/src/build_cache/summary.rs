//! What a build has come to: the table at its end.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use indicatif::{DecimalBytes, HumanDuration};
use program::{ExitStatus, LogFormat, words::count};
use schemas::{Cache, TeacherId};
use serde::Serialize;
use tch::Device;

use super::build::Build;
use super::decode::DUPLICATE;
use super::progress::Progress;
use super::reuse::{NotReused, Reuse};
use super::timing::{Stage, Timings};
use super::write::CommittedFile;
use crate::codec_error::{CodecErrors, CodecLoss};

/// The cache as a whole, and what this run did.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    cache: String,
    /// Images of the data set in committed parts, usable or not.
    images: u64,
    /// Rows: usable images times views.
    rows: u64,
    rejected: u64,
    /// Samples with the bytes of an earlier one, where they are stored all the same; counted when something was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<u64>,
    /// How many images were rejected for which reason, the commonest first.
    rejects_by_reason: Vec<(String, u64)>,
    /// Pictures that the source holds and that are no images of the data set.
    skipped: u64,
    /// How many were skipped for which reason, the commonest first.
    skipped_by_reason: Vec<(String, u64)>,
    /// Bytes of the committed files: `samples`, and each teacher.
    bytes: BTreeMap<String, u64>,
    /// What the codec lost, of each teacher's complete parts.
    codec_error: BTreeMap<TeacherId, CodecLoss>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
}

/// What this run did.
#[derive(Debug, Serialize)]
struct Run {
    images: u64,
    /// Rows of teachers that were taken over from another cache, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    reused_rows: Option<u64>,
    /// Rows that were not, by reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_reused: Option<NotReused>,
    files: usize,
    bytes: u64,
    seconds: f64,
    images_per_second: f64,
    stages: Vec<StageTime>,
    /// The stage whose threads had the least time to spare.
    bottleneck: Option<String>,
    peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_gpu_memory_bytes: Option<u64>,
}

/// Busy time of a stage.
#[derive(Debug, Serialize)]
struct StageTime {
    stage: String,
    /// Added up over its threads.
    busy_seconds: f64,
    /// Share of the time that its threads had.
    share: f64,
}

impl Summary {
    /// What is committed in a cache.
    pub(crate) fn of_cache(cache: &Cache) -> anyhow::Result<Summary> {
        let (mut rows, mut rejected, mut images) = (0, 0, 0);
        let mut reasons = BTreeMap::<String, u64>::new();
        let mut bytes = BTreeMap::<String, u64>::new();
        let mut errors: BTreeMap<_, _> =
            cache.teachers().iter().map(|(id, teacher)| (id.clone(), CodecErrors::new(teacher))).collect();
        for part in 0..cache.identity().parts() {
            let state = cache.part_state(part)?;
            if let Some(samples) = state.samples {
                let range = cache.identity().range(part);
                images += range.end - range.start;
                rows += samples.file.rows;
                rejected += samples.rejects.rows;
                *bytes.entry("samples".to_owned()).or_default() += samples.file.bytes + samples.rejects.bytes;
                for reject in cache.rejects(part)? {
                    *reasons.entry(word(&reject.reason).to_owned()).or_default() += 1;
                }
            }
            for (id, teacher) in state.teachers {
                *bytes.entry(format!("teacher {id}")).or_default() += teacher.file.bytes;
                if let Some(errors) = errors.get_mut(&id) {
                    errors.add(&teacher);
                }
            }
        }
        let mut skips = BTreeMap::<String, u64>::new();
        for skipped in schemas::read_skipped(cache.dir())? {
            *skips.entry(skipped.reason).or_default() += skipped.count;
        }
        let skipped_by_reason = commonest_first(skips);
        Ok(Summary {
            cache: cache.dir().display().to_string(),
            images,
            rows,
            rejected,
            copies: None,
            rejects_by_reason: commonest_first(reasons),
            skipped: skipped_by_reason.iter().map(|(_, count)| count).sum(),
            skipped_by_reason,
            bytes,
            codec_error: errors.into_iter().map(|(id, errors)| (id, errors.finish())).collect(),
            run: None,
        })
    }

    /// The same, and what the run just ended did.
    pub(crate) fn of_run(
        cache: &Cache,
        build: &Build,
        progress: &Progress,
        timings: &Timings,
        committed: &[CommittedFile],
    ) -> anyhow::Result<Summary> {
        let wall = progress.elapsed().as_secs_f64();
        let stages: Vec<_> =
            timings.busy().into_iter().map(|(stage, busy)| stage_time(&stage, busy, wall, build)).collect();
        let run = Run {
            images: progress.images(),
            reused_rows: build.reuse.as_ref().map(Reuse::taken),
            not_reused: build.reuse.as_ref().map(Reuse::not_taken),
            files: committed.len(),
            bytes: committed.iter().map(|file| file.bytes).sum(),
            seconds: wall,
            images_per_second: progress.rate(),
            bottleneck: stages.iter().max_by(|a, b| a.share.total_cmp(&b.share)).map(|stage| stage.stage.clone()),
            stages,
            peak_memory_bytes: torch_ext::peak_rss(),
            peak_gpu_memory_bytes: match build.compute.device {
                Device::Cpu => None,
                gpu => Some(torch_ext::memory(gpu)?.peak),
            },
        };
        Ok(Summary { run: Some(run), copies: Some(copies(cache)?), ..Summary::of_cache(cache)? })
    }

    /// Rejects are no failure, unless nothing is left.
    pub(crate) fn status(&self) -> ExitStatus {
        // A worker whose share is empty may end before any part is finished.
        if self.rows == 0 && self.images > 0 { ExitStatus::Problems } else { ExitStatus::Fine }
    }

    /// Images that were rejected for another reason than that they are copies.
    fn unusable(&self) -> u64 {
        self.rejects_by_reason.iter().filter(|(reason, _)| reason != DUPLICATE).map(|(_, count)| count).sum()
    }

    /// A table, or one JSON object on a line.
    pub(crate) fn print(&self, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<()> {
        match format {
            LogFormat::Json => writeln!(out, "{}", serde_json::to_string(self)?)?,
            LogFormat::Text => self.print_text(out)?,
        }
        for (id, loss) in &self.codec_error {
            if let Some(error) = loss.beyond_rounding() {
                tracing::warn!(
                    "teacher {id}: the codec lost {:.0} % of the features (relative L2), more than rounding explains: the images that it was \
                     calibrated on are too few or unlike the others. Build it again, in another folder or under another name, with more of them \
                     (--calibration-images) or with --codec f16",
                    100.0 * error
                );
            }
        }
        if self.rows == 0 && self.images > 0 {
            tracing::error!("none of {} could be used", count(self.images, "image"));
        } else if let unusable @ 1.. = self.unusable() {
            tracing::warn!(
                "{unusable} of {} could not be used; see {1}/rejects. Their places are kept: to have one that was mended, put it beside the other under a new name \
                 and run `pipeline add-images {1}`",
                count(self.images, "image"),
                self.cache
            );
        }
        Ok(())
    }

    fn print_text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "cache              {}", self.cache)?;
        writeln!(out, "images             {}", self.images)?;
        writeln!(out, "rows               {}", self.rows)?;
        writeln!(out, "rejected           {}", self.rejected)?;
        for (reason, count) in &self.rejects_by_reason {
            writeln!(out, "  {count:>8}  {reason}")?;
        }
        if let Some(copies) = self.copies.filter(|&copies| copies > 0) {
            writeln!(
                out,
                "copies             {copies}: samples with the same bytes as an earlier one (--dedup stores the first alone)"
            )?;
        }
        if self.skipped > 0 {
            writeln!(
                out,
                "skipped            {}: pictures and archives in the source that are not in the data set; see {}/rejects/skipped.jsonl",
                self.skipped, self.cache
            )?;
        }
        for (reason, count) in &self.skipped_by_reason {
            writeln!(out, "  {count:>8}  {reason}")?;
        }
        for (file, bytes) in &self.bytes {
            writeln!(out, "{file:<18} {}", DecimalBytes(*bytes))?;
        }
        for (id, loss) in self.codec_error.iter().filter(|(_, loss)| loss.is_lossy()) {
            writeln!(out, "{:<18} {}", format!("codec error {id}"), loss.text())?;
        }
        let Some(run) = &self.run else {
            return writeln!(
                out,
                "this run           nothing to do: no record or file is missing, and every file has its size; `pipeline verify {}` checks what \
                 is in them",
                self.cache
            );
        };
        let took = HumanDuration(Duration::from_secs_f64(run.seconds));
        writeln!(
            out,
            "this run           {} in {took}, {:.2} img/s",
            count(run.images, "image"),
            run.images_per_second
        )?;
        if let Some(rows) = run.reused_rows {
            writeln!(out, "reused             {} of features", count(rows, "row"))?;
        }
        for reason in run.not_reused.map(NotReused::reasons).into_iter().flatten() {
            writeln!(out, "  computed         {reason}")?;
        }
        writeln!(out, "written            {} in {}", DecimalBytes(run.bytes), count(run.files as u64, "file"))?;
        for StageTime { stage, busy_seconds, share } in &run.stages {
            writeln!(out, "  {stage:<20} {busy_seconds:>9.2} s  {:>3.0} % of its threads", 100.0 * share)?;
        }
        if let Some(stage) = &run.bottleneck {
            writeln!(out, "bottleneck         {stage}")?;
        }
        if let Some(bytes) = run.peak_memory_bytes {
            writeln!(out, "peak memory        {}", DecimalBytes(bytes))?;
        }
        if let Some(bytes) = run.peak_gpu_memory_bytes {
            writeln!(out, "peak GPU memory    {}", DecimalBytes(bytes))?;
        }
        Ok(())
    }
}

/// Samples of finished parts with the bytes of an earlier one.
fn copies(cache: &Cache) -> anyhow::Result<u64> {
    // Half of a hash: a billion images have two of equal halves once in 37 such data sets.
    let mut hashes: Vec<u64> = Vec::new();
    for part in 0..cache.identity().parts() {
        if cache.part_state(part)?.samples.is_some() {
            let rows = cache.samples(part)?.into_iter().filter(|row| row.view.index == 0);
            hashes
                .extend(rows.map(|row| u64::from_le_bytes(row.content_hash.0[..8].try_into().expect("8 of 16 bytes"))));
        }
    }
    let all = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    Ok((all - hashes.len()) as u64)
}

/// The word that a reason begins with, to count by; what follows differs from image to image.
pub(super) fn word(reason: &str) -> &str {
    reason.split(':').next().unwrap_or_default()
}

pub(super) fn commonest_first(reasons: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    // Stable: reasons of the same count stay in alphabetical order.
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons
}

/// Workers share their threads between stages; the GPU lane and each writer have one of their own.
fn stage_time(stage: &Stage, busy: Duration, wall: f64, build: &Build) -> StageTime {
    let threads = match stage {
        Stage::WriteSamples | Stage::WriteFeatures(_) => 1,
        // All teachers share the lane.
        Stage::Infer(_) if build.compute.device != Device::Cpu => 1,
        _ => build.recipe.run.threads,
    };
    let busy_seconds = busy.as_secs_f64();
    StageTime { stage: stage.to_string(), busy_seconds, share: busy_seconds / (wall * threads as f64).max(1e-9) }
}
