//! `pipeline verify`: every hash, join and checksum of a cache.

use std::collections::BTreeMap;
use std::io::Write;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

use crate::cli::VerifyArgs;
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
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    let (files, rows, bytes) = (report.files, report.rows, DecimalBytes(report.bytes));
    let verdict = match (report.problems.len(), report.missing.len()) {
        (0, 0) => "sound".to_owned(),
        (0, missing) => format!("sound so far, files missing: {missing}"),
        (problems, missing) => format!("problems: {problems}, files missing: {missing}"),
    };
    writeln!(
        out,
        "{}: {verdict} ({files} files, {rows} rows, {bytes} checked)",
        args.cache.display()
    )?;
    Ok(if report.problems.is_empty() && report.missing.is_empty() {
        ExitStatus::Fine
    } else {
        ExitStatus::Problems
    })
}
