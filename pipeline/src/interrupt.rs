//! Ctrl-C and SIGTERM: the first asks the build to stop, the second ends it at once.
//!
//! Either is safe for the cache, as `kill -9` is: nothing is visible that is not complete. Asking first lets the build remove
//! its unfinished files and say how to go on.

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
        // In this order: the first signal finds the flag unset and sets it, the second finds it set and exits.
        let again = flag::register_conditional_shutdown(
            signal,
            ExitStatus::Interrupted.code().into(),
            Arc::clone(&REQUESTED),
        );
        again
            .and_then(|_| flag::register(signal, Arc::clone(&REQUESTED)))
            .context("cannot catch Ctrl-C")?;
    }
    Ok(())
}

/// Whether a signal has come.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
