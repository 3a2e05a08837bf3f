//! The codec's error, from the commit records.

use schemas::{CodecError, TeacherCommit, TeacherIdentity};
use serde::Serialize;

/// The largest relative L2 that rounding alone can cause: codec `i8` keeps channels that would lose more than 2 % of their std as
/// f16, and the other codecs lose a tenth of that. A larger error means clipping: the ranges do not cover the images.
const ROUNDING: f64 = 0.02;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "known")]
pub(crate) enum CodecLoss {
    /// The codec keeps every bit.
    Exact,
    /// The codec rounds, and not every complete part recorded its error.
    NotRecorded,
    /// The error over the tokens of all complete parts.
    Measured(Loss),
}

/// Differences between the tokens that the teacher gave and the tokens as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Loss {
    tokens: u64,
    /// 2-norm of all differences over the 2-norm of all values.
    relative_l2: f64,
    /// Cosine between a token and its stored form: mean, smallest.
    cosine_mean: f64,
    cosine_min: f64,
    /// The channel with the largest relative error, and that error.
    worst_channel: usize,
    worst_channel_relative_l2: f64,
}

/// Sums the records of a teacher's parts.
#[derive(Debug)]
pub(crate) struct CodecErrors {
    exact: bool,
    complete: bool,
    sum: CodecError,
}

impl CodecErrors {
    pub(crate) fn new(teacher: &TeacherIdentity) -> CodecErrors {
        CodecErrors { exact: teacher.codec.tokens().is_exact(), complete: true, sum: CodecError::default() }
    }

    pub(crate) fn add(&mut self, commit: &TeacherCommit) {
        match &commit.codec_error {
            Some(error) => self.sum.add(error),
            None => self.complete = false,
        }
    }

    pub(crate) fn finish(&self) -> CodecLoss {
        match self.sum.worst_channel() {
            _ if self.exact => CodecLoss::Exact,
            Some((channel, error)) if self.complete => CodecLoss::Measured(Loss {
                tokens: self.sum.tokens,
                relative_l2: self.sum.relative_l2(),
                cosine_mean: self.sum.mean_cos(),
                cosine_min: self.sum.cos_min,
                worst_channel: channel,
                worst_channel_relative_l2: error,
            }),
            _ => CodecLoss::NotRecorded,
        }
    }
}

impl CodecLoss {
    /// Whether the codec rounds.
    pub(crate) fn is_lossy(&self) -> bool {
        *self != CodecLoss::Exact
    }

    /// The relative L2, if it is more than rounding explains.
    pub(crate) fn beyond_rounding(&self) -> Option<f64> {
        match self {
            CodecLoss::Measured(loss) if loss.relative_l2 > ROUNDING => Some(loss.relative_l2),
            _ => None,
        }
    }

    /// The error as text.
    pub(crate) fn text(&self) -> String {
        match self {
            CodecLoss::Exact => "none: the codec keeps every bit".to_owned(),
            CodecLoss::NotRecorded => "not recorded by the build".to_owned(),
            CodecLoss::Measured(loss) => format!(
                "relative L2 {:.2e}, cosine {:.8} mean and {:.8} least, worst channel {} with {:.2e}",
                loss.relative_l2, loss.cosine_mean, loss.cosine_min, loss.worst_channel, loss.worst_channel_relative_l2
            ),
        }
    }
}
