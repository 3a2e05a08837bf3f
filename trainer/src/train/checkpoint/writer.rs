//! Writes checkpoints while training continues.
//!
//! The training thread copies the tensors to the host's memory and continues; hashing, writing and waiting for the disk, which take far
//! longer, happen in a thread. The copy is made in the host's memory and not on the device: it waits for the bytes to cross the bus,
//! 1.3 GB for a ViT-B with its moments, but a device that is nearly full does not run out of memory because of a checkpoint.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use anyhow::Context;
use tch::{Device, Tensor};
use torch_ext::{OutOfMemory, attempt};
use tracing::{info, warn};

use super::{Checkpoint, Keep, save};

/// Writes one checkpoint at a time.
#[derive(Debug)]
pub(crate) struct Writer {
    run: PathBuf,
    keep: Keep,
    pending: Option<JoinHandle<anyhow::Result<PathBuf>>>,
}

impl Writer {
    /// A writer of checkpoints into the run folder `run`.
    pub(crate) fn new(run: &Path, keep: Keep) -> Writer {
        Writer { run: run.to_owned(), keep, pending: None }
    }

    /// Waits until the previous checkpoint is published, and starts to publish this one with the values that its tensors have now, even if
    /// they change later. If there is not enough memory for a copy of them, the checkpoint is published before this returns.
    ///
    /// # Errors
    /// If the previous checkpoint could not be published, or this one cannot be copied.
    pub(crate) fn save(&mut self, checkpoint: Checkpoint) -> anyhow::Result<()> {
        self.finish()?;
        let copied = attempt(|| anyhow::Ok(in_host_memory(&checkpoint)))?;
        match copied {
            Ok(copy) => {
                let (run, keep) = (self.run.clone(), self.keep);
                let write = move || save(&run, &copy, keep).inspect(|folder| announce(folder));
                let thread = Builder::new().name("checkpoint".into()).spawn(write);
                self.pending = Some(thread.context("cannot start a thread for the checkpoint")?);
            }
            Err(OutOfMemory(message)) => {
                warn!("out of memory for a copy of the checkpoint: {message}\nTraining waits until it is written");
                announce(&save(&self.run, &checkpoint, self.keep)?);
            }
        }
        Ok(())
    }

    /// Reports early that a checkpoint could not be written. Does not wait for one that is being written.
    ///
    /// # Errors
    /// If the pending checkpoint could not be written.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match &self.pending {
            Some(pending) if pending.is_finished() => self.finish(),
            _ => Ok(()),
        }
    }

    /// Waits until the last checkpoint is published.
    ///
    /// # Errors
    /// If it could not be; those before it are kept.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        pending.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(())
    }
}

impl Drop for Writer {
    /// A run that ends with an error keeps the checkpoint that is on its way.
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take()
            && let Ok(Err(error)) = pending.join()
        {
            warn!("{error:#}");
        }
    }
}

fn announce(folder: &Path) {
    info!("checkpoint {}", folder.display());
}

/// A copy of everything, tensors by value.
fn in_host_memory(checkpoint: &Checkpoint) -> Checkpoint {
    let copy = |tensor: &Tensor| match tensor.device() {
        Device::Cpu => tensor.detach().copy(),
        _ => tensor.detach().to_device(Device::Cpu),
    };
    let copies = |tensors: &BTreeMap<String, Tensor>| {
        let tensors = tensors.iter();
        tensors.map(|(name, tensor)| (name.clone(), copy(tensor))).collect()
    };
    Checkpoint {
        state: checkpoint.state.clone(),
        model: copies(&checkpoint.model),
        optimizer: copies(&checkpoint.optimizer),
        ema: checkpoint.ema.as_ref().map(copies),
        recipe: checkpoint.recipe.clone(),
    }
}
