//! Approximate percentiles in little memory.

use std::collections::BTreeMap;

use serde::Serialize;

/// Bits of an f32 that are dropped to give its bin: 9 bits of mantissa stay, so that a bin's middle is within 0.1 % of every value
/// in it.
const DROPPED: u32 = 14;

/// Counts values of 0 and above in bins of equal relative width.
#[derive(Debug, Default, Clone)]
pub(super) struct Sketch {
    bins: BTreeMap<u32, u64>,
    count: u64,
    sum: f64,
    sum_sq: f64,
    least: Option<f64>,
    most: f64,
}

/// Percentiles are those of the nearest rank, known to 0.1 %; the rest is exact. `null` in JSON where there are no values.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Distribution {
    pub(super) mean: f64,
    pub(super) std: f64,
    pub(super) min: f64,
    pub(super) p1: f64,
    pub(super) p5: f64,
    pub(super) p25: f64,
    pub(super) p50: f64,
    pub(super) p75: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Sketch {
    /// Adds a finite value of 0 or above.
    pub(super) fn add(&mut self, value: f64) {
        *self.bins.entry((value as f32).to_bits() >> DROPPED).or_default() += 1;
        self.count += 1;
        self.sum += value;
        self.sum_sq += value * value;
        self.least = Some(self.least.map_or(value, |least| least.min(value)));
        self.most = self.most.max(value);
    }

    pub(super) fn merge(&mut self, other: &Sketch) {
        for (bin, count) in &other.bins {
            *self.bins.entry(*bin).or_default() += count;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.sum_sq += other.sum_sq;
        if let Some(least) = other.least {
            self.least = Some(self.least.map_or(least, |mine| mine.min(least)));
        }
        self.most = self.most.max(other.most);
    }

    pub(super) fn distribution(&self) -> Distribution {
        let n = self.count as f64;
        let mean = self.sum / n;
        Distribution {
            mean,
            std: (self.sum_sq / n - mean * mean).max(0.0).sqrt(),
            min: self.least.unwrap_or(f64::NAN),
            p1: self.percentile(1),
            p5: self.percentile(5),
            p25: self.percentile(25),
            p50: self.percentile(50),
            p75: self.percentile(75),
            p95: self.percentile(95),
            p99: self.percentile(99),
            max: if self.count > 0 { self.most } else { f64::NAN },
        }
    }

    /// The smallest value that at least `percent` of the values do not exceed.
    fn percentile(&self, percent: u64) -> f64 {
        let rank = (u128::from(self.count) * u128::from(percent)).div_ceil(100) as u64;
        let mut below = 0;
        for (&bin, &count) in &self.bins {
            below += count;
            if below >= rank {
                let edge = |bin: u32| f64::from(f32::from_bits(bin << DROPPED));
                let middle = (edge(bin) + edge(bin + 1)) / 2.0;
                // The last bins end in infinity; the extremes are known.
                return middle.clamp(self.least.unwrap_or(0.0), self.most);
            }
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_are_within_a_thousandth(mut values in proptest::collection::vec(0.0f32..1e6, 1..500), split in 0usize..500) {
            let mut sketch = Sketch::default();
            let mut second = Sketch::default();
            for (i, value) in values.iter().enumerate() {
                if i < split { &mut sketch } else { &mut second }.add(f64::from(*value));
            }
            sketch.merge(&second);
            values.sort_by(f32::total_cmp);
            let found = sketch.distribution();
            for (percent, found) in [(1, found.p1), (25, found.p25), (50, found.p50), (99, found.p99)] {
                let exact = f64::from(values[(values.len() * percent).div_ceil(100).max(1) - 1]);
                prop_assert!((found - exact).abs() <= 1.001e-3 * exact + 1e-38, "{}: {} instead of {}", percent, found, exact);
            }
            prop_assert_eq!(found.min, f64::from(values[0]));
            prop_assert_eq!(found.max, f64::from(values[values.len() - 1]));
        }
    }

    #[test]
    fn nothing_has_no_distribution() {
        let none = Sketch::default().distribution();
        assert!(none.mean.is_nan() && none.min.is_nan() && none.p50.is_nan() && none.max.is_nan());
        let mut large = Sketch::default();
        large.add(f64::from(f32::MAX));
        assert_eq!(large.distribution().p50, f64::from(f32::MAX));
    }
}
