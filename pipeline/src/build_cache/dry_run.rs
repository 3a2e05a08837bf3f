//! `build-cache --dry-run`: what would be built, how large it gets, whether it fits, how long it takes. Writes nothing.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use images::ImageSource;
use indicatif::{DecimalBytes, HumanDuration};
use program::{ExitStatus, LogFormat, words::count};
use schemas::TeacherIdentity;
use serde::Serialize;

use super::build::Build;
use super::probe::{Time, measure};
use super::worklist::Outputs;

/// What a samples row takes at most, in bytes, beside its key: numbers, hash and checksum.
const SAMPLE_ROW_BYTES: u64 = 100;

/// What a feature row takes beside the features: sample, view, hash, checksum, and headers and index entries of its pages.
const FEATURE_ROW_OVERHEAD: u64 = 400;

/// What a part's file and commit take beside rows and identity: schema, footer, digests.
const FILE_OVERHEAD: u64 = 32 << 10;

/// What a commit says of each channel: two sums in decimal digits.
const CHANNEL_BYTES: u64 = 60;

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
    bytes_free: u64,
    fits: bool,
    /// Absent where nothing is to do.
    time: Option<Time>,
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

/// Rows that are to be written, and the most that they take.
#[derive(Debug, Serialize)]
struct Bytes {
    rows: u64,
    bytes_at_most: u64,
}

#[derive(Debug, Serialize)]
struct Teacher {
    identity: TeacherIdentity,
    to_write: Bytes,
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
        let plan = build.identity.plan;
        let views = u64::from(build.identity.views.views);
        let source = build.source.as_ref().context("a build reads images")?;

        // ---- Bytes: of what is missing, before compression, as if every image were usable ----
        let rows_in = |part: u32| {
            let range = plan.range(part);
            (range.end - range.start) * views
        };
        // Parts that lack something, and their rows.
        let missing_of = |lacks: &dyn Fn(&Outputs) -> bool| -> (u64, u64) {
            let parts = work.iter().filter(|work| lacks(&work.missing));
            parts.fold((0, 0), |(parts, rows), work| (parts + 1, rows + rows_in(work.part)))
        };
        let longest_key = (0..source.len()).map(|idx| source.key(idx).len() as u64).max();
        // Every file repeats the cache's identity, class names included, as JSON within JSON or base64.
        let file_bytes = FILE_OVERHEAD + 2 * serde_json::to_vec(&build.identity)?.len() as u64;

        // A short measurement: of time, and of the size of packed images.
        let probe = if work.is_empty() { None } else { Some(measure(build)?) };
        let packed_bytes = probe.as_ref().map_or(0, |probe| probe.packed_bytes);
        let (parts, rows) = missing_of(&|lacks| lacks.samples);
        let samples = Bytes {
            rows,
            bytes_at_most: parts * file_bytes
                + rows * (SAMPLE_ROW_BYTES + longest_key.unwrap_or(0))
                + rows / views * packed_bytes,
        };
        let teachers: Vec<Teacher> = build
            .teachers
            .iter()
            .map(|teacher| {
                let teacher = &teacher.identity;
                let (parts, rows) = missing_of(&|lacks| lacks.teachers.contains(&teacher.id));
                Teacher {
                    to_write: Bytes {
                        rows,
                        bytes_at_most: parts * (file_bytes + CHANNEL_BYTES * u64::from(teacher.width))
                            + rows * row_bytes(teacher),
                    },
                    identity: teacher.clone(),
                }
            })
            .collect();
        let of_teachers = teachers.iter().map(|teacher| &teacher.to_write);
        let needed = samples.bytes_at_most + of_teachers.clone().map(|of| of.bytes_at_most).sum::<u64>();
        let forward_rows: u64 = of_teachers.map(|of| of.rows).sum();
        let free = free_bytes(&build.recipe.cache.out)?;
        let images = work.iter().map(|work| rows_in(work.part) / views).sum();
        Ok(Forecast {
            images: plan.samples,
            views,
            rows_at_most: plan.samples * views,
            source: Source::of(build, source),
            parts: plan.parts(),
            part_images: plan.part_samples,
            parts_to_build: work.len(),
            samples,
            teachers,
            grid_advice: build.grid_advice(),
            bytes_needed_at_most: needed,
            bytes_free: free,
            fits: free >= needed,
            time: probe.map(|probe| probe.time(build, images, forward_rows)),
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
        for Teacher { identity, to_write } in &self.teachers {
            let TeacherIdentity { id, arch, grid, input_size, width, codec, .. } = identity;
            writeln!(
                out,
                "teacher {id:<10} {arch}: {grid} x {grid} patches of {input_size} px, width {width}, {codec}; {} to write, at most {}",
                count(to_write.rows, "row"),
                DecimalBytes(to_write.bytes_at_most)
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
            "disk               at most {} needed, {} free: {}",
            DecimalBytes(self.bytes_needed_at_most),
            DecimalBytes(self.bytes_free),
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

fn row_bytes(teacher: &TeacherIdentity) -> u64 {
    (teacher.tokens_bytes() + teacher.cls_bytes() + teacher.cls_attn_bytes()) as u64 + FEATURE_ROW_OVERHEAD
}

/// Free space where `out` is or would be.
fn free_bytes(out: &Path) -> anyhow::Result<u64> {
    let here = std::path::absolute(out)?;
    let existing = here.ancestors().find(|path| path.exists()).context("the file system has a root")?;
    let stat = rustix::fs::statvfs(existing)
        .with_context(|| format!("cannot ask {} for its free space", existing.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
