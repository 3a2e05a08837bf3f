//! From cached rows and image bytes to batches: how rows and images are joined, in which order samples come, and how they are loaded.

use std::path::PathBuf;

pub(crate) mod batch;
pub(crate) mod classes;
pub(crate) mod decode_ahead;
pub(crate) mod dequantize;
pub(crate) mod images;
pub(crate) mod join;
pub(crate) mod joined;
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
pub(crate) mod window;

/// Problems with the data of a run. The message says where the problem is; [`exit_status`](crate::exit_status) decides which of them end
/// the program with exit status 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Problem {
    /// A file of the cache is damaged or missing; the message is that of `pipeline verify`.
    #[error(transparent)]
    Cache(#[from] schemas::Error),
    /// Some parts of the cache are not built yet.
    #[error(
        "{cache:?}: {missing} of {parts} parts are not complete ({example}). Run {builder} again, or train on what is there with --set \
         data.allow_incomplete=true"
    )]
    Incomplete {
        cache: PathBuf,
        missing: usize,
        parts: u32,
        /// The first incomplete part, and what it lacks.
        example: String,
        /// The command that builds it.
        builder: String,
    },
    /// The cache's crops were made by another decoder or resampler.
    #[error(
        "the cache was built with image code {cached:?}, this program has {ours:?}: the student would not see the pixels \
         that the teacher saw. Use the version that built the cache, or build it again"
    )]
    ImageCode {
        /// Image code and filter of the cache.
        cached: String,
        /// Image code and filter of this program.
        ours: String,
    },
    /// A row's view is not the one that the policy and seed draw, or an image does not have one row per view.
    #[error("{cache:?}: part {part}, row {row} ({key}): the view is not the one that the cache's policy and seed draw")]
    View {
        cache: PathBuf,
        part: u32,
        /// Row within the part.
        row: usize,
        key: String,
    },
    /// The cache holds no images, and no `--images` are given.
    #[error(
        "{cache:?} holds no pixels: give the images it was built from with --images (a cache built with --pack needs none)"
    )]
    NoPixels { cache: PathBuf },
    /// `--images` are given for a cache of re-encoded images, whose features belong to the re-encoded pixels.
    #[error("{cache:?} carries re-encoded images, and its features and crop boxes are of those: leave out --images")]
    PackedPixels { cache: PathBuf },
    /// The recipe asks for more views than the cache has.
    #[error("data.views = {wanted}, but the cache has {stored} per image: leave it out to use them all")]
    TooManyViews { wanted: usize, stored: usize },
    /// Caches that cannot be one data set.
    #[error(
        "{first:?} and {cache:?} differ in {what}: {expected}, and {found}. Caches of one run have the same teachers, views and image code: build the second with the \
         settings of the first; for codec i8, with --reuse of the first"
    )]
    OtherCache {
        cache: PathBuf,
        first: PathBuf,
        /// What differs.
        what: String,
        found: String,
        expected: String,
    },
    /// The teacher's grid of patches differs from the student's.
    #[error(
        "teacher {teacher} has a {teacher_grid}x{teacher_grid} grid, the student a {student_grid}x{student_grid} grid \
         (model.img_size {img_size} / model.patch_size {patch_size}): {}",
        advise_on_grid(*teacher_grid, *student_grid, *shifts)
    )]
    Grid {
        teacher: String,
        /// Patches along one side of the teacher's input.
        teacher_grid: u32,
        /// Patches along one side of the student's input.
        student_grid: u32,
        img_size: u32,
        patch_size: u32,
        /// Whether the recipe has data.random_shift.
        shifts: bool,
    },
    /// Cached images whose content the source does not have, under any name.
    #[error(
        "{count} of the cache's {total} images are not in --images: {}. Point --images at the images the cache was built from, or train on the \
         rest with --set data.missing=skip",
        absent(missing, changed)
    )]
    MissingImages {
        count: usize,
        total: usize,
        /// Images whose name is not there either: how many, and the keys of the first few.
        missing: (usize, Vec<String>),
        /// Images whose name has other content: how many, and the keys of the first few.
        changed: (usize, Vec<String>),
    },
    /// An image's bytes are not those that its features were computed from, and no other image has those bytes.
    #[error(
        "image {key}: its bytes have changed since the cache was built (content hash {found}, part {part} row {row} says \
         {expected}), and no other image of --images has them. Restore the image, train on the rest with --set data.missing=skip, or build \
         the cache again"
    )]
    Changed {
        key: String,
        /// The part that has its row.
        part: u32,
        /// Row within the part.
        row: usize,
        expected: String,
        found: String,
    },
    /// No image can be used.
    #[error("no image can be used{why}")]
    NoImages {
        /// `; ` and the reason, or empty.
        why: String,
    },
    /// An image cannot be read or decoded although it could when the cache was built.
    #[error("image {key} (part {part}, row {row}): {cause}")]
    Image {
        key: String,
        /// The part that has its row.
        part: u32,
        /// Row within the part.
        row: usize,
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What to do about a teacher's grid that is not the one needed.
fn advise_on_grid(teacher_grid: u32, student_grid: u32, shifts: bool) -> String {
    match (teacher_grid > student_grid, shifts) {
        (true, _) => format!(
            "tokens would not line up. Train on {student_grid}x{student_grid} parts of the views, at random offsets, with --set \
             data.random_shift=true, change one of the two grids, or build the cache with --grid {student_grid}"
        ),
        (false, false) => {
            format!("tokens would not line up. Change one of the two, or build the cache with --grid {student_grid}")
        }
        (false, true) => format!(
            "data.random_shift cuts the student's grid out of a larger one. Build the cache with --grid {} or more, make the student smaller, \
             or leave data.random_shift out",
            student_grid + 1
        ),
    }
}

/// Describes absent images: `missing` have neither name nor content in the source, `changed` have a name there with other content.
pub(crate) fn absent(missing: &(usize, Vec<String>), changed: &(usize, Vec<String>)) -> String {
    let describe = |(count, first): &(usize, Vec<String>), how: &str| {
        let more = if *count > first.len() { ", ..." } else { "" };
        (*count > 0).then(|| format!("{count} {how} ({}{more})", first.join(", ")))
    };
    let phrases = [
        describe(missing, "found neither by name nor by content"),
        describe(changed, "whose names have other content, and whose own content is nowhere else"),
    ];
    phrases.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
