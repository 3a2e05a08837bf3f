use super::*;

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
fn every_kind_of_batch_has_its_size_in_bytes() {
    let kinds = [
        (Kind::Uint8, 1),
        (Kind::Int8, 1),
        (Kind::Bool, 1),
        (Kind::Half, 2),
        (Kind::BFloat16, 2),
        (Kind::Int16, 2),
        (Kind::Int, 4),
        (Kind::Float, 4),
        (Kind::Int64, 8),
        (Kind::Double, 8),
    ];
    for (kind, size) in kinds {
        let mut tensor = pinned_empty(&[3, 5], kind, Device::Cpu).unwrap();
        assert_eq!(tensor.kind(), kind);
        assert_eq!(tensor_bytes_mut(&mut tensor).unwrap().len(), 15 * size, "{kind:?}");
    }
    assert!(tensor_bytes_mut(&mut pinned_empty(&[0, 5], Kind::Float, Device::Cpu).unwrap()).unwrap().is_empty());
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
fn copies_convert_and_broadcast_or_fail_with_an_error() {
    let mut batch = pinned_empty(&[2, 2], Kind::Float, Device::Cpu).unwrap();
    copy_non_blocking(&mut batch, &Tensor::from_slice(&[7u8, 9])).unwrap();
    assert_eq!(Vec::<f32>::try_from(batch.flatten(0, 1)).unwrap(), [7.0, 9.0, 7.0, 9.0]);
    assert!(copy_non_blocking(&mut batch, &Tensor::from_slice(&[1f32, 2.0, 3.0])).is_err());
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    if crate::resolve_device("cuda").is_ok() {
        println!("skipped: there is a GPU");
        return;
    }
    assert!(memory(Device::Cuda(0)).is_err());
    assert!(pinned_empty(&[2], Kind::Float, Device::Cuda(0)).is_err());
}

/// Nothing in this program is jemalloc's.
#[test]
fn another_allocator_is_told_of() {
    assert!(!keep_freed_memory());
}

#[test]
fn errors_have_libtorchs_words_without_the_backtrace() {
    let mut dst = pinned_empty(&[2], Kind::Float, Device::Cpu).unwrap();
    let Err(Error::Torch { operation, message }) =
        copy_non_blocking(&mut dst, &pinned_empty(&[3], Kind::Float, Device::Cpu).unwrap())
    else {
        panic!("three values do not fit into two");
    };
    assert_eq!(operation, "copying a tensor");
    assert!(message.contains("size of tensor"), "{message}");
    assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
}
