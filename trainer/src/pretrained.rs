//! Networks that exist already: what a path, a model's id or a run on the command line stands for.

pub(crate) mod depth_window;
pub(crate) mod finetune_init;
pub(crate) mod init;
pub(crate) mod student;
pub(crate) mod trained;
