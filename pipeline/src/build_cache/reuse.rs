//! Features that another cache has already: of the same network, for the same crop of the same image.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem};

use anyhow::{Context, bail, ensure};
use program::words::count;
use schemas::{
    Cache, CacheIdentity, ContentHash, EncodedRow, Pack, RowFeatures, SampleRow, TeacherId, TeacherIdentity,
    TeacherPart, View,
};
use serde::Serialize;

/// A cache whose features a build takes over.
pub(crate) struct Reuse {
    cache: Cache,
    /// Part and row of every crop that it has.
    rows: HashMap<Crop, (u32, u32)>,
    /// The images of these rows, with width and height.
    contents: HashMap<ContentHash, [u32; 2]>,
    /// Its parts, opened when a row of them is wanted.
    parts: Mutex<OpenParts>,
    taken: AtomicU64,
    of_other_images: AtomicU64,
    of_other_crops: AtomicU64,
    of_other_teachers: AtomicU64,
}

/// Rows of features, over all teachers, that had to be computed although a cache was given to take them over from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct NotReused {
    /// The cache has no image of these bytes.
    pub other_image: u64,
    /// It has the image, and another crop of it: another seed, policy or fewer views.
    pub other_crop: u64,
    /// It has the crop, and not the features of this teacher, with these weights and settings.
    pub other_teacher: u64,
}

impl NotReused {
    /// Why rows were computed, as phrases.
    pub(crate) fn reasons(self) -> Vec<String> {
        let reason = |rows: u64, why: &str| (rows > 0).then(|| format!("{} {why}", count(rows, "row")));
        let all = [
            reason(self.other_image, "of images that it does not have, by content"),
            reason(self.other_crop, "of other crops of its images (another seed, view policy or more views)"),
            reason(self.other_teacher, "of teachers that it does not have with these weights and settings"),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Parts of teachers; `None` where the cache does not have them, or has them of another network.
type OpenParts = HashMap<(TeacherId, u32), Option<Arc<TeacherPart>>>;

/// What decides a row's features, beside the network: the image and the crop of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Crop {
    content_hash: ContentHash,
    /// `x, y, w, h`
    crop: [u32; 4],
    flip: bool,
}

impl Crop {
    fn of(row: &SampleRow) -> Crop {
        let View { crop, flip, .. } = row.view;
        Crop { content_hash: row.content_hash, crop: [crop.x, crop.y, crop.w, crop.h], flip }
    }
}

impl fmt::Debug for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reuse {{ {}, {} rows }}", self.cache.dir().display(), self.rows.len())
    }
}

impl Reuse {
    /// Opens the cache in `folder` for a build with this identity and these teachers, and refuses one that has nothing for it.
    pub(crate) fn open(
        folder: &Path,
        identity: &CacheIdentity,
        teachers: &[&TeacherIdentity],
    ) -> anyhow::Result<Reuse> {
        let cache = Cache::open(folder).with_context(|| format!("cache.reuse = {:?}", folder.display()))?;
        let there = cache.identity();
        let refused = |why: String| format!("{}: nothing of it can be reused: {why}", folder.display());
        ensure!(
            (&there.image_code, there.depth_window, &there.views.filter, pixels(there.pack))
                == (&identity.image_code, identity.depth_window, &identity.views.filter, pixels(identity.pack)),
            refused("its images were decoded or packed otherwise, so that its teachers saw other pixels".to_owned())
        );
        let same = |teacher: &&&TeacherIdentity| {
            cache.teachers().get(&teacher.id).is_some_and(|there| there.fingerprint() == teacher.fingerprint())
        };
        if !teachers.iter().any(|teacher| same(&teacher)) {
            // The first difference says most.
            for teacher in teachers {
                if let Some(there) = cache.teachers().get(&teacher.id) {
                    there
                        .check_same(&schemas::layout::teacher_json(folder, &teacher.id), teacher)
                        .with_context(|| refused(format!("its teacher {} is another", teacher.id)))?;
                }
            }
            let names: Vec<_> = cache.teachers().keys().map(TeacherId::as_str).collect();
            bail!(refused(format!("it has none of the teachers asked for, but {}", names.join(", "))));
        }
        let (mut rows, mut contents) = (HashMap::new(), HashMap::new());
        for part in 0..there.parts() {
            if cache.part_state(part)?.samples.is_some() {
                for (i, row) in cache.samples(part)?.iter().enumerate() {
                    rows.entry(Crop::of(row)).or_insert((part, u32::try_from(i)?));
                    contents.insert(row.content_hash, [row.width, row.height]);
                }
            }
        }
        tracing::info!("{}: the features of {} may be reused", folder.display(), count(rows.len() as u64, "row"));
        let none = || AtomicU64::new(0);
        Ok(Reuse {
            cache,
            rows,
            contents,
            parts: Mutex::default(),
            taken: none(),
            of_other_images: none(),
            of_other_crops: none(),
            of_other_teachers: none(),
        })
    }

    /// The features that a teacher had for this row's crop, as a row of the new cache; `None` if the cache does not have them.
    ///
    /// # Errors
    /// A damaged row.
    pub(crate) fn row(&self, teacher: &TeacherIdentity, row: &SampleRow) -> anyhow::Result<Option<EncodedRow>> {
        let Some(&(part, at)) = self.rows.get(&Crop::of(row)) else {
            let lacks = match self.contents.contains_key(&row.content_hash) {
                true => &self.of_other_crops,
                false => &self.of_other_images,
            };
            lacks.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        };
        let Some(part) = self.part(teacher, part)? else {
            self.of_other_teachers.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        };
        let there = part.read_row(at as usize)?;
        let (known, wanted) = (there.key.content_hash, row.content_hash);
        ensure!(known == wanted, "{}: row {at} is of image {known} and not of {wanted}", part.path().display());
        let features = RowFeatures { tokens: &there.tokens[..], cls: &there.cls, cls_attn: &there.cls_attn };
        self.taken.fetch_add(1, Ordering::Relaxed);
        // What the codec had lost is known of whole parts alone.
        Ok(Some(EncodedRow::from_stored(teacher, row.row_key(), features, None)?))
    }

    /// Width and height of an image, if the cache has it.
    pub(crate) fn size(&self, image: &ContentHash) -> Option<[u32; 2]> {
        self.contents.get(image).copied()
    }

    /// Whether the features of every teacher can be taken over for these rows.
    ///
    /// # Errors
    /// A damaged part.
    pub(crate) fn has_all(&self, teachers: &[&TeacherIdentity], rows: &[SampleRow]) -> anyhow::Result<bool> {
        for row in rows {
            let Some(&(part, _)) = self.rows.get(&Crop::of(row)) else { return Ok(false) };
            for teacher in teachers {
                if self.part(teacher, part)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Rows taken over so far, over all teachers.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Rows that were not taken over so far.
    pub(crate) fn not_taken(&self) -> NotReused {
        NotReused {
            other_image: self.of_other_images.load(Ordering::Relaxed),
            other_crop: self.of_other_crops.load(Ordering::Relaxed),
            other_teacher: self.of_other_teachers.load(Ordering::Relaxed),
        }
    }

    /// Says that a forecast is one without this cache: which rows it has shows when the images are read.
    pub(crate) fn not_in_forecast(&self) -> String {
        format!(
            "the time above is that of a build without --reuse; how many of the {} of {} fit shows when the images are read",
            count(self.rows.len() as u64, "row"),
            self.cache.dir().display()
        )
    }

    /// A part of a teacher; `None` if the cache does not have it, or has it of another network.
    fn part(&self, teacher: &TeacherIdentity, part: u32) -> anyhow::Result<Option<Arc<TeacherPart>>> {
        // A panic elsewhere leaves the map as it was.
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (teacher.id.clone(), part);
        if let Some(open) = parts.get(&key) {
            return Ok(open.clone());
        }
        let there = self.cache.teachers().get(&teacher.id);
        let same = there.is_some_and(|there| there.fingerprint() == teacher.fingerprint());
        let opened = match same && self.cache.part_state(part)?.teachers.contains_key(&teacher.id) {
            true => Some(Arc::new(self.cache.teacher_part(&teacher.id, part)?)),
            false => None,
        };
        /// Files that are open at once: a process may often open only 1024.
        const MAX_OPEN: usize = 128;
        if parts.len() >= MAX_OPEN {
            drop(mem::take(&mut *parts));
        }
        parts.insert(key, opened.clone());
        Ok(opened)
    }
}

/// What packing does to the pixels that teachers see: the bytes of the image files are the image files.
fn pixels(pack: Pack) -> Pack {
    match pack {
        Pack::None | Pack::Original => Pack::None,
        jpeg @ Pack::Jpeg { .. } => jpeg,
    }
}
