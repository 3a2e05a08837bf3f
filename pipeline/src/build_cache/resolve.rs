//! Finding a teacher that was given by path or by id, with what is fetched on the way shown: a bar on a terminal, a line now and
//! then elsewhere.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use models::hub::{self, HubSettings, Progress, Resolved};
use program::{signals, terminal};
use schemas::TeacherId;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The file or folder of teacher `id`, given as `text`.
pub(super) fn resolve(id: &TeacherId, text: &str, settings: &HubSettings) -> anyhow::Result<Resolved> {
    let mut display = Display::default();
    let resolved = hub::resolve(text, settings, &mut |progress| {
        display.show(progress);
        if signals::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let resolved = resolved.with_context(|| format!("teacher {id}"))?;
    ensure!(
        !is_run(&resolved.path),
        "teacher {id}: {text} is a run of trainer pretrain. To mimic its student, write it as a teacher first: trainer export --run {text} \
         --format timm --out DIR, and give DIR"
    );
    Ok(resolved)
}

/// Whether a folder is what training leaves: a run, or a checkpoint of one.
fn is_run(path: &Path) -> bool {
    let has = |name: &str| path.join(name).is_file();
    has("recipe.toml") && has("LAST") || has("state.json") && has("model.safetensors")
}

/// Shows the file that is being fetched.
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
