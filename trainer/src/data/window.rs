//! What the student sees of a view: all of it, with `data.random_shift` a smaller square at a random offset, or with `data.half_resolution` all of
//! it at half the resolution.

use images::rng::{Purpose, Rng};

/// A square of whole patches within the square grid of a view, at the view's resolution or at half of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Patches along one side of the view.
    view_grid: usize,
    /// Patches of the student along one side of the window.
    grid: usize,
    /// Column and row of its first patch.
    at: [usize; 2],
    /// Patches of the view along one side of a patch of the student: 1, or 2 at half the resolution.
    covers: usize,
}

impl Window {
    /// The window of `grid` by `grid` patches that a sample has in an epoch, within a view of `view_grid` by `view_grid`: with probability `half`
    /// the whole view at half the resolution, and else a part of it. Column and row of the part's first patch are independent and uniform in
    /// `0..=view_grid - grid`. All are functions of seed, epoch and sample alone.
    ///
    /// # Panics
    /// If the view is smaller than the window, or `half` is above 0 and the view not twice as large.
    pub(crate) fn draw(seed: u64, epoch: u64, sample_id: u64, view_grid: u32, grid: u32, half: f64) -> Window {
        let room = u64::from(view_grid.checked_sub(grid).expect("smaller grids are refused when teachers are opened"));
        assert!(half == 0.0 || view_grid == 2 * grid, "other grids are refused when teachers are opened");
        let (view_grid, grid) = (view_grid as usize, grid as usize);
        if room == 0 {
            return Window { view_grid, grid, at: [0, 0], covers: 1 };
        }
        let mut rng = Rng::new(seed, Purpose::Shift, &[epoch, sample_id]);
        let at = [0; 2].map(|_: usize| rng.range(room + 1) as usize);
        match half > 0.0 && rng.uniform_f64() < half {
            true => Window { view_grid, grid, at: [0, 0], covers: 2 },
            false => Window { view_grid, grid, at, covers: 1 },
        }
    }

    /// How many patches of the view each patch of the window is the mean of: 1 or 4.
    pub(crate) fn covered(&self) -> usize {
        self.covers.pow(2)
    }

    /// The positions in the view of the [`covered`](Window::covered) patches of its first patch, of its second, and so on, row by row; `None` if
    /// it is the whole view, whose patches are in this order already.
    pub(crate) fn patches(&self) -> Option<Vec<usize>> {
        if self.grid == self.view_grid {
            return None;
        }
        let Window { view_grid, grid, at: [column, row], covers } = *self;
        let square = |width: usize| (0..width).flat_map(move |y| (0..width).map(move |x| (y, x)));
        let covered =
            |(y, x)| square(covers).map(move |(dy, dx)| (row + covers * y + dy) * view_grid + column + covers * x + dx);
        Some(square(grid).flat_map(covered).collect())
    }

    /// Its pixels from those of the view, both `[H, W, 3]` with patches of `patch_size` pixels: copies, or at half the resolution the means of
    /// 2 x 2 pixels, rounded to the nearest and from a half up.
    pub(crate) fn cut(&self, view: &[u8], patch_size: u32, out: &mut [u8]) {
        let bytes = |patches: usize| patches * patch_size as usize * 3;
        if self.covers == 2 {
            let line = bytes(self.view_grid);
            for (out, lines) in out.chunks_exact_mut(line / 2).zip(view.chunks_exact(2 * line)) {
                let (upper, lower) = lines.split_at(line);
                let squares = upper.chunks_exact(6).zip(lower.chunks_exact(6));
                for (out, (upper, lower)) in out.chunks_exact_mut(3).zip(squares) {
                    for (channel, out) in out.iter_mut().enumerate() {
                        let four = [upper[channel], upper[channel + 3], lower[channel], lower[channel + 3]];
                        *out = ((four.map(u16::from).iter().sum::<u16>() + 2) / 4) as u8;
                    }
                }
            }
            return;
        }
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
                *counts.entry(Window::draw(5, epoch, sample, 6, 4, 0.0).at).or_default() += 1;
            }
        }
        let offsets: Vec<[usize; 2]> = (0..3).flat_map(|column| (0..3).map(move |row| [column, row])).collect();
        assert!(counts.keys().eq(&offsets), "{counts:?}");
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_draw_depends_on_seed_epoch_and_sample() {
        let draw = |seed, epoch, sample| Window::draw(seed, epoch, sample, 1_000_014, 14, 0.0).at;
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
        let window = Window { view_grid, grid, at: [2, 1], covers: 1 };
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
        assert_eq!(Window { view_grid: 3, grid: 3, at: [0, 0], covers: 1 }.patches(), None);
    }

    /// As often as asked for, and the other samples have the parts that they have without.
    #[test]
    fn half_the_resolution_is_drawn_beside_the_part() {
        let draw = |sample, half| Window::draw(5, 2, sample, 8, 4, half);
        let halved = (0..10_000).filter(|&sample| match draw(sample, 0.25) {
            Window { covers: 2, at, .. } => at == [0, 0],
            part => {
                assert_eq!(part, draw(sample, 0.0));
                false
            }
        });
        // A standard deviation of 43 around 2,500.
        let halved = halved.count();
        assert!((2300..2700).contains(&halved), "{halved}");
        assert!((0..100).all(|sample| draw(sample, 1.0).covers == 2));
    }

    /// Against libtorch's average pooling, of pixels and of the patches' own numbers.
    #[test]
    fn half_the_resolution_is_the_mean_of_two_by_two() {
        use tch::{Kind, Tensor};

        let (grid, patch) = (3, 2);
        let width = 2 * grid * patch;
        let window = Window { view_grid: 2 * grid, grid, at: [0, 0], covers: 2 };
        let view: Vec<u8> = (0..width * width * 3).map(|i| (i * i * 31 % 251) as u8).collect();
        let mut out = vec![0; view.len() / 4];
        window.cut(&view, patch as u32, &mut out);
        let pooled =
            |x: Tensor| x.permute([2, 0, 1]).avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None).permute([1, 2, 0]);
        let square =
            |x: &[u8], width: usize| Tensor::from_slice(x).view([width as i64, width as i64, 3]).to_kind(Kind::Float);
        let expected = (pooled(square(&view, width)) + 0.5).floor();
        assert_eq!(square(&out, width / 2), expected);

        let patches: Vec<i64> = window.patches().unwrap().into_iter().map(|patch| patch as i64).collect();
        let mean = Tensor::from_slice(&patches).view([-1, window.covered() as i64]).mean_dim(1, false, Kind::Float);
        let numbers = Tensor::arange(4 * (grid * grid) as i64, (Kind::Float, tch::Device::Cpu)).view([6, 6, 1]);
        assert_eq!(mean, pooled(numbers).flatten(0, 2));
    }
}
