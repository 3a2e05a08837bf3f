//! Pictures of what a student sees and makes of it.
//!
//! A row per image: the original, what is left of it under the mask, and the reconstruction, where the visible patches are the original's
//! (nothing trains the decoder's prediction there). A student whose pixel target is normalised per patch predicts patches of mean 0 and
//! variance 1: they are shown with the *original* patch's mean and deviation, as MAE's own visualisation does, so brightness and contrast
//! are not the student's.

use std::fs;
use std::io::{Cursor, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use image::{ImageFormat, RgbImage};
use images::rng::{Purpose, Rng};
use images::{ImageSource, draw_view};
use models::mae::{Mae, patchify, unpatchify};
use models::masking::{Masking, len_keep, random_masking};
use models::mr_mae::is_mimic_param;
use models::params::ParamStore;
use program::words::count;
use schemas::{ContentHash, ViewPolicy, atomic};
use tch::{Device, Kind, Tensor};
use tracing::warn;

use crate::cli::ReconstructArgs;
use crate::depth;
use crate::export;
use crate::progress::Progress;
use crate::step::{IMAGENET_MEAN, IMAGENET_STD, Normalise};

mod color;
#[cfg(test)]
mod tests;

/// The folder of pictures in a run.
pub const FOLDER: &str = "pictures";
/// Sheets that stay in a run folder; TensorBoard's file has them all.
const KEPT: usize = 16;
/// Pixels between panels.
const GAP: i64 = 4;
/// Small panels are enlarged by whole numbers to at least this side.
const MIN_SIDE: i64 = 112;
/// What stands for a removed patch.
const REMOVED: f64 = 0.72;

/// Rows of panels, one row an image.
#[derive(Debug)]
pub struct Sheet {
    grid: [i64; 2],
    side: [i64; 2],
    /// Columns, each `[N, 3, H, W]` f32 from 0 to 1, on the CPU.
    columns: Vec<Tensor>,
}

impl Sheet {
    /// Original, masked and reconstructed images: `imgs [N, 3, H, W]`, normalised.
    pub fn of(mae: &Mae, imgs: &Tensor, masking: &Masking) -> Sheet {
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
        Sheet { grid, side: grid.map(|cells| cells * p), columns: columns.map(|t| t.to_device(Device::Cpu)).into() }
    }

    /// A column of the cosines `map [N, K]` at the patches `ids [N, K]`, from dark (0 and below) to bright (1); other patches are gray.
    pub fn add_map(&mut self, map: &Tensor, ids: &Tensor) {
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

    /// All of it as one image.
    pub fn image(&self) -> anyhow::Result<RgbImage> {
        let [height, width] = self.side;
        let zoom = (MIN_SIDE + height.min(width) - 1) / height.min(width);
        let (panel_h, panel_w) = (height * zoom, width * zoom);
        let rows = self.columns.first().map_or(0, |column| column.size()[0]);
        let columns = self.columns.len() as i64;
        let total = [rows * panel_h + (rows - 1).max(0) * GAP, columns * panel_w + (columns - 1).max(0) * GAP];
        let sheet = Tensor::ones([3, total[0], total[1]], (Kind::Float, Device::Cpu));
        for (c, column) in (0..).zip(&self.columns) {
            for row in 0..rows {
                let panel = column.get(row).unsqueeze(0);
                let panel = panel.upsample_nearest2d([panel_h, panel_w], None, None);
                sheet
                    .narrow(1, row * (panel_h + GAP), panel_h)
                    .narrow(2, c * (panel_w + GAP), panel_w)
                    .copy_(&panel.squeeze_dim(0));
            }
        }
        let bytes = (sheet.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
        let bytes = Vec::<u8>::try_from(bytes.permute([1, 2, 0]).contiguous().flatten(0, -1))?;
        let [height, width] = total.map(|side| u32::try_from(side).unwrap_or_default());
        RgbImage::from_raw(width, height, bytes).context("the sheet has three bytes a pixel")
    }

    /// Puts the sheet into the run folder, as of `step`, and into TensorBoard; all but the newest sheets of the folder are removed.
    pub(crate) fn publish(&self, run: &Path, step: u64, progress: &mut Progress) -> anyhow::Result<()> {
        let image = self.image()?;
        let png = png(&image)?;
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).with_context(|| format!("{folder:?}: cannot be created"))?;
        atomic::write(&folder.join(format!("step-{step:08}.png")), &png)?;
        progress.picture("reconstruction", [image.width(), image.height()], &png)?;
        let mut old = sheets(run)?;
        old.truncate(old.len().saturating_sub(KEPT));
        for sheet in old {
            fs::remove_file(&sheet).with_context(|| format!("{sheet:?}: cannot be removed"))?;
        }
        Ok(())
    }
}

/// The sheets of a run, oldest first.
pub fn sheets(run: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = run.join(FOLDER);
    let unreadable = || format!("{folder:?}: cannot be read");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(unreadable),
    };
    let mut sheets = Vec::new();
    for entry in entries {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("step-") && name.ends_with(".png") {
            sheets.push(path.clone());
        }
    }
    sheets.sort();
    Ok(sheets)
}

/// `trainer reconstruct`: some images of a source under random masks.
pub fn reconstruct(args: &ReconstructArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let is_png = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    ensure!(is_png, "--out {:?}: a PNG is written; give a name that ends with .png", args.out);
    let folder = (args.out.parent()).filter(|folder| !folder.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "--out {:?}: there is no such folder; make it first", args.out);
    let device = torch_ext::resolve_device(&args.device)?;
    let student = export::read(&args.model, args.ema)?;
    if student.recipe.loss.w_rec == 0.0 {
        warn!("{}: trained with loss.w_rec = 0, so its prediction of pixels is as it was drawn", student.origin);
    }
    let params = ParamStore::frozen(device);
    let mae = Mae::new(&params.root(), &student.recipe.mae_config())?;
    let mut tensors = student.tensors;
    tensors.retain(|name, _| !is_mimic_param(name));
    params.load(&student.origin, &tensors)?;

    let ratio = args.mask_ratio.unwrap_or(student.recipe.mask.ratio);
    let num_patches = mae.config().num_patches();
    let keep = len_keep(num_patches, ratio);
    ensure!(
        (0.0..1.0).contains(&ratio) && keep >= 1 && keep < num_patches,
        "--mask-ratio {ratio}: must leave a patch of {num_patches} visible and remove one"
    );
    let model = args.model.to_string_lossy();
    let decoder = depth::decoder(args.depth_window, &[&model])?;
    let source = ImageSource::open(&args.images)?.decoded_by(decoder);
    let mut chosen: Vec<u32> = (0..u32::try_from(source.len())?).collect();
    Rng::new(args.seed, Purpose::Select, &[]).shuffle(&mut chosen);
    let size = student.recipe.model.img_size;
    let (mut crops, mut noise, mut skipped) = (Vec::new(), Vec::new(), 0);
    for idx in chosen {
        if crops.len() == args.count as usize {
            break;
        }
        let bytes = source.read(idx as usize)?;
        let Ok(img) = source.decode(idx as usize, &bytes) else {
            skipped += 1;
            continue;
        };
        let hash = ContentHash::of(&bytes);
        let view = draw_view(&ViewPolicy::Center, 0, &hash, 0, img.width, img.height);
        let crop = images::render(&img, &view, size)?;
        let side = i64::from(size);
        crops.push(Tensor::from_slice(&crop.data).reshape([side, side, 3]));
        let mut rng = Rng::new(args.seed, Purpose::Mask, &[idx.into()]);
        let uniform: Vec<f64> = (0..num_patches).map(|_| rng.uniform_f64()).collect();
        noise.push(Tensor::from_slice(&uniform));
    }
    ensure!(!crops.is_empty(), "{}: no image can be decoded ({skipped} were tried)", args.images);
    let imgs = Normalise::imagenet(device).forward(&Tensor::stack(&crops, 0).to_device(device));
    let masking = random_masking(&Tensor::stack(&noise, 0).to_device(device), keep);
    let sheet = Sheet::of(&mae, &imgs, &masking).image()?;
    atomic::write(&args.out, &png(&sheet)?)?;
    writeln!(
        out,
        "{}: {} of {}, {:.0} % of patches removed: original, masked, reconstruction",
        args.out.display(),
        count(crops.len() as u64, "image"),
        student.origin,
        100.0 * ratio
    )?;
    Ok(())
}

/// Normalised images as numbers from 0 to 1.
fn pixels(imgs: &Tensor) -> Tensor {
    let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(imgs.device());
    imgs * constant(IMAGENET_STD) + constant(IMAGENET_MEAN)
}

fn png(image: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}
