//! TensorBoard event files: the metrics lines as scalars, and pictures.
//!
//! One file per session, `RUN/tb/events.out.tfevents.<seconds>.<host>`, which only grows. It begins with the version and a
//! `SessionLog.START` at the first step that the session does: TensorBoard then forgets what earlier files say of this step and later ones,
//! also while it is open, so that no step shows twice after a resume. No file is ever cut or replaced, since a TensorBoard that reads it
//! would keep the old one open. Format: TensorFlow's `record_writer.cc` (framing) and `event.proto`, `summary.proto` (the few fields
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
/// How the name of an event file begins; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// The event file of a session, open for appending.
#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Begins a file for the session of a run that has done `step` steps.
    pub(crate) fn open(run: &Path, step: u64) -> anyhow::Result<EventLog> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{folder:?}: cannot be created"))?;
        // Readers take the files in the order of their names: after those that are there, whatever the clock says.
        let newest = files(&folder)?.last().and_then(|path| seconds_of(path));
        let seconds = newest.map_or(0, |newest| newest + 1).max(now() as u64);
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}", host()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.with_context(|| format!("{path:?}: cannot be created"))?;
        let mut log = EventLog { path, file };
        log.append(&Event::version(now()))?;
        // A live TensorBoard takes the first START that it meets for a beginning and purges at each later one. Two make this a restart
        // also where the earlier files have none.
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
        // In one call: a reader of the growing file sees whole records or a short last one, which it waits for.
        self.file
            .write_all(&record::frame(event.encode()))
            .with_context(|| format!("{:?}: cannot be written", self.path))
    }
}

/// The event files in the order of their names.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = || format!("{folder:?}: cannot be read");
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(listed)? {
        let entry = entry.with_context(listed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The seconds in a file's name, which has ten digits of them as TensorFlow's do.
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
