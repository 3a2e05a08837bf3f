//! The colour map of heat, and gray.

use std::sync::LazyLock;

use super::canvas::Rgb;

/// Entries of the map.
const STEPS: usize = 256;

static HEAT: LazyLock<[Rgb; STEPS]> = LazyLock::new(|| std::array::from_fn(|i| heat_at(i as f64 / (STEPS - 1) as f64)));

/// The colour of a value in 0..1 (outside it, that of the nearer end): from near black through violet, red and orange to a
/// light yellow. Lightness grows evenly with the value, so that the map can be read in gray and by the colour-blind.
pub(super) fn heat(value: f64) -> Rgb {
    // A NaN becomes 0.
    HEAT[(value.clamp(0.0, 1.0) * (STEPS - 1) as f64).round() as usize]
}

/// A curve through OKLCh (Ottosson 2020, "A perceptual color space for image processing"): lightness 0.16 to 0.96, hue from
/// violet the short way over red to yellow, chroma largest in the middle.
fn heat_at(t: f64) -> Rgb {
    let lightness = 0.16 + 0.80 * t;
    let hue = (290.0 + 175.0 * t.powf(0.85)).to_radians();
    let chroma = 0.05 + 0.15 * (std::f64::consts::PI * t.powf(0.9)).sin().max(0.0);
    oklch(lightness, chroma, hue)
}

/// The sRGB colour of an OKLCh one; of a colour that sRGB lacks, the one of greatest chroma with its lightness and hue.
fn oklch(lightness: f64, chroma: f64, hue: f64) -> Rgb {
    let linear = |chroma: f64| oklab_to_linear(lightness, chroma * hue.cos(), chroma * hue.sin());
    let shown = |rgb: &[f64; 3]| rgb.iter().all(|v| (0.0..=1.0).contains(v));
    let (mut low, mut high) = (0.0, chroma);
    if shown(&linear(high)) {
        low = high;
    }
    for _ in 0..30 {
        let middle = (low + high) / 2.0;
        if shown(&linear(middle)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    linear(low).map(encode)
}

/// Ottosson's matrices.
fn oklab_to_linear(l: f64, a: f64, b: f64) -> [f64; 3] {
    let l_ = (l + 0.3963377774 * a + 0.2158037573 * b).powi(3);
    let m_ = (l - 0.1055613458 * a - 0.0638541728 * b).powi(3);
    let s_ = (l - 0.0894841775 * a - 1.2914855480 * b).powi(3);
    [
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    ]
}

/// The transfer function of sRGB (IEC 61966-2-1).
fn encode(linear: f64) -> u8 {
    let v = if linear <= 0.0031308 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
    (v.clamp(0.0, 1.0) * 255.0).round() as u8
}

/// Luma of a colour (ITU-R BT.601), 0..255.
pub(super) fn luma([r, g, b]: Rgb) -> f64 {
    0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)
}

/// `share` of the second colour in the first.
pub(super) fn mix(first: Rgb, second: Rgb, share: f64) -> Rgb {
    std::array::from_fn(|i| {
        let (a, b) = (f64::from(first[i]), f64::from(second[i]));
        (a + (b - a) * share).round().clamp(0.0, 255.0) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_brightens_with_every_step() {
        let lumas: Vec<f64> = (0..STEPS).map(|i| luma(heat(i as f64 / (STEPS - 1) as f64))).collect();
        assert!(lumas.windows(2).all(|pair| pair[0] <= pair[1] + 0.6));
        assert!(lumas[0] < 25.0 && lumas[STEPS - 1] > 225.0, "{lumas:?}");
        for i in (0..STEPS - 16).step_by(16) {
            assert!(lumas[i] + 4.0 < lumas[i + 16], "{i}: {lumas:?}");
        }
        assert_eq!(heat(-3.0), heat(0.0));
        assert_eq!(heat(7.0), heat(1.0));
        assert_eq!(heat(f64::NAN), heat(0.0));
    }

    /// White, black and the primaries, whose OKLCh coordinates Ottosson's article gives through its definition.
    #[test]
    fn oklch_meets_known_colours() {
        assert_eq!(oklch(1.0, 0.0, 0.0), [255; 3]);
        assert_eq!(oklch(0.0, 0.0, 0.0), [0; 3]);
        // Red is L 0.62796, C 0.25768, h 29.234 degrees.
        let [r, g, b] = oklch(0.62796, 0.2576, 29.234_f64.to_radians());
        assert!(r >= 254 && g <= 6 && b <= 6, "{r} {g} {b}");
    }
}
