//! A teacher's features of a batch, on the way from its output to rows.

use anyhow::Context;
use models::teacher::TeacherOutput;
use schemas::{EncodedRow, RowFeatures, SampleRow, TeacherIdentity};
use tch::{Device, Kind, Tensor};

use super::stored::StoredPart;

/// Features of a batch in the host's memory, row after row.
#[derive(Debug)]
pub(crate) enum Features {
    /// As the teacher computed them: tokens `[N, L, D]`, CLS `[N, D]`, attention `[N, L]`.
    Floats { tokens: Vec<f32>, cls: Vec<f32>, cls_attn: Vec<f32> },
    /// As they are stored, converted by a GPU in one or more parts.
    Stored(Vec<StoredPart>),
}

impl Features {
    pub(crate) fn on_host(output: &TeacherOutput) -> anyhow::Result<Features> {
        let TeacherOutput { tokens, cls, cls_attn } = output;
        Ok(Features::Floats { tokens: to_host(tokens)?, cls: to_host(cls)?, cls_attn: to_host(cls_attn)? })
    }

    /// The rows to be stored, of which `rows` says which they are.
    ///
    /// A value that is not finite, or too large for the codec, is an error that names teacher and image: it would poison every
    /// training step that meets it, and what made it (weights, precision) is wrong for the other images too.
    pub(crate) fn encode(self, teacher: &TeacherIdentity, rows: &[SampleRow]) -> anyhow::Result<Vec<EncodedRow>> {
        let named = |row: &SampleRow, encoded: schemas::Result<EncodedRow>| {
            encoded.with_context(|| {
                let SampleRow { key, sample_id, view, .. } = row;
                format!("teacher {}, image {key:?} (sample {sample_id}, view {})", teacher.id, view.index)
            })
        };
        match self {
            Features::Floats { tokens, cls, cls_attn } => {
                let of_row = |all: &[f32]| all.len() / rows.len();
                let (n_tokens, n_cls, n_attn) = (of_row(&tokens), of_row(&cls), of_row(&cls_attn));
                let features =
                    tokens.chunks_exact(n_tokens).zip(cls.chunks_exact(n_cls)).zip(cls_attn.chunks_exact(n_attn));
                let encode = |(row, ((tokens, cls), cls_attn)): (&SampleRow, _)| {
                    let features = RowFeatures { tokens, cls, cls_attn };
                    named(row, EncodedRow::encode(teacher, row.row_key(), features))
                };
                rows.iter().zip(features).map(encode).collect()
            }
            Features::Stored(parts) => {
                let mut encoded = Vec::with_capacity(rows.len());
                let mut rows = rows.iter();
                for mut part in parts {
                    part.for_each_row(teacher, |features, codec_error| {
                        let row = rows.next().context("a row for each of the features")?;
                        encoded
                            .push(named(row, EncodedRow::from_stored(teacher, row.row_key(), features, codec_error))?);
                        Ok(())
                    })?;
                }
                Ok(encoded)
            }
        }
    }

    /// The tokens `[L, D]` of each of `rows` rows, where they are as the teacher computed them.
    pub(crate) fn tokens(&self, rows: usize) -> impl Iterator<Item = &[f32]> {
        let tokens = match self {
            Features::Floats { tokens, .. } => &tokens[..],
            Features::Stored(_) => &[],
        };
        tokens.chunks_exact((tokens.len() / rows).max(1))
    }

    /// The features of consecutive rows as one; nothing of none.
    pub(crate) fn joined(parts: Vec<Features>) -> Option<Features> {
        parts.into_iter().reduce(|mut all, part| {
            match (&mut all, part) {
                (Features::Stored(all), Features::Stored(part)) => all.extend(part),
                (
                    Features::Floats { tokens, cls, cls_attn },
                    Features::Floats { tokens: more_tokens, cls: more_cls, cls_attn: more_attn },
                ) => {
                    tokens.extend(more_tokens);
                    cls.extend(more_cls);
                    cls_attn.extend(more_attn);
                }
                _ => unreachable!("a teacher's features are of one kind"),
            }
            all
        })
    }
}

fn to_host(values: &Tensor) -> anyhow::Result<Vec<f32>> {
    let host = values.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut out = vec![0f32; host.numel()];
    host.f_copy_data(&mut out, host.numel())?;
    Ok(out)
}
