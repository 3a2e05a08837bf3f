//! A grid of images that shows what a student sees and reconstructs.
//!
//! There is a row per image: the original, the masked image, and the reconstruction, where the visible patches are the original's
//! (nothing trains the decoder's prediction there). A student whose pixel target is normalized per patch predicts patches of mean 0 and
//! variance 1: they are shown with the *original* patch's mean and std, as MAE's own visualization does, so brightness and contrast
//! are not the student's.

use std::fs;
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Context;
use image::{ImageFormat, RgbImage};
use models::mae::Mae;
use models::masking::Masking;
use models::tokens::{patchify, unpatchify};
use schemas::atomic;
use tch::{Device, Kind, Tensor};

use crate::data::normalize::{IMAGENET_MEAN, IMAGENET_STD};

mod color;
#[cfg(test)]
mod tests;

/// The folder of pictures in a run.
pub(crate) const FOLDER: &str = "pictures";
/// How many pictures stay in a run folder; TensorBoard's files have all of them.
const KEPT: usize = 16;
/// Pixels between panels.
const GAP: i64 = 4;
/// Small panels are enlarged by whole numbers to at least this side.
const MIN_SIDE: i64 = 112;
/// Gray level of a removed patch.
const REMOVED: f64 = 0.72;

/// Rows of panels, one row an image.
#[derive(Debug)]
pub(crate) struct ImageGrid {
    grid: [i64; 2],
    side: [i64; 2],
    /// Columns, each `[N, 3, H, W]` f32 from 0 to 1, on the CPU.
    columns: Vec<Tensor>,
}

impl ImageGrid {
    /// Original, masked and reconstructed images: `imgs [N, 3, H, W]`, normalized.
    pub(crate) fn of(mae: &Mae, imgs: &Tensor, masking: &Masking) -> ImageGrid {
        let _no_grad = tch::no_grad_guard();
        let config = mae.config();
        let (grid, p) = (config.encoder.grid(), config.encoder.patch_size());
        let latent = mae.forward_encoder(imgs, masking);
        let pred = mae.forward_decoder(&latent, &masking.ids_restore).to_kind(Kind::Float); // [N, L, p²·3]
        let target = patchify(imgs, p);
        let pred = if config.norm_pix_loss {
            let mean = target.mean_dim(-1, true, None);
            let var = target.var_dim(-1, true, true);
            pred * (var + 1e-6).sqrt() + mean
        } else {
            pred
        };
        let removed = masking.mask.unsqueeze(-1); // [N, L, 1]
        let reconstruction = &target * (1.0 - &removed) + pred * &removed;
        let removed = unpatchify(&removed.expand_as(&target), p, grid);
        let original = pixels(imgs);
        let masked = &original * (1.0 - &removed) + REMOVED * &removed;
        let columns = [original, masked, pixels(&unpatchify(&reconstruction, p, grid))];
        ImageGrid { grid, side: grid.map(|cells| cells * p), columns: columns.map(|t| t.to_device(Device::Cpu)).into() }
    }

    /// Adds a column of the cosines `map [N, K]` at the patches `ids [N, K]`, from dark (0 and below) to bright (1); other patches are gray.
    pub(crate) fn add_map(&mut self, map: &Tensor, ids: &Tensor) {
        let _no_grad = tch::no_grad_guard();
        let (map, ids) = (map.to_device(Device::Cpu), ids.to_device(Device::Cpu));
        let [grid_h, grid_w] = self.grid;
        let n = map.size()[0];
        let unknown = Tensor::full([n, grid_h * grid_w], f64::NAN, (Kind::Float, Device::Cpu));
        let whole = unknown.scatter(1, &ids, &map.to_kind(Kind::Float));
        let known = whole.isfinite().unsqueeze(1); // [N, 1, L]
        let colors = color::heat(&whole.nan_to_num(0.0, 0.0, 0.0)); // [N, 3, L]
        let gray = colors.full_like(REMOVED);
        let cells = colors.where_self(&known, &gray).reshape([n, 3, grid_h, grid_w]);
        self.columns.push(cells.upsample_nearest2d(self.side, None, None));
    }

    /// The grid as one image.
    pub(crate) fn image(&self) -> anyhow::Result<RgbImage> {
        let [height, width] = self.side;
        let zoom = (MIN_SIDE + height.min(width) - 1) / height.min(width);
        let (panel_h, panel_w) = (height * zoom, width * zoom);
        let rows = self.columns.first().map_or(0, |column| column.size()[0]);
        let columns = self.columns.len() as i64;
        let total = [rows * panel_h + (rows - 1).max(0) * GAP, columns * panel_w + (columns - 1).max(0) * GAP];
        let grid = Tensor::ones([3, total[0], total[1]], (Kind::Float, Device::Cpu));
        for (c, column) in (0..).zip(&self.columns) {
            for row in 0..rows {
                let panel = column.get(row).unsqueeze(0);
                let panel = panel.upsample_nearest2d([panel_h, panel_w], None, None);
                grid.narrow(1, row * (panel_h + GAP), panel_h)
                    .narrow(2, c * (panel_w + GAP), panel_w)
                    .copy_(&panel.squeeze_dim(0));
            }
        }
        let bytes = (grid.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
        let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().flatten(0, -1))?;
        let [height, width] = total.map(|side| u32::try_from(side).unwrap_or_default());
        RgbImage::from_raw(width, height, bytes).context("the grid has three bytes a pixel")
    }
}

/// Writes a grid into a run folder as the picture of `step`, removes all but the newest pictures there, and returns the image and its PNG.
pub(crate) fn publish(grid: &ImageGrid, run: &Path, step: u64) -> anyhow::Result<(RgbImage, Vec<u8>)> {
    let image = grid.image()?;
    let png = png(&image)?;
    let folder = run.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("{folder:?}: cannot be created"))?;
    atomic::write(&folder.join(format!("step-{step:08}.png")), &png)?;
    let mut old = pictures(run)?;
    old.truncate(old.len().saturating_sub(KEPT));
    for picture in old {
        fs::remove_file(&picture).with_context(|| format!("{picture:?}: cannot be removed"))?;
    }
    Ok((image, png))
}

/// The pictures of a run, oldest first.
pub(crate) fn pictures(run: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = run.join(FOLDER);
    let unreadable = || format!("{folder:?}: cannot be read");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(unreadable),
    };
    let mut pictures = Vec::new();
    for entry in entries {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("step-") && name.ends_with(".png") {
            pictures.push(path.clone());
        }
    }
    pictures.sort();
    Ok(pictures)
}

/// Normalized images `[N, 3, H, W]` as pixels from 0 to 1.
fn pixels(imgs: &Tensor) -> Tensor {
    let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(imgs.device());
    imgs * constant(IMAGENET_STD) + constant(IMAGENET_MEAN)
}

/// The bytes of a PNG file.
pub(crate) fn png(image: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}
