//! `pipeline list`: the caches below a folder, their content and state.

mod search;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use indicatif::DecimalBytes;
use program::ExitStatus;
use program::table::{Left, Right, table};
use program::words::grouped;
use schemas::{Cache, FileStamp, TeacherId, ViewPolicy, layout};
use serde::Serialize;

use crate::cli::ListArgs;

#[derive(Debug, Serialize)]
struct Report {
    /// The folder that was searched.
    dir: String,
    caches: Vec<CacheEntry>,
    /// Unreadable folders with the reason.
    unreadable: Vec<String>,
}

#[derive(Debug, Serialize)]
struct CacheEntry {
    path: String,
    state: State,
    /// Why it is not complete: the first thing that is missing or damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Size of all files in the folder.
    bytes: u64,
    /// Absent if `cache.json` or a `teacher.json` is unreadable.
    #[serde(flatten)]
    content: Option<Content>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Every part has its samples and the features of every teacher; there is at least one teacher.
    Complete,
    /// Something is not built yet.
    Incomplete,
    /// A record cannot be read, or a committed file is missing or of another size. `pipeline verify` looks deeper.
    Damaged,
}

#[derive(Debug, Serialize)]
struct Content {
    images: u64,
    views: u16,
    /// `rrc`, `center` or `full`.
    policy: &'static str,
    /// Rows of the samples that are built.
    rows: u64,
    /// Share of the images whose parts are built.
    samples_complete: f64,
    /// Share of the images whose features are built, by teacher.
    teachers: BTreeMap<TeacherId, f64>,
}

/// Lists the caches below a folder without reading their rows.
pub fn list(args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let found = search::caches(&args.dir)?;
    let mut unreadable = found.unreadable;
    let caches = found.caches.iter().map(|dir| entry(dir, &mut unreadable)).collect();
    let report = Report { dir: args.dir.display().to_string(), caches, unreadable };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&report, out)?;
    }
    let damaged = report.caches.iter().any(|c| c.state == State::Damaged);
    Ok(if damaged { ExitStatus::Problems } else { ExitStatus::Fine })
}

fn entry(dir: &Path, unreadable: &mut Vec<String>) -> CacheEntry {
    let bytes = search::size(dir, unreadable);
    let path = dir.display().to_string();
    let (state, reason, content) = match Cache::open(dir) {
        Ok(cache) => look(&cache),
        Err(e) => (State::Damaged, Some(e.to_string()), None),
    };
    CacheEntry { path, state, reason, bytes, content }
}

/// Reads the commit records and checks that the files they declare exist.
fn look(cache: &Cache) -> (State, Option<String>, Option<Content>) {
    let identity = cache.identity();
    let mut damage: Option<String> = None;
    let mut missing: Option<String> = None;
    let mut rows = 0;
    let mut samples_images = 0;
    let mut images: BTreeMap<&TeacherId, u64> = cache.teachers().keys().map(|id| (id, 0)).collect();
    for part in 0..identity.parts() {
        let range = identity.range(part);
        let in_part = range.end - range.start;
        let state = match cache.part_state(part) {
            Ok(state) => state,
            Err(e) => {
                damage.get_or_insert(e.to_string());
                continue;
            }
        };
        if let Some(commit) = &state.samples {
            let rejects = layout::rejects_file(cache.dir(), part);
            if let Some(problem) = check_file(&rejects, commit.rejects.bytes) {
                damage.get_or_insert(problem);
            }
        }
        let mut built = |path: std::path::PathBuf, file: Option<&FileStamp>| match file {
            None => {
                missing.get_or_insert_with(|| {
                    let builder = cache.builder_of_file(&path).unwrap_or_default();
                    format!("{} is not built yet; run {builder} again to finish it", path.display())
                });
                false
            }
            Some(file) => match check_file(&path, file.bytes) {
                None => true,
                Some(problem) => {
                    damage.get_or_insert(problem);
                    false
                }
            },
        };
        let samples = state.samples.as_ref().map(|commit| &commit.file);
        if built(layout::samples_file(cache.dir(), part), samples) {
            samples_images += in_part;
            rows += samples.map_or(0, |file| file.rows);
        }
        for (id, images) in &mut images {
            let file = state.teachers.get(*id).map(|commit| &commit.file);
            if built(layout::teacher_file(cache.dir(), id, part), file) {
                *images += in_part;
            }
        }
    }
    if cache.teachers().is_empty() {
        missing.get_or_insert("it has no teacher".to_owned());
    }
    let share = |images: u64| images as f64 / identity.samples().max(1) as f64;
    let content = Content {
        images: identity.samples(),
        views: identity.views.views,
        policy: match identity.views.policy {
            ViewPolicy::Rrc { .. } => "rrc",
            ViewPolicy::Center => "center",
            ViewPolicy::Full => "full",
        },
        rows,
        samples_complete: share(samples_images),
        teachers: images.into_iter().map(|(id, images)| (id.clone(), share(images))).collect(),
    };
    let (state, reason) = match (damage, missing) {
        (Some(damage), _) => (State::Damaged, Some(damage)),
        (None, Some(missing)) => (State::Incomplete, Some(missing)),
        (None, None) => (State::Complete, None),
    };
    (state, reason, Some(content))
}

/// The problem of a committed file that is missing or has another size.
fn check_file(path: &Path, bytes: u64) -> Option<String> {
    match storage::metadata(path) {
        Ok(file) if file.len == bytes => None,
        Ok(file) => Some(format!("{} has {} bytes, its commit record says {}", path.display(), file.len, bytes)),
        Err(e) => Some(format!("cannot read {}: {e}", path.display())),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    if report.caches.is_empty() {
        writeln!(out, "no cache below {}", report.dir)?;
    } else {
        let titles = ["cache", "images", "views", "rows", "size", "state", "teachers"];
        let align = [Left, Right, Right, Right, Right, Left, Left];
        write!(out, "{}", table(titles, align, report.caches.iter().map(cells).collect()))?;
    }
    for cache in &report.caches {
        if let Some(reason) = &cache.reason {
            let next = match cache.state {
                State::Damaged => "; run `pipeline verify` for all that is wrong",
                State::Incomplete | State::Complete => "",
            };
            writeln!(out, "{}: {reason}{next}", cache.path)?;
        }
    }
    for reason in &report.unreadable {
        writeln!(out, "not searched: {reason}")?;
    }
    Ok(())
}

/// The line of a cache.
fn cells(cache: &CacheEntry) -> [String; 7] {
    let field = |text: &dyn Fn(&Content) -> String| cache.content.as_ref().map_or("-".to_owned(), text);
    let state = match cache.state {
        State::Complete => "complete",
        State::Incomplete => "incomplete",
        State::Damaged => "DAMAGED",
    };
    [
        cache.path.clone(),
        field(&|c| grouped(c.images)),
        field(&|c| format!("{} x {}", c.views, c.policy)),
        field(&|c| grouped(c.rows)),
        DecimalBytes(cache.bytes).to_string(),
        state.to_owned(),
        field(&teachers),
    ]
}

fn teachers(content: &Content) -> String {
    let share = |(id, share): (&TeacherId, &f64)| {
        // Rounded down, so that 100 means complete.
        format!("{id} {:.0} %", (100.0 * share).floor())
    };
    let teachers: Vec<_> = content.teachers.iter().map(share).collect();
    if teachers.is_empty() { "none".to_owned() } else { teachers.join(", ") }
}
