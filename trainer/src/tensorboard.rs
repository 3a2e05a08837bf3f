//! TensorBoard event files: the metrics lines as scalars, and pictures.
//!
//! One file per run, `RUN/tb/events.out.tfevents.<seconds>.<host>`. It grows while the run goes on and is cut back to the checkpoint's step
//! on a resume, as `metrics.jsonl` is, so that no step appears twice; a record that a kill cut short is dropped. Format: TensorFlow's
//! `record_writer.cc` (framing) and `event.proto`, `summary.proto` (the few fields written here).

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
pub const FOLDER: &str = "tb";
/// How the name of an event file begins; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// The event file of a run, open for appending.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Opens the file of a run that has done `step` steps, without what is of later steps; makes it if there is none.
    pub fn open(run: &Path, step: u64) -> anyhow::Result<EventLog> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{folder:?}: cannot be created"))?;
        let path = match newest(&folder)? {
            Some(path) => path,
            None => folder.join(format!("{PREFIX}{}.{}", now() as u64, host())),
        };
        if path.exists() {
            let bytes = fs::read(&path).with_context(|| format!("{path:?}: cannot be read"))?;
            let kept = kept_bytes(&bytes, step);
            if kept < bytes.len() {
                schemas::atomic::write(&path, &bytes[..kept])?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("{path:?}: cannot be opened for appending"))?;
        let mut log = EventLog { path, file };
        let length = log.file.metadata().map_or(0, |metadata| metadata.len());
        if length == 0 {
            log.append(&Event::version(now()))?;
        }
        Ok(log)
    }

    /// Appends values of a step by tag.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> anyhow::Result<()> {
        self.append(&Event::scalars(now(), step, values))
    }

    /// Appends a PNG of `width` x `height` pixels.
    pub fn image(
        &mut self,
        step: u64,
        tag: &str,
        [width, height]: [u32; 2],
        png: &[u8],
    ) -> anyhow::Result<()> {
        self.append(&Event::image(now(), step, tag, [width, height], png))
    }

    /// Makes all events durable.
    pub fn sync(&self) -> anyhow::Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("{:?}: cannot be written", self.path))
    }

    fn append(&mut self, event: &Event) -> anyhow::Result<()> {
        // In one call: a reader of the growing file sees whole records or a short last one, which it waits for.
        self.file
            .write_all(&record::frame(event.encode()))
            .with_context(|| format!("{:?}: cannot be written", self.path))
    }
}

/// Bytes of the whole records, from the start on, that are of no later step than `step`.
fn kept_bytes(bytes: &[u8], step: u64) -> usize {
    let mut kept = 0;
    while let Some((data, length)) = record::unframe(&bytes[kept..]) {
        if event::step_of(data).is_none_or(|of| of > step) {
            break;
        }
        kept += length;
    }
    kept
}

/// The event file of the latest name.
fn newest(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let listed = || format!("{folder:?}: cannot be read");
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(listed)? {
        let entry = entry.with_context(listed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            paths.push(entry.path());
        }
    }
    Ok(paths.into_iter().max())
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn host() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.chars().filter(|&c| plain(c)).collect()
}
