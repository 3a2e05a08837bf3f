//! Semantic segmentation by frozen patch tokens: what a single token knows about the pixels that it stands for.
//!
//! Every patch of the training images gets the class that most of its pixels have. A classifier of single patches (k nearest neighbors or a
//! linear layer) gives the test patches a score for each class; the scores are interpolated to the size of the mask, and every pixel
//! takes the best class.

pub(crate) mod areas;
pub(crate) mod classify;
pub(crate) mod patches;
pub(crate) mod set;
pub(crate) mod sheet;
