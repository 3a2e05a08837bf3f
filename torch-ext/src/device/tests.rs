use tch::{Kind, Tensor};

use super::*;

#[test]
fn words_that_name_no_device_are_refused() {
    for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "cuda:99999999999999999999"] {
        let refused = resolve_device(name);
        assert!(matches!(&refused, Err(Error::UnknownDevice { given }) if given == name), "{name}: {refused:?}");
    }
}

#[test]
fn cpu_is_the_cpu_and_auto_is_something_that_works() {
    assert_eq!(resolve_device("cpu").unwrap(), Device::Cpu);
    let device = resolve_device("auto").unwrap();
    let sum = Tensor::ones([3], (Kind::Float, device)).sum(Kind::Float);
    assert_eq!(sum.double_value(&[]), 3.0);
}

/// What is tested depends on the machine; on each, something is.
#[test]
fn a_gpu_is_found_or_its_want_explained() {
    match load_cuda() {
        Err(Error::NoCudaLibrary { path, reason, .. }) => {
            assert!(path.ends_with("/libtorch_cuda.so"), "{path}");
            assert!(!reason.is_empty());
            assert!(matches!(resolve_device("cuda"), Err(Error::NoCudaLibrary { .. })));
            println!("no CUDA library: {reason}");
        }
        Err(other) => panic!("{other}"),
        Ok(()) => {
            let seen = Cuda::device_count().max(0) as usize;
            let refused = resolve_device(&format!("cuda:{seen}"));
            assert!(matches!(refused, Err(Error::NoSuchGpu { index, count }) if index == seen && count == seen));
            println!("CUDA library loaded, {seen} GPUs");
        }
    }
}
