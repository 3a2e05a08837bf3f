//! One image of a cache, as a run uses it.

use schemas::{ContentHash, RowKey, View};

/// One cached image. A run holds 48 bytes for every image of its cache; views are drawn again when they are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Its index in the data set that the cache was built from.
    pub sample_id: u64,
    /// Hash of the original bytes; checked whenever they are read.
    pub content_hash: ContentHash,
    /// Its index in the data set of this run; unused if the cache packs images.
    pub source_idx: usize,
    /// The part of the cache that has it.
    pub part: u32,
    /// Row of its view 0 in that part; the other views follow.
    pub first_row: u32,
    /// Width after decoding, as the crop boxes assume it.
    pub width: u32,
    pub height: u32,
}

// 100 M images fit a workstation's memory.
const _: () = assert!(size_of::<Sample>() <= 48);

impl Sample {
    /// Row of `view` in the part.
    pub(crate) fn row(&self, view: usize) -> usize {
        self.first_row as usize + view
    }

    /// The key that a teacher's row for `view` must have.
    pub(crate) fn row_key(&self, view: &View) -> RowKey {
        RowKey { sample_id: self.sample_id, view: view.index, content_hash: self.content_hash }
    }
}
