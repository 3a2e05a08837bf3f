//! stub
use schemas::CropBox;
use crate::{CropError, RgbImage};

/// A resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle
    Bilinear,
    /// Cubic
    Bicubic,
    /// Lanczos
    Lanczos,
}

impl Filter {
    /// `bilinear`, `bicubic` or `lanczos`.
    pub const fn name(self) -> &'static str {
        match self {
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
            Filter::Lanczos => "lanczos",
        }
    }
}

/// Resample.
pub fn resample(_img: &RgbImage, _crop: CropBox, _out_w: u32, _out_h: u32, _filter: Filter) -> Result<RgbImage, CropError> {
    todo!()
}
