//! What the safetensors library writes is read back to the byte.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests unwrap, and write throw-away files")]

use std::collections::BTreeMap;
use std::fs;

use hub::weights::{Backend, Dtype, WeightsFile};
use proptest::prelude::*;
use safetensors::tensor::TensorView;

/// Type, shape and bytes.
#[derive(Clone, Debug, PartialEq)]
struct Tensor(Dtype, Vec<usize>, Vec<u8>);

struct InMemory;

impl Backend for InMemory {
    type Tensor = Tensor;

    fn empty(dtype: Dtype, shape: &[i64]) -> Result<Tensor, String> {
        let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        Ok(Tensor(dtype, shape, vec![0; bytes]))
    }

    fn bytes(tensor: &mut Tensor) -> Result<&mut [u8], String> {
        Ok(&mut tensor.2)
    }

    fn view(_: &Tensor, _: &[i64], _: &[i64], _: i64) -> Result<Tensor, String> {
        Err("safetensors files have no views".to_owned())
    }
}

fn tensor() -> impl Strategy<Value = Tensor> {
    use Dtype::{BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8};
    let dtype = prop::sample::select(vec![BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8]);
    (dtype, prop::collection::vec(0usize..5, 0..4)).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        prop::collection::vec(any::<u8>(), bytes).prop_map(move |data| Tensor(dtype, shape.clone(), data))
    })
}

proptest! {
    #[test]
    fn any_tensors_survive(
        tensors in prop::collection::btree_map("[a-z.é]{1,9}[0-9]", tensor(), 1..6),
        metadata in prop::collection::hash_map("[a-z]{0,5}", any::<String>(), 0..3),
    ) {
        let views = tensors.iter().map(|(name, Tensor(dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, Some(metadata.clone())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        let read = WeightsFile::<Tensor>::read::<InMemory>(&path).unwrap();
        let (unread, expected): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tensors.into_iter().partition(|(_, Tensor(dtype, ..))| *dtype == Dtype::BOOL);
        prop_assert_eq!(read.tensors, expected);
        prop_assert_eq!(read.unread.into_keys().collect::<Vec<_>>(), unread.into_keys().collect::<Vec<_>>());
        prop_assert_eq!(read.metadata, metadata.into_iter().collect::<BTreeMap<_, _>>());
    }
}
