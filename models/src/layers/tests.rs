use tch::Device;

use super::*;
use crate::params::ParamStore;

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn random(shape: &[i64], name: &str) -> Tensor {
    Init::Normal { std: 1.0 }.tensor(shape, 3, name)
}

fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    assert!(difference < 1e-5, "differs by {difference:e}");
}

/// A store whose biases and norms are random too, so that leaving one out shows.
fn randomise(store: &ParamStore) {
    tch::no_grad(|| {
        for (name, mut tensor) in store.tensors() {
            let shape = tensor.size();
            tensor.copy_(&(random(&shape, &name) * 0.3));
        }
    });
}

fn attention(store: &ParamStore) -> Attention {
    let attention = Attention::new(&store.root(), 12, 3, true);
    randomise(store);
    attention
}

/// softmax(q kᵀ / √d) with every step written out: the whole matrix `[N, H, T, T]`, and what it makes of the values.
fn plain_attention(store: &ParamStore, x: &Tensor) -> (Tensor, Tensor) {
    let get = |name: &str| store.get(name).unwrap();
    let qkv = x.matmul(&get("qkv.weight").transpose(0, 1)) + get("qkv.bias");
    let heads = |i: i64| qkv.narrow(2, 12 * i, 12).reshape([2, 5, 3, 4]).permute([0, 2, 1, 3]);
    let matrix = (heads(0).matmul(&heads(1).transpose(2, 3)) / 2.0).softmax(-1, Kind::Float);
    let mixed = matrix.matmul(&heads(2)).permute([0, 2, 1, 3]).reshape([2, 5, 12]);
    (matrix, mixed.matmul(&get("proj.weight").transpose(0, 1)) + get("proj.bias"))
}

#[test]
fn attention_is_what_its_formula_says() {
    let store = ParamStore::new(Device::Cpu, 0);
    let attention = attention(&store);
    let x = random(&[2, 5, 12], "x");
    let (matrix, expected) = plain_attention(&store, &x);
    assert_close(&attention.forward(&x), &expected);
    let cls_row = matrix.select(2, 0); // [N, H, T]
    assert_close(&attention.cls_attention(&x), &cls_row);
    let (y, row) = attention.forward_with_cls_attention(&x, None);
    assert_close(&y, &expected);
    assert_close(&row, &cls_row);
    assert_close(&row.sum_dim_intlist(-1, false, None), &Tensor::ones([2, 3], F32));
}

#[test]
fn under_autocast_products_are_bf16_and_norms_and_softmax_f32() {
    let store = ParamStore::new(Device::Cpu, 0);
    let block = Block::new(
        &store.root(),
        &BlockConfig {
            dim: 12,
            num_heads: 3,
            mlp_dim: 24,
            qkv_bias: true,
            norm_eps: 1e-6,
            activation: Activation::Gelu,
            gated_mlp: false,
        },
    );
    let x = random(&[2, 5, 12], "x");
    let expected = block.forward(&x);
    let _bf16 = torch_ext::Autocast::bf16(Device::Cpu);
    assert_eq!(block.attn.forward(&x).kind(), Kind::BFloat16);
    assert_eq!(block.norm1.forward(&x.to_kind(Kind::BFloat16)).kind(), Kind::Float);
    let (y, row) = block.forward_with_cls_attention(&x, None);
    assert_eq!((y.kind(), row.kind()), (Kind::Float, Kind::Float), "the residual stream and the attention stay f32");
    let difference = (y - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    assert!((1e-5..1e-2).contains(&difference), "bf16 has 8 bits: {difference:e}");
}

#[test]
fn a_block_s_attention_is_that_of_its_normed_input() {
    let store = ParamStore::new(Device::Cpu, 0);
    let config = BlockConfig {
        dim: 12,
        num_heads: 3,
        mlp_dim: 24,
        qkv_bias: false,
        norm_eps: 1e-6,
        activation: Activation::QuickGelu,
        gated_mlp: false,
    };
    let block = Block::new(&store.root(), &config);
    randomise(&store);
    assert!(store.get("attn.qkv.bias").is_none());
    let x = random(&[2, 5, 12], "x");
    let (y, row) = block.forward_with_cls_attention(&x, None);
    assert_eq!(y, block.forward(&x));
    assert_close(&row, &block.cls_attention(&x));
    assert_close(&row, &block.attn.cls_attention(&block.norm1.forward(&x)));
}

#[test]
fn activations_have_their_published_values() {
    let x = Tensor::from_slice(&[-1.0, 0.0, 1.0, 3.0]);
    let check = |activation: Activation, expected: [f64; 4]| {
        for (found, expected) in Vec::<f64>::try_from(activation.forward(&x)).unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-8, "{activation:?}: {found}, not {expected}");
        }
    };
    // x Φ(x), from a table of the normal distribution; the tanh form gives 0.841192 at 1.
    check(Activation::Gelu, [-0.158_655_254, 0.0, 0.841_344_746, 2.995_950_306]);
    // x / (1 + exp(-1.702 x)).
    check(Activation::QuickGelu, [-0.154_204_234, 0.0, 0.845_795_766, 2.981_928_690]);
    // x / (1 + exp(-x)).
    check(Activation::Silu, [-0.268_941_421, 0.0, 0.731_058_579, 2.857_722_380]);
    // x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    check(Activation::GeluTanh, [-0.158_808_009, 0.0, 0.841_191_991, 2.996_362_608]);
}

#[test]
fn a_gated_mlp_is_what_its_formula_says() {
    let store = ParamStore::new(Device::Cpu, 0);
    let mlp = Mlp::gated(&store.root(), 4, 6, Activation::Silu);
    randomise(&store);
    let get = |name: &str| store.get(name).unwrap();
    let x = random(&[3, 4], "x");
    let rows = |start| x.matmul(&get("fc1.weight").narrow(0, start, 6).tr()) + get("fc1.bias").narrow(0, start, 6);
    let gate = rows(0);
    let hidden = &gate * gate.sigmoid() * rows(6);
    let expected = hidden.matmul(&get("fc2.weight").tr()) + get("fc2.bias");
    assert_close(&mlp.forward(&x), &expected);
}

#[test]
fn rotary_positions_turn_patches_by_their_distance_alone() {
    let (prefix, grid, head_dim) = (2, (3, 4), 8);
    let rotary = Rotary::axial(100.0, head_dim, prefix, grid, Device::Cpu);
    let x = random(&[1, 1, prefix + 12, head_dim], "x");
    let turned = rotary.turn(&x);
    assert_eq!(turned.narrow(2, 0, prefix), x.narrow(2, 0, prefix));
    let norms = |x: &Tensor| x.norm_scalaropt_dim(2, [3], false);
    assert_close(&norms(&turned), &norms(&x));
    // The same query and key everywhere: their product depends on the offset between two patches, not on where they are.
    let same = |name: &str| random(&[1, 1, 1, head_dim], name).expand([1, 1, 14, head_dim], false);
    let (q, k) = (rotary.turn(&same("q")), rotary.turn(&same("k")));
    let products = q.matmul(&k.transpose(2, 3)).squeeze();
    let at = |a: i64, b: i64| products.double_value(&[prefix + a, prefix + b]);
    // One row down: from (0, 1) to (1, 1), and from (1, 3) to (2, 3).
    assert!((at(1, 5) - at(7, 11)).abs() < 1e-5);
    // One column right, and the other way round.
    assert!((at(1, 2) - at(6, 7)).abs() < 1e-5);
    assert!((at(1, 2) - at(2, 1)).abs() > 1e-3);
}

#[test]
fn the_norm_uses_the_eps_it_is_given() {
    let x = Tensor::from_slice(&[1e-3f32, -1e-3]).unsqueeze(0);
    for eps in [1e-6f64, 1e-5] {
        let store = ParamStore::new(Device::Cpu, 0);
        let found = LayerNorm::new(&store.root(), 2, eps).forward(&x).double_value(&[0, 0]);
        assert!((found - 1e-3 / (1e-6 + eps).sqrt()).abs() < 1e-6, "eps {eps}: {found}");
    }
}

#[test]
fn patches_are_embedded_as_the_convolution_would() {
    let store = ParamStore::new(Device::Cpu, 0);
    let patch_embed = PatchEmbed::new(&store.root(), 4, 10, true);
    randomise(&store);
    let imgs = random(&[2, 3, 8, 12], "imgs");
    let (weight, bias) = (store.get("proj.weight").unwrap(), store.get("proj.bias"));
    let convolved = imgs.conv2d(&weight, bias, [4, 4], [0, 0], [1, 1], 1).flatten(2, 3).transpose(1, 2);
    assert_close(&patch_embed.forward(&imgs), &convolved);
    let some = patch_embed.unfold(&imgs).index_select(1, &Tensor::from_slice(&[5i64, 1]));
    assert_close(&patch_embed.project(&some), &convolved.index_select(1, &Tensor::from_slice(&[5i64, 1])));
    let without = ParamStore::new(Device::Cpu, 0);
    PatchEmbed::new(&without.root(), 4, 10, false);
    assert!(without.tensors().into_keys().eq(["proj.weight"]));
}
