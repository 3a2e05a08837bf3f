//! `pipeline stats`: statistics of a cache's features, read row by row.
//!
//! Rows are read on all processors, a few at a time; sums are added in the order of the rows, so that the result does not depend
//! on the number of processors.

mod bytes;
mod map;
mod sketch;
mod sums;
mod text;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use program::{ExitStatus, signals, terminal};
use rayon::prelude::*;
use schemas::{Cache, TeacherId, TeacherIdentity, TeacherPart};
use serde::Serialize;

use crate::cli::StatsArgs;
use crate::codec_error::{CodecErrors, CodecLoss};
use bytes::Bytes;
use sketch::Distribution;
use sums::Sums;

/// A token is an outlier if its norm is more than this times the median norm of the tokens of its row.
pub const OUTLIER: f64 = 3.0;

/// Rows that one thread sums at a time. It decides the order of additions, and so the last bits.
const CHUNK: usize = 8;

/// Chunks between two checks for Ctrl-C, and the largest size of their sums in bytes, which allows fewer chunks for wide tokens.
const CHUNKS: usize = 64;
const SUMS_BYTES: usize = 256 << 20;

#[derive(Debug, Serialize)]
struct Report<'a> {
    cache: String,
    teachers: BTreeMap<&'a TeacherId, TeacherStats>,
}

/// Statistics of one teacher's rows, over decoded values. Grids are row-major.
#[derive(Debug, Serialize)]
struct TeacherStats {
    /// Patches per side, `sqrt(L)`.
    grid: u32,
    /// Channels, `D`.
    width: u32,
    codec: String,
    parts: u32,
    parts_complete: u32,
    /// Rows in the complete parts, and rows that were read.
    rows: u64,
    rows_read: u64,
    bytes: Bytes,
    codec_error: CodecLoss,
    /// Absent if no row was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<Features>,
}

#[derive(Debug, Serialize)]
struct Features {
    tokens: u64,
    /// Number of infinite or NaN values by column. All other statistics leave them out, and the norms of tokens that have one.
    non_finite: NonFinite,
    /// Statistics of the patch tokens by channel.
    channels: Channels,
    /// 2-norms of the patch tokens.
    token_norm: Distribution,
    /// 2-norms of the CLS tokens.
    cls_norm: Distribution,
    outliers: Outliers,
    /// Share of the sum of all squared values in the largest 1, 4 and 16 channels.
    top_channels: TopChannels,
    attention: Attention,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
struct NonFinite {
    tokens: u64,
    cls: u64,
    cls_attn: u64,
}

/// Statistics by channel, `[D]` each.
#[derive(Debug, Serialize)]
struct Channels {
    mean: Vec<f64>,
    std: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
    /// Share of the sum of all squared values.
    share: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct TopChannels {
    top_1: f64,
    top_4: f64,
    top_16: f64,
}

#[derive(Debug, Serialize)]
struct Outliers {
    /// [`OUTLIER`].
    times_median: f64,
    tokens: u64,
    share: f64,
    /// Number at each place of the grid.
    per_patch: Vec<u64>,
}

/// Attention of CLS to the patches.
#[derive(Debug, Serialize)]
struct Attention {
    /// Rows without any attention to patches; left out of the rest.
    rows_without: u64,
    /// Entropy in bits of each row's attention, scaled to sum to 1.
    entropy_bits: Distribution,
    /// Entropy of uniform attention: `log2 L`.
    entropy_most: f64,
    /// Largest weight of each row.
    peak: Distribution,
    /// Sum of each row; the rest is attention to CLS itself and to registers.
    sum: Distribution,
    /// Mean over rows at each place of the grid.
    mean: Vec<f64>,
}

/// Reads the features of the committed parts and prints their statistics.
pub fn stats(args: &StatsArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let (cache, mut unreadable) = Cache::open_readable(&args.cache)?;
    let mut ids = Vec::new();
    for name in &args.teachers {
        let id = TeacherId::new(name.as_str())?;
        if let Some(error) = unreadable.remove(&id) {
            return Err(error.into());
        }
        let id = cache.teacher(&id)?.id.clone();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    // Without a choice of teachers all of them are read, so none may be damaged.
    if ids.is_empty()
        && let Some(error) = unreadable.into_values().next()
    {
        return Err(error.into());
    }
    if ids.is_empty() {
        ids = cache.teachers().keys().cloned().collect();
    }
    ensure!(
        !ids.is_empty(),
        "{}: the cache has no teachers, so there are no features to look at",
        cache.dir().display()
    );
    let limit = args.limit.unwrap_or(u64::MAX);
    let mut plans = Vec::new();
    for id in &ids {
        plans.push(TeacherPlan::new(&cache, cache.teacher(id)?)?);
    }
    let bar = terminal::bars().add(ProgressBar::new(plans.iter().map(|plan| plan.rows.min(limit)).sum()));
    bar.set_style(
        ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} rows, ETA {eta}")
            .expect("a constant template"),
    );
    let mut report = Report { cache: cache.dir().display().to_string(), teachers: BTreeMap::new() };
    for (id, plan) in ids.iter().zip(plans) {
        let Some(stats) = plan.read(&cache, limit, &bar)? else {
            tracing::warn!("interrupted; an unfinished pass shows no statistics");
            return Ok(ExitStatus::Interrupted);
        };
        report.teachers.insert(id, stats);
    }
    bar.finish_and_clear();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        text::print(&report, out)?;
    }
    Ok(ExitStatus::Fine)
}

/// Facts about a teacher from the commit records, before a row is read.
struct TeacherPlan<'a> {
    teacher: &'a TeacherIdentity,
    parts: Vec<u32>,
    rows: u64,
    bytes: Bytes,
    codec_error: CodecErrors,
}

impl TeacherPlan<'_> {
    fn new<'a>(cache: &Cache, teacher: &'a TeacherIdentity) -> anyhow::Result<TeacherPlan<'a>> {
        let mut plan = TeacherPlan {
            teacher,
            parts: Vec::new(),
            rows: 0,
            bytes: Bytes::default(),
            codec_error: CodecErrors::new(teacher),
        };
        for part in 0..cache.identity().parts() {
            if !cache.part_state(part)?.teachers.contains_key(&teacher.id) {
                continue;
            }
            let features = cache.teacher_part(&teacher.id, part)?;
            plan.parts.push(part);
            plan.rows += features.commit().file.rows;
            plan.bytes.add(&features);
            plan.codec_error.add(features.commit());
        }
        plan.bytes.finish(teacher, plan.rows, cache.identity().views.views);
        Ok(plan)
    }

    /// `None` if interrupted.
    fn read(self, cache: &Cache, limit: u64, bar: &ProgressBar) -> anyhow::Result<Option<TeacherStats>> {
        let mut sums = Sums::new(self.teacher);
        for &part in &self.parts {
            let features = cache.teacher_part(&self.teacher.id, part)?;
            let left = limit.saturating_sub(sums.rows());
            let rows = features.rows().min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunks = (SUMS_BYTES / Sums::bytes(self.teacher)).clamp(1, CHUNKS);
            for first in (0..rows).step_by(CHUNK * chunks) {
                if signals::requested() {
                    return Ok(None);
                }
                let last = rows.min(first + CHUNK * chunks);
                for chunk in self.chunks(&features, first, last) {
                    sums.merge(&chunk?);
                }
                bar.inc((last - first) as u64);
            }
        }
        Ok(Some(TeacherStats {
            grid: self.teacher.grid,
            width: self.teacher.width,
            codec: self.teacher.codec.to_string(),
            parts: cache.identity().parts(),
            parts_complete: u32::try_from(self.parts.len()).context("parts are counted in u32")?,
            rows: self.rows,
            rows_read: sums.rows(),
            bytes: self.bytes,
            codec_error: self.codec_error.finish(),
            features: sums.finish(),
        }))
    }

    /// The sums of the rows `first..last` in chunks, in their order.
    fn chunks(&self, features: &TeacherPart, first: usize, last: usize) -> Vec<anyhow::Result<Sums>> {
        let starts: Vec<usize> = (first..last).step_by(CHUNK).collect();
        starts
            .into_par_iter()
            .map(|start| {
                let mut sums = Sums::new(self.teacher);
                let mut scratch = sums::Scratch::default();
                for row in start..last.min(start + CHUNK) {
                    features.read_row_into(row, &mut scratch.row)?;
                    sums.add_row(self.teacher, &mut scratch)?;
                }
                Ok(sums)
            })
            .collect()
    }
}
