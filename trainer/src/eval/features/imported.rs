//! Students in the formats of other packages.

use std::path::Path;

use anyhow::ensure;
use models::encoder::{Encoder, EncoderConfig};
use models::interop::{self, Imported};
use models::mcmae::McmaeEncoderConfig;
use models::params::ParamStore;
use tch::Device;

/// The encoder of a student in another package's format.
pub(super) struct Student {
    pub encoder: Encoder,
    /// Height and width of its images.
    pub img_size: u32,
    /// Whether the file has the projections of multi-layer fusion.
    pub fused: bool,
}

/// Builds the encoder of the student that was imported from `path`.
pub(super) fn student(imported: &Imported, path: &Path, device: Device) -> anyhow::Result<Student> {
    let mut tensors = imported.encoder_tensors();
    let mut fused = false;
    let config = match imported.encoder_config(path)? {
        EncoderConfig::Mcmae(config) => {
            // A file of pretraining has the projections of the first stages, and its last norm was trained on their sum; published encoders
            // do not have them.
            for (name, tensor) in imported.tensors.iter().filter(|(name, _)| is_projection(name)) {
                tensors.insert(name.clone(), tensor.shallow_clone());
                fused = true;
            }
            EncoderConfig::Mcmae(McmaeEncoderConfig { fusion: fused, ..config })
        }
        config => config,
    };
    let [height, width] = config.img_size();
    ensure!(height == width, "{path:?}: is for images of {height} x {width} pixels; only squares are evaluated");
    let params = ParamStore::frozen(device);
    let encoder = Encoder::new(&params.root(), &config)?;
    interop::load_into(&params, &tensors, &path.display().to_string())?;
    Ok(Student { encoder, img_size: u32::try_from(height)?, fused })
}

/// Whether a tensor belongs to the projections that ConvMAE's multi-layer fusion adds up.
fn is_projection(name: &str) -> bool {
    name.starts_with("stage1_output_decode.") || name.starts_with("stage2_output_decode.")
}
