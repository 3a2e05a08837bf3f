//! From a batch of pixels to the feature rows of one teacher.

use std::ops::Range;

use anyhow::{Context, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use images::RgbImage;
use models::precision::Precision;
use models::teacher::Teacher;
use schemas::{Codec, CodecError, ContentHash, FeatureCodec, RowKey, TeacherId, TeacherRow};
use tch::{Device, Kind, Tensor};
use torch_ext::OutOfMemory;

use super::decode::Row;
use super::timing::{Stage, Timings};

/// Rows that pass through the teachers together. The plan cuts them, so who is in a batch does not depend on the run.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Its position in the order of the build.
    pub seq: u64,
    /// Who the rows are.
    pub rows: Vec<RowId>,
    /// For each side of `sizes`, the pixels of every row.
    pub pixels: Vec<Vec<RgbImage>>,
    /// Sides of the rendered squares, in pixels.
    pub sizes: Vec<u32>,
}

impl Batch {
    /// Of rows rendered at `sizes`.
    pub(crate) fn new(seq: u64, rows: Vec<Row>, sizes: Vec<u32>) -> Batch {
        let mut ids = Vec::with_capacity(rows.len());
        let mut pixels: Vec<Vec<_>> = sizes.iter().map(|_| Vec::with_capacity(rows.len())).collect();
        for Row { sample, pixels: by_size } in rows {
            ids.push(RowId {
                sample_id: sample.sample_id,
                view: sample.view.index,
                content_hash: sample.content_hash,
                key: sample.key,
            });
            pixels.iter_mut().zip(by_size).for_each(|(column, image)| column.push(image));
        }
        Batch { seq, rows: ids, pixels, sizes }
    }
}

/// What a feature row repeats of its sample, and what messages call it.
#[derive(Debug, Clone)]
pub(crate) struct RowId {
    pub sample_id: u64,
    pub view: u16,
    pub content_hash: ContentHash,
    pub key: String,
}

/// A teacher of this build.
#[derive(Debug)]
pub(crate) struct BuildTeacher {
    /// Its name in the cache.
    pub id: TeacherId,
    /// The network. One thread uses it; others get their own handle on the same weights.
    pub model: Teacher,
    /// Side of the square it is shown, in pixels.
    pub input_size: u32,
    /// How its features are stored.
    pub codec: Codec,
    /// Whether the codec's parameters are still to be found.
    pub awaits_calibration: bool,
}

impl BuildTeacher {
    /// A handle for another thread.
    pub(crate) fn shallow_clone(&self) -> BuildTeacher {
        BuildTeacher {
            id: self.id.clone(),
            model: self.model.shallow_clone(),
            input_size: self.input_size,
            codec: self.codec.clone(),
            awaits_calibration: self.awaits_calibration,
        }
    }
}

/// Features of a batch as floats, row after row.
#[derive(Debug)]
pub(crate) struct Features {
    /// Whose they are.
    teacher: TeacherId,
    /// `[N, L, D]`
    tokens: Vec<f32>,
    /// `[N, D]`
    cls: Vec<f32>,
    /// `[N, L]`
    cls_attn: Vec<f32>,
}

impl Features {
    /// Adds the rows that come after these.
    fn append(&mut self, after: Features) {
        self.tokens.extend(after.tokens);
        self.cls.extend(after.cls);
        self.cls_attn.extend(after.cls_attn);
    }

    /// The tokens `[L, D]` of each row of the batch.
    pub(crate) fn rows_of_tokens(&self, batch: &Batch) -> impl Iterator<Item = &[f32]> {
        // A batch is never empty.
        self.tokens.chunks_exact(self.tokens.len() / batch.rows.len())
    }
}

/// A row to be stored, and what its codec lost.
#[derive(Debug)]
pub(crate) struct EncodedRow {
    pub row: TeacherRow,
    /// Of lossy codecs.
    pub error: Option<CodecError>,
}

/// Runs one teacher of a batch on its device and brings the features to the host.
pub(crate) fn infer(
    batch: &Batch,
    teacher: &BuildTeacher,
    precision: Precision,
    timings: &Timings,
) -> anyhow::Result<Features> {
    infer_rows(batch, 0..batch.rows.len(), teacher, precision, timings)
}

/// [`infer`], where a batch that memory does not suffice for is taken in smaller parts: `at_once` rows, which become fewer for the rest of
/// the run. The numbers of a row may then differ in their last bits, as they do with another batch size.
pub(crate) fn infer_within_memory(
    batch: &Batch,
    teacher: &BuildTeacher,
    precision: Precision,
    timings: &Timings,
    at_once: &mut usize,
) -> anyhow::Result<Features> {
    let mut all: Option<Features> = None;
    in_parts(batch.rows.len(), at_once, |rows| {
        let part = infer_rows(batch, rows, teacher, precision, timings)?;
        match &mut all {
            None => all = Some(part),
            Some(all) => all.append(part),
        }
        Ok(())
    })
    .with_context(|| format!("teacher {}", teacher.id))?;
    all.context("a batch is never empty")
}

/// Calls `pass` on up to `at_once` of `n` rows at a time, in order, and on half as many from where memory runs out.
fn in_parts(
    n: usize,
    at_once: &mut usize,
    mut pass: impl FnMut(Range<usize>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut done = 0;
    while done < n {
        let rows = done..n.min(done.saturating_add(*at_once));
        match torch_ext::attempt(|| pass(rows.clone()))? {
            Ok(()) => done = rows.end,
            Err(OutOfMemory(message)) => {
                ensure!(
                    rows.len() > 1,
                    "memory does not suffice for one image at a time: {message}. Take a device with more memory, or --precision bf16"
                );
                // Blocks cut for more rows would otherwise be held beside those for fewer.
                torch_ext::empty_cache()?;
                *at_once = rows.len().div_ceil(2);
                tracing::warn!(
                    "memory does not suffice for {} rows at a time: {message}. From here on batches are taken in parts of {at_once} rows, whose \
                     features may differ in their last bits; a smaller --batch-size says so in the cache",
                    rows.len()
                );
            }
        }
    }
    Ok(())
}

fn infer_rows(
    batch: &Batch,
    rows: Range<usize>,
    teacher: &BuildTeacher,
    precision: Precision,
    timings: &Timings,
) -> anyhow::Result<Features> {
    timings.time(Stage::Infer(teacher.id.clone()), || {
        let size_idx = batch.sizes.iter().position(|&size| size == teacher.input_size);
        let images = &batch.pixels[size_idx.context("a batch holds pixels for each of its teachers")?];
        let pixels = stack(&images[rows], teacher.input_size, teacher.model.device())?;
        let output = teacher.model.forward(&pixels, precision).with_context(|| format!("teacher {}", teacher.id))?;
        Ok(Features {
            teacher: teacher.id.clone(),
            tokens: to_host(&output.tokens)?,
            cls: to_host(&output.cls)?,
            cls_attn: to_host(&output.cls_attn)?,
        })
    })
}

/// Images `[H, W, 3]` as one tensor u8 `[N, 3, H, W]` on `device`. For a GPU the staging memory is page-locked, so that the copy
/// does not pass through a second buffer.
fn stack(images: &[RgbImage], size: u32, device: Device) -> anyhow::Result<Tensor> {
    let (n, side) = (images.len() as i64, i64::from(size));
    let mut host = torch_ext::pinned_empty(&[n, side, side, 3], Kind::Uint8, device)?;
    let bytes = torch_ext::tensor_bytes_mut(&mut host)?;
    for (slot, image) in bytes.chunks_exact_mut(size as usize * size as usize * 3).zip(images) {
        slot.copy_from_slice(&image.data);
    }
    let pixels = if device == Device::Cpu {
        host
    } else {
        let mut on_device = Tensor::empty([n, side, side, 3], (Kind::Uint8, device));
        torch_ext::copy_non_blocking(&mut on_device, &host)?;
        // The staging tensor may go out of scope: libtorch keeps page-locked memory until the copy has passed.
        on_device
    };
    Ok(pixels.permute([0, 3, 1, 2]).contiguous())
}

fn to_host(values: &Tensor) -> anyhow::Result<Vec<f32>> {
    let host = values.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut out = vec![0f32; host.numel()];
    host.f_copy_data(&mut out, host.numel())?;
    Ok(out)
}

/// Turns the features of a batch into rows to be stored.
///
/// A value that is not finite, or too large for the codec, is an error that names teacher and image: it would poison every
/// training step that meets it, and what made it (weights, precision) is wrong for the other images too.
pub(crate) fn encode(batch: &Batch, features: &Features, codec: &Codec) -> anyhow::Result<Vec<EncodedRow>> {
    let teacher = &features.teacher;
    let n = batch.rows.len();
    let width = features.cls.len() / n;
    // A batch is never empty, and a teacher gives each of its rows the same number of features.
    let row = |all: &[f32], i: usize| i * (all.len() / n)..(i + 1) * (all.len() / n);
    let encode_row = |(i, id): (usize, &RowId)| -> anyhow::Result<EncodedRow> {
        let store = |what: &str, codec: &dyn FeatureCodec, values: &[f32]| {
            let mut bytes = Vec::with_capacity(codec.bytes(values.len() / width, width));
            codec.encode(values, width, &mut bytes).with_context(|| {
                format!("teacher {teacher}, image {:?} (sample {}, view {}), {what}", id.key, id.sample_id, id.view)
            })?;
            anyhow::Ok(bytes)
        };
        let attention = &features.cls_attn[row(&features.cls_attn, i)];
        let mut halves = vec![f16::ZERO; attention.len()];
        halves.convert_from_f32_slice(attention);
        ensure!(
            attention.iter().all(|a| a.is_finite()),
            "teacher {teacher}, image {:?} (sample {}, view {}): CLS attention is not finite",
            id.key,
            id.sample_id,
            id.view
        );
        let given = &features.tokens[row(&features.tokens, i)];
        let tokens = store("tokens", codec.tokens(), given)?;
        let error = match codec.tokens().is_exact() {
            true => None,
            false => {
                let mut stored = vec![0.0; given.len()];
                codec.tokens().decode_into(&tokens, width, &mut stored)?;
                Some(CodecError::measure(given, &stored, width))
            }
        };
        let row = TeacherRow {
            key: RowKey { sample_id: id.sample_id, view: id.view, content_hash: id.content_hash },
            tokens,
            cls: store("cls", &codec.cls(), &features.cls[row(&features.cls, i)])?,
            cls_attn: halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
        };
        Ok(EncodedRow { row, error })
    };
    batch.rows.iter().enumerate().map(encode_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks libtorch for more memory than there are addresses for.
    fn run_out() {
        let _ = Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu));
    }

    #[test]
    fn rows_that_do_not_fit_are_taken_in_parts_and_in_order() {
        for (n, fits, parts) in [
            (8, 8, vec![8]),
            (8, 7, vec![4, 4]),
            (8, 3, vec![2, 2, 2, 2]),
            (7, 3, vec![2, 2, 2, 1]),
            (5, 1, vec![1; 5]),
        ] {
            let (mut at_once, mut done, mut sizes) = (usize::MAX, 0, Vec::new());
            let mut pass = |rows: Range<usize>| {
                if rows.len() > fits {
                    run_out();
                }
                assert_eq!(rows.start, done, "in order and once");
                done = rows.end;
                sizes.push(rows.len());
                Ok(())
            };
            in_parts(n, &mut at_once, &mut pass).unwrap();
            // What was learned stays: the next batch begins with it.
            let learned = at_once;
            assert_eq!(done, n);
            done = 0;
            in_parts(n, &mut at_once, |rows| {
                assert!(rows.len() <= fits && rows.start == done);
                done = rows.end;
                Ok(())
            })
            .unwrap();
            assert_eq!((done, at_once), (n, learned));
            assert_eq!(sizes, parts, "{n} rows, {fits} fit");
        }
    }

    #[test]
    fn one_row_too_many_and_other_failures_are_told() {
        let refused = in_parts(4, &mut 4, |_| {
            run_out();
            Ok(())
        });
        let said = format!("{:#}", refused.unwrap_err());
        assert!(said.contains("for one image at a time: "), "{said}");
        let mut at_once = 4;
        let refused = in_parts(4, &mut at_once, |_| anyhow::bail!("not finite"));
        assert_eq!(refused.unwrap_err().to_string(), "not finite");
        assert_eq!(at_once, 4);
    }
}
