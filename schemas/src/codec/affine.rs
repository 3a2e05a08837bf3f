//! `i8`: every channel on a scale of its own, calibrated; channels with heavy tails beside them in f16.
//!
//! The residual stream of a ViT has channels whose few largest values are a hundred times their deviation (CLIP's "massive
//! activations"). Eight bits over such a range would leave nothing for the other values, so the worst of these channels, at most
//! one in 16, keep f16. The others lose a 254th of their calibrated range, whatever their unit.

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FeatureCodec, Scalar, first_word};
use crate::{Error, Result};

/// The parameters of codec `i8`, D channels.
///
/// `n` tokens are stored as `[n, D]` signed bytes `q` and then `[n, O]` f16, O being the number of `outliers`. A value is
/// `q * scale + offset`, two f32 operations, except in the outlier channels, where `q` is 0 and the f16 is the value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Affine {
    /// Step of each channel, above 0.
    pub scale: Vec<f32>,
    /// Value of `q = 0` in each channel.
    pub offset: Vec<f32>,
    /// Channels stored as f16, ascending.
    pub outliers: Vec<u32>,
    /// Images that the ranges were taken from.
    pub images: u64,
}

/// `q` lies in -127..=127: symmetric, so that offsets are the middle of a range.
const LEVELS: f32 = 127.0;

/// The calibrated range is widened by this factor: other images go a little further, and what lies outside is clipped.
const MARGIN: f32 = 1.125;

/// A channel whose range is more than this many standard deviations has heavy tails. A normal one has about 9 over a hundred
/// thousand tokens; at 16 the rounding error (a 254th of the range, over √12) is 2 % of the deviation.
const HEAVY: f64 = 16.0;

/// At most one channel in 16 is kept as f16: that costs 1/8 more bytes.
const MAX_OUTLIER_SHARE: usize = 16;

impl Affine {
    /// Channels.
    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// Bytes of one token.
    fn token_bytes(&self) -> usize {
        self.width() + self.outliers.len() * Scalar::F16.bytes_per_value()
    }

    /// What is wrong with the parameters for tokens of `width` channels, in words.
    pub(crate) fn problem(&self, width: usize) -> Option<String> {
        let ascending = self.outliers.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.outliers.iter().all(|&channel| (channel as usize) < width);
        if self.scale.len() != width || self.offset.len() != width {
            let (scales, offsets) = (self.scale.len(), self.offset.len());
            Some(format!("{scales} scales and {offsets} offsets"))
        } else if !self.scale.iter().all(|s| s.is_finite() && *s > 0.0) {
            Some("a scale that is not above 0".to_string())
        } else if !self.offset.iter().all(|o| o.is_finite()) {
            Some("an offset that is not finite".to_string())
        } else if !ascending || !inside {
            Some("outliers that are not ascending channels".to_string())
        } else {
            None
        }
    }
}

impl FeatureCodec for Affine {
    fn name(&self) -> &'static str {
        "i8"
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn bytes(&self, n: usize, _width: usize) -> usize {
        n * self.token_bytes()
    }

    fn encode(&self, values: &[f32], width: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let before = bytes.len();
        bytes.reserve(self.bytes(values.len() / width, width));
        let inverse: Vec<f32> = self.scale.iter().map(|scale| scale.recip()).collect();
        let mut finite = true;
        for token in values.chunks_exact(width) {
            let channels = token.iter().zip(self.offset.iter().zip(&inverse));
            bytes.extend(channels.map(|(&value, (offset, inverse))| {
                finite &= value.is_finite();
                let q = ((value - offset) * inverse).round_ties_even();
                q.clamp(-LEVELS, LEVELS) as i8 as u8
            }));
        }
        let mut bad = (!finite).then(|| values.iter().position(|value| !value.is_finite()));
        for (n, token) in values.chunks_exact(width).enumerate() {
            for &channel in &self.outliers {
                let channel = channel as usize;
                bytes[before + n * width + channel] = 0;
                let half = f16::from_f32(token[channel]);
                if !half.is_finite() {
                    bad.get_or_insert(Some(n * width + channel));
                }
                bytes.extend(half.to_le_bytes());
            }
        }
        let Some(position) = bad.flatten() else {
            return Ok(());
        };
        bytes.truncate(before);
        Err(Error::Unstorable { codec: self.name(), position, value: values[position] })
    }

    fn decode_into(&self, bytes: &[u8], width: usize, values: &mut [f32]) -> Result<()> {
        let n = values.len() / width.max(1);
        if values.len() != n * width || bytes.len() != self.bytes(n, width) {
            return Err(Error::CodecLength { codec: self.name(), found: bytes.len(), expected: values.len() });
        }
        let (steps, halves) = bytes.split_at(n * width);
        for (token, steps) in values.chunks_exact_mut(width).zip(steps.chunks_exact(width)) {
            let channels = steps.iter().zip(self.scale.iter().zip(&self.offset));
            for (value, (&q, (scale, offset))) in token.iter_mut().zip(channels) {
                // Two roundings and no fused operation: what numpy and a GPU compute, to the bit.
                *value = f32::from(q.cast_signed()) * scale + offset;
            }
        }
        if self.outliers.is_empty() {
            return Ok(());
        }
        let halves = halves.as_chunks::<2>().0.chunks_exact(self.outliers.len());
        for (token, halves) in values.chunks_exact_mut(width).zip(halves) {
            for (&channel, half) in self.outliers.iter().zip(halves) {
                token[channel as usize] = f16::from_le_bytes(*half).to_f32();
            }
        }
        Ok(())
    }

    fn first_bad(&self, bytes: &[u8], width: usize) -> Option<usize> {
        let n = bytes.len() / self.token_bytes();
        let (steps, halves) = bytes.split_at_checked(n * width)?;
        let lowest = first_word(steps, |step: &[u8; 1]| step[0].cast_signed() == i8::MIN);
        lowest.or_else(|| {
            let at = Scalar::F16.first_non_finite(halves)?;
            let (n, outlier) = (at / self.outliers.len(), at % self.outliers.len());
            Some(n * width + self.outliers[outlier] as usize)
        })
    }
}

/// Gathers the ranges of the channels over some images, for [`Affine`].
#[derive(Clone, Debug)]
pub struct Calibrator {
    images: u64,
    tokens: u64,
    min: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f64>,
    sum_sq: Vec<f64>,
}

impl Calibrator {
    /// Starts without images; tokens have `width` channels.
    pub fn new(width: usize) -> Calibrator {
        Calibrator {
            images: 0,
            tokens: 0,
            min: vec![f32::INFINITY; width],
            max: vec![f32::NEG_INFINITY; width],
            sum: vec![0.0; width],
            sum_sq: vec![0.0; width],
        }
    }

    /// Adds the tokens `[L, D]` of one image. The order of images decides the last bits of nothing but the choice of outliers.
    ///
    /// # Errors
    /// [`Error::Unstorable`] for a value that is not finite.
    pub fn add(&mut self, tokens: &[f32]) -> Result<()> {
        let width = self.min.len();
        if let Some(position) = tokens.iter().position(|value| !value.is_finite()) {
            return Err(Error::Unstorable { codec: "i8", position, value: tokens[position] });
        }
        self.images += 1;
        for token in tokens.chunks_exact(width) {
            self.tokens += 1;
            for (c, &value) in token.iter().enumerate() {
                self.min[c] = self.min[c].min(value);
                self.max[c] = self.max[c].max(value);
                self.sum[c] += f64::from(value);
                self.sum_sq[c] += f64::from(value) * f64::from(value);
            }
        }
        Ok(())
    }

    /// Images added so far.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// The parameters; `None` if nothing was added.
    pub fn finish(&self) -> Option<Affine> {
        if self.tokens == 0 {
            return None;
        }
        let width = self.min.len();
        let n = self.tokens as f64;
        let (mut scale, mut offset) = (Vec::new(), Vec::new());
        let mut tails = Vec::new();
        for c in 0..width {
            // Half of each, so that no sum of large values overflows.
            let (middle, half) = (self.min[c] / 2.0 + self.max[c] / 2.0, self.max[c] / 2.0 - self.min[c] / 2.0);
            // A channel that never varied still needs a step, in proportion to its value.
            let least = (middle.abs() * 2f32.powi(-16)).max(f32::MIN_POSITIVE * 2f32.powi(24));
            scale.push((half * MARGIN / LEVELS).max(least));
            offset.push(middle);
            let mean = self.sum[c] / n;
            let std = (self.sum_sq[c] / n - mean * mean).max(0.0).sqrt();
            let deviations = 2.0 * f64::from(half) / std;
            if deviations > HEAVY {
                tails.push((deviations, c as u32));
            }
        }
        tails.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        tails.truncate(width / MAX_OUTLIER_SHARE);
        let mut outliers: Vec<u32> = tails.into_iter().map(|(_, channel)| channel).collect();
        outliers.sort_unstable();
        Some(Affine { scale, offset, outliers, images: self.images })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 3 of 32 has rare values a thousand times the others; channel 5 never varies.
    fn tokens(n: usize) -> Vec<f32> {
        let value = |i: usize| {
            let (token, channel) = (i / 32, i % 32);
            let unit = ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
            match channel {
                3 if token % 997 == 5 => 1000.0 + unit,
                5 => -2.5,
                _ => unit * (1.0 + channel as f32) + channel as f32,
            }
        };
        (0..n * 32).map(value).collect()
    }

    fn calibrated(n: usize) -> Affine {
        let mut calibrator = Calibrator::new(32);
        calibrator.add(&tokens(n)).unwrap();
        calibrator.finish().unwrap()
    }

    #[test]
    fn errors_stay_below_half_a_step_and_heavy_tails_keep_f16() {
        let codec = calibrated(2000);
        assert_eq!(codec.outliers, [3]);
        let values = tokens(2000);
        let mut bytes = Vec::new();
        codec.encode(&values, 32, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 2000 * (32 + 2));
        let mut decoded = vec![0.0; values.len()];
        codec.decode_into(&bytes, 32, &mut decoded).unwrap();
        for (i, (value, decoded)) in values.iter().zip(&decoded).enumerate() {
            let bound = match i % 32 {
                3 => value.abs() / 2000.0 + 1e-7,
                c => codec.scale[c] * 0.5001,
            };
            assert!((value - decoded).abs() <= bound, "{i}: {value} {decoded}");
        }
    }

    #[test]
    fn values_outside_the_range_are_clipped_and_not_wrapped() {
        let codec = calibrated(2000);
        let mut values = tokens(1);
        (values[0], values[1]) = (1e9, -1e9);
        let mut bytes = Vec::new();
        codec.encode(&values, 32, &mut bytes).unwrap();
        assert_eq!((bytes[0].cast_signed(), bytes[1].cast_signed()), (127, -127));
    }

    #[test]
    fn parameters_that_do_not_fit_are_told() {
        let good = calibrated(50);
        assert_eq!(good.problem(32), None);
        assert!(good.problem(31).is_some());
        for change in [
            |codec: &mut Affine| codec.scale[0] = 0.0,
            |codec: &mut Affine| codec.offset[0] = f32::NAN,
            |codec: &mut Affine| codec.outliers = vec![32],
            |codec: &mut Affine| codec.outliers = vec![4, 4],
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.problem(32).is_some());
        }
    }

    #[test]
    fn at_most_one_channel_in_sixteen_is_an_outlier() {
        let mut calibrator = Calibrator::new(32);
        let mut tokens = vec![0.0; 32 * 1000];
        for (c, value) in tokens[..32].iter_mut().enumerate() {
            *value = 1.0 + c as f32;
        }
        calibrator.add(&tokens).unwrap();
        assert_eq!(calibrator.finish().unwrap().outliers.len(), 2);
        assert!(Calibrator::new(32).finish().is_none());
        assert!(calibrator.add(&[f32::NAN; 32]).is_err());
    }

    #[test]
    fn a_byte_that_is_never_written_is_found() {
        let codec = calibrated(2000);
        let mut bytes = Vec::new();
        codec.encode(&tokens(3), 32, &mut bytes).unwrap();
        assert_eq!(codec.first_bad(&bytes, 32), None);
        let mut broken = bytes.clone();
        broken[40] = 0x80;
        assert_eq!(codec.first_bad(&broken, 32), Some(40));
        let last = bytes.len() - 2;
        bytes[last..].copy_from_slice(&[0x00, 0x7c]);
        assert_eq!(codec.first_bad(&bytes, 32), Some(2 * 32 + 3));
    }
}
