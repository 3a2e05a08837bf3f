//! Ctrl-C and SIGTERM, which schedulers send before they end a job. The first signal asks the program to stop, the second ends it at once.
//!
//! Both are safe, like `kill -9`: no incomplete file is visible. After the first signal a build removes its unfinished files, and a run
//! writes a checkpoint.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Number of the last signal.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// A signal ended the work before it had a result; nothing was written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was saved, the same command starts again")]
pub struct Interrupted;

/// Catches the signals from here on. Only a program may call this, because signals belong to the process.
///
/// # Errors
/// If the system reports an error.
pub fn catch() -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset and sets it, the second finds it set and exits.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&REQUESTED))
            .and_then(|_| flag::register_usize(signal, Arc::clone(&SIGNAL), signal as usize))
            .and_then(|_| flag::register(signal, Arc::clone(&REQUESTED)))
            .context("cannot catch Ctrl-C")?;
    }
    Ok(())
}

/// The exit status of a program that a signal has stopped, as shells have it: 143 after SIGTERM, else 130.
pub(crate) fn exit_code() -> u8 {
    if SIGNAL.load(Ordering::Relaxed) == SIGTERM as usize { 143 } else { 130 }
}

/// Asks this process to stop, as SIGTERM does, unless a signal has asked already.
pub fn request() {
    if !REQUESTED.swap(true, Ordering::Relaxed) {
        SIGNAL.store(SIGTERM as usize, Ordering::Relaxed);
    }
}

/// Whether a signal has arrived.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
