//! Sums over rows, which can be merged over chunks of rows.

use schemas::{TeacherIdentity, TeacherRow};

use super::sketch::Sketch;
use super::{Attention, Channels, Features, NonFinite, OUTLIER, Outliers, TopChannels};

/// Sums of the rows so far.
#[derive(Debug)]
pub(super) struct Sums {
    rows: u64,
    tokens: u64,
    non_finite: NonFinite,
    /// Number of finite values by channel.
    count: Vec<u64>,
    sum: Vec<f64>,
    sum_sq: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
    token_norm: Sketch,
    cls_norm: Sketch,
    /// Number of outliers by place in the grid.
    outliers: Vec<u64>,
    attention: Vec<f64>,
    entropy: Sketch,
    peak: Sketch,
    attention_sum: Sketch,
    rows_without: u64,
}

/// Buffers of a row and its values, reused for the next row.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) row: TeacherRow,
    tokens: Vec<f32>,
    cls: Vec<f32>,
    attention: Vec<f32>,
    norms: Vec<f64>,
    sorted: Vec<f64>,
}

impl Sums {
    pub(super) fn new(teacher: &TeacherIdentity) -> Sums {
        let (patches, width) = (teacher.n_tokens(), teacher.width as usize);
        Sums {
            rows: 0,
            tokens: 0,
            non_finite: NonFinite::default(),
            count: vec![0; width],
            sum: vec![0.0; width],
            sum_sq: vec![0.0; width],
            min: vec![f32::INFINITY; width],
            max: vec![f32::NEG_INFINITY; width],
            token_norm: Sketch::default(),
            cls_norm: Sketch::default(),
            outliers: vec![0; patches],
            attention: vec![0.0; patches],
            entropy: Sketch::default(),
            peak: Sketch::default(),
            attention_sum: Sketch::default(),
            rows_without: 0,
        }
    }

    /// Approximate size in bytes.
    pub(super) fn bytes(teacher: &TeacherIdentity) -> usize {
        32 * teacher.width as usize + 16 * teacher.n_tokens()
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the row that was read into `scratch`.
    pub(super) fn add_row(&mut self, teacher: &TeacherIdentity, scratch: &mut Scratch) -> schemas::Result<()> {
        let Scratch { row, tokens, cls, attention, norms, sorted } = scratch;
        self.rows += 1;
        teacher.decode_tokens(&row.tokens, tokens)?;
        norms.clear();
        for token in tokens.chunks_exact(teacher.width as usize) {
            norms.push(self.add_token(token));
        }
        self.add_norms(norms, sorted);

        teacher.decode_cls(&row.cls, cls)?;
        let sq: f64 = cls.iter().map(|&v| f64::from(v).powi(2)).sum();
        if sq.is_finite() {
            self.cls_norm.add(sq.sqrt());
        } else {
            self.non_finite.cls += non_finite(cls);
        }

        teacher.decode_cls_attn(&row.cls_attn, attention)?;
        self.add_attention(attention);
        Ok(())
    }

    /// Adds a token to its channels; returns its norm, NaN if a value is not finite.
    fn add_token(&mut self, token: &[f32]) -> f64 {
        self.tokens += 1;
        // The square of a finite f32 is far below the largest f64, so an infinite sum means an infinite value.
        let sq: f64 = token.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let bad = !sq.is_finite();
        if bad {
            self.non_finite.tokens += non_finite(token);
        }
        for (c, &value) in token.iter().enumerate() {
            if bad && !value.is_finite() {
                continue;
            }
            let wide = f64::from(value);
            self.count[c] += 1;
            self.sum[c] += wide;
            self.sum_sq[c] += wide * wide;
            self.min[c] = self.min[c].min(value);
            self.max[c] = self.max[c].max(value);
        }
        if bad { f64::NAN } else { sq.sqrt() }
    }

    /// Adds the norms of a row's tokens. Outliers are relative to the row's own median, so that one pass is enough and images of different
    /// brightness or content do not affect each other.
    fn add_norms(&mut self, norms: &[f64], sorted: &mut Vec<f64>) {
        sorted.clear();
        sorted.extend(norms.iter().copied().filter(|norm| norm.is_finite()));
        sorted.iter().for_each(|norm| self.token_norm.add(*norm));
        sorted.sort_by(f64::total_cmp);
        let Some(&median) = sorted.get(sorted.len().saturating_sub(1) / 2) else {
            return;
        };
        for (place, &norm) in norms.iter().enumerate() {
            if norm > OUTLIER * median {
                self.outliers[place] += 1;
            }
        }
    }

    fn add_attention(&mut self, attention: &[f32]) {
        self.non_finite.cls_attn += non_finite(attention);
        let weight = |v: f32| {
            if v.is_finite() { f64::from(v.max(0.0)) } else { 0.0 }
        };
        let sum: f64 = attention.iter().map(|&v| weight(v)).sum();
        if sum <= 0.0 {
            self.rows_without += 1;
            return;
        }
        let (mut entropy, mut peak) = (0.0, 0.0_f64);
        for (&v, total) in attention.iter().zip(&mut self.attention) {
            let v = weight(v);
            *total += v;
            peak = peak.max(v);
            let p = v / sum;
            if p > 0.0 {
                entropy -= p * p.log2();
            }
        }
        // One patch has an entropy of -0.
        self.entropy.add(entropy.max(0.0));
        self.peak.add(peak);
        self.attention_sum.add(sum);
    }

    /// Adds the sums of later rows.
    pub(super) fn merge(&mut self, other: &Sums) {
        self.rows += other.rows;
        self.tokens += other.tokens;
        self.non_finite.tokens += other.non_finite.tokens;
        self.non_finite.cls += other.non_finite.cls;
        self.non_finite.cls_attn += other.non_finite.cls_attn;
        self.rows_without += other.rows_without;
        fn add<T: Copy + std::ops::AddAssign>(mine: &mut [T], others: &[T]) {
            mine.iter_mut().zip(others).for_each(|(a, b)| *a += *b);
        }
        add(&mut self.count, &other.count);
        add(&mut self.sum, &other.sum);
        add(&mut self.sum_sq, &other.sum_sq);
        add(&mut self.outliers, &other.outliers);
        add(&mut self.attention, &other.attention);
        for (mine, other) in self.min.iter_mut().zip(&other.min) {
            *mine = mine.min(*other);
        }
        for (mine, other) in self.max.iter_mut().zip(&other.max) {
            *mine = mine.max(*other);
        }
        for (mine, other) in [
            (&mut self.token_norm, &other.token_norm),
            (&mut self.cls_norm, &other.cls_norm),
            (&mut self.entropy, &other.entropy),
            (&mut self.peak, &other.peak),
            (&mut self.attention_sum, &other.attention_sum),
        ] {
            mine.merge(other);
        }
    }

    /// The statistics; `None` without rows.
    pub(super) fn finish(self) -> Option<Features> {
        if self.rows == 0 {
            return None;
        }
        let by_channel = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            let channels = self.count.iter().enumerate();
            channels.map(|(c, &n)| f(c, n as f64)).collect()
        };
        let mean = by_channel(&|c, n| self.sum[c] / n);
        // Rounding can take a constant channel's variance a hair below zero.
        let std = by_channel(&|c, n| (self.sum_sq[c] / n - mean[c].powi(2)).max(0.0).sqrt());
        let total: f64 = self.sum_sq.iter().sum();
        let share = by_channel(&|c, _| {
            if total > 0.0 { self.sum_sq[c] / total } else { 0.0 }
        });
        let mut sorted = share.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let top = |n: usize| sorted.iter().take(n).sum();
        let outliers: u64 = self.outliers.iter().sum();
        let attended = (self.rows - self.rows_without).max(1) as f64;
        Some(Features {
            tokens: self.tokens,
            non_finite: self.non_finite,
            top_channels: TopChannels { top_1: top(1), top_4: top(4), top_16: top(16) },
            channels: Channels { mean, std, min: self.min, max: self.max, share },
            token_norm: self.token_norm.distribution(),
            cls_norm: self.cls_norm.distribution(),
            outliers: Outliers {
                times_median: OUTLIER,
                tokens: outliers,
                share: outliers as f64 / self.tokens.max(1) as f64,
                per_patch: self.outliers,
            },
            attention: Attention {
                rows_without: self.rows_without,
                entropy_bits: self.entropy.distribution(),
                entropy_most: (self.attention.len() as f64).log2(),
                peak: self.peak.distribution(),
                sum: self.attention_sum.distribution(),
                mean: self.attention.iter().map(|v| v / attended).collect(),
            },
        })
    }
}

fn non_finite(values: &[f32]) -> u64 {
    values.iter().filter(|v| !v.is_finite()).count() as u64
}

#[cfg(test)]
mod tests;
