use tch::{Device, Kind};

use super::*;
use crate::init::Init;
use crate::layers::Activation;
use crate::params::ParamStore;
use crate::precision::Precision;

const CONFIG: BlockConfig = BlockConfig {
    dim: 16,
    num_heads: 2,
    mlp_dim: 32,
    qkv_bias: true,
    norm_eps: 1e-6,
    activation: Activation::Gelu,
    gated_mlp: false,
};

fn random(shape: &[i64], name: &str) -> Tensor {
    Init::Normal { std: 1.0 }.tensor(shape, 11, name)
}

/// Three blocks as a stack and one by one, from the same numbers: a start depends on the name alone.
fn three() -> (Blocks, Vec<Block>) {
    let (stack, single) = (ParamStore::new(Device::Cpu, 0), ParamStore::new(Device::Cpu, 0));
    let scope = single.root().sub("blocks");
    (Blocks::new(&stack.root(), "blocks", 3, &CONFIG, 1), (0..3).map(|i| Block::new(&scope.sub(i), &CONFIG)).collect())
}

#[test]
fn fusion_adds_the_outputs_of_the_chosen_blocks_to_the_last() {
    let (stack, single) = three();
    let x = random(&[2, 5, 16], "x");
    let outputs: Vec<Tensor> = single
        .iter()
        .scan(x.shallow_clone(), |x, block| {
            *x = block.forward(x);
            Some(x.shallow_clone())
        })
        .collect();
    let pass = Pass::default();
    assert_eq!(stack.forward(&x, &pass), outputs[2]);
    assert_eq!(stack.forward_fused(&x, &[0], None, &pass), &outputs[0] + &outputs[2]);
    assert_eq!(stack.forward_fused(&x, &[1, 0], None, &pass), &outputs[0] + &outputs[1] + &outputs[2]);
}

#[test]
fn a_dropped_branch_is_left_out_for_its_sample_alone() {
    let (stack, single) = three();
    let x = random(&[2, 5, 16], "x");
    // The stack's first block is the encoder's block 1: its branches are 2 and 3.
    let uniform = Tensor::ones([2, 8], (Kind::Double, Device::Cpu)) * 0.9;
    let _ = uniform.get(0).narrow(0, 2, 1).fill_(0.1);
    let rates = Tensor::from_slice(&[0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let drop = DropPath::new(&uniform, &rates);
    let pass = Pass { drop_path: Some(&drop), ..Pass::default() };
    let found = stack.forward(&x, &pass);
    let rest = |x: Tensor| single[1..].iter().fold(x, |x, block| block.forward(&x));
    let [attn, mlp] =
        [[0.0, 2.0], [1.0, 1.0]].map(|scales| Tensor::from_slice(&scales.map(|s: f64| s as f32)).view([2, 1, 1]));
    let expected = rest(single[0].forward_dropped(&x, None, Some(&[attn, mlp])));
    assert_eq!(found, expected);
    // And that is neither the plain pass nor the same for both samples.
    let plain = stack.forward(&x, &Pass::default());
    assert_ne!(found.get(0), plain.get(0));
    let kept = Tensor::ones([2, 8], (Kind::Double, Device::Cpu)) * 0.9;
    let kept = DropPath::new(&kept, &rates);
    let kept = stack.forward(&x, &Pass { drop_path: Some(&kept), ..Pass::default() });
    assert_eq!(found.get(1), kept.get(1));
    assert_ne!(found.get(0), kept.get(0));
}

/// Fusion and dropped branches included, in both precisions.
#[test]
fn checkpointed_blocks_have_the_same_gradients_to_the_bit() {
    let uniform = Tensor::arange(16, (Kind::Double, Device::Cpu)).view([2, 8]) / 16.0;
    let drop = DropPath::new(&uniform, &Tensor::from_slice(&[0.4; 8]));
    for precision in [Precision::F32, Precision::Bf16] {
        let gradients = |grad_checkpointing| {
            let params = ParamStore::new(Device::Cpu, 0);
            let stack = Blocks::new(&params.root(), "blocks", 3, &CONFIG, 1);
            let x = random(&[2, 5, 16], "x").set_requires_grad(true);
            let pass = Pass { drop_path: Some(&drop), grad_checkpointing };
            let y = {
                let _scope = precision.guard(Device::Cpu);
                stack.forward_fused(&x, &[0], None, &pass)
            };
            (y * random(&[2, 5, 16], "weights")).sum(Kind::Float).backward();
            let mut grads: Vec<Tensor> = params.trainable().values().map(Tensor::grad).collect();
            grads.push(x.grad());
            grads
        };
        let (plain, checkpointed) = (gradients(false), gradients(true));
        assert_eq!(plain.len(), 3 * 12 + 1);
        assert!(plain == checkpointed, "{precision}");
    }
}
