//! The commands of `trainer`, one file each. They do not use each other: code that several of them need is in `data`, `train`, `eval`,
//! `pretrained` or `recipe`.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod embed;
pub(crate) mod export;
pub(crate) mod finetune;
pub(crate) mod knn;
pub(crate) mod launch;
pub(crate) mod linprobe;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod pretrain;
pub(crate) mod reconstruct;
pub(crate) mod report;
pub(crate) mod segment;
