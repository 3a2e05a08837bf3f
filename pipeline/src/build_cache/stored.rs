//! Features converted to what is stored on the device that computed them, and copied to the host meanwhile.

use models::teacher::TeacherOutput;
use schemas::{CodecError, FeatureCodec, RowFeatures, Scalar, TeacherIdentity};
use tch::{Device, Kind, Tensor};

/// Features as they are stored, in the host's memory once the event after their copies is over.
#[derive(Debug)]
pub(crate) struct StoredPart {
    rows: usize,
    /// `[N, L, D]`, of the codec's type, as is `cls`.
    tokens: Tensor,
    /// `[N, D]`
    cls: Tensor,
    /// `[N, L]` f16
    cls_attn: Tensor,
    /// What rounding lost of the tokens; of exact codecs nothing.
    lost: Option<Lost>,
}

/// The sums of a [`CodecError`] for each row, f64.
#[derive(Debug)]
struct Lost {
    /// `[N, D]`
    sq: Tensor,
    /// `[N, D]`
    sq_error: Tensor,
    /// `[N, L]`: cosine of each token and its stored form.
    cos: Tensor,
}

impl StoredPart {
    /// Converts a teacher's output where it is and starts copying it to the host.
    pub(crate) fn convert(output: &TeacherOutput, scalar: Scalar, device: Device) -> anyhow::Result<StoredPart> {
        let kind = match scalar {
            Scalar::F32 => Kind::Float,
            Scalar::F16 => Kind::Half,
            Scalar::Bf16 => Kind::BFloat16,
        };
        let tokens = output.tokens.to_kind(kind);
        let lost = if scalar.is_exact() { None } else { Some(Lost::measure(&output.tokens, &tokens, device)?) };
        Ok(StoredPart {
            rows: output.tokens.size()[0] as usize,
            tokens: start_copy(&tokens, device)?,
            cls: start_copy(&output.cls.to_kind(kind), device)?,
            cls_attn: start_copy(&output.cls_attn.to_kind(Kind::Half), device)?,
            lost,
        })
    }

    /// Calls `each` on the features of every row in order, with what the codec lost of its tokens.
    pub(crate) fn for_each_row(
        &mut self,
        teacher: &TeacherIdentity,
        mut each: impl FnMut(RowFeatures<'_, u8>, Option<CodecError>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut errors = match &mut self.lost {
            Some(lost) => lost.of_rows(teacher)?.into_iter().map(Some).collect(),
            None => vec![None; self.rows],
        };
        let tokens = torch_ext::tensor_bytes_mut(&mut self.tokens)?;
        let cls = torch_ext::tensor_bytes_mut(&mut self.cls)?;
        let cls_attn = torch_ext::tensor_bytes_mut(&mut self.cls_attn)?;
        let row = |all: usize| all / self.rows;
        let tokens = tokens.chunks_exact(row(tokens.len()));
        let cls = cls.chunks_exact(row(cls.len()));
        let cls_attn = cls_attn.chunks_exact(row(cls_attn.len()));
        for (((tokens, cls), cls_attn), error) in tokens.zip(cls).zip(cls_attn).zip(&mut errors) {
            each(RowFeatures { tokens, cls, cls_attn }, error.take())?;
        }
        Ok(())
    }
}

impl Lost {
    /// As [`CodecError::measure`] does it, for all rows at once.
    fn measure(given: &Tensor, stored: &Tensor, device: Device) -> anyhow::Result<Lost> {
        let (given, stored) = (given.to_kind(Kind::Double), stored.to_kind(Kind::Double));
        let sum = |values: Tensor, dim: i64| values.sum_dim_intlist(dim, false, Kind::Double);
        let difference = &given - &stored;
        let (norm_given, norm_stored) = (sum(&given * &given, 2), sum(&stored * &stored, 2));
        let norms = (&norm_given * &norm_stored).sqrt();
        // A token of zeros counts as 1 if it is stored as zeros.
        let same = norm_given.eq_tensor(&norm_stored).to_kind(Kind::Double);
        let cos = (sum(&given * &stored, 2) / &norms).where_self(&norms.gt(0.0), &same);
        Ok(Lost {
            sq: start_copy(&sum(&given * &given, 1), device)?,
            sq_error: start_copy(&sum(&difference * &difference, 1), device)?,
            cos: start_copy(&cos, device)?,
        })
    }

    fn of_rows(&mut self, teacher: &TeacherIdentity) -> anyhow::Result<Vec<CodecError>> {
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

/// The values of an f64 tensor in the host's memory.
fn doubles(host: &mut Tensor) -> anyhow::Result<Vec<f64>> {
    let bytes = torch_ext::tensor_bytes_mut(host)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_ne_bytes(*bytes)).collect())
}

/// Page-locked memory that the device copies `values` into as it comes to it.
fn start_copy(values: &Tensor, device: Device) -> anyhow::Result<Tensor> {
    let mut host = torch_ext::pinned_empty(&values.size(), values.kind(), device)?;
    torch_ext::copy_non_blocking(&mut host, values)?;
    Ok(host)
}
