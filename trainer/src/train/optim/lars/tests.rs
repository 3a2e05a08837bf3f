use std::path::Path;

use super::*;
use crate::testing::relative_l2;

const NAMES: [&str; 3] = ["bias", "still", "weight"];
const LRS: [f64; 2] = [0.5, 3.0];
const STEPS: usize = 10;

/// See `tests/golden/linprobe/README.md`.
fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/linprobe/lars.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Both learning rates' parameters in one stack, as they start.
fn params(golden: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let stacked = |name: &str| {
        let start = &golden[&format!("start/{name}")];
        Tensor::stack(&[start, start], 0).set_requires_grad(true)
    };
    NAMES.map(|name| (name.to_owned(), stacked(name))).into()
}

fn handles(params: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    params.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
}

fn optimizer(params: &BTreeMap<String, Tensor>) -> Lars {
    let config = LarsConfig { weight_decay: 0.01, ..LarsConfig::default() };
    Lars::new(config, &LRS, handles(params))
}

fn take_step(lars: &mut Lars, params: &BTreeMap<String, Tensor>, golden: &BTreeMap<String, Tensor>, step: usize) {
    lars.zero_grad();
    for (name, param) in params {
        (param * &golden[&format!("grad{step}/{name}")]).sum(Kind::Float).backward();
    }
    lars.step(1.0 / (step + 1) as f64);
}

#[test]
fn takes_the_steps_of_two_networks_trained_alone() {
    let golden = golden();
    let params = params(&golden);
    let mut lars = optimizer(&params);
    for step in 0..STEPS {
        take_step(&mut lars, &params, &golden, step);
        for (name, param) in &params {
            for i in 0..LRS.len() {
                let expected = &golden[&format!("after{step}.{i}/{name}")];
                let difference = relative_l2(&param.get(i as i64), expected);
                assert!(difference < 1e-6, "{name} after step {step}: {difference:e}");
            }
        }
    }
    for (name, state) in &lars.params {
        for i in 0..LRS.len() {
            let difference = relative_l2(&state.mu.get(i as i64), &golden[&format!("mu.{i}/{name}")]);
            assert!(difference < 1e-6, "momentum of {name}: {difference:e}");
        }
    }
}
