//! The cells that a convolution stage computes, and the order they are in.
//!
//! A token of the last stage stands for 2 × 2 cells of the second stage and 4 × 4 of the first. A mask is drawn over tokens, so
//! the cells of a token are all seen or all removed.
//!
//! Visible cells are kept token by token, the tokens in the order of `ids_keep`; those of one token lie row by row, as a small
//! map of its own. Then the cells that a token is projected from, and the four that the second stage merges into one token,
//! already lie side by side, and nothing but the merge of the first stage moves any number.

use tch::{Kind, Tensor};

use super::config::PATCH_SIZE;
use super::conv::{DepthwiseConv, REACH};
use crate::masking::Masking;
use crate::tokens::gather_rows;

/// Side of a first-stage cell in pixels.
pub(super) const CELL: i64 = 4;
/// Cells along a side of a token in the first and the second stage.
pub(super) const SIDES: [i64; 2] = [PATCH_SIZE / CELL, PATCH_SIZE / CELL / 2];

/// Which cells are computed.
#[derive(Debug)]
pub(super) enum Cells {
    /// Those of the visible tokens.
    Visible {
        /// `[N, keep]`, the visible tokens.
        ids_keep: Tensor,
        /// For each of [`SIDES`].
        tiles: [Tiles; 2],
    },
    /// All of them, row by row over the map of the stage.
    Whole { grid: [i64; 2] },
}

impl Cells {
    pub(super) fn visible(masking: &Masking, grid: [i64; 2]) -> Self {
        Self::Visible {
            ids_keep: masking.ids_keep.shallow_clone(),
            tiles: {
                let neighbours = neighbours(masking, grid);
                SIDES.map(|side| Tiles::new(&neighbours, side))
            },
        }
    }

    /// Another handle on the same cells.
    pub(super) fn shallow_clone(&self) -> Self {
        match self {
            Self::Visible { ids_keep, tiles } => {
                Self::Visible { ids_keep: ids_keep.shallow_clone(), tiles: tiles.each_ref().map(Tiles::shallow_clone) }
            }
            Self::Whole { grid } => Self::Whole { grid: *grid },
        }
    }

    /// The pixels of each first-stage cell: `imgs [N, 3, H, W]` → `[N, cells, 48]`, within a cell channel, row, column.
    pub(super) fn pixels(&self, imgs: &Tensor) -> Tensor {
        let (n, c, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
        let numbers = c * CELL * CELL;
        match self {
            Self::Visible { ids_keep, .. } => {
                let (h, w, side) = (height / PATCH_SIZE, width / PATCH_SIZE, SIDES[0]);
                let tokens = imgs
                    .reshape([n, c, h, side, CELL, w, side, CELL])
                    .permute([0, 2, 5, 3, 6, 1, 4, 7])
                    .reshape([n, h * w, side * side * numbers]);
                gather_rows(&tokens, ids_keep).reshape([n, -1, numbers])
            }
            Self::Whole { .. } => {
                let (h, w) = (height / CELL, width / CELL);
                imgs.reshape([n, c, h, CELL, w, CELL]).permute([0, 2, 4, 1, 3, 5]).reshape([n, h * w, numbers])
            }
        }
    }

    /// Joins squares of `merged × merged` cells, row by row and then channel by channel, where `side × side` cells are a token:
    /// `[N, cells, C] → [N, cells / merged², merged²·C]`.
    pub(super) fn merge(&self, x: &Tensor, side: i64, merged: i64) -> Tensor {
        let (n, cells, dim) = x.size3().expect("cells are [N, cells, C]");
        let [h, w] = self.map(side);
        x.reshape([-1, h / merged, merged, w / merged, merged, dim]).permute([0, 1, 3, 2, 4, 5]).reshape([
            n,
            cells / (merged * merged),
            merged * merged * dim,
        ])
    }

    /// The depthwise convolution where `side × side` cells are a token; removed cells count as zero, as those outside of the image
    /// do: `[N, cells, C] → [N, cells, C]`.
    pub(super) fn depthwise(&self, x: &Tensor, side: i64, conv: &DepthwiseConv) -> Tensor {
        let (n, cells, dim) = x.size3().expect("cells are [N, cells, C]");
        let x = &conv.prepare(x);
        let (h, w, padding, map) = match self {
            // A token and what is around it are a small image, in which the convolution without padding gives just the cells of
            // the token. With a quarter of the tokens visible, the first stage reads no more than a map with holes would have,
            // and computes a quarter of it.
            Self::Visible { tiles, .. } => {
                let tiles = tiles.iter().find(|tiles| tiles.side == side);
                let Tiles { rows, places, .. } = tiles.expect("a stage has one of the two sides");
                let tile = side + 2 * REACH;
                let x = x.reshape([n * cells, dim]);
                (tile, tile, 0, torch_ext::gather_rows(&x, rows, places))
            }
            Self::Whole { .. } => {
                let [h, w] = self.map(side);
                (h, w, REACH, x.shallow_clone())
            }
        };
        // With channels last in memory, the depthwise kernels are several times as fast, and nothing has to be transposed.
        let map = map.reshape([-1, h, w, dim]).permute([0, 3, 1, 2]);
        let y = conv.forward(&map, padding).permute([0, 2, 3, 1]);
        y.reshape([n, cells, dim])
    }

    /// The positions of the tokens: `pos_embed [L, D]` → `[N or 1, tokens, D]`.
    pub(super) fn positions(&self, pos_embed: &Tensor) -> Tensor {
        match self {
            Self::Visible { ids_keep, .. } => {
                let (n, keep) = ids_keep.size2().expect("ids_keep is [N, keep]");
                pos_embed.index_select(0, &ids_keep.flatten(0, 1)).reshape([n, keep, -1])
            }
            Self::Whole { .. } => pos_embed.unsqueeze(0),
        }
    }

    /// Rows and columns of cells that lie side by side.
    fn map(&self, side: i64) -> [i64; 2] {
        match self {
            Self::Visible { .. } => [side; 2],
            Self::Whole { grid } => grid.map(|tokens| tokens * side),
        }
    }
}

/// Each visible token and its eight neighbours, row by row, as rows of `[N·keep, ..]`: `[N, keep, 9]`; those that are removed or
/// outside of the image are row `N·keep`.
///
/// Made of operations on the mask's device alone: no number has to come back before the next step can be sent.
fn neighbours(masking: &Masking, [grid_h, grid_w]: [i64; 2]) -> Tensor {
    let (n, keep) = masking.ids_keep.size2().expect("ids_keep is [N, keep]");
    let int = (Kind::Int64, masking.ids_keep.device());
    // For each position its place among the visible tokens, in a frame of positions that are not visible.
    let places = masking.ids_restore.reshape([n, grid_h, grid_w]);
    let places = places.pad([1, 1, 1, 1], "constant", keep as f64);
    // The upper left neighbour of the token in row r and column c is in row r and column c of the frame's grid, two wider.
    let row = masking.ids_keep.floor_divide_scalar(grid_w);
    let upper_left = (&masking.ids_keep + row * 2).unsqueeze(2);
    let step = Tensor::arange(3, int);
    let steps = (step.unsqueeze(1) * (grid_w + 2) + step).flatten(0, 1); // [9]
    let around = (upper_left + steps).flatten(1, 2); // [N, keep·9]
    let places = places.flatten(1, 2).gather(1, &around, false);
    let first_row = (Tensor::arange(n, int) * keep).unsqueeze(1);
    (&places + first_row).masked_fill(&places.ge(keep), n * keep).reshape([n, keep, 9])
}

/// Each visible token and what the depthwise convolution sees around it, as a square of cells.
#[derive(Debug)]
pub(super) struct Tiles {
    /// Cells along a side of a token.
    side: i64,
    /// For each cell of a tile its row among the cells `[N·keep·side², ..]`, or one past the last where it is removed or outside:
    /// `[N·keep·(side + 2·REACH)²]`.
    rows: Tensor,
    /// The other direction: for each cell the places in tiles that show it, as [`torch_ext::gather_rows`] wants them.
    places: Tensor,
}

impl Tiles {
    /// For tokens of `side × side` cells, from [`neighbours`] `[N, keep, 9]`.
    ///
    /// Made of operations on the mask's device alone, as those are.
    fn new(neighbours: &Tensor, side: i64) -> Self {
        // Further away, the neighbours' neighbours would be seen, whom nobody knows.
        const { assert!(REACH <= SIDES[1]) };
        let (n, keep, _) = neighbours.size3().expect("neighbours are [N, keep, 9]");
        let int = (Kind::Int64, neighbours.device());
        let tile = side + 2 * REACH;
        let (cells, places) = (n * keep * side * side, n * keep * tile * tile);

        // Along a side of the tile: in which of the three tokens, and which of its cells.
        let place = Tensor::arange(tile, int) + (side - REACH);
        let token = place.floor_divide_scalar(side);
        let cell = place - &token * side;
        let [token, cell] = [squared(&token, &token, 3), squared(&cell, &cell, side)];
        let rows = neighbours.index_select(2, &token) * (side * side) + cell;
        let rows = rows.clamp_max(cells).flatten(0, 2);

        // Along a side of the token: where a cell lies in the tile of the token itself and in those of its neighbours. The token after it
        // has it before its own cells, so the place falls as the neighbour's number rises.
        let cell = Tensor::arange(side, int);
        let seen_from: Vec<_> = if 2 * REACH <= side {
            // A cell is near one border at most: the token's own tile, and that of the neighbour across the nearer border.
            let own = Tensor::ones([side], int);
            let nearer = cell.ge(side / 2).to_kind(Kind::Int64) * 2;
            vec![own, nearer]
        } else {
            (0..3).map(|token| Tensor::full([side], token, int)).collect()
        };
        let seen_from = seen_from.iter().map(|token| {
            let place: Tensor = &cell + (REACH + side) - token * side;
            let outside = place.lt(0).logical_or(&place.ge(tile));
            // So far out that no sum brings it back.
            (token, place.masked_fill(&outside, places))
        });
        let seen_from: Vec<_> = seen_from.collect();
        let mut slots = Vec::new();
        for (token_row, row) in &seen_from {
            for (token_column, column) in &seen_from {
                let token = squared(token_row, token_column, 3);
                let place = squared(row, column, tile);
                let place = neighbours.index_select(2, &token) * (tile * tile) + place;
                slots.push(place.clamp_max(places).flatten(0, 2));
            }
        }
        Self { side, rows, places: Tensor::stack(&slots, 0) }
    }

    fn shallow_clone(&self) -> Self {
        Self { side: self.side, rows: self.rows.shallow_clone(), places: self.places.shallow_clone() }
    }
}

/// For each row and column of a square their numbers as one: `row · width + column`, row by row.
fn squared(rows: &Tensor, columns: &Tensor, width: i64) -> Tensor {
    (rows.unsqueeze(1) * width + columns).flatten(0, 1)
}
