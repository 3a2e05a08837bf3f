//! What a lossy codec loses, measured on the features themselves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Differences between the tokens that teachers gave and the tokens as stored, summed; kept in the commit record of every part
/// of a lossy codec. Sums add up over parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CodecError {
    /// Tokens compared.
    pub tokens: u64,
    /// Per channel, the sum of the squares of the given values.
    pub sq: Vec<f64>,
    /// Per channel, the sum of the squares of the differences.
    pub sq_error: Vec<f64>,
    /// Sum over tokens of the cosine between the given and the stored token; a token of zeros counts as 1 if it is stored as zeros.
    pub cos_sum: f64,
    /// The smallest of these cosines; 1 if there are none.
    pub cos_min: f64,
}

impl CodecError {
    /// Compares the tokens `[n, D]` of one row.
    pub fn measure(given: &[f32], stored: &[f32], width: usize) -> CodecError {
        let mut error =
            CodecError { tokens: 0, sq: vec![0.0; width], sq_error: vec![0.0; width], cos_sum: 0.0, cos_min: 1.0 };
        for (given, stored) in given.chunks_exact(width).zip(stored.chunks_exact(width)) {
            let (mut dot, mut norm_given, mut norm_stored) = (0.0, 0.0, 0.0);
            for (c, (&a, &b)) in given.iter().zip(stored).enumerate() {
                let (a, b) = (f64::from(a), f64::from(b));
                error.sq[c] += a * a;
                error.sq_error[c] += (a - b) * (a - b);
                dot += a * b;
                norm_given += a * a;
                norm_stored += b * b;
            }
            let norms = (norm_given * norm_stored).sqrt();
            let cos = if norms > 0.0 { dot / norms } else { f64::from(u8::from(norm_given == norm_stored)) };
            error.tokens += 1;
            error.cos_sum += cos;
            error.cos_min = error.cos_min.min(cos);
        }
        error
    }

    /// Adds what was measured on other rows of the same teacher.
    pub fn add(&mut self, other: &CodecError) {
        if self.tokens == 0 {
            self.clone_from(other);
            return;
        }
        self.tokens = self.tokens.saturating_add(other.tokens);
        for (mine, others) in [(&mut self.sq, &other.sq), (&mut self.sq_error, &other.sq_error)] {
            mine.iter_mut().zip(others).for_each(|(a, b)| *a += b);
        }
        self.cos_sum += other.cos_sum;
        self.cos_min = self.cos_min.min(other.cos_min);
    }

    /// 2-norm of all differences over the 2-norm of all values; 0 without values.
    pub fn relative_l2(&self) -> f64 {
        let sq: f64 = self.sq.iter().sum();
        if sq > 0.0 { (self.sq_error.iter().sum::<f64>() / sq).sqrt() } else { 0.0 }
    }

    /// Mean cosine per token; 1 without tokens.
    pub fn mean_cos(&self) -> f64 {
        if self.tokens == 0 { 1.0 } else { self.cos_sum / self.tokens as f64 }
    }

    /// The channel with the largest relative error, and that error (2-norm of its differences over that of its values).
    pub fn worst_channel(&self) -> Option<(usize, f64)> {
        let relative = |(c, (&error, &sq)): (usize, (&f64, &f64))| {
            let relative = if error == 0.0 { 0.0 } else { (error / sq).sqrt() };
            (c, relative)
        };
        self.sq_error
            .iter()
            .zip(&self.sq)
            .enumerate()
            .map(relative)
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
    }

    /// What is wrong with a record of it for `width` channels, in words.
    pub(crate) fn problem(&self, width: usize) -> Option<String> {
        let good = |sums: &[f64]| sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0);
        if self.sq.len() != width || self.sq_error.len() != width {
            Some(format!("its codec_error is not of {width} channels"))
        } else if !good(&self.sq) || !good(&self.sq_error) {
            Some("its codec_error has sums of squares that are none".to_string())
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_definition() {
        let given = [3.0, 4.0, 0.0, 0.0, 1.0, 0.0];
        let stored = [3.0, 4.0, 0.0, 0.0, 1.0, 1.0];
        let mut error = CodecError::measure(&given, &stored, 2);
        assert_eq!((error.tokens, &error.sq[..], &error.sq_error[..]), (3, &[10.0, 16.0][..], &[0.0, 1.0][..]));
        assert!((error.mean_cos() - (2.0 + 0.5f64.sqrt()) / 3.0).abs() < 1e-15);
        assert!((error.cos_min - 0.5f64.sqrt()).abs() < 1e-15);
        assert!((error.relative_l2() - (1.0f64 / 26.0).sqrt()).abs() < 1e-15);
        assert_eq!(error.worst_channel(), Some((1, 0.25)));
        let alone = error.clone();
        error.add(&CodecError::measure(&[1.0, 1.0], &[1.0, 1.0], 2));
        assert_eq!((error.tokens, error.cos_min), (4, alone.cos_min));
        let mut none = CodecError::default();
        assert_eq!((none.mean_cos(), none.relative_l2()), (1.0, 0.0));
        none.add(&alone);
        assert_eq!(none, alone);
    }
}
