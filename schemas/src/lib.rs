#![doc = include_str!("../cache-v1.md")]

pub mod atomic;
mod cache;
mod codec;
mod column_chunk;
mod columns;
mod commit;
mod depth_window;
mod drop_teacher;
mod encoded_row;
mod error;
mod files;
mod generation;
mod identity;
mod json;
pub mod json_schema;
pub mod layout;
mod next_step;
mod page;
pub mod parquet_shape;
mod part_file;
mod plain_words;
mod plan;
mod reader;
mod reject;
mod repair;
mod rules;
mod sample;
mod samples_file;
mod skipped;
mod teacher;
#[cfg(test)]
mod testing;
mod thrift;
mod verify;
mod writer;

pub use cache::{
    Cache, PartState, add_teacher, check_cache, check_teacher, committed_parts, create_cache, has_parts, holds_parts,
    read_teacher, remove_all_stale, remove_stale, start_over, teacher_has_parts,
};
pub use codec::{Affine, Calibrator, Codec, CodecError, FeatureCodec, Scalar};
pub use commit::{ChannelSums, FileStamp, RejectsStamp, SamplesCommit, TeacherCommit};
pub use depth_window::{BadDepthWindow, DepthWindow};
pub use drop_teacher::drop_teacher;
pub use encoded_row::{EncodedRow, RowFeatures};
pub use error::{Error, FieldDifference, Result};
pub use generation::{Generation, add_generation, check_generation};
pub use identity::{CacheIdentity, DatasetIdentity, FORMAT_VERSION, Pack, ViewIdentity, ViewPolicy};
pub use json::hex;
pub use plain_words::plain_words;
pub use plan::Plan;
pub use reader::TeacherPart;
pub use repair::{SetAside, drop_damaged, parts_are_of};
pub use sample::{ContentHash, CropBox, Reject, RowKey, SampleRow, View};
pub use samples_file::SamplesPart;
pub use skipped::{Skipped, read_skipped, write_skipped};
pub use teacher::{Batches, TeacherId, TeacherIdentity, TeacherRow};
pub use verify::{Progress, Repeats, Report, Scope, verify, verify_within};
pub use writer::{SamplesWriter, TeacherWriter};
