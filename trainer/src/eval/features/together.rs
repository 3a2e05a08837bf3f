//! Features by many processes: each computes their own batches, and rank 0 gets all.
//!
//! A batch has the images that it has in a process that is alone, so that its features are the same to the bit on equal devices. The batches of
//! one turn are exchanged as soon as they are there: no process waits for another longer than for a batch.

use std::collections::BTreeMap;

use schemas::ContentHash;
use tch::Tensor;

use super::{ByKind, Extraction, Model};
use crate::dist::World;

/// What a batch has of the images that can be used.
#[derive(Debug)]
pub(super) struct Part {
    /// Index and hash of each, `n` of them.
    pub images: Vec<(usize, ContentHash)>,
    /// By view and model, the features of each kind: `[n, D]`. Empty if `n` is 0.
    pub features: Vec<Vec<ByKind>>,
}

/// Which images a process sees: in turn `t`, batch number `t · size + rank`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turns {
    rank: usize,
    size: usize,
    batch_size: usize,
    len: usize,
}

impl Turns {
    /// Those of this process, of `len` images in batches.
    pub(super) fn of(world: &World, batch_size: usize, len: usize) -> Turns {
        Turns { rank: world.rank(), size: world.size(), batch_size, len }
    }

    /// How many there are: the same number for all processes.
    pub(super) fn count(&self) -> usize {
        self.len.div_ceil(self.batch_size).div_ceil(self.size)
    }

    /// Images that are done after this number of turns.
    pub(super) fn done(&self, turns: usize) -> usize {
        self.len.min(turns * self.size * self.batch_size)
    }

    /// The image that is this process's number `i`, of a batch in every turn; the last turn may lack some.
    pub(super) fn image(&self, i: usize) -> Option<usize> {
        let batch = i / self.batch_size * self.size + self.rank;
        let image = batch * self.batch_size + i % self.batch_size;
        (image < self.len).then_some(image)
    }
}

/// How the features of processes are brought together.
pub(super) struct Together<'a> {
    world: &'a World,
    views: usize,
    /// For each model the width of every kind of feature; unknown to a process that is alone, which needs none.
    widths: Vec<BTreeMap<String, i64>>,
}

impl<'a> Together<'a> {
    pub(super) fn new(models: &[Model], extraction: &Extraction, world: &'a World) -> anyhow::Result<Together<'a>> {
        let widths = match world.size() {
            1 => Vec::new(),
            _ => models.iter().map(|model| model.widths(&extraction.kinds)).collect::<anyhow::Result<_>>()?,
        };
        Ok(Together { world, views: usize::from(extraction.views.count), widths })
    }

    /// The parts of a turn in the order of their images, for rank 0, and whether any process wants to stop.
    ///
    /// # Errors
    /// If another process is gone.
    pub(super) fn gather(&self, own: Part, stops: bool) -> anyhow::Result<(Vec<Part>, bool)> {
        if self.world.size() == 1 {
            return Ok((vec![own], stops));
        }
        let n = own.images.len();
        let mut numbers = vec![0.0; self.world.size() + 1];
        numbers[self.world.rank()] = n as f64;
        numbers[self.world.size()] = f64::from(u8::from(stops));
        let numbers = self.world.sum(&numbers)?;
        let (stopping, counts) = numbers.split_last().unwrap_or((&0.0, &[]));
        let counts: Vec<usize> = counts.iter().map(|&count| count as usize).collect();
        let images = self.world.gather_rows(&pack_images(&own.images), &counts)?;
        let features = self.world.gather_rows(&self.pack(&own.features, n as i64), &counts)?;
        let parts = images
            .iter()
            .zip(&features)
            .map(|(images, features)| Ok(Part { images: unpack_images(images)?, features: self.unpack(features) }));
        Ok((parts.collect::<anyhow::Result<_>>()?, *stopping > 0.0))
    }

    /// All features side by side: `[n, W]`.
    fn pack(&self, features: &[Vec<ByKind>], n: i64) -> Tensor {
        let all: Vec<&Tensor> = features.iter().flatten().flat_map(BTreeMap::values).collect();
        match n {
            0 => {
                let width: i64 = self.widths.iter().flat_map(BTreeMap::values).sum();
                Tensor::zeros([0, width * self.views as i64], (tch::Kind::Float, tch::Device::Cpu))
            }
            _ => Tensor::cat(&all, 1),
        }
    }

    fn unpack(&self, packed: &Tensor) -> Vec<Vec<ByKind>> {
        let mut at = 0;
        let mut next = |width: i64| {
            let columns = packed.narrow(1, at, width);
            at += width;
            columns
        };
        let mut of_model = |widths: &BTreeMap<String, i64>| -> ByKind {
            widths.iter().map(|(kind, &width)| (kind.clone(), next(width))).collect()
        };
        (0..self.views).map(|_| self.widths.iter().map(&mut of_model).collect()).collect()
    }
}

/// `[n, 3]` i64: the index and the two halves of the hash.
fn pack_images(images: &[(usize, ContentHash)]) -> Tensor {
    let numbers: Vec<i64> = images
        .iter()
        .flat_map(|(i, hash)| {
            let bits = u128::from_be_bytes(hash.0);
            [*i as i64, (bits >> 64) as i64, bits as i64]
        })
        .collect();
    Tensor::from_slice(&numbers).view([-1, 3])
}

fn unpack_images(packed: &Tensor) -> anyhow::Result<Vec<(usize, ContentHash)>> {
    let numbers = Vec::<i64>::try_from(packed.flatten(0, -1))?;
    let image = |of: &[i64; 3]| {
        let [i, high, low] = *of;
        let bits = u128::from(high as u64) << 64 | u128::from(low as u64);
        (i as usize, ContentHash(bits.to_be_bytes()))
    };
    Ok(numbers.as_chunks::<3>().0.iter().map(image).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 11 images in batches of 2 for 3 processes: two turns, in which each image is seen once, and in order by turn and process.
    #[test]
    fn every_image_is_seen_once_and_in_order() {
        let of = |rank| Turns { rank, size: 3, batch_size: 2, len: 11 };
        let (turns, mut seen) = (of(0).count(), Vec::new());
        for turn in 0..turns {
            for rank in 0..3 {
                assert_eq!(of(rank).count(), turns);
                seen.extend((turn * 2..turn * 2 + 2).filter_map(|i| of(rank).image(i)));
            }
            assert_eq!(of(0).done(turn + 1), seen.len());
        }
        assert_eq!((turns, seen), (2, (0..11).collect()));
        let alone = Turns { rank: 0, size: 1, batch_size: 4, len: 11 };
        assert!((0..alone.count() * 4).filter_map(|i| alone.image(i)).eq(0..11));
    }

    #[test]
    fn an_index_and_a_hash_come_through_whole() {
        let hash = |byte: u8| ContentHash(std::array::from_fn(|i| byte.wrapping_mul(31 + i as u8)));
        let images = vec![(7, hash(255)), (0, hash(1)), (1 << 40, hash(130))];
        assert_eq!(unpack_images(&pack_images(&images)).unwrap(), images);
        assert_eq!(unpack_images(&pack_images(&[])).unwrap(), []);
    }
}
