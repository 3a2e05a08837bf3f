//! `pipeline verify`: every hash, join and checksum of a cache.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Context;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use schemas::Cache;

use crate::add_teacher::same_images;
use crate::build_cache::recheck::{self, Checked};
use crate::cli::VerifyArgs;
use crate::table::count;
use crate::{ExitStatus, logging};

/// Prints every problem on a line of its own, then what was checked. Files that are not there yet are no problem of the data, but the
/// cache is not whole without them, so they count as one.
pub fn verify(args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let bar = logging::bars().add(ProgressBar::no_length());
    bar.set_style(ProgressStyle::with_template("{elapsed_precise} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, ETA {eta}").expect("a constant template"));
    let report = schemas::verify(&args.cache, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let report = report?;

    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    // By folder: a cache that has only begun lacks thousands.
    let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for path in &report.missing {
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
        writeln!(
            out,
            "{}: {name}{more} not built yet; run the same `pipeline build-cache` (or `add-teacher`, for one added later) again to finish the cache",
            folder.display()
        )?;
    }
    if let Some(repeats) = &report.repeats {
        let schemas::Repeats {
            images,
            samples,
            example: (first, second),
        } = repeats;
        writeln!(
            out,
            "note: {} in more than one part, {} in all (for example samples {first} and {second}). A data set may hold copies; if this one \
             does not, a build went on after its images had changed places, and `pipeline verify CACHE --images SRC` says so",
            match images {
                1 => "1 image is".to_owned(),
                images => format!("{images} images are"),
            },
            count(*samples, "sample"),
        )?;
    }
    let moved = match &args.images {
        Some(images) => against_source(args, images, out)?,
        None => 0,
    };
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    let problems = report.problems.len() as u64 + moved;
    let (files, rows, bytes) = (report.files, report.rows, DecimalBytes(report.bytes));
    let verdict = match (problems, report.missing.len()) {
        (0, 0) => "sound".to_owned(),
        (0, missing) => format!("sound so far, files missing: {missing}"),
        (problems, missing) => format!("problems: {problems}, files missing: {missing}"),
    };
    writeln!(
        out,
        "{}: {verdict} ({}, {}, {bytes} checked)",
        args.cache.display(),
        count(files, "file"),
        count(rows, "row")
    )?;
    Ok(if problems == 0 && report.missing.is_empty() {
        ExitStatus::Fine
    } else {
        ExitStatus::Problems
    })
}

/// Compares every committed sample with the image at its place in the source; says and returns how many problems that gives.
fn against_source(args: &VerifyArgs, images: &str, out: &mut dyn Write) -> anyhow::Result<u64> {
    let cache =
        Cache::open(&args.cache).context("a damaged cache is not compared with its images")?;
    let source = same_images(&cache, images)?;
    let (plan, mut parts, mut total) = (cache.identity().plan, Vec::new(), 0);
    for part in 0..plan.parts() {
        if cache.part_state(part)?.samples.is_some() {
            let range = plan.range(part);
            total += range.end - range.start;
            parts.push(part);
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    match recheck::check(&cache, &source, &parts, threads, total)? {
        Checked::Same(checked) => {
            writeln!(
                out,
                "{images}: {} at {} place, with the content that the cache has of {}",
                count(checked, "image"),
                if checked == 1 { "its" } else { "their" },
                if checked == 1 { "it" } else { "them" },
            )?;
            Ok(0)
        }
        Checked::Moved(moved) => {
            writeln!(
                out,
                "{images}: {moved}. If the source is as it was, a build went on after its images had changed places: build the cache again"
            )?;
            Ok(1)
        }
        Checked::Interrupted => anyhow::bail!("interrupted while comparing with {images}"),
    }
}
