//! stub
use crate::{DecodeError, RgbImage};
/// x
pub const MAX_FILE_BYTES: u64 = 1 << 28;
/// x
pub const MAX_PIXELS: u64 = 178_956_970;
/// Decode.
pub fn decode(_bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    todo!()
}
