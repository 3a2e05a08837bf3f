//! `build-cache --dry-run`: what would be built, how large it gets, whether it fits, how long it takes. Leaves nothing behind.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use images::ImageSource;
use indicatif::{DecimalBytes, HumanDuration};
use program::{ExitStatus, LogFormat, words::count};
use schemas::TeacherIdentity;
use serde::Serialize;

use super::break_even::BreakEven;
use super::build::Build;
use super::probe::{Time, measure};
use super::reuse::Reuse;
use super::space::{Bytes, Space, free_bytes};

/// What a build would do.
#[derive(Debug, Serialize)]
struct Forecast {
    images: u64,
    views: u64,
    /// Rows, if every image can be used.
    rows_at_most: u64,
    source: Source,
    parts: u32,
    part_images: u64,
    parts_to_build: usize,
    samples: Bytes,
    /// Identities of the teachers, with what is to be written of each.
    teachers: Vec<Teacher>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grid_advice: Option<String>,
    bytes_needed_at_most: u64,
    /// Absent for a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_free: Option<u64>,
    fits: bool,
    /// Absent where nothing is to do.
    time: Option<Time>,
    /// Absent where nothing is to do, or the disk cannot be measured.
    break_even: Option<BreakEven>,
    /// Why the disk cannot be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    break_even_unknown: Option<String>,
    /// What the forecast does not take into account.
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse: Option<String>,
}

/// What the data set is read from, and what of it is not in the data set.
#[derive(Debug, Serialize)]
struct Source {
    images: String,
    kind: String,
    files: usize,
    labeled: u64,
    distinct_labels: u64,
    skipped: u64,
    skipped_by_reason: Vec<(String, u64)>,
    /// The other files by extension with their counts, as text: `2 .txt, 1 .json`.
    not_read: String,
}

#[derive(Debug, Serialize)]
struct Teacher {
    identity: TeacherIdentity,
    to_write: Bytes,
    /// What the rows to write take before compression.
    columns: Columns,
}

/// Bytes of each column of features.
#[derive(Debug, Serialize)]
struct Columns {
    tokens: u64,
    cls: u64,
    cls_attn: u64,
}

impl Columns {
    fn of(teacher: &TeacherIdentity, rows: u64) -> Columns {
        Columns {
            tokens: rows * teacher.tokens_bytes() as u64,
            cls: rows * teacher.cls_bytes() as u64,
            cls_attn: rows * teacher.cls_attn_bytes() as u64,
        }
    }
}

/// Prints the plan. Refuses what the build would refuse.
pub(crate) fn report(build: &Build, format: LogFormat, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let forecast = Forecast::of(build)?;
    match format {
        LogFormat::Text => forecast.write_text(out)?,
        LogFormat::Json => writeln!(out, "{}", serde_json::to_string(&forecast)?)?,
    }
    Ok(if forecast.fits { ExitStatus::Fine } else { ExitStatus::Problems })
}

impl Forecast {
    fn of(build: &Build) -> anyhow::Result<Forecast> {
        let work = build.missing()?;
        let identity = &build.identity;
        let views = u64::from(build.identity.views.views);
        let source = build.source.as_ref().context("a build reads images")?;
        // A short measurement: of time, and of the size of packed images.
        let probe = if work.is_empty() { None } else { Some(measure(build)?) };
        let space = Space::of(build, &work, probe.as_ref().map_or(0, |probe| probe.packed_bytes))?;
        let teacher = |(identity, to_write): (&TeacherIdentity, &Bytes)| Teacher {
            columns: Columns::of(identity, to_write.rows),
            identity: identity.clone(),
            to_write: *to_write,
        };
        let teachers: Vec<Teacher> = build.identities().into_iter().zip(&space.teachers).map(teacher).collect();
        let forward_rows: u64 = space.teachers.iter().map(|of| of.rows).sum();
        let out = &build.recipe.cache.out;
        let free = if storage::is_url(out) { None } else { Some(free_bytes(out)?) };
        let needed = space.needed();
        let images = work.iter().map(|work| build.samples_in(work.part)).sum();
        let time = probe.map(|probe| probe.time(build, images, forward_rows));
        let (break_even, break_even_unknown) = match &time {
            Some(time) => match BreakEven::measure(build, time.teachers_ms_per_image / 1e3)? {
                Ok(break_even) => (Some(break_even), None),
                Err(why) => (None, Some(why)),
            },
            None => (None, None),
        };
        Ok(Forecast {
            images: identity.samples(),
            views,
            rows_at_most: identity.samples() * views,
            source: Source::of(build, source),
            parts: identity.parts(),
            part_images: identity.plan.part_samples,
            parts_to_build: work.len(),
            samples: space.samples,
            teachers,
            grid_advice: build.grid_advice(),
            bytes_needed_at_most: needed,
            bytes_free: free,
            fits: free.is_none_or(|free| free >= needed),
            time,
            break_even,
            break_even_unknown,
            reuse: build.reuse.as_ref().map(Reuse::not_in_forecast),
        })
    }

    fn write_text(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        writeln!(
            out,
            "data set           {}, {} each: at most {}",
            count(self.images, "image"),
            count(self.views, "view"),
            count(self.rows_at_most, "row")
        )?;
        self.source.write_text(self.images, out)?;
        writeln!(
            out,
            "plan               {} of {}; {} to build",
            count(self.parts.into(), "part"),
            count(self.part_images, "image"),
            self.parts_to_build
        )?;
        writeln!(
            out,
            "samples            {} to write, at most {}",
            count(self.samples.rows, "row"),
            DecimalBytes(self.samples.bytes_at_most)
        )?;
        for Teacher { identity, to_write, columns: Columns { tokens, cls, cls_attn } } in &self.teachers {
            let TeacherIdentity { id, arch, grid, input_size, width, codec, .. } = identity;
            writeln!(
                out,
                "teacher {id:<10} {arch}: {grid} x {grid} patches of {input_size} px, width {width}, {codec}; {} to write, at most {}",
                count(to_write.rows, "row"),
                DecimalBytes(to_write.bytes_at_most)
            )?;
            writeln!(
                out,
                "                   columns before compression: tokens {}, cls {}, cls_attn {}",
                DecimalBytes(*tokens),
                DecimalBytes(*cls),
                DecimalBytes(*cls_attn)
            )?;
            writeln!(
                out,
                "                   pixels minus mean {:?}, divided by std {:?}; {}, eps {:e}",
                identity.mean, identity.std, identity.activation, identity.norm_eps
            )?;
            for assumed in &identity.assumed {
                writeln!(out, "                   assumed: {assumed}")?;
            }
        }
        if let Some(advice) = &self.grid_advice {
            writeln!(out, "grid               {advice}")?;
        }
        writeln!(
            out,
            "disk               at most {} needed{}: {}",
            DecimalBytes(self.bytes_needed_at_most),
            self.bytes_free.map(|free| format!(", {} free", DecimalBytes(free))).unwrap_or_default(),
            if self.fits { "fits" } else { "DOES NOT FIT" }
        )?;
        let Some(time) = &self.time else {
            return Ok(writeln!(out, "time               nothing to do")?);
        };
        writeln!(
            out,
            "time               about {} for {} ({:.2} h) at {:.2} img/s, measured on {}: decoding {:.1} ms on one \
             thread, teachers {:.1} ms on {}",
            HumanDuration(Duration::from_secs_f64(time.seconds)),
            count(time.images, "image"),
            time.seconds / 3600.0,
            time.images_per_second,
            count(time.measured_on_images, "image"),
            time.decode_ms_per_image,
            time.teachers_ms_per_image,
            time.teachers_on,
        )?;
        if let Some(reuse) = &self.reuse {
            writeln!(out, "reuse              {reuse}")?;
        }
        if let Some(break_even) = &self.break_even {
            writeln!(out, "break-even         {}", break_even.text())?;
        }
        if let Some(why) = &self.break_even_unknown {
            writeln!(out, "break-even         not known: {why}")?;
        }
        Ok(())
    }
}

impl Source {
    fn of(build: &Build, source: &ImageSource) -> Source {
        let labeled: Vec<i32> = (0..source.len()).filter_map(|i| source.label(i)).collect();
        let findings = source.findings();
        Source {
            images: build.recipe.data.images.clone().unwrap_or_default(),
            kind: source.kind().to_string(),
            files: source.files(),
            labeled: labeled.len() as u64,
            distinct_labels: labeled.iter().collect::<BTreeSet<_>>().len() as u64,
            skipped: findings.skipped_count(),
            skipped_by_reason: findings.by_reason(),
            not_read: findings.others_line(),
        }
    }

    fn write_text(&self, images: u64, out: &mut dyn Write) -> std::io::Result<()> {
        let files = match self.files {
            0 => String::new(),
            files => format!(", {}", count(files as u64, "file")),
        };
        writeln!(out, "source             {}: {}{files}", self.images, self.kind)?;
        match self.labeled {
            0 => writeln!(out, "labels             none")?,
            n => writeln!(
                out,
                "labels             {n} of {}, {}",
                count(images, "image"),
                count(self.distinct_labels, "distinct label")
            )?,
        }
        if self.skipped > 0 {
            writeln!(out, "skipped            {}: pictures and archives that are not in the data set", self.skipped)?;
            for (reason, count) in &self.skipped_by_reason {
                writeln!(out, "  {count:>8}  {reason}")?;
            }
        }
        if !self.not_read.is_empty() {
            writeln!(out, "not read           {}", self.not_read)?;
        }
        Ok(())
    }
}
