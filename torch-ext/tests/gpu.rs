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
    let on_device = Tensor::zeros([1 << 20], (Kind::Float, device));
    let during = torch_ext::memory(device).unwrap();
    assert!(during.allocated >= before.allocated + (4 << 20) && during.reserved >= during.allocated, "{during:?}");
    let mut pinned = torch_ext::pinned_empty(&[1 << 20], Kind::Float, device).unwrap();
    torch_ext::tensor_bytes_mut(&mut pinned).unwrap().fill(0x3f);
    let uploaded = torch_ext::to_device(&pinned, device).unwrap();
    assert_eq!(uploaded.to_device(Device::Cpu), pinned);
    drop(on_device);

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

    copies_run_beside_computing(device, &large);

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

/// Copies in both directions while the device computes: each sees the values of its place in the order of work, also when the memory of
/// tensors that are dropped at once is used again, and neither waits for work that is queued behind it.
fn copies_run_beside_computing(device: Device, large: &Tensor) {
    let product = || (0..20).fold(large.copy(), |x, _| x.matmul(large) / 4096.0);
    let mut copies = Vec::new();
    for round in 0..20 {
        let mut pinned = torch_ext::pinned_empty(&[1 << 20], Kind::Float, device).unwrap();
        let value = 1.0 + round as f32;
        let bytes = torch_ext::tensor_bytes_mut(&mut pinned).unwrap();
        bytes.as_chunks_mut::<4>().0.fill(value.to_ne_bytes());
        let uploaded = torch_ext::to_device(&pinned, device).unwrap();
        // A busy device reads the upload late, when its handle is gone.
        let scaled = uploaded * product().get(0).get(0) * 2.0;
        copies.push((value, pinned, torch_ext::HostCopy::start(&scaled).unwrap()));
    }
    for (value, _pinned, mut copy) in copies {
        let host = copy.wait().unwrap();
        assert_eq!(
            (host.min().double_value(&[]), host.max().double_value(&[])),
            (f64::from(2.0 * value), f64::from(2.0 * value))
        );
    }
    let small = Tensor::ones([4], (Kind::Float, device));
    let overtaken = (0..10).any(|_| {
        let mut copy = torch_ext::HostCopy::start(&small).unwrap();
        let behind = (product(), torch_ext::Event::record(device).unwrap());
        copy.wait().unwrap();
        let overtaken = !behind.1.is_done().unwrap();
        behind.1.synchronize().unwrap();
        overtaken
    });
    assert!(overtaken, "every copy waited for what was queued behind it");
}
