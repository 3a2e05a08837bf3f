//! From cached rows and image bytes to batches: what is joined, in which order, and how it is loaded.

use std::path::PathBuf;

pub(crate) mod batch;
pub(crate) mod classes;
pub(crate) mod decode_ahead;
pub(crate) mod dequantize;
pub(crate) mod images;
pub(crate) mod join;
pub(crate) mod labeled;
pub(crate) mod loader;
pub(crate) mod masking;
pub(crate) mod mimic;
pub(crate) mod mixup;
pub(crate) mod normalize;
pub(crate) mod pixel_cache;
pub(crate) mod rejects;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod sampler;
pub(crate) mod teachers;

/// What can be wrong with the data a run is given. The program ends with exit code 1 on these: the data has a problem, and the
/// message says where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Problem {
    /// A file of the cache is damaged or missing; the same words as `pipeline verify`.
    #[error(transparent)]
    Cache(#[from] schemas::Error),
    /// Parts of the cache are not there yet.
    #[error(
        "{cache:?}: {missing} of {parts} parts are not complete ({example}). Run the same pipeline build-cache (or add-teacher) again, or train \
         on what is there with --set data.allow_incomplete=true"
    )]
    Incomplete {
        cache: PathBuf,
        missing: usize,
        parts: u32,
        /// The first of them, and what it lacks.
        example: String,
    },
    /// The cache's crops were made by another decoder or resampler.
    #[error(
        "the cache was built with image code {cached:?}, this program has {ours:?}: the student would see other pixels than the \
         teacher did. Use the version that built the cache, or build it again"
    )]
    ImageCode {
        /// What the cache says: its image code and filter.
        cached: String,
        /// What this program would do.
        ours: String,
    },
    /// A row's view is not the one its policy and seed draw, or its rows are not one per view.
    #[error("{cache:?}: part {part}, row {row} ({key}): the view is not the one that the cache's policy and seed draw")]
    View {
        cache: PathBuf,
        part: u32,
        /// The row in it.
        row: usize,
        key: String,
    },
    /// There are no pixels to show the student.
    #[error(
        "{cache:?} holds no pixels: give the images it was built from with --images (a cache built with --pack needs none)"
    )]
    NoPixels { cache: PathBuf },
    /// Other pixels were given than the features are of.
    #[error("{cache:?} carries re-encoded images, and its features and crop boxes are of those: leave out --images")]
    PackedPixels { cache: PathBuf },
    /// A run wants more views than there are.
    #[error("data.views = {wanted}, but the cache has {stored} per image: leave it out to use them all")]
    TooManyViews { wanted: usize, stored: usize },
    /// The teacher's patches are not the student's.
    #[error(
        "teacher {teacher} has a {teacher_grid}x{teacher_grid} grid, the student a {student_grid}x{student_grid} grid \
         (model.img_size {img_size} / model.patch_size {patch_size}): tokens would not line up. Change one of the two, or build \
         the cache with --grid {student_grid}"
    )]
    Grid {
        teacher: String,
        /// Patches along a side of its input.
        teacher_grid: u32,
        /// Patches along a side of the student's.
        student_grid: u32,
        img_size: u32,
        patch_size: u32,
    },
    /// Cached images whose content the source does not have, under any name.
    #[error(
        "{count} of the cache's {of} images are not in --images: {}. Point --images at the images the cache was built from, or train on the \
         rest with --set data.missing=skip",
        absent(missing, changed)
    )]
    MissingImages {
        count: usize,
        of: usize,
        /// Those whose name is not there either: how many, and the keys of the first few.
        missing: (usize, Vec<String>),
        /// Those with other content under their name: the same.
        changed: (usize, Vec<String>),
    },
    /// An image's bytes are not those its features were made from, and no other image's are.
    #[error(
        "image {key}: its bytes have changed since the cache was built (content hash {found}, part {part} row {row} says \
         {expected}), and no other image of --images has them. Restore the image, train on the rest with --set data.missing=skip, or build \
         the cache again"
    )]
    Changed {
        key: String,
        /// Where its row is.
        part: u32,
        /// Where its row is.
        row: usize,
        expected: String,
        found: String,
    },
    /// There is nothing to look at.
    #[error("no image can be used{why}")]
    NoImages {
        /// `; ` and the reason, or nothing.
        why: String,
    },
    /// An image cannot be read or decoded although it could when the cache was built.
    #[error("image {key} (part {part}, row {row}): {cause}")]
    Image {
        key: String,
        /// Where its row is.
        part: u32,
        /// Where its row is.
        row: usize,
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What is said of images that are not there: by name and content, or by content alone.
/// Which images are absent, in words.
pub(crate) fn absent(missing: &(usize, Vec<String>), changed: &(usize, Vec<String>)) -> String {
    let said = |(count, first): &(usize, Vec<String>), how: &str| {
        let more = if *count > first.len() { ", ..." } else { "" };
        (*count > 0).then(|| format!("{count} {how} ({}{more})", first.join(", ")))
    };
    let said = [
        said(missing, "neither by name nor by content"),
        said(changed, "with other content under their names, and theirs nowhere else"),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
