//! TensorBoard event files: the metrics lines as scalars, and pictures.
//!
//! One file per session, `RUN/tb/events.out.tfevents.<seconds>.<host>`, which only grows. It begins with the version and a
//! `SessionLog.START` at the session's first step: TensorBoard then drops this step and later ones of earlier files,
//! also while it is open, so that no step appears twice after a resume. A file is never truncated or replaced, because an open TensorBoard
//! would keep reading the old one. Format: TensorFlow's `record_writer.cc` (framing) and `event.proto`, `summary.proto` (the few fields
//! written here); the purge is `_CheckForRestartAndMaybePurge` in TensorBoard's `plugin_event_accumulator.py`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

mod event;
mod record;
#[cfg(test)]
mod tests;

use event::Event;

/// The folder in a run.
pub(crate) const FOLDER: &str = "tb";
/// Prefix of an event file's name, by which TensorBoard finds it.
const PREFIX: &str = "events.out.tfevents.";

/// The event file of a session, open for appending.
#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Creates the file of a new session, for a run that has done `step` steps.
    pub(crate) fn open(run: &Path, step: u64) -> anyhow::Result<EventLog> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{folder:?}: cannot be created"))?;
        // Readers sort the files by name, so the new name comes after the existing ones, even if the clock went back.
        let newest = files(&folder)?.last().and_then(|path| seconds_of(path));
        let seconds = newest.map_or(0, |newest| newest + 1).max(now() as u64);
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}", host()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.with_context(|| format!("{path:?}: cannot be created"))?;
        let mut log = EventLog { path, file };
        log.append(&Event::version(now()))?;
        // An open TensorBoard takes its first START for the beginning and purges at each later one. Two of them make this a restart
        // even if the earlier files have none.
        for _ in 0..2 {
            log.append(&Event::start(now(), step + 1))?;
        }
        Ok(log)
    }

    /// Appends values of a step by tag.
    pub(crate) fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> anyhow::Result<()> {
        self.append(&Event::scalars(now(), step, values))
    }

    /// Appends a PNG of `width` x `height` pixels.
    pub(crate) fn image(&mut self, step: u64, tag: &str, [width, height]: [u32; 2], png: &[u8]) -> anyhow::Result<()> {
        self.append(&Event::image(now(), step, tag, [width, height], png))
    }

    /// Makes all events durable.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| format!("{:?}: cannot be written", self.path))
    }

    fn append(&mut self, event: &Event) -> anyhow::Result<()> {
        // In one call, so that a reader of the growing file sees complete records or a short last one, for which it waits.
        self.file
            .write_all(&record::frame(event.encode()))
            .with_context(|| format!("{:?}: cannot be written", self.path))
    }
}

/// The event files in the order of their names.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("{folder:?}: cannot be read");
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The seconds in a file's name, which are ten digits as in TensorFlow's.
fn seconds_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_string_lossy();
    let digits = name.strip_prefix(PREFIX)?.split('.').next()?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().filter(|&c| plain(c)).collect()
}
