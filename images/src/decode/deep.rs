//! Images of more than 8 bits per sample whose values use a fraction of the scale: with the window `high-byte` they are nearly black or
//! flat, and features of different pictures are nearly equal, without any sign of it in the cache.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Decoded, Decoder};

/// Counts images of more than 8 bits per sample, and those of them that the window does not suit.
#[derive(Debug, Default)]
pub struct DeepImages {
    deep: AtomicU64,
    narrow: AtomicU64,
    was_said: AtomicBool,
}

impl DeepImages {
    /// Counts an image. The first that the window does not suit is told at once, by its `key`: what decodes images takes hours.
    pub fn count(&self, key: &str, decoded: &Decoded, decoder: &Decoder) {
        let Some((least, greatest)) = decoded.deep else {
            return;
        };
        self.deep.fetch_add(1, Ordering::Relaxed);
        if !decoder.window().is_high_byte() || !decoded.uses_a_fraction() {
            return;
        }
        self.narrow.fetch_add(1, Ordering::Relaxed);
        if !self.was_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "image {key:?} has more than 8 bits per sample and uses only {least} to {greatest} of 0 to 65535: --depth-window high-byte \
                 leaves {} of 256 levels. If it is one of many, stop and choose another window, for example --depth-window {} for all of \
                 such images, or percentile:1,99 for each one's own range",
                (greatest >> 8) - (least >> 8) + 1,
                example(greatest)
            );
        }
    }

    /// How many images the window does not suit, of how many with more than 8 bits per sample.
    pub fn narrow(&self) -> (u64, u64) {
        (
            self.narrow.load(Ordering::Relaxed),
            self.deep.load(Ordering::Relaxed),
        )
    }
}

/// The range of the camera that such an image may come from.
fn example(greatest: u16) -> String {
    let bits = (u16::BITS - greatest.leading_zeros()).clamp(10, 16);
    format!("0,{}", (1u32 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_named_is_that_of_whole_bits() {
        assert_eq!(example(4000), "0,4095");
        assert_eq!(example(4096), "0,8191");
        assert_eq!(example(3), "0,1023");
        assert_eq!(example(65535), "0,65535");
    }
}
