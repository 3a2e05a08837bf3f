//! A path or a model's id on the command line as files, with downloads shown: a bar on a terminal, a line now and then elsewhere.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use hub::{HubSettings, Progress, Resolved};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{signals, terminal};

/// Time between two progress lines in a log file.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The file or folder that `text` stands for; fetches a model that is given by its id and not in the local cache.
///
/// # Errors
/// Those of [`hub::resolve`]; a signal that asks to stop ends the download with [`hub::Error::Interrupted`].
pub fn resolve(text: &str, settings: &HubSettings) -> hub::Result<Resolved> {
    let mut display = Display::default();
    hub::resolve(text, settings, &mut |progress| {
        display.show(progress);
        if signals::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Shows the download of one file after another.
#[derive(Default)]
struct Display {
    file: String,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Display {
    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Asking { model, host } => {
                tracing::info!("no such file or folder here; asking {host} for {model}");
            }
            Progress::Waiting { file } => {
                tracing::info!("{file}: another process is fetching it; waiting");
            }
            Progress::Bytes { file, done, size } => self.bytes(file, done, size),
            Progress::Retrying { reason, pause } => {
                tracing::warn!("{reason}; trying again in {:.1} s", pause.as_secs_f64());
            }
            Progress::Unconfirmed { model, reason } => tracing::warn!(
                "{model}: taken from the local cache, though files beside its weights may be missing there ({reason})"
            ),
        }
    }

    fn bytes(&mut self, file: &str, done: u64, size: u64) {
        if self.file != file {
            self.clear();
            self.file = file.to_owned();
            tracing::info!("fetching {file}, {}", indicatif::HumanBytes(size));
            let bar = terminal::bars().add(ProgressBar::new(size));
            let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, ETA {eta}";
            bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
            bar.set_message(file.to_owned());
            // What an earlier run fetched says nothing about this one's speed.
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
            self.last_line = Some(Instant::now());
        }
        let Some(bar) = &self.bar else { return };
        bar.set_position(done);
        let waited = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if bar.is_hidden() && waited {
            self.last_line = Some(Instant::now());
            tracing::info!(bytes = done, of = size, "fetching {file}");
        }
        if done == size {
            self.clear();
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}
