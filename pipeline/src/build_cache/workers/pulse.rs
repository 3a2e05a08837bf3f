//! The sign of life of a worker, renewed by a thread of its own.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// A thread that beats until it is dropped.
#[derive(Debug)]
pub(super) struct Heart {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    /// Calls `beat` after every `every`. A beat that fails is told and missed.
    pub(super) fn start(every: Duration, mut beat: impl FnMut() -> Result<()> + Send + 'static) -> Result<Heart> {
        let (stop, stopped) = mpsc::channel();
        let beats = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = beat() {
                    tracing::warn!(
                        "the sign of life of this worker cannot be renewed, so others may take its parts over: {error:#}"
                    );
                }
            }
        };
        let thread = thread::Builder::new().name("pulse".into()).spawn(beats).context("cannot start a thread")?;
        Ok(Heart { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It only writes a file; a panic in it has been told.
            let _ = thread.join();
        }
    }
}
