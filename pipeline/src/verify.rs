//! `pipeline verify`: every hash, join and checksum of a cache.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use images::ImageSource;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use program::{ExitStatus, LogFormat, terminal, words::count};
use schemas::{Cache, Repeats, Scope};
use serde::Serialize;

use crate::Environment;
use crate::build_cache::growth::{Opened, open_images};
use crate::build_cache::recheck::{self, Checked};
use crate::build_cache::spot_check::{self, Recomputed};
use crate::cli::VerifyArgs;

/// The result of the checks.
#[derive(Debug, Serialize)]
struct Found {
    cache: PathBuf,
    /// Whether the cache is undamaged and complete.
    sound: bool,
    problems: Vec<String>,
    /// Files that are not built yet.
    missing: Vec<PathBuf>,
    /// Images in more than one part: copies in the data set, or the sign of a build that was resumed after its images had been reordered.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeats: Option<String>,
    /// The comparison with `--images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    images: Option<Comparison>,
    /// Rows computed again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spot_check: Vec<Recomputed>,
    notes: Vec<String>,
    /// What was not looked at, if not everything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_checked: Option<&'static str>,
    files: u64,
    rows: u64,
    bytes: u64,
}

/// Comparison of every committed sample with the image of its number in a source.
#[derive(Debug, Serialize)]
struct Comparison {
    same: bool,
    found: String,
    /// Every image that is not as it was, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

/// Prints every problem, then a summary of the checks. Files that are not built yet are not damage, but the cache is incomplete without
/// them, so they count as a problem.
pub fn verify(
    args: &VerifyArgs,
    env: &Environment,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let bar = terminal::bars().add(ProgressBar::no_length());
    bar.set_style(
        ProgressStyle::with_template(
            "{elapsed_precise} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, ETA {eta}",
        )
        .expect("a constant template"),
    );
    let scope = Scope {
        parts: args.parts.iter().copied().collect(),
        teachers: args.teachers.iter().cloned().collect(),
        quick: args.quick,
    };
    let report = schemas::verify_within(&args.cache, &scope, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let report = report?;
    let images = match args.images.as_ref().map(|images| (images, against_source(args, images))) {
        None => None,
        // The cache's own problems are told all the same.
        Some((images, Err(error))) if !report.problems.is_empty() => {
            let found = format!("{images}: not compared with the cache: {error:#}");
            Some(Comparison { same: false, found, problems: Vec::new() })
        }
        Some((_, compared)) => Some(compared?),
    };
    let spot_check = match args.spot_check {
        // A damaged cache is repaired first.
        Some(rows) if report.problems.is_empty() => spot_check::check(&Cache::open(&args.cache)?, args, rows, env)?,
        _ => Vec::new(),
    };
    let as_computed = spot_check.iter().all(|checked| checked.problems.is_empty());
    let same_images = images.as_ref().is_none_or(|images| images.same);
    let found = Found {
        cache: args.cache.clone(),
        sound: report.problems.is_empty() && report.missing.is_empty() && same_images && as_computed,
        problems: report.problems.iter().map(ToString::to_string).collect(),
        missing: report.missing,
        repeats: report.repeats.as_ref().map(told),
        images,
        spot_check,
        notes: report.notes,
        not_checked: match (args.quick, args.parts.is_empty() && args.teachers.is_empty()) {
            (false, true) => None,
            (true, true) => Some("no row was read"),
            (false, false) => Some("other parts and teachers were not checked"),
            (true, false) => Some("no row was read, and other parts and teachers were not checked"),
        },
        files: report.files,
        rows: report.rows,
        bytes: report.bytes,
    };
    match format {
        LogFormat::Text if !args.json => found.write_text(out)?,
        _ => writeln!(out, "{}", serde_json::to_string(&found)?)?,
    }
    Ok(if found.sound { ExitStatus::Fine } else { ExitStatus::Problems })
}

impl Found {
    fn write_text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for problem in &self.problems {
            writeln!(out, "{problem}")?;
        }
        // Which command builds a file depends on the whole cache. One with a damaged record has that told first.
        let cache = Cache::open(&self.cache).ok();
        // By folder, because a new cache lacks thousands of files.
        let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for path in &self.missing {
            missing.entry(path.parent()).or_default().push(path);
        }
        for (folder, paths) in missing {
            let (Some(folder), [first, ..]) = (folder, &paths[..]) else {
                continue;
            };
            let name = first.file_name().unwrap_or_default().display();
            let more = match paths.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let builder = cache.as_ref().and_then(|cache| cache.builder_of_file(first));
            let builder = builder.unwrap_or_else(|| "the command that built the others".to_owned());
            writeln!(out, "{}: {name}{more} not built yet; run {builder} again to finish it", folder.display())?;
        }
        if let Some(repeats) = &self.repeats {
            writeln!(out, "note: {repeats}")?;
        }
        if let Some(images) = &self.images {
            images.problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))?;
            writeln!(out, "{}", images.found)?;
        }
        for checked in &self.spot_check {
            checked.problems.iter().try_for_each(|problem| writeln!(out, "{problem}"))?;
            writeln!(
                out,
                "spot check: teacher {}, {} computed again: relative L2 {:.1e} on average, {:.1e} at most (allowed {:.1e}); cosine at least {:.6}",
                checked.teacher,
                count(checked.rows, "row"),
                checked.relative_l2_mean,
                checked.relative_l2_max,
                checked.relative_l2_allowed,
                checked.cosine_min
            )?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        // Where the images are other ones as a whole, that is one.
        let of_images =
            self.images.as_ref().filter(|images| !images.same).map_or(0, |images| images.problems.len().max(1));
        let computed = self.spot_check.iter().map(|checked| checked.problems.len()).sum::<usize>();
        let problems = self.problems.len() + of_images + computed;
        let (files, rows, bytes) = (self.files, self.rows, DecimalBytes(self.bytes));
        let verdict = match (problems, self.missing.len()) {
            (0, 0) => "sound".to_owned(),
            (0, missing) => format!("sound so far, files not built yet: {missing}"),
            (problems, 0) => format!("problems: {problems}"),
            (problems, missing) => format!("problems: {problems}, files not built yet: {missing}"),
        };
        let rest = self.not_checked.map(|rest| format!("; {rest}")).unwrap_or_default();
        writeln!(
            out,
            "{}: {verdict} ({}, {}, {bytes} checked{rest})",
            self.cache.display(),
            count(files, "file"),
            count(rows, "row")
        )
    }
}

fn told(repeats: &Repeats) -> String {
    let Repeats { images, samples, example: (first, second) } = repeats;
    format!(
        "{} in more than one part, {} in all (for example samples {first} and {second}). A data set may hold copies; if this one \
         does not, a build went on after its images had changed places, and `pipeline verify CACHE --images SRC` says so",
        match images {
            1 => "1 image is".to_owned(),
            images => format!("{images} images are"),
        },
        count(*samples, "sample"),
    )
}

/// Compares every committed sample with the image of its number in the source.
fn against_source(args: &VerifyArgs, images: &str) -> anyhow::Result<Comparison> {
    let cache = Cache::open(&args.cache).context("a damaged cache is not compared with its images")?;
    let Opened { source, differs, in_order } = open_images(&cache, images)?;
    let (identity, mut parts, mut total) = (cache.identity(), Vec::new(), 0);
    for part in 0..identity.parts() {
        if cache.part_state(part)?.samples.is_some() {
            let range = identity.range(part);
            total += range.end - range.start;
            parts.push(part);
        }
    }
    if let Some(differs) = differs.as_ref().filter(|_| !in_order) {
        let problems = lost_images(&cache, &source, &parts)?;
        let found = format!("{differs}{}", lost(problems.len() as u64, 0));
        return Ok(Comparison { same: false, found, problems });
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    match (recheck::check(&cache, &source, &parts, threads, total)?, differs) {
        (Checked::Same(_), Some(differs)) => Ok(Comparison { same: false, found: differs, problems: Vec::new() }),
        (Checked::Same(checked), None) => Ok(Comparison {
            same: true,
            found: format!(
                "{images}: {} at {} place, with the content that the cache has of {}",
                count(checked, "image"),
                if checked == 1 { "its" } else { "their" },
                if checked == 1 { "it" } else { "them" },
            ),
            problems: Vec::new(),
        }),
        (Checked::Moved(moved), differs) => Ok(Comparison {
            same: false,
            found: match differs {
                Some(differs) => format!("{differs}{}", lost(moved.gone(), moved.count() - moved.gone())),
                None => format!(
                    "{images}: {moved}. If the source is as it was, a build went on after its images had changed places: build the cache again"
                ),
            },
            problems: moved.problems().map(|problem| format!("{images}: {problem}")).collect(),
        }),
        (Checked::Interrupted, _) => anyhow::bail!("interrupted while comparing with {images}"),
    }
}

/// Counts of images of the cache, as sentences that follow another; nothing if there are none.
fn lost(gone: u64, changed: u64) -> String {
    let sentence = |images: u64, what: &str| match images {
        0 => String::new(),
        images => format!(". {} of the cache {what}", count(images, "image")),
    };
    format!("{}{}", sentence(gone, "cannot be found there"), sentence(changed, "have other contents there"))
}

/// The images of `parts` that the source does not have.
fn lost_images(cache: &Cache, source: &ImageSource, parts: &[u32]) -> anyhow::Result<Vec<String>> {
    let mut lost = BTreeMap::new();
    for &part in parts {
        let rows = cache.samples(part)?.into_iter().map(|row| (row.sample_id, row.key));
        let rejects = cache.rejects(part)?.into_iter().map(|reject| (reject.sample_id, reject.key));
        lost.extend(rows.chain(rejects).filter(|(_, key)| !source.find(key).is_some_and(|at| source.has(at))));
    }
    Ok(lost.iter().map(|(sample, key)| format!("image {key:?} (sample {sample}) cannot be found")).collect())
}
