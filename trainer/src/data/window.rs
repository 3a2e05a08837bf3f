//! The part of a view that the student sees: all of it, or with `data.random_shift` a smaller square at a random offset.

use images::rng::{Purpose, Rng};

/// A square of whole patches within the square grid of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Patches along one side of the view.
    view_grid: usize,
    /// Patches along one side of the window.
    grid: usize,
    /// Column and row of its first patch.
    at: [usize; 2],
}

impl Window {
    /// The window of `grid` by `grid` patches that a sample has in an epoch, within a view of `view_grid` by `view_grid`. Column and row of its
    /// first patch are independent and uniform in `0..=view_grid - grid`, a function of seed, epoch and sample alone.
    ///
    /// # Panics
    /// If the view is smaller than the window.
    pub(crate) fn draw(seed: u64, epoch: u64, sample_id: u64, view_grid: u32, grid: u32) -> Window {
        let room = u64::from(view_grid.checked_sub(grid).expect("smaller grids are refused when teachers are opened"));
        let at = match room {
            0 => [0, 0],
            room => {
                let mut rng = Rng::new(seed, Purpose::Shift, &[epoch, sample_id]);
                [0; 2].map(|_: usize| rng.range(room + 1) as usize)
            }
        };
        Window { view_grid: view_grid as usize, grid: grid as usize, at }
    }

    /// The positions of its patches in the view, row by row; `None` if it is the whole view, whose patches are in this order already.
    pub(crate) fn patches(&self) -> Option<Vec<usize>> {
        let [column, row] = self.at;
        let rows = row..row + self.grid;
        let patches =
            rows.flat_map(|row| (column..column + self.grid).map(move |column| row * self.view_grid + column));
        (self.grid < self.view_grid).then(|| patches.collect())
    }

    /// Copies its pixels from those of the view, both `[H, W, 3]` with patches of `patch_size` pixels.
    pub(crate) fn cut(&self, view: &[u8], patch_size: u32, out: &mut [u8]) {
        let bytes = |patches: usize| patches * patch_size as usize * 3;
        let first_line = self.at[1] * patch_size as usize;
        let lines = view.chunks_exact(bytes(self.view_grid)).skip(first_line);
        let columns = bytes(self.at[0])..bytes(self.at[0] + self.grid);
        for (out, line) in out.chunks_exact_mut(bytes(self.grid)).zip(lines) {
            out.copy_from_slice(&line[columns.clone()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Every offset of 0..=2 by 0..=2 comes up about equally often: 9,000 draws of 9 offsets have a standard deviation of 30 around 1,000.
    #[test]
    fn offsets_are_uniform() {
        let mut counts: BTreeMap<[usize; 2], u32> = BTreeMap::new();
        for epoch in 0..9 {
            for sample in 0..1000 {
                *counts.entry(Window::draw(5, epoch, sample, 6, 4).at).or_default() += 1;
            }
        }
        let offsets: Vec<[usize; 2]> = (0..3).flat_map(|column| (0..3).map(move |row| [column, row])).collect();
        assert!(counts.keys().eq(&offsets), "{counts:?}");
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_draw_depends_on_seed_epoch_and_sample() {
        let draw = |seed, epoch, sample| Window::draw(seed, epoch, sample, 1_000_014, 14).at;
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)] {
            assert_ne!(draw(1, 2, 3), other);
        }
    }

    /// Pixels that name their place: what is cut for each patch is the patch at its position in the view.
    #[test]
    fn pixels_and_patches_are_the_same_part() {
        let (view_grid, grid, patch) = (5, 3, 2);
        let width = view_grid * patch;
        let view: Vec<u8> = (0..width * width).flat_map(|i| [(i / width) as u8, (i % width) as u8, 7]).collect();
        let window = Window { view_grid, grid, at: [2, 1] };
        let mut out = vec![0; (grid * patch) * (grid * patch) * 3];
        window.cut(&view, patch as u32, &mut out);
        let patches = window.patches().unwrap();
        assert_eq!(patches, [7, 8, 9, 12, 13, 14, 17, 18, 19]);
        for (i, pixel) in out.chunks_exact(3).enumerate() {
            let (y, x) = (i / (grid * patch), i % (grid * patch));
            let position = patches[y / patch * grid + x / patch];
            let expected = [position / view_grid * patch + y % patch, position % view_grid * patch + x % patch, 7];
            assert_eq!(pixel.iter().map(|&value| usize::from(value)).collect::<Vec<_>>(), expected);
        }
        assert_eq!(Window { view_grid: 3, grid: 3, at: [0, 0] }.patches(), None);
    }
}
