//! Images per second of a ViT-B/16 teacher, beside the rate of plain matrix products on the same machine.
//!
//!     cargo run --release -p models --example teacher_rate [-- THREADS [BATCH...]]
//!
//! The weights are random, written to a temporary folder in timm's layout and loaded as any teacher is. A forward pass is nearly
//! all matrix products, so the image rate can at best be (product rate) / (products per image); the last column says how near
//! it comes. The products timed alone are the tower's own four, in turn, at the tower's number of rows.

#![allow(clippy::print_stdout, reason = "an example shows its result")]
#![allow(clippy::disallowed_methods, reason = "writes a throw-away folder")]
#![allow(clippy::unwrap_used, reason = "an example stops at the first error")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use models::init::Init;
use models::precision::Precision;
use models::teacher::Teacher;
use models::weights;
use tch::{Device, Kind, Tensor};

const D: i64 = 768;
const DEPTH: i64 = 12;
const P: i64 = 16;
const SIZE: i64 = 224;
const L: i64 = (SIZE / P) * (SIZE / P);
const T: i64 = 1 + L;

/// (out, in) of a block's four matrices.
const PRODUCTS: [(i64, i64); 4] = [(3 * D, D), (D, D), (4 * D, D), (D, 4 * D)];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<i64>().expect("arguments are numbers"));
    let threads = arguments.next().unwrap_or(1);
    let mut batches: Vec<i64> = arguments.collect();
    if batches.is_empty() {
        batches = vec![8, 16];
    }
    torch_ext::set_num_threads(threads as usize).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    fs::write(&file, weights::to_bytes(&vit_b16(), None).unwrap()).unwrap();
    let start = Instant::now();
    let teacher = Teacher::load(folder.path(), Device::Cpu).unwrap();
    println!("{}, {threads} thread(s), loaded in {:.2} s", teacher.info().arch, start.elapsed().as_secs_f64());

    let linear = PRODUCTS.iter().map(|(o, i)| 2 * o * i * T).sum::<i64>() * DEPTH + 2 * L * D * 3 * P * P;
    let attention = 2 * 2 * T * T * D * DEPTH;
    let per_image = (linear + attention) as f64 / 1e9;
    println!("{per_image:.1} GFLOP per image, {:.1} of them in attention", attention as f64 / 1e9);
    println!("precision  batch   img/s   GFLOP/s   products alone   share of it");
    for precision in [Precision::F32, Precision::Bf16] {
        for &n in &batches {
            let pixels = Tensor::randint(256, [n, 3, SIZE, SIZE], (Kind::Uint8, Device::Cpu));
            let seconds = best_of(5, || drop(teacher.forward(&pixels, precision).unwrap()));
            let rate = n as f64 / seconds;
            let alone = product_rate(n * T, precision);
            println!(
                "{precision:9} {n:6} {rate:7.2} {:9.1} {alone:16.1} {:12.0}%",
                rate * per_image,
                100.0 * rate * per_image / alone
            );
        }
    }
    if let Some(peak) = torch_ext::peak_rss() {
        println!("peak memory {:.2} GB", peak as f64 / 1e9);
    }
}

/// Random weights in timm's names.
fn vit_b16() -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[i64]| {
        let init = Init::TruncNormal { std: 0.02 };
        let tensor = init.tensor(shape, 0, &name);
        tensors.insert(name, tensor);
    };
    add("cls_token".into(), &[1, 1, D]);
    add("pos_embed".into(), &[1, T, D]);
    add("patch_embed.proj.weight".into(), &[D, 3, P, P]);
    add("patch_embed.proj.bias".into(), &[D]);
    add("norm.weight".into(), &[D]);
    add("norm.bias".into(), &[D]);
    for i in 0..DEPTH {
        for (name, (out_dim, in_dim)) in ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"].iter().zip(PRODUCTS) {
            add(format!("blocks.{i}.{name}.weight"), &[out_dim, in_dim]);
            add(format!("blocks.{i}.{name}.bias"), &[out_dim]);
        }
        for name in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"] {
            add(format!("blocks.{i}.{name}"), &[D]);
        }
    }
    tensors
}

/// GFLOP/s of the block's four products on `rows` rows.
fn product_rate(rows: i64, precision: Precision) -> f64 {
    let kind = if precision == Precision::F32 { Kind::Float } else { Kind::BFloat16 };
    let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
    let pairs: Vec<_> = PRODUCTS.iter().map(|&(o, i)| (random([rows, i]), random([o, i]))).collect();
    let seconds = best_of(5, || {
        for (x, weight) in &pairs {
            drop(x.linear(weight, None::<&Tensor>));
        }
    });
    PRODUCTS.iter().map(|(o, i)| 2 * o * i * rows).sum::<i64>() as f64 / seconds / 1e9
}

fn best_of(times: usize, mut work: impl FnMut()) -> f64 {
    work();
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(time).fold(f64::INFINITY, f64::min)
}
