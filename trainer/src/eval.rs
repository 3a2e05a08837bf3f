//! Evaluation: k-nearest neighbors and linear probes on features of students, teachers and raw pixels, also while a student is trained; a
//! fine-tuned network on a test set; segmentation by patch tokens.

pub(crate) mod accuracy;
pub(crate) mod features;
pub(crate) mod frozen;
pub(crate) mod heads;
pub(crate) mod knn;
pub(crate) mod probe;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod sets;
pub(crate) mod test_set;
pub(crate) mod watch;
