//! The parts of this crate that need a GPU, whose memory statistics belong to the process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

#[test]
fn what_only_a_gpu_shows() {
    let Ok(device) = torch_ext::resolve_device("cuda") else {
        println!("skipped: there is no GPU");
        return;
    };
    let before = torch_ext::memory(device).unwrap();
    let mut on_device = Tensor::zeros([1 << 20], (Kind::Float, device));
    let during = torch_ext::memory(device).unwrap();
    assert!(during.allocated >= before.allocated + (4 << 20) && during.reserved >= during.allocated, "{during:?}");
    let mut pinned = torch_ext::pinned_empty(&[1 << 20], Kind::Float, device).unwrap();
    torch_ext::tensor_bytes_mut(&mut pinned).unwrap().fill(0x3f);
    torch_ext::copy_non_blocking(&mut on_device, &pinned).unwrap();
    assert_eq!(on_device.to_device(Device::Cpu), pinned);

    // An event is seen before the work in front of it is done. How much work that takes depends on the GPU, and on how long this
    // thread has to wait for a processor of its own.
    let large = Tensor::ones([4096, 4096], (Kind::Float, device));
    let pending = (0..10).any(|round| {
        let product = (0..20 << round).fold(large.copy(), |x, _| x.matmul(&large) / 4096.0);
        let event = torch_ext::Event::record(device).unwrap();
        let pending = !event.is_done().unwrap();
        event.synchronize().unwrap();
        assert!(event.is_done().unwrap());
        assert_eq!(product.double_value(&[0, 0]), 1.0);
        pending
    });
    assert!(pending, "every event was done at once");

    // The device's clock goes on while nothing is queued.
    let idle = Duration::from_millis(5);
    let end = torch_ext::Event::record(device).unwrap();
    let until = Instant::now() + idle;
    while Instant::now() < until {}
    let begin = torch_ext::Event::record(device).unwrap();
    begin.synchronize().unwrap();
    assert!(end.time_until(&begin).unwrap() >= idle);
    // Work that is queued without a pause leaves no idle time.
    let product = large.matmul(&large);
    let end = torch_ext::Event::record(device).unwrap();
    let begin = torch_ext::Event::record(device).unwrap();
    begin.synchronize().unwrap();
    assert!(end.time_until(&begin).unwrap() < idle);
    drop(product);

    let weight = Tensor::ones([4, 4], (Kind::Float, device)).set_requires_grad(true);
    let loss = {
        let _bf16 = torch_ext::Autocast::bf16(device);
        let product = weight.matmul(&weight);
        assert_eq!(product.kind(), Kind::BFloat16);
        product.to_kind(Kind::Float).sum(Kind::Float)
    };
    loss.backward();
    let mut optimizer = torch_ext::FusedAdamW::new(torch_ext::AdamWConfig::default());
    optimizer.add_group([("weight".to_owned(), weight.shallow_clone())], 0.1, 0.0);
    let norm = torch_ext::clip_grad_norm_(&mut optimizer.grads(), 1.0).unwrap();
    assert_eq!(norm.double_value(&[]), 32.0);
    optimizer.step_if(&torch_ext::all_finite(&optimizer.grads()).unwrap()).unwrap();
    assert!((weight.double_value(&[0, 0]) - 0.9).abs() < 1e-4);
    assert_eq!(optimizer.state()["step.weight"].device(), device);
}
