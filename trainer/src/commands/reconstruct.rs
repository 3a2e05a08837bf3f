//! Pictures of what a student sees and makes of it.
//!
//! A row per image: the original, what is left of it under the mask, and the reconstruction, where the visible patches are the original's
//! (nothing trains the decoder's prediction there). A student whose pixel target is normalized per patch predicts patches of mean 0 and
//! variance 1: they are shown with the *original* patch's mean and deviation, as MAE's own visualization does, so brightness and contrast
//! are not the student's.

use std::io::Write;
use std::path::Path;

use anyhow::ensure;
use images::rng::{Purpose, Rng};
use images::{ImageSource, draw_view};
use models::mae::Mae;
use models::masking::{len_keep, random_masking};
use models::mr_mae::is_mimic_param;
use models::params::ParamStore;
use program::words::count;
use schemas::{ContentHash, ViewPolicy, atomic};
use tch::Tensor;
use tracing::warn;

use crate::cli::ReconstructArgs;
use crate::data::normalize::Normalize;
use crate::pretrained::depth_window;
use crate::pretrained::student;
use crate::recipe::spec::Spec;
use crate::train::image_grid::{ImageGrid, png};

#[cfg(test)]
mod tests;

/// `trainer reconstruct`: some images of a source under random masks.
pub(crate) fn reconstruct(args: &ReconstructArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let is_png = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    ensure!(is_png, "--out {:?}: a PNG is written; give a name that ends with .png", args.out);
    let folder = (args.out.parent()).filter(|folder| !folder.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "--out {:?}: there is no such folder; make it first", args.out);
    let device = torch_ext::resolve_device(&args.device)?;
    let spec = Spec::parse(&args.model);
    ensure!(
        !spec.unfused,
        "--model {}: the decoder was trained on the sum that multi-layer fusion makes; leave out `unfused:`",
        spec.given
    );
    let student = student::read("--model", &Spec { ema: spec.ema || args.ema, ..spec })?;
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
    let decoder = depth_window::decoder(args.depth_window, &[spec.name])?;
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
    let imgs = Normalize::imagenet(device).forward(&Tensor::stack(&crops, 0).to_device(device));
    let masking = random_masking(&Tensor::stack(&noise, 0).to_device(device), keep);
    let sheet = ImageGrid::of(&mae, &imgs, &masking).image()?;
    atomic::remove_stale(&args.out)?;
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
