//! Random numbers as a function of their purpose.
//!
//! No state is shared by threads or has to be restored by a resumed run: a stream is named by (seed, purpose, key), and
//! equal names give equal numbers on every machine, in every order.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which passes BigCrush, has
//! published test vectors, and is what CUDA's generators in PyTorch and TensorFlow use. It encrypts a 128-bit counter under a 64-bit
//! key. Here the key is the seed, and the counter is 96 bits of the XXH3-128 hash of (purpose, key), then a 32-bit block number. So
//! different seeds never share a stream by construction, and two of 10^12 samples share one with a probability below 10^-4.

/// The purpose of random numbers. Streams of different purposes are independent even if seed and key are equal.
///
/// The discriminants are part of the streams: new ones may be added, but none may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Crop box and flip of a view.
    View = 1,
    /// Order of the samples in an epoch.
    Order = 2,
    /// Masked patches of a sample.
    Mask = 3,
    /// Rows that are checked or held out.
    Select = 4,
    /// Residual branches of a sample that are dropped.
    DropPath = 8,
    /// RandAugment's operations on an image.
    Augment = 9,
    /// Box and noise of random erasing.
    Erase = 10,
    /// Mixing of the images of a batch.
    Mixup = 11,
    /// Teachers that do not count for a sample.
    TeacherDrop = 12,
    /// Part of a view that the student sees.
    Shift = 13,
    /// Views that no cache has: which samples have one, and its crop box and flip.
    Fresh = 14,
}

/// A stream of random numbers. Making one costs one hash of a few words.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u32; 2],
    /// Block number, then the stream's name.
    counter: [u32; 4],
    /// The second half of the last block, until it is used.
    spare: Option<u64>,
}

impl Rng {
    /// The stream of (seed, purpose, key). The key's length is part of it: `[1]` and `[1, 0]` differ.
    pub fn new(seed: u64, purpose: Purpose, key: &[u64]) -> Self {
        let mut name = Vec::with_capacity(8 * (key.len() + 1));
        name.extend_from_slice(&(purpose as u64).to_le_bytes());
        key.iter().for_each(|word| name.extend_from_slice(&word.to_le_bytes()));
        let name = xxhash_rust::xxh3::xxh3_128(&name);
        let word = |i: u32| (name >> (32 * i)) as u32;
        Self { key: [seed as u32, (seed >> 32) as u32], counter: [0, word(0), word(1), word(2)], spare: None }
    }

    /// 64 uniform bits. A stream has 2^33 of them; drawing more is a bug and panics.
    pub fn next_u64(&mut self) -> u64 {
        if let Some(word) = self.spare.take() {
            return word;
        }
        let [a, b, c, d] = philox4x32_10(self.counter, self.key);
        self.counter[0] = self.counter[0]
            .checked_add(1)
            .expect("a stream holds 2^33 numbers; key more streams instead of drawing on");
        self.spare = Some(u64::from(c) | u64::from(d) << 32);
        u64::from(a) | u64::from(b) << 32
    }

    /// Uniform in `[0, 1)`: the multiples of 2^-53.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[0, 1)`: the multiples of 2^-24.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in `0..n`, without bias: a draw that would favor small results is repeated (Lemire 2019). `n` is at least 1.
    pub fn range(&mut self, n: u64) -> u64 {
        assert!(n > 0, "range(0) is empty");
        let reject_below = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= reject_below {
                return (product >> 64) as u64;
            }
        }
    }

    /// Two independent standard normal numbers (Box and Muller 1958).
    pub fn normal_pair(&mut self) -> [f64; 2] {
        // In (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform_f64()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform_f64()).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Shuffles the items (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.range(last as u64 + 1) as usize);
        }
    }
}

/// One block of Philox4x32 with ten rounds.
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    // The golden ratio and sqrt(3) - 1, as 32-bit fractions.
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [a, b, c, d] = counter;
        let first = u64::from(MULTIPLIER[0]) * u64::from(a);
        let second = u64::from(MULTIPLIER[1]) * u64::from(c);
        counter = [(second >> 32) as u32 ^ b ^ key[0], second as u32, (first >> 32) as u32 ^ d ^ key[1], first as u32];
    }
    counter
}

#[cfg(test)]
mod tests;
