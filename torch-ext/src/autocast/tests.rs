use std::panic;

use tch::{Kind, Tensor};

use super::*;

/// The type in which a matrix product computes just now.
fn product_kind() -> Kind {
    let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
    x.matmul(&x).kind()
}

#[test]
fn products_are_bf16_inside_and_f32_after() {
    assert_eq!(product_kind(), Kind::Float);
    {
        let _bf16 = Autocast::bf16(Device::Cpu);
        assert_eq!(product_kind(), Kind::BFloat16);
        {
            let _nested = Autocast::bf16(Device::Cpu);
            assert_eq!(product_kind(), Kind::BFloat16);
        }
        assert_eq!(product_kind(), Kind::BFloat16, "the inner scope's end is not the outer's");
    }
    assert_eq!(product_kind(), Kind::Float);
}

#[test]
fn a_panic_inside_ends_it() {
    let unwound = panic::catch_unwind(|| {
        let _bf16 = Autocast::bf16(Device::Cpu);
        panic!("on purpose");
    });
    assert!(unwound.is_err());
    assert_eq!(product_kind(), Kind::Float);
}

#[test]
fn it_is_per_thread() {
    let _bf16 = Autocast::bf16(Device::Cpu);
    assert_eq!(std::thread::spawn(product_kind).join().unwrap(), Kind::Float);
    assert_eq!(product_kind(), Kind::BFloat16);
}

#[test]
fn a_weight_changed_between_scopes_is_cast_again() {
    let mut weight = Tensor::ones([1, 1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let x = Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
    let product = |weight: &Tensor| {
        let _bf16 = Autocast::bf16(Device::Cpu);
        x.matmul(weight).double_value(&[0, 0])
    };
    assert_eq!(product(&weight), 1.0);
    let _ = tch::no_grad(|| weight.fill_(3.0));
    assert_eq!(product(&weight), 3.0);
}

#[test]
fn gradients_of_f32_weights_are_f32() {
    let weight = Tensor::ones([4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let loss = {
        let _bf16 = Autocast::bf16(Device::Cpu);
        let x = Tensor::ones([2, 4], (Kind::Float, Device::Cpu));
        x.matmul(&weight).to_kind(Kind::Float).sum(Kind::Float)
    };
    loss.backward();
    assert_eq!(weight.grad().kind(), Kind::Float);
    assert_eq!(weight.grad().double_value(&[0, 0]), 2.0);
}

/// Its flags exist without a GPU; what they do on one is seen only there.
#[test]
fn the_gpu_s_scope_leaves_the_cpu_alone() {
    let _bf16 = Autocast::bf16(Device::Cuda(0));
    assert_eq!(product_kind(), Kind::Float);
}

#[test]
fn a_pause_is_an_island_and_bf16_goes_on_after_it() {
    let _bf16 = Autocast::bf16(Device::Cpu);
    {
        let _f32 = Autocast::pause(Device::Cpu);
        assert_eq!(product_kind(), Kind::Float);
    }
    assert_eq!(product_kind(), Kind::BFloat16);
}
