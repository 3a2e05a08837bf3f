//! What fine-tuning does to a whole batch. What it does to single images is in [`images::augment`].

pub mod mixup;
