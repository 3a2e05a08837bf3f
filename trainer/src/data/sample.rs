//! One image of a cache, as a run finds it.

use schemas::{ContentHash, RowKey, View};

/// One cached image. A run holds one of these for every image of its cache, 48 bytes each; views are drawn again when they are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Its number in the data set the cache was built from.
    pub sample_id: u64,
    /// Hash of the original bytes; checked whenever they are read.
    pub content_hash: ContentHash,
    /// Its number in the data set of this run; of no meaning where images are packed.
    pub source_idx: usize,
    /// The cache's part it is in.
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

    /// What the row of a teacher's features for `view` must repeat.
    pub(crate) fn row_key(&self, view: &View) -> RowKey {
        RowKey { sample_id: self.sample_id, view: view.index, content_hash: self.content_hash }
    }
}
