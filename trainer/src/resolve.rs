//! Finding a teacher that was given by path or by id, with what is fetched on the way told.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use models::hub::{self, HubSettings, Progress, Resolved};
use program::signals;
use tracing::{info, warn};

/// Time between two lines about a file.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The file or folder that `text` stands for.
pub(crate) fn resolve(text: &str, settings: &HubSettings) -> hub::Result<Resolved> {
    let mut last: Option<(String, Instant)> = None;
    hub::resolve(text, settings, &mut |progress| {
        match progress {
            Progress::Asking { model, host } => {
                info!("no such file or folder here; asking {host} for {model}");
            }
            Progress::Waiting { file } => {
                info!("{file}: another process is fetching it; waiting");
            }
            Progress::Bytes { file, done, size } => {
                let told = last.as_ref().is_some_and(|(name, when)| name == file && when.elapsed() < LINE_EVERY);
                if !told {
                    info!("fetching {file}: {:.1} of {:.1} MB", done as f64 / 1e6, size as f64 / 1e6);
                    last = Some((file.to_owned(), Instant::now()));
                }
            }
            Progress::Retrying { reason, pause } => {
                warn!("{reason}; trying again in {:.1} s", pause.as_secs_f64());
            }
            Progress::Unconfirmed { model, reason } => warn!(
                "{model}: taken from the local cache, though files beside its weights may be missing there ({reason})"
            ),
        }
        match signals::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}
