use tch::{Kind, Tensor};

use super::*;

#[test]
fn words_that_name_no_device_are_refused() {
    for name in [
        "",
        "gpu",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "CPU",
        "cpu:0",
        "cuda:99999999999999999999",
    ] {
        let refused = resolve_device(name);
        assert!(
            matches!(&refused, Err(Error::UnknownDevice { given }) if given == name),
            "{name}: {refused:?}"
        );
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
        Err(Error::NoCudaLibrary { path, reason }) => {
            assert!(path.ends_with("/libtorch_cuda.so"), "{path}");
            assert!(!reason.is_empty());
            assert!(matches!(
                resolve_device("cuda"),
                Err(Error::NoCudaLibrary { .. })
            ));
            println!("no CUDA library: {reason}");
        }
        Err(other) => panic!("{other}"),
        Ok(()) => {
            let seen = Cuda::device_count().max(0) as usize;
            let refused = resolve_device(&format!("cuda:{seen}"));
            assert!(
                matches!(refused, Err(Error::NoSuchGpu { index, count }) if index == seen && count == seen)
            );
            println!("CUDA library loaded, {seen} GPUs");
            if seen > 0 {
                on_a_gpu();
            }
        }
    }
}

/// The rest of this crate where it can only be seen on a GPU.
fn on_a_gpu() {
    let device = resolve_device("cuda").unwrap();
    let before = crate::memory(device).unwrap();
    let mut on_device = Tensor::zeros([1 << 20], (Kind::Float, device));
    let during = crate::memory(device).unwrap();
    assert!(
        during.allocated >= before.allocated + (4 << 20) && during.reserved >= during.allocated,
        "{during:?}"
    );
    let mut pinned = crate::pinned_empty(&[1 << 20], Kind::Float, device).unwrap();
    crate::tensor_bytes_mut(&mut pinned).unwrap().fill(0x3f);
    crate::copy_non_blocking(&mut on_device, &pinned).unwrap();
    assert_eq!(on_device.to_device(Device::Cpu), pinned);

    let large = Tensor::ones([4096, 4096], (Kind::Float, device));
    let product = (0..20).fold(large.copy(), |x, _| x.matmul(&large) / 4096.0);
    let event = crate::Event::record(device).unwrap();
    assert!(!event.is_done().unwrap(), "two teraflops take a while");
    event.synchronize().unwrap();
    assert!(event.is_done().unwrap());
    assert_eq!(product.double_value(&[0, 0]), 1.0);

    let state = crate::rng_state(device).unwrap();
    let first = Tensor::randn([64], (Kind::Float, device));
    crate::set_rng_state(device, &state).unwrap();
    assert_eq!(first, Tensor::randn([64], (Kind::Float, device)));

    let weight = Tensor::ones([4, 4], (Kind::Float, device)).set_requires_grad(true);
    let loss = {
        let _bf16 = crate::Autocast::bf16(device);
        let product = weight.matmul(&weight);
        assert_eq!(product.kind(), Kind::BFloat16);
        product.to_kind(Kind::Float).sum(Kind::Float)
    };
    loss.backward();
    let mut optimizer = crate::FusedAdamW::new(crate::AdamWConfig::default());
    optimizer.add_group([("weight".to_owned(), weight.shallow_clone())], 0.1, 0.0);
    let norm = crate::clip_grad_norm_(&mut optimizer.grads(), 1.0).unwrap();
    assert_eq!(norm.double_value(&[]), 32.0);
    optimizer
        .step_if(&crate::all_finite(&optimizer.grads()).unwrap())
        .unwrap();
    assert!((weight.double_value(&[0, 0]) - 0.9).abs() < 1e-4);
    assert_eq!(optimizer.state()["step.weight"].device(), device);
}
