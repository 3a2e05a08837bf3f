//! Students in ConvMAE's files, which are no tower that a teacher could be.

use std::path::Path;

use anyhow::ensure;
use models::encoder::{Encoder, EncoderConfig};
use models::interop;
use models::mcmae::McmaeEncoderConfig;
use models::params::ParamStore;
use models::weights::Weights;
use tch::Device;

/// An encoder of ConvMAE's files.
pub(super) struct Student {
    pub encoder: Encoder,
    /// Height and width of its images.
    pub img_size: u32,
    /// Whether the file has the projections of multi-layer fusion.
    pub fused: bool,
}

/// The encoder of a file in ConvMAE's names; `None` if it is another kind of weights.
pub(super) fn of_file(path: &Path, device: Device) -> anyhow::Result<Option<Student>> {
    let weights = Weights::read(path)?;
    let imported = match interop::import(&weights) {
        Ok(imported) if imported.is_convolutional() => imported,
        Ok(_) | Err(models::Error::NoStudent { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let EncoderConfig::Mcmae(config) = imported.encoder_config(weights.path())? else {
        return Ok(None);
    };
    // A file of pretraining has the projections of the first stages, whose sum its last norm was trained on; published encoders have not.
    let projections =
        |name: &str| name.starts_with("stage1_output_decode.") || name.starts_with("stage2_output_decode.");
    let fused = imported.tensors.keys().any(|name| projections(name));
    let config = McmaeEncoderConfig { fusion: fused, ..config };
    let mut tensors = imported.encoder_tensors();
    for (name, tensor) in &imported.tensors {
        if projections(name) {
            tensors.insert(name.clone(), tensor.shallow_clone());
        }
    }
    let [height, width] = config.img_size;
    ensure!(height == width, "{path:?}: is for images of {height} x {width} pixels; only squares are evaluated");
    let params = ParamStore::frozen(device);
    let encoder = Encoder::new(&params.root(), &EncoderConfig::Mcmae(config))?;
    let origin = weights.path().display().to_string();
    interop::load_into(&params, &tensors, &origin)?;
    Ok(Some(Student { encoder, img_size: u32::try_from(height)?, fused }))
}
