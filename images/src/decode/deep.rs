//! Images of more than 8 bits per sample whose values use a fraction of the scale: with the window `high-byte` they are nearly black or
//! flat, and features of different pictures are nearly equal, without any sign of it in the cache.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use schemas::DepthWindow;

use super::{Decoded, Decoder};

/// Counts images of more than 8 bits per sample, and those for which the window is wrong.
#[derive(Debug, Default)]
pub struct DeepImages {
    deep: AtomicU64,
    narrow: AtomicU64,
    was_said: AtomicBool,
}

impl DeepImages {
    /// Counts an image. Warns at the first one for which the window is wrong, naming its `key`, because decoding all images takes hours.
    pub fn count(&self, key: &str, decoded: &Decoded, decoder: &Decoder) {
        let Some((least, greatest)) = decoded.deep else {
            return;
        };
        self.deep.fetch_add(1, Ordering::Relaxed);
        let levels = match levels(decoder.window(), least, greatest) {
            Some(levels) if levels <= FEW_LEVELS => levels,
            _ => return,
        };
        self.narrow.fetch_add(1, Ordering::Relaxed);
        if !self.was_said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "image {key:?} has more than 8 bits per sample and uses only {least} to {greatest} of 0 to 65535: --depth-window {} leaves \
                 {levels} of 256 levels. If it is one of many, stop and choose another window, for example --depth-window {} for all of \
                 such images, or percentile:1,99 for each one's own range",
                decoder.window(),
                example(least, greatest)
            );
        }
    }

    /// Number of images for which the window is wrong, and of images with more than 8 bits per sample.
    pub fn narrow(&self) -> (u64, u64) {
        (self.narrow.load(Ordering::Relaxed), self.deep.load(Ordering::Relaxed))
    }
}

/// A quarter of all levels: a window that leaves no more gives a warning.
const FEW_LEVELS: u32 = 64;

/// Number of levels, up to 256, that `window` leaves between two samples of an image, both included; `None` for blank images and for windows
/// that every image fills.
fn levels(window: DepthWindow, least: u16, greatest: u16) -> Option<u32> {
    let (low, high) = match window {
        DepthWindow::HighByte => (least >> 8, greatest >> 8),
        DepthWindow::Levels(min, max) => {
            let level = |sample: u16| {
                let (above, span) = (sample.clamp(min, max) - min, max - min);
                let (above, span) = (u32::from(above), u32::from(span));
                ((2 * 255 * above + span) / (2 * span)) as u16
            };
            (level(least), level(greatest))
        }
        DepthWindow::FullRange | DepthWindow::Percentile(..) => return None,
    };
    let is_blank = least == greatest && (greatest == 0 || high > 63);
    (!is_blank).then(|| u32::from(high - low) + 1)
}

/// A window for such images: the range of a camera that they may come from, or, where their samples lie far above 0, the range that they
/// use extended by half of it on either side.
fn example(least: u16, greatest: u16) -> DepthWindow {
    let bits = (u16::BITS - greatest.leading_zeros()).clamp(10, 16);
    let of_camera = DepthWindow::Levels(0, ((1u32 << bits) - 1) as u16);
    match levels(of_camera, least, greatest) {
        Some(levels) if levels <= FEW_LEVELS && least < greatest => {
            let margin = (greatest - least).div_ceil(2);
            DepthWindow::Levels(least.saturating_sub(margin), greatest.saturating_add(margin))
        }
        _ => of_camera,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_named_is_that_of_whole_bits_or_the_images_own() {
        let example = |least, greatest| example(least, greatest).to_string();
        assert_eq!(example(0, 4000), "0,4095");
        assert_eq!(example(0, 4096), "0,8191");
        assert_eq!(example(0, 300), "0,1023");
        assert_eq!(example(60_000, 61_000), "59500,61500");
        assert_eq!(example(65_000, 65_535), "64732,65535");
        assert_eq!(example(30_000, 31_200), "29400,31800");
    }

    /// For every image of few levels the suggested window leaves more of them.
    #[test]
    fn the_range_named_leaves_more_levels() {
        for least in (0..=65_535u16).step_by(997) {
            for span in [1, 2, 5, 100, 1000, 16_000] {
                let Some(greatest) = least.checked_add(span) else {
                    continue;
                };
                let found = levels(DepthWindow::HighByte, least, greatest);
                let named = example(least, greatest);
                let better = levels(named, least, greatest).unwrap();
                if let Some(found) = found.filter(|&found| found <= FEW_LEVELS) {
                    assert!(better >= found, "{least} {greatest} {named}");
                    assert!(better > FEW_LEVELS || span < 300, "{least} {greatest} {named}");
                }
            }
        }
    }

    #[test]
    fn a_window_beside_the_samples_is_noticed_and_a_blank_image_is_not() {
        let of = |window: &str, least, greatest| levels(window.parse().unwrap(), least, greatest);
        assert_eq!(of("0,255", 30_000, 30_900), Some(1));
        assert_eq!(of("0,65535", 30_000, 30_900), Some(4));
        assert_eq!(of("30000,30900", 30_000, 30_900), Some(256));
        assert_eq!(of("high-byte", 0, 4095), Some(16));
        assert_eq!(of("full-range", 0, 4095), None);
        assert_eq!(of("percentile:1,99", 0, 4095), None);
        for window in ["high-byte", "0,4095"] {
            assert_eq!(of(window, 0, 0), None);
            assert_eq!(of(window, 65_535, 65_535), None);
        }
    }
}
