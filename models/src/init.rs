//! Start values of parameters, as the papers' code draws them.
//!
//! tch's own initializers differ from PyTorch's (its linear layers start 2.45 times too wide), and drawing from libtorch's
//! generator would make a value depend on how many were drawn before. Here each tensor has its own stream, keyed by
//! (seed, name): the same on every device, thread count and libtorch.

use tch::Tensor;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Glorot and Bengio 2010: uniform in ±√(6 / (fan_in + fan_out)), the shape read as `[fan_out, fan_in...]`.
    ///
    /// A patch projection `[D, 3, p, p]` counts as the linear layer it is, fan-out D and fan-in 3p², as MAE's
    /// `initialize_weights` does by flattening; `nn.init.xavier_uniform_` on the four axes would take p²·D as fan-out.
    XavierUniform,
    /// Uniform in ±bound. PyTorch's default for a bias is `bound = 1/√fan_in`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal with mean 0, redrawn when outside ±2.
    ///
    /// The bound is absolute, not in units of `std`, as in timm's `trunc_normal_`: at the usual 0.02 it never binds.
    TruncNormal {
        /// Standard deviation before truncation.
        std: f64,
    },
}

impl Init {
    /// An f32 tensor on the CPU, drawn from (`seed`, `name`).
    pub fn tensor(self, shape: &[i64], seed: u64, name: &str) -> Tensor {
        let numel = shape.iter().product::<i64>() as usize;
        let mut stream = Stream::new(seed, name);
        let values: Vec<f32> = match self {
            Init::Zeros => vec![0.0; numel],
            Init::Ones => vec![1.0; numel],
            Init::XavierUniform => {
                let fan_out = shape[0];
                let fan_in = shape[1..].iter().product::<i64>();
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                stream.fill(numel, |s| s.uniform(bound))
            }
            Init::Uniform { bound } => stream.fill(numel, |s| s.uniform(bound)),
            Init::Normal { std } => stream.fill(numel, |s| s.normal() * std),
            Init::TruncNormal { std } => stream.fill(numel, |s| {
                loop {
                    let value = s.normal() * std;
                    if value.abs() <= 2.0 {
                        return value;
                    }
                }
            }),
        };
        Tensor::from_slice(&values).reshape(shape)
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): a counter and a mixing function, enough for start values and quick.
struct Stream {
    state: u64,
}

impl Stream {
    fn new(seed: u64, name: &str) -> Self {
        Self { state: xxh3_64_with_seed(name.as_bytes(), seed) }
    }

    fn fill(&mut self, numel: usize, mut draw: impl FnMut(&mut Self) -> f64) -> Vec<f32> {
        (0..numel).map(|_| draw(self) as f32).collect()
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    fn uniform(&mut self, bound: f64) -> f64 {
        (2.0 * self.unit() - 1.0) * bound
    }

    /// Box and Muller 1958; the second of the pair is dropped, so that draw k never depends on whether k is odd.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests;
