//! Evaluation: k-nearest neighbors and linear probes on features of students, teachers and raw pixels; a fine-tuned network on a test set.

pub(crate) mod accuracy;
pub(crate) mod features;
pub(crate) mod heads;
pub(crate) mod knn;
pub(crate) mod record;
pub(crate) mod sets;
pub(crate) mod test_set;
