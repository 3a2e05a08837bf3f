//! The commands of `trainer`, a file each. They share nothing with each other: what two of them need is a part of its own, in `data`,
//! `train`, `eval`, `pretrained` or `recipe`.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod export;
pub(crate) mod finetune;
pub(crate) mod knn;
pub(crate) mod linprobe;
pub(crate) mod plan;
pub(crate) mod pretrain;
pub(crate) mod reconstruct;
pub(crate) mod report;
