//! Bytes to the same RGB pixels everywhere.
//!
//! A teacher's features belong to pixels, not to files: the pipeline shows a crop to the teachers, and weeks later the trainer
//! must show the very same crop to the student. So everything between a stored image and the pixels of a view lives here, and
//! both programs call it:
//!
//! ```text
//! ImageSource ──read──► bytes ──decode──► RgbImage [H, W, 3] ──render(view, size)──► RgbImage [size, size, 3]
//!                         └──ContentHash──► draw_view ──► View { crop, flip } ─┘
//! ```
//!
//! - [`ImageSource`]: class folders, WebDataset tar shards and Hugging Face Parquet, in one fixed order.
//! - [`decode()`]: RGB8 from any supported file, by one color policy; see the table in [`decode`](mod@decode).
//! - [`resample()`]: Pillow's fixed-point resampler, bit for bit.
//! - [`draw_view`] and [`rng`]: random crops that depend only on (seed, content, view index).
//! - [`render()`]: crop, resample, flip. The only way from an image to a network's input.
//! - [`ClassMask`]: class numbers of pixels, from the PNGs of segmentation data sets.
//! - [`augment`]: the other augmentations of fine-tuning, RandAugment and random erasing.
//!
//! [`IMAGE_CODE`] names the version of these computations and is part of a cache's identity.

pub mod augment;
pub mod decode;
mod error;
mod guard;
mod mask;
mod pack;
mod render;
mod resample;
pub mod rng;
pub mod source;
mod view;

pub use decode::{Decoded, Decoder, DeepImages, decode};
pub use error::{CropError, DecodeError, EncodeError, MaskError, SourceError};
pub use mask::ClassMask;
pub use pack::to_jpeg;
pub use render::render;
pub use resample::{Filter, resample};
pub use source::{ImageSource, Placed};
pub use view::{draw_crop, draw_view};

/// The versions of everything that turns bytes into pixels: decoders, color rules, orientation, resampler, and how views are drawn.
///
/// A cache records it, and its images are decoded by the rules that it names: [`Decoder::of_cache`]. A cache with an unknown name
/// is refused, because its features may belong to other pixels. Change it with any change that can alter one byte
/// of [`decode()`], [`resample()`], [`render()`] or one box of [`draw_view`], and keep the old rules under the old name.
/// That includes a new version of a decoder crate; a test compares the versions named here with Cargo.lock.
pub const IMAGE_CODE: &str = "turbojpeg-sys 1.2.0, image 0.25.10 (image-webp 0.2.4, png 0.18.1, gif 0.14.2, tiff 0.11.3, zune-jpeg 0.5.15); \
                              color 2; pillow-resample 1; rrc-philox 1";

/// The code before [`IMAGE_CODE`], whose caches are still read by its own rules.
pub const IMAGE_CODE_COLOR_1: &str = "turbojpeg-sys 1.2.0, image 0.25.10 (image-webp 0.2.4, png 0.18.1, gif 0.14.2, tiff 0.11.3, zune-jpeg 0.5.15); \
                                      colour 1; pillow-resample 1; rrc-philox 1";

/// An image in memory: 8-bit RGB, row-major `[H, W, 3]`, no padding, at least one pixel.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns, `W`.
    pub width: u32,
    /// Rows, `H`.
    pub height: u32,
    /// `H * W * 3` bytes.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage {{ {} x {}, {} bytes }}", self.width, self.height, self.data.len())
    }
}

#[cfg(test)]
mod tests {
    /// A new decoder may give new pixels, so its version is in the caches' identity. This test reminds you to change it after an upgrade.
    #[test]
    fn the_image_code_names_the_versions_in_the_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        for name in ["turbojpeg-sys", "image", "image-webp", "png", "gif", "tiff", "zune-jpeg"] {
            let (_, rest) =
                lock.split_once(&format!("name = \"{name}\"\nversion = \"")).expect("a decoder is in the lock file");
            let (version, _) = rest.split_once('"').expect("a version is quoted");
            assert!(
                super::IMAGE_CODE.contains(&format!("{name} {version}")),
                "{name} is at {version}: change IMAGE_CODE with it"
            );
        }
    }
}
