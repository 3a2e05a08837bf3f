//! Classes of patches, and a bounded sample of training patches.

use anyhow::ensure;
use images::ClassMask;
use images::rng::{Purpose, Rng};
use schemas::ContentHash;
use tch::Tensor;

use super::set::IGNORED;

/// The class that most pixels of each patch have, of `grid` x `grid` patches row by row; the lowest number among equals. Pixels without a
/// class do not count; [`IGNORED`] for a patch without others.
///
/// `mask` is a square. A pixel belongs to the patch in which its center lies, so patches differ by a pixel where `grid` does not divide
/// the side, and are empty where it is larger.
pub(crate) fn classes_of_patches(mask: &ClassMask, grid: usize) -> Vec<u16> {
    let side = mask.width as usize;
    let patch = |at: usize| (2 * at + 1) * grid / (2 * side);
    let mut pixels: Vec<Vec<u16>> = vec![Vec::new(); grid * grid];
    for (y, row) in mask.data.chunks_exact(side).enumerate() {
        for (x, &class) in row.iter().enumerate().filter(|&(_, &class)| class != IGNORED) {
            pixels[patch(y) * grid + patch(x)].push(class);
        }
    }
    pixels.into_iter().map(most_frequent).collect()
}

fn most_frequent(mut classes: Vec<u16>) -> u16 {
    classes.sort_unstable();
    let mut best = (0, IGNORED);
    for run in classes.chunk_by(|a, b| a == b) {
        if run.len() > best.0 {
            best = (run.len(), run[0]);
        }
    }
    best.1
}

/// Patches that are kept beyond the limit before the surplus is dropped, in addition to a quarter of it.
const ROOM: usize = 16;

/// A patch of the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Drawn {
    /// Random, a function of seed, the image's content and the patch's place.
    key: u64,
    image: usize,
    patch: usize,
    class: u16,
    hash: ContentHash,
}

/// The patches with the smallest keys: at most a fixed number, without regard to how they come in batches.
#[derive(Debug)]
pub(crate) struct PatchSample {
    limit: usize,
    seed: u64,
    /// Each with its place among the rows of `features`.
    drawn: Vec<Drawn>,
    /// Features of `drawn`, in parts of some rows.
    features: Vec<Tensor>,
    /// The first patch that was left out: those behind it do not get in either.
    bound: Option<Drawn>,
    /// Labeled patches that were offered.
    offered: u64,
}

/// The patches that a classifier is made of.
#[derive(Debug)]
pub(crate) struct TrainPatches {
    /// `[N, D]` f32 on the CPU.
    pub features: Tensor,
    /// `N` classes by their numbers.
    pub classes: Vec<u16>,
    /// The content of each one's image.
    pub hashes: Vec<ContentHash>,
    /// How many there were to choose from.
    pub offered: u64,
}

impl PatchSample {
    pub(crate) fn new(limit: usize, seed: u64) -> PatchSample {
        PatchSample { limit, seed, drawn: Vec::new(), features: Vec::new(), bound: None, offered: 0 }
    }

    /// Offers an image's patches, `features [L, D]` and a class for each; those without a class are left out.
    pub(crate) fn offer(
        &mut self,
        image: usize,
        hash: ContentHash,
        features: &Tensor,
        classes: &[u16],
    ) -> anyhow::Result<()> {
        let content = u128::from_le_bytes(hash.0);
        let content = [content as u64, (content >> 64) as u64];
        let mut rows = Vec::new();
        for (patch, &class) in classes.iter().enumerate().filter(|&(_, &class)| class != IGNORED) {
            let key = Rng::new(self.seed, Purpose::Select, &[content[0], content[1], patch as u64]).next_u64();
            let drawn = Drawn { key, image, patch, class, hash };
            self.offered += 1;
            if self.bound.is_none_or(|bound| drawn < bound) {
                self.drawn.push(drawn);
                rows.push(patch as i64);
            }
        }
        if !rows.is_empty() {
            self.features.push(features.index_select(0, &Tensor::from_slice(&rows)));
        }
        // Seldom, since features are copied.
        if self.drawn.len() > self.limit + self.limit / 4 + ROOM {
            self.drop_surplus()?;
        }
        Ok(())
    }

    /// Leaves the `limit` patches with the smallest keys, in the order in which they came.
    fn drop_surplus(&mut self) -> anyhow::Result<()> {
        let mut kept: Vec<usize> = (0..self.drawn.len()).collect();
        if kept.len() > self.limit {
            kept.select_nth_unstable_by_key(self.limit, |&at| self.drawn[at]);
            self.bound = Some(self.drawn[kept[self.limit]]);
            kept.truncate(self.limit);
            kept.sort_unstable();
        }
        let rows: Vec<i64> = kept.iter().map(|&at| at as i64).collect();
        let whole = Tensor::cat(&self.features, 0);
        self.features = vec![whole.index_select(0, &Tensor::from_slice(&rows))];
        self.drawn = kept.into_iter().map(|at| self.drawn[at]).collect();
        Ok(())
    }

    /// The sample, image by image.
    ///
    /// # Errors
    /// If no patch has a class.
    pub(crate) fn finish(mut self) -> anyhow::Result<TrainPatches> {
        ensure!(
            !self.drawn.is_empty(),
            "no patch of --train has a class: all pixels of its masks, as far as they are seen, have an ignored label"
        );
        self.drop_surplus()?;
        Ok(TrainPatches {
            features: self.features.remove(0),
            classes: self.drawn.iter().map(|drawn| drawn.class).collect(),
            hashes: self.drawn.iter().map(|drawn| drawn.hash).collect(),
            offered: self.offered,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_has_the_class_of_most_of_its_pixels() {
        let mask = |side: u32, data: &[u16]| ClassMask { width: side, height: side, data: data.to_vec() };
        const NO: u16 = IGNORED;
        let four = mask(4, &[1, 1, 2, 3, 1, 5, 3, 2, NO, NO, 7, NO, NO, NO, NO, NO]);
        assert_eq!(classes_of_patches(&four, 2), [1, 2, NO, 7]);
        // A side of 3 in 2 patches: the centers of the middle row and column lie on the border and belong to the second.
        let three = mask(3, &[1, 2, 2, 3, 4, 4, 3, 4, 4]);
        assert_eq!(classes_of_patches(&three, 2), [1, 2, 3, 4]);
        // More patches than pixels: the pixel's class is in one of them.
        assert_eq!(classes_of_patches(&mask(1, &[6]), 3), [NO, NO, NO, NO, 6, NO, NO, NO, NO]);
    }

    fn offered(limit: usize, order: &[usize]) -> TrainPatches {
        let mut sample = PatchSample::new(limit, 3);
        for (place, &image) in order.iter().enumerate() {
            let features: Vec<f32> = (0..4).map(|patch| (10 * image + patch) as f32).collect();
            let classes = [1, IGNORED, 2, image as u16];
            let hash = ContentHash([image as u8; 16]);
            sample.offer(place, hash, &Tensor::from_slice(&features).view([4, 1]), &classes).unwrap();
        }
        sample.finish().unwrap()
    }

    /// The sample depends on what the images are, not on their order or on when surplus is dropped.
    #[test]
    fn a_sample_is_drawn_by_content() {
        let all: Vec<usize> = (0..60).collect();
        let reversed: Vec<usize> = (0..60).rev().collect();
        let values = |sample: &TrainPatches| {
            let features = Vec::<f32>::try_from(sample.features.flatten(0, -1)).unwrap();
            let rows = features.into_iter().zip(sample.classes.iter().copied());
            let mut rows: Vec<(i64, u16)> = rows.map(|(value, class)| (value as i64, class)).collect();
            rows.sort_unstable();
            rows
        };
        let whole = offered(1000, &all);
        assert_eq!((whole.classes.len(), whole.offered), (180, 180));
        let some = offered(25, &all);
        assert_eq!((some.classes.len(), some.offered), (25, 180));
        assert_eq!(values(&some), values(&offered(25, &reversed)));
        for (value, class) in values(&some) {
            let (image, patch) = (value / 10, value % 10);
            assert_eq!(class, [1, IGNORED, 2, image as u16][patch as usize]);
        }
        // Patches of many images: a sample of the first ones alone would hold 9 images.
        let images: std::collections::BTreeSet<i64> = values(&some).iter().map(|(value, _)| value / 10).collect();
        assert!(images.len() > 14, "{images:?}");
        // A smaller sample is part of a larger one.
        let small = values(&offered(10, &all));
        assert!(small.iter().all(|row| values(&some).contains(row)));
    }

    #[test]
    fn without_a_class_there_is_no_sample() {
        let mut sample = PatchSample::new(5, 0);
        sample.offer(0, ContentHash([0; 16]), &Tensor::from_slice(&[1f32]).view([1, 1]), &[IGNORED]).unwrap();
        assert!(sample.finish().unwrap_err().to_string().contains("no patch of --train"));
    }
}
