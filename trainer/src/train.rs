//! The parts of the training loops: the step and its optimizer, the log, checkpoints, the run folder.

pub(crate) mod best;
pub(crate) mod checkpoint;
pub(crate) mod device_speed;
pub(crate) mod finetuned;
pub(crate) mod idle;
pub(crate) mod image_grid;
pub(crate) mod itstime;
pub(crate) mod metrics;
pub(crate) mod micro_batch;
pub(crate) mod optim;
pub(crate) mod run_folder;
pub(crate) mod step;
pub(crate) mod target_stats;
pub(crate) mod tensorboard;
pub(crate) mod train_log;
pub(crate) mod train_state;
