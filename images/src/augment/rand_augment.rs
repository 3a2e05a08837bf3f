//! RandAugment (Cubuk et al. 2019) in timm's variant whose operations grow stronger with the magnitude.

use super::affine::{Interpolation, affine, rotate};
use super::color;
use crate::RgbImage;
use crate::rng::Rng;

/// The largest magnitude; levels are tenths of it.
const MAX_MAGNITUDE: f64 = 10.0;

/// The most operations that a policy may ask for in one image.
const MAX_LAYERS: u32 = 100;

/// A policy that is malformed or not supported.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("RandAugment policy `{policy}`: {detail}; a supported one is `rand-m9-mstd0.5-inc1`")]
pub struct PolicyError {
    policy: String,
    detail: String,
}

/// An operation without its strength, by timm's names.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    PosterizeIncreasing,
    SolarizeIncreasing,
    SolarizeAdd,
    ColorIncreasing,
    ContrastIncreasing,
    BrightnessIncreasing,
    SharpnessIncreasing,
    ShearX,
    ShearY,
    TranslateXRel,
    TranslateYRel,
}

impl OpKind {
    /// All, in timm's order (`_RAND_INCREASING_TRANSFORMS`).
    pub const ALL: [Self; 15] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::PosterizeIncreasing,
        Self::SolarizeIncreasing,
        Self::SolarizeAdd,
        Self::ColorIncreasing,
        Self::ContrastIncreasing,
        Self::BrightnessIncreasing,
        Self::SharpnessIncreasing,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateXRel,
        Self::TranslateYRel,
    ];

    /// The operation at a magnitude, which is clamped to [0, 10]. `negate` reverses the direction of operations that have one: rotation,
    /// shear, translation, and the four enhancements.
    pub fn at(self, magnitude: f64, negate: bool) -> Op {
        let level = magnitude.clamp(0.0, MAX_MAGNITUDE) / MAX_MAGNITUDE;
        let signed = |x: f64| if negate { -x } else { x };
        let factor = (1.0 + signed(level * 0.9)).max(0.1);
        match self {
            Self::AutoContrast => Op::AutoContrast,
            Self::Equalize => Op::Equalize,
            Self::Invert => Op::Invert,
            Self::Rotate => Op::Rotate(signed(level * 30.0)),
            Self::PosterizeIncreasing => Op::Posterize(4 - (level * 4.0) as u8),
            Self::SolarizeIncreasing => Op::Solarize(256 - (level * 256.0) as u16),
            Self::SolarizeAdd => Op::SolarizeAdd((level * 110.0) as u8),
            Self::ColorIncreasing => Op::Color(factor),
            Self::ContrastIncreasing => Op::Contrast(factor),
            Self::BrightnessIncreasing => Op::Brightness(factor),
            Self::SharpnessIncreasing => Op::Sharpness(factor),
            Self::ShearX => Op::ShearX(signed(level * 0.3)),
            Self::ShearY => Op::ShearY(signed(level * 0.3)),
            Self::TranslateXRel => Op::TranslateX(signed(level * 0.45)),
            Self::TranslateYRel => Op::TranslateY(signed(level * 0.45)),
        }
    }
}

/// An operation with its strength: everything about it that is random.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Stretches each channel to all levels.
    AutoContrast,
    /// Flattens each channel's histogram.
    Equalize,
    /// Every level from 255.
    Invert,
    /// Degrees counter-clockwise.
    Rotate(f64),
    /// Number of high bits that are kept; 8 and more keep all. Magnitude 10 keeps none and gives a black image, where timm on Pillow 13
    /// raises an error.
    Posterize(u8),
    /// Levels from here on are inverted; 256 inverts none.
    Solarize(u16),
    /// What is added to levels below 128.
    SolarizeAdd(u8),
    /// 0 gray, 1 unchanged, 2 twice as colorful.
    Color(f64),
    /// 0 flat, 1 unchanged.
    Contrast(f64),
    /// 0 black, 1 unchanged.
    Brightness(f64),
    /// 0 smoothed, 1 unchanged, 2 sharpened.
    Sharpness(f64),
    /// Pixels to the left per row.
    ShearX(f64),
    /// Pixels up per column.
    ShearY(f64),
    /// To the left, as a share of the width.
    TranslateX(f64),
    /// Up, as a share of the height.
    TranslateY(f64),
}

impl Op {
    /// The image after this operation, of the same size. Operations that move pixels use `interpolation` between pixels and the color `fill`
    /// for pixels from outside.
    pub fn apply(&self, img: &RgbImage, interpolation: Interpolation, fill: [u8; 3]) -> RgbImage {
        let moved = |matrix| affine(img, matrix, interpolation, fill);
        match *self {
            Op::AutoContrast => color::auto_contrast(img),
            Op::Equalize => color::equalize(img),
            Op::Invert => color::map(img, |level| 255 - level),
            Op::Rotate(degrees) => rotate(img, degrees, interpolation, fill),
            Op::Posterize(bits) => {
                let mask = (0xFF00_u16 >> bits.min(8)) as u8;
                color::map(img, |level| level & mask)
            }
            Op::Solarize(from) => color::map(img, |level| if u16::from(level) < from { level } else { 255 - level }),
            Op::SolarizeAdd(add) => {
                color::map(img, |level| if level < 128 { level.saturating_add(add) } else { level })
            }
            Op::Color(factor) => color::color(img, factor),
            Op::Contrast(factor) => color::contrast(img, factor),
            Op::Brightness(factor) => color::brightness(img, factor),
            Op::Sharpness(factor) => color::sharpness(img, factor),
            Op::ShearX(factor) => moved([1.0, factor, 0.0, 0.0, 1.0, 0.0]),
            Op::ShearY(factor) => moved([1.0, 0.0, 0.0, factor, 1.0, 0.0]),
            Op::TranslateX(share) => moved([1.0, 0.0, share * f64::from(img.width), 0.0, 1.0, 0.0]),
            Op::TranslateY(share) => moved([1.0, 0.0, 0.0, 0.0, 1.0, share * f64::from(img.height)]),
        }
    }
}

/// A policy: the number of operations, their probability and their strength.
#[derive(Clone, Debug, PartialEq)]
pub struct RandAugment {
    magnitude: f64,
    magnitude_std: f64,
    layers: u32,
    prob: f64,
    interpolation: Interpolation,
    fill: [u8; 3],
}

impl RandAugment {
    /// A policy in timm's notation: `rand`, then in any order `m` (magnitude, a whole number up to 10; 10 if missing), `n` (operations,
    /// 2), `p` (probability of each, 0.5), `mstd` (standard deviation of the magnitude, 0; up to 100) and `inc1`, which is required:
    /// timm's older operations, some of which weaken as the magnitude grows, are not here. Nor are `mmax` and `t…`.
    ///
    /// `mean` is the mean color in [0, 1], the fill color.
    pub fn parse(policy: &str, mean: [f64; 3], interpolation: Interpolation) -> Result<Self, PolicyError> {
        let error = |detail: String| PolicyError { policy: policy.to_owned(), detail };
        let mut sections = policy.split('-');
        if sections.next() != Some("rand") {
            return Err(error("only policies that start with `rand` are supported".into()));
        }
        let mut out = Self {
            magnitude: MAX_MAGNITUDE,
            magnitude_std: 0.0,
            layers: 2,
            prob: 0.5,
            interpolation,
            // Python's round, which timm uses, rounds halves to even.
            fill: mean.map(|x| (255.0 * x).round_ties_even() as u8),
        };
        let mut increasing = false;
        let mut seen = Vec::new();
        for section in sections {
            let digit = section.find(|c: char| c.is_ascii_digit());
            let (key, value) = section.split_at(digit.unwrap_or(section.len()));
            if seen.contains(&key) {
                return Err(error(format!("`{key}` is given twice")));
            }
            seen.push(key);
            let within = |low: f64, high: f64| match value.parse::<f64>() {
                Ok(x) if (low..=high).contains(&x) => Ok(x),
                _ => Err(error(format!("`{section}`: {key} is a number from {low} to {high}"))),
            };
            let whole = |low: u32, high: u32| match value.parse::<u32>() {
                Ok(x) if (low..=high).contains(&x) => Ok(x),
                _ => Err(error(format!("`{section}`: {key} is a whole number from {low} to {high}"))),
            };
            match key {
                "m" => out.magnitude = f64::from(whole(0, MAX_MAGNITUDE as u32)?),
                "n" => out.layers = whole(1, MAX_LAYERS)?,
                "p" => out.prob = within(0.0, 1.0)?,
                "mstd" => out.magnitude_std = within(0.0, 100.0)?,
                "inc" => increasing = whole(0, 1)? == 1,
                _ => return Err(error(format!("section `{section}` is not supported"))),
            }
        }
        if !increasing {
            return Err(error(
                "only operations that grow stronger with the magnitude are supported; add `inc1`".into(),
            ));
        }
        Ok(out)
    }

    /// The operations on one image, in order. They are chosen with replacement, as in timm; each has a magnitude drawn from a normal
    /// distribution around the policy's and clamped to [0, 10], and either direction with equal probability.
    pub fn draw(&self, rng: &mut Rng) -> Vec<Op> {
        (0..self.layers)
            .filter_map(|_| {
                // Everything is drawn even if it is unused, so that one operation does not shift the numbers of the next.
                let kind = OpKind::ALL[rng.range(OpKind::ALL.len() as u64) as usize];
                let used = rng.uniform_f64() < self.prob;
                let [normal, _] = rng.normal_pair();
                let negate = rng.uniform_f64() < 0.5;
                let magnitude = self.magnitude + self.magnitude_std * normal;
                used.then(|| kind.at(magnitude, negate))
            })
            .collect()
    }

    /// The image after all operations.
    pub fn apply(&self, img: &RgbImage, ops: &[Op]) -> RgbImage {
        ops.iter().fold(img.clone(), |img, op| op.apply(&img, self.interpolation, self.fill))
    }
}

#[cfg(test)]
mod tests;
