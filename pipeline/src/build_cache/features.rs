//! A teacher's features of a batch, on the way from its output to rows.

use anyhow::Context;
use models::teacher::TeacherOutput;
use schemas::{CodecError, EncodedRow, FeatureCodec, RowFeatures, SampleRow, Scalar, TeacherIdentity};
use tch::{Kind, Tensor};
use torch_ext::HostCopy;

/// Features of a batch on their way to the host's memory, in one or more chunks of consecutive rows.
#[derive(Debug, Default)]
pub(crate) struct Features {
    chunks: Vec<Chunk>,
}

/// `N` rows, at least one.
#[derive(Debug)]
struct Chunk {
    rows: usize,
    /// `[N, L, D]`
    tokens: HostCopy,
    /// `[N, D]`
    cls: HostCopy,
    /// `[N, L]`
    cls_attn: HostCopy,
    form: Form,
}

/// What the values of a [`Chunk`] are.
#[derive(Debug)]
enum Form {
    /// f32, as the teacher computed them.
    Computed,
    /// As they are stored: tokens and CLS of the codec's type, attention f16. `lost` is what rounding lost of the tokens; of exact codecs
    /// nothing.
    Stored { lost: Option<Lost> },
}

/// The sums of a [`CodecError`] for each row, f64.
#[derive(Debug)]
struct Lost {
    /// `[N, D]`
    sq: HostCopy,
    /// `[N, D]`
    sq_error: HostCopy,
    /// `[N, L]`: cosine of each token and its stored form.
    cos: HostCopy,
}

impl Features {
    /// Starts copying a teacher's output of some rows to the host, behind those that are there, and as `stored` if that is given: converted
    /// where it is.
    pub(crate) fn push(&mut self, output: &TeacherOutput, stored: Option<Scalar>) -> anyhow::Result<()> {
        let TeacherOutput { tokens, cls, cls_attn } = output;
        let (kind, kind_of_attn) = match stored {
            Some(scalar) => (kind(scalar), Kind::Half),
            None => (Kind::Float, Kind::Float),
        };
        let converted = tokens.to_kind(kind);
        let form = match stored {
            None => Form::Computed,
            Some(scalar) if scalar.is_exact() => Form::Stored { lost: None },
            Some(_) => Form::Stored { lost: Some(Lost::measure(tokens, &converted)?) },
        };
        self.chunks.push(Chunk {
            rows: tokens.size()[0] as usize,
            tokens: HostCopy::start(&converted)?,
            cls: HostCopy::start(&cls.to_kind(kind))?,
            cls_attn: HostCopy::start(&cls_attn.to_kind(kind_of_attn))?,
            form,
        });
        Ok(())
    }

    /// Waits until all of them are there.
    pub(crate) fn wait(&mut self) -> torch_ext::Result<()> {
        self.chunks.iter_mut().try_for_each(Chunk::wait)
    }

    /// The rows to be stored, of which `rows` says which they are; for each, what keeps it from being stored instead if that is the case: a value
    /// that is not finite, or too large for the codec. It would poison every training step that meets it.
    pub(crate) fn encode(
        self,
        teacher: &TeacherIdentity,
        rows: &[SampleRow],
    ) -> anyhow::Result<Vec<schemas::Result<EncodedRow>>> {
        let mut encoded = Vec::with_capacity(rows.len());
        let mut left = rows;
        for chunk in self.chunks {
            let (of_chunk, behind) = left.split_at_checked(chunk.rows).context("a row for each of the features")?;
            left = behind;
            chunk.encode(teacher, of_chunk, &mut encoded)?;
        }
        Ok(encoded)
    }

    /// The tokens `[N, L, D]` of all rows, where they are as the teacher computed them.
    pub(crate) fn tokens(&mut self) -> anyhow::Result<Vec<f32>> {
        let mut all = Vec::new();
        for chunk in &mut self.chunks {
            all.append(&mut floats(&mut chunk.tokens)?);
        }
        Ok(all)
    }
}

impl Chunk {
    fn wait(&mut self) -> torch_ext::Result<()> {
        let Chunk { tokens, cls, cls_attn, form, .. } = self;
        let lost = match form {
            Form::Stored { lost: Some(Lost { sq, sq_error, cos }) } => Some([sq, sq_error, cos]),
            _ => None,
        };
        [tokens, cls, cls_attn].into_iter().chain(lost.into_iter().flatten()).try_for_each(|copy| copy.wait().map(drop))
    }

    fn encode(
        mut self,
        teacher: &TeacherIdentity,
        rows: &[SampleRow],
        out: &mut Vec<schemas::Result<EncodedRow>>,
    ) -> anyhow::Result<()> {
        match self.form {
            Form::Computed => {
                let columns = [&mut self.tokens, &mut self.cls, &mut self.cls_attn].map(floats);
                let [tokens, cls, cls_attn] = columns;
                let (tokens, cls, cls_attn) = (tokens?, cls?, cls_attn?);
                let features = by_row(self.rows, &tokens, &cls, &cls_attn);
                out.extend(
                    rows.iter()
                        .zip(features)
                        .map(|(row, features)| EncodedRow::encode(teacher, row.row_key(), features)),
                );
            }
            Form::Stored { lost } => {
                let mut errors = match lost {
                    Some(lost) => lost.of_rows(teacher)?.into_iter().map(Some).collect(),
                    None => vec![None; self.rows],
                };
                let tokens = torch_ext::tensor_bytes_mut(self.tokens.wait()?)?;
                let cls = torch_ext::tensor_bytes_mut(self.cls.wait()?)?;
                let cls_attn = torch_ext::tensor_bytes_mut(self.cls_attn.wait()?)?;
                let features = by_row(self.rows, tokens, cls, cls_attn);
                out.extend(rows.iter().zip(features).zip(&mut errors).map(|((row, features), error)| {
                    EncodedRow::from_stored(teacher, row.row_key(), features, error.take())
                }));
            }
        }
        Ok(())
    }
}

/// What belongs to each of `rows` rows.
fn by_row<'a, T>(
    rows: usize,
    tokens: &'a [T],
    cls: &'a [T],
    cls_attn: &'a [T],
) -> impl Iterator<Item = RowFeatures<'a, T>> {
    let chunks = move |all: &'a [T]| all.chunks_exact(all.len() / rows);
    let columns = chunks(tokens).zip(chunks(cls)).zip(chunks(cls_attn));
    columns.map(|((tokens, cls), cls_attn)| RowFeatures { tokens, cls, cls_attn })
}

impl Lost {
    /// As [`CodecError::measure`] does it, for all rows at once.
    fn measure(given: &Tensor, stored: &Tensor) -> anyhow::Result<Lost> {
        let (given, stored) = (given.to_kind(Kind::Double), stored.to_kind(Kind::Double));
        let sum = |values: Tensor, dim: i64| values.sum_dim_intlist(dim, false, Kind::Double);
        let difference = &given - &stored;
        let (norm_given, norm_stored) = (sum(&given * &given, 2), sum(&stored * &stored, 2));
        let norms = (&norm_given * &norm_stored).sqrt();
        // A token of zeros counts as 1 if it is stored as zeros.
        let same = norm_given.eq_tensor(&norm_stored).to_kind(Kind::Double);
        let cos = (sum(&given * &stored, 2) / &norms).where_self(&norms.gt(0.0), &same);
        Ok(Lost {
            sq: HostCopy::start(&sum(&given * &given, 1))?,
            sq_error: HostCopy::start(&sum(&difference * &difference, 1))?,
            cos: HostCopy::start(&cos)?,
        })
    }

    fn of_rows(mut self, teacher: &TeacherIdentity) -> anyhow::Result<Vec<CodecError>> {
        let [sq, sq_error, cos] = [&mut self.sq, &mut self.sq_error, &mut self.cos].map(doubles);
        let (width, tokens) = (teacher.width as usize, teacher.n_tokens());
        let (sq, sq_error, cos) = (sq?, sq_error?, cos?);
        let rows = sq.chunks_exact(width).zip(sq_error.chunks_exact(width)).zip(cos.chunks_exact(tokens));
        let error = |((sq, sq_error), cos): ((&[f64], &[f64]), &[f64])| CodecError {
            tokens: tokens as u64,
            sq: sq.to_vec(),
            sq_error: sq_error.to_vec(),
            cos_sum: cos.iter().sum(),
            cos_min: cos.iter().copied().fold(1.0, f64::min),
        };
        Ok(rows.map(error).collect())
    }
}

fn kind(scalar: Scalar) -> Kind {
    match scalar {
        Scalar::F32 => Kind::Float,
        Scalar::F16 => Kind::Half,
        Scalar::Bf16 => Kind::BFloat16,
    }
}

/// The values of an f32 tensor.
fn floats(copy: &mut HostCopy) -> anyhow::Result<Vec<f32>> {
    Ok(Vec::try_from(&copy.wait()?.view([-1]))?)
}

/// The values of an f64 tensor.
fn doubles(copy: &mut HostCopy) -> anyhow::Result<Vec<f64>> {
    Ok(Vec::try_from(&copy.wait()?.view([-1]))?)
}
