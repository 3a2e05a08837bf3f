//! Codec `i8` on the device: steps travel as bytes, a quarter of f32, and become values where they are used.

use schemas::Affine;
use tch::{Device, Kind, Tensor};

/// The codec's parameters on a device. They go there once: a copy per batch would wait for all queued work.
#[derive(Debug)]
pub(crate) struct Dequantize {
    scale: Tensor,
    offset: Tensor,
    outliers: Option<Tensor>,
}

impl Dequantize {
    /// Brings the parameters to `device`.
    pub(crate) fn new(affine: &Affine, device: Device) -> Dequantize {
        let channels: Vec<i64> = affine.outliers.iter().map(|&c| c.into()).collect();
        Dequantize {
            scale: Tensor::from_slice(&affine.scale).to_device(device),
            offset: Tensor::from_slice(&affine.offset).to_device(device),
            outliers: (!channels.is_empty()).then(|| Tensor::from_slice(&channels).to_device(device)),
        }
    }

    /// `steps [N, L, K]` i8 and `outliers [N, L, O]` f16 → `[N, L, K]` f32, the values of `schemas`' decoder to the bit.
    pub(crate) fn forward(&self, steps: &Tensor, outliers: Option<&Tensor>) -> Tensor {
        // Two operations and not a fused one, which would round once.
        let values = steps.to_kind(Kind::Float) * &self.scale + &self.offset;
        match (&self.outliers, outliers) {
            (Some(channels), Some(outliers)) => values.index_copy(2, channels, &outliers.to_kind(Kind::Float)),
            _ => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Codec, FeatureCodec};

    use super::*;

    #[test]
    fn the_device_computes_what_the_decoder_does() {
        let (n, l, k) = (2, 3, 5);
        for outliers in [vec![], vec![1, 4]] {
            let affine = Affine {
                scale: (0..k).map(|c| 0.013 * (c + 1) as f32).collect(),
                offset: (0..k).map(|c| c as f32 / 3.0 - 1.0).collect(),
                outliers,
                images: 1,
            };
            let values: Vec<f32> = (0..n * l * k).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut bytes = Vec::new();
            affine.encode(&values, k, &mut bytes).unwrap();
            let mut expected = vec![0.0; values.len()];
            affine.decode_into(&bytes, k, &mut expected).unwrap();

            let (steps, halves) = bytes.split_at(n * l * k);
            let shape = |last: usize| [n as i64, l as i64, last as i64];
            let steps = Tensor::from_data_size(steps, &shape(k), Kind::Int8);
            let o = affine.outliers.len();
            let halves = (o > 0).then(|| Tensor::from_data_size(halves, &shape(o), Kind::Half));
            let found = Dequantize::new(&affine, Device::Cpu).forward(&steps, halves.as_ref());
            assert_eq!(Vec::<f32>::try_from(found.flatten(0, -1)).unwrap(), expected);
            assert_eq!(Codec::I8(affine).name(), "i8");
        }
    }
}
