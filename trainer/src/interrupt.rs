//! Ctrl-C and SIGTERM, as schedulers send before they end a job: the first asks the run to write a checkpoint and stop, the second ends it
//! at once. Either is safe, as `kill -9` is; asking first loses no step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::ExitStatus;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Catches the signals from here on. Only the program does this; a library's caller keeps its own.
pub fn catch_signals() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        let status = ExitStatus::Interrupted.code().into();
        // In this order: the first signal finds the flag unset and sets it, the second finds it set and exits.
        flag::register_conditional_shutdown(signal, status, Arc::clone(&REQUESTED))
            .and_then(|_| flag::register(signal, Arc::clone(&REQUESTED)))
            .context("cannot catch Ctrl-C")?;
    }
    Ok(())
}

/// Work that a signal has ended before there was a result; nothing has been written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing is kept, the same command starts again")]
pub(crate) struct Interrupted;

/// Whether a signal has come.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
