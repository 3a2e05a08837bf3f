//! Which images of a step a process takes.

use anyhow::ensure;

/// How a batch is cut if it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Into ranges.
    Ranges,
    /// Into ranges with their mirror images, so that image `i` and its partner `N - 1 - i` stay together and in their order.
    Mirrored,
}

/// The part that a process takes of every step: of `accum_iter` batches as many as every other process, whole if there are enough of them, else the same
/// part of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// First batch of a step, and how many.
    first: usize,
    batches: usize,
    /// Which part of each, and of how many.
    part: usize,
    parts: usize,
    batch_size: usize,
    cut: Cut,
}

impl Share {
    /// The share of a process that is alone.
    pub(crate) fn whole(batch_size: usize, accum_iter: usize) -> Share {
        Share { first: 0, batches: accum_iter, part: 0, parts: 1, batch_size, cut: Cut::Ranges }
    }

    /// The share of process `rank` of `world_size`, of steps of `accum_iter` batches of `batch_size` images.
    ///
    /// # Errors
    /// If the images cannot be divided evenly.
    pub(crate) fn of(
        rank: usize,
        world_size: usize,
        batch_size: usize,
        accum_iter: usize,
        cut: Cut,
    ) -> anyhow::Result<Share> {
        let groups = gcd(world_size, accum_iter);
        let (batches, parts) = (accum_iter / groups, world_size / groups);
        let unit = if cut == Cut::Mirrored && parts > 1 { 2 * parts } else { parts };
        ensure!(
            batch_size.is_multiple_of(unit),
            "optim.batch_size {batch_size} x optim.accum_iter {accum_iter} cannot be divided among {world_size} processes: each of the batches \
             would be cut into {parts} parts{}. Take a batch size that is a multiple of {unit}, or a multiple of {world_size} as \
             optim.accum_iter (with a batch size so much smaller)",
            if cut == Cut::Mirrored { " of image pairs" } else { "" }
        );
        Ok(Share { first: rank / parts * batches, batches, part: rank % parts, parts, batch_size, cut })
    }

    /// Batches of a step that this process computes.
    pub(crate) fn batches(&self) -> usize {
        self.batches
    }

    /// The number of its batch `i` within the step.
    pub(crate) fn batch(&self, i: usize) -> usize {
        self.first + i
    }

    /// Images of a whole batch.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Images of each that it takes.
    pub(crate) fn images(&self) -> usize {
        self.batch_size / self.parts
    }

    /// Into how many parts each batch is cut.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// What this process takes of one batch, a list of `batch_size`.
    pub(crate) fn of_batch<T: Copy>(&self, batch: &[T]) -> Vec<T> {
        let images = self.images();
        match self.cut {
            Cut::Mirrored if self.parts > 1 => {
                let (half, end) = (images / 2, batch.len());
                let range = self.part * half..(self.part + 1) * half;
                let mirrored = end - range.end..end - range.start;
                [&batch[range], &batch[mirrored]].concat()
            }
            _ => batch[self.part * images..][..images].to_vec(),
        }
    }
}

impl Share {
    /// The images of all processes, each with its own in the order of its batches, in the order of the step.
    pub(crate) fn merge<T: Copy>(&self, of_ranks: &[Vec<T>]) -> Vec<T> {
        let places: Vec<usize> = (0..self.batch_size).collect();
        let mut placed: Vec<(usize, T)> = Vec::new();
        for (rank, images) in of_ranks.iter().enumerate() {
            let share = Share { first: rank / self.parts * self.batches, part: rank % self.parts, ..*self };
            let own = share.of_batch(&places);
            let of_batch = |i: usize| own.iter().map(move |place| share.batch(i) * share.batch_size + place);
            placed.extend((0..share.batches).flat_map(|i| of_batch(i).collect::<Vec<_>>()).zip(images.iter().copied()));
        }
        placed.sort_unstable_by_key(|&(place, _)| place);
        placed.into_iter().map(|(_, image)| image).collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_the_step() {
        for (world_size, batch_size, accum_iter) in [(1, 6, 2), (2, 8, 1), (2, 8, 3), (4, 8, 2), (4, 2, 8), (6, 12, 4)]
        {
            for cut in [Cut::Ranges, Cut::Mirrored] {
                let step: Vec<usize> = (0..batch_size * accum_iter).collect();
                let (mut seen, mut of_ranks, mut merger) = (Vec::new(), Vec::new(), None);
                for rank in 0..world_size {
                    let share = Share::of(rank, world_size, batch_size, accum_iter, cut).unwrap();
                    assert_eq!(share.batches() * share.images() * world_size, step.len());
                    let mut of_rank = Vec::new();
                    for i in 0..share.batches() {
                        let batch = &step[share.batch(i) * batch_size..][..batch_size];
                        let own = share.of_batch(batch);
                        assert_eq!(own.len(), share.images());
                        if cut == Cut::Mirrored {
                            // The partner of its image i is its image N - 1 - i.
                            let partner = |image: usize| batch[batch_size - 1 - image % batch_size];
                            let partners: Vec<usize> = own.iter().rev().copied().collect();
                            assert!(own.iter().zip(&partners).all(|(&a, &b)| partner(a) == b));
                        }
                        of_rank.extend(own);
                    }
                    seen.extend(of_rank.iter().copied());
                    of_ranks.push(of_rank);
                    merger = Some(share);
                }
                assert_eq!(merger.unwrap().merge(&of_ranks), step);
                seen.sort_unstable();
                assert_eq!(seen, step, "{world_size} processes, {batch_size} x {accum_iter}");
            }
        }
    }

    #[test]
    fn one_process_takes_everything() {
        assert_eq!(Share::of(0, 1, 5, 3, Cut::Ranges).unwrap(), Share::whole(5, 3));
        assert_eq!(Share::whole(5, 3).of_batch(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]);
        assert!(Share::of(0, 1, 5, 3, Cut::Mirrored).is_ok(), "nothing is cut");
    }

    #[test]
    fn what_cannot_be_divided_is_refused_with_the_way_out() {
        let refused = |world_size, batch_size, accum_iter, cut| {
            Share::of(0, world_size, batch_size, accum_iter, cut).unwrap_err().to_string()
        };
        let message = refused(3, 8, 1, Cut::Ranges);
        assert!(message.contains("8 x optim.accum_iter 1") && message.contains("multiple of 3"), "{message}");
        let message = refused(2, 6, 1, Cut::Mirrored);
        assert!(message.contains("2 parts of image pairs") && message.contains("multiple of 4"), "{message}");
        assert!(Share::of(0, 2, 7, 2, Cut::Mirrored).is_ok(), "whole batches need no cut");
    }
}
