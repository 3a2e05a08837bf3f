//! Random access to one teacher's rows in a cache.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use schemas::{Cache, Codec, Scalar, TeacherId, TeacherIdentity, TeacherPart, TeacherRow, View};
use tch::Kind;

use super::Problem;
use super::sample::Sample;

/// Random access to the rows of one teacher. A part's file is opened when first used and stays open.
pub(crate) struct TeacherRows {
    cache: Arc<Cache>,
    id: TeacherId,
    /// Patches of an image, L.
    n_tokens: usize,
    /// Where the tokens' bytes end and those of the outlier channels begin.
    split: usize,
    kind: Kind,
    cls_kind: Kind,
    outliers: usize,
    parts: Vec<Mutex<Option<Arc<TeacherPart>>>>,
}

impl fmt::Debug for TeacherRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeacherRows").field("cache", &self.cache.dir()).field("id", &self.id).finish_non_exhaustive()
    }
}

impl TeacherRows {
    /// The rows of a teacher of `cache`.
    pub(crate) fn new(cache: &Arc<Cache>, identity: &TeacherIdentity) -> TeacherRows {
        let parts = cache.identity().parts();
        let (kind, outliers) = match &identity.codec {
            Codec::F32 => (Kind::Float, 0),
            Codec::F16 => (Kind::Half, 0),
            Codec::Bf16 => (Kind::BFloat16, 0),
            Codec::I8(affine) => (Kind::Int8, affine.outliers.len()),
        };
        TeacherRows {
            cache: Arc::clone(cache),
            id: identity.id.clone(),
            n_tokens: identity.n_tokens(),
            split: identity.n_tokens() * identity.width as usize * kind.elt_size_in_bytes(),
            kind,
            cls_kind: match identity.codec.cls() {
                Scalar::F32 => Kind::Float,
                Scalar::F16 => Kind::Half,
                Scalar::Bf16 => Kind::BFloat16,
            },
            outliers,
            parts: (0..parts).map(|_| Mutex::new(None)).collect(),
        }
    }

    /// The tensor type of a stored number: tokens go to the device as they are stored.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The same for the CLS token.
    pub(crate) fn cls_kind(&self) -> Kind {
        self.cls_kind
    }

    /// Channels that codec `i8` keeps apart; 0 for the other codecs.
    pub(crate) fn outliers(&self) -> usize {
        self.outliers
    }

    /// Copies the columns of row `row` of the sample's part into the slots of `wanted`, after checking that the row is intact and belongs to
    /// this sample and view.
    pub(crate) fn read(&self, sample: &Sample, view: &View, row: usize, wanted: Wanted) -> Result<(), Problem> {
        thread_local! {
            /// Reused for every row: its buffers take a third of a megabyte, too much to allocate each time.
            static ROW: RefCell<TeacherRow> = RefCell::default();
        }
        let part = self.part(sample.part)?;
        ROW.with_borrow_mut(|columns| {
            part.read_row_into(row, columns)?;
            part.check_join(row, &columns.key, &sample.row_key(view))?;
            // The reader has checked the lengths against the teacher's identity, from which the batch's sizes are taken too.
            let (tokens, outliers) = columns.tokens.split_at(self.split);
            let columns_of_patches = [(wanted.tokens, tokens, self.kind), (wanted.outliers, outliers, Kind::Half)];
            for (out, column, kind) in columns_of_patches {
                if let Some(out) = out {
                    self.patches(out, column, wanted.patches, wanted.covered, kind);
                }
            }
            if let Some(cls) = wanted.cls {
                cls.copy_from_slice(&columns.cls);
            }
            if let Some(cls_attn) = wanted.cls_attn {
                self.patches(cls_attn, &columns.cls_attn, wanted.attended, wanted.covered, Kind::Half);
            }
            Ok(())
        })
    }

    /// Copies the values of `patches`, or of all, from a column of numbers of `kind` for every patch; or the means of each `covered` of them.
    fn patches(&self, out: &mut [u8], column: &[u8], patches: Option<&[usize]>, covered: usize, kind: Kind) {
        let Some(patches) = patches else {
            return out.copy_from_slice(column);
        };
        let each = column.len() / self.n_tokens;
        let of = |patch: usize| &column[patch * each..(patch + 1) * each];
        // A column of no numbers, as that of outliers may be, has no chunks.
        for (out, patches) in out.chunks_exact_mut(each.max(1)).zip(patches.chunks_exact(covered)) {
            match *patches {
                [patch] => out.copy_from_slice(of(patch)),
                [a, b, c, d] => mean([a, b, c, d].map(of), kind, out),
                _ => unreachable!("a patch of the student is one of the view or covers four"),
            }
        }
    }

    /// Whether the rows come over a network.
    pub(crate) fn is_remote(&self) -> bool {
        storage::is_url(self.cache.dir())
    }

    /// Opens these parts, many at a time, if each takes round trips. What fails is tried again when a row is read, and told then.
    pub(crate) fn open_ahead(&self, parts: &[u32]) {
        if self.is_remote() {
            storage::in_parallel(parts, |&part| drop(self.part(part)), true);
        }
    }

    /// Begins to fetch a row of a part that is open.
    pub(crate) fn prefetch(&self, sample: &Sample, row: usize) {
        let open = self.parts[sample.part as usize].lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(part) = open {
            part.prefetch_row(row);
        }
    }

    fn part(&self, part: u32) -> Result<Arc<TeacherPart>, Problem> {
        // A panic elsewhere leaves the slot as it was, empty or filled.
        let mut slot = self.parts[part as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = slot.as_ref() {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(self.cache.teacher_part(&self.id, part)?);
        Ok(Arc::clone(slot.insert(opened)))
    }
}

/// Where the columns of a row go.
pub(crate) struct Wanted<'a> {
    /// How many of the `patches` and of those `attended` each number that is wanted is the mean of: 1 or 4.
    pub covered: usize,
    /// The patches whose tokens and outliers are wanted, in this order; all if `None`.
    pub patches: Option<&'a [usize]>,
    pub tokens: Option<&'a mut [u8]>,
    pub outliers: Option<&'a mut [u8]>,
    pub cls: Option<&'a mut [u8]>,
    /// The patches whose attention is wanted, in this order; all if `None`.
    pub attended: Option<&'a [usize]>,
    pub cls_attn: Option<&'a mut [u8]>,
}

/// The means of four rows of numbers of `kind`, computed in f32 and rounded to `kind`. The steps of codec `i8` lie at equal distances in each
/// channel, so that the mean of steps, rounded, is the step that is nearest to the mean of values.
fn mean(four: [&[u8]; 4], kind: Kind, out: &mut [u8]) {
    match kind {
        Kind::Float => mean_of(four, out, f32::from_ne_bytes, f32::to_ne_bytes),
        Kind::Half => mean_of(four, out, |b| f16::from_ne_bytes(b).to_f32(), |x| f16::from_f32(x).to_ne_bytes()),
        Kind::BFloat16 => mean_of(four, out, |b| bf16::from_ne_bytes(b).to_f32(), |x| bf16::from_f32(x).to_ne_bytes()),
        Kind::Int8 => {
            mean_of(four, out, |b| i8::from_ne_bytes(b).into(), |x| (x.round_ties_even() as i8).to_ne_bytes())
        }
        other => unreachable!("no codec stores numbers of kind {other:?}"),
    }
}

fn mean_of<const SIZE: usize>(
    four: [&[u8]; 4],
    out: &mut [u8],
    read: impl Fn([u8; SIZE]) -> f32,
    write: impl Fn(f32) -> [u8; SIZE],
) {
    let numbers = four.map(|bytes| bytes.as_chunks::<SIZE>().0);
    for (i, out) in out.as_chunks_mut::<SIZE>().0.iter_mut().enumerate() {
        let [a, b, c, d] = numbers.map(|of| read(of[i]));
        *out = write(((a + b) + (c + d)) / 4.0);
    }
}
