//! What the codec lost of the features, as far as the commit records tell.

use schemas::{Codec, TeacherCommit, TeacherIdentity};
use serde::Serialize;

/// The codec's error.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "known")]
pub(super) enum CodecLoss {
    /// The codec is lossless.
    Exact,
    /// The codec rounds, and the build did not record how far.
    NotRecorded,
}

impl CodecLoss {
    /// What the codec alone tells.
    pub(super) fn of(teacher: &TeacherIdentity) -> CodecLoss {
        match teacher.codec {
            Codec::F32 => CodecLoss::Exact,
            Codec::F16 => CodecLoss::NotRecorded,
        }
    }

    /// Adds what a part's record says; records of this version say nothing of it.
    pub(super) fn add(&mut self, _commit: &TeacherCommit) {}

    /// In words.
    pub(super) fn text(&self) -> String {
        match self {
            CodecLoss::Exact => "none: the codec is lossless".to_owned(),
            CodecLoss::NotRecorded => "not recorded by the build".to_owned(),
        }
    }
}
