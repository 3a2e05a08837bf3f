use tch::Kind;

use super::*;
use crate::pinned_empty;

fn refused(tensor: &mut Tensor) -> &'static str {
    match tensor_bytes_mut(tensor) {
        Err(Error::BytesUnavailable { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_written_are_the_tensor_s_values() {
    let mut tensor = pinned_empty(&[2, 3], Kind::Float, Device::Cpu).unwrap();
    let values = [1f32, -2.0, 0.5, f32::MIN_POSITIVE, 1e30, 0.0];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    tensor_bytes_mut(&mut tensor).unwrap().copy_from_slice(&bytes);
    assert_eq!(Vec::<f32>::try_from(tensor.flatten(0, 1)).unwrap(), values);
}

#[test]
fn bytes_that_others_could_see_or_that_are_not_in_order_are_not_lent() {
    let options = (Kind::Float, Device::Cpu);
    let mut tensor = Tensor::zeros([2, 3], options);
    let handle = tensor.shallow_clone();
    assert_eq!(refused(&mut tensor), "another handle shares its storage");
    drop(handle);
    let view = tensor.narrow(0, 0, 1);
    assert_eq!(refused(&mut tensor), "another handle shares its storage");
    drop(view);
    assert!(tensor_bytes_mut(&mut tensor).is_ok());
    assert_eq!(refused(&mut Tensor::zeros([2, 3], options).transpose(0, 1)), "it is not contiguous");
    assert_eq!(refused(&mut Tensor::zeros([2], options).set_requires_grad(true)), "it takes part in a gradient");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    if crate::resolve_device("cuda").is_ok() {
        println!("skipped: there is a GPU");
        return;
    }
    assert!(memory(Device::Cuda(0)).is_err());
}

/// Nothing in this program is jemalloc's.
#[test]
fn another_allocator_is_told_of() {
    assert!(!keep_freed_memory());
}
