use std::path::Path;

use tch::Device;

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
    for (name, mu) in lars.state() {
        let name = name.strip_prefix("mu.").unwrap();
        for i in 0..LRS.len() {
            let difference = relative_l2(&mu.get(i as i64), &golden[&format!("mu.{i}/{name}")]);
            assert!(difference < 1e-6, "momentum of {name}: {difference:e}");
        }
    }
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let golden = golden();
    let whole = params(&golden);
    let mut lars = optimizer(&whole);
    let mut saved = None;
    for step in 0..STEPS {
        if step == 4 {
            let copy = |tensors: BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
                tensors.into_iter().map(|(n, t)| (n, t.detach().copy())).collect()
            };
            saved = Some((copy(handles(&whole)), copy(lars.state())));
        }
        take_step(&mut lars, &whole, &golden, step);
    }
    let (values, state) = saved.unwrap();
    let resumed: BTreeMap<_, _> = values.into_iter().map(|(n, t)| (n, t.set_requires_grad(true))).collect();
    let mut lars = optimizer(&resumed);
    lars.load_state(&state).unwrap();
    for step in 4..STEPS {
        take_step(&mut lars, &resumed, &golden, step);
    }
    assert_eq!(resumed, whole);
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let golden = golden();
    let mut lars = optimizer(&params(&golden));
    let error = |lars: &mut Lars, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut state = lars.state();
        change(&mut state);
        lars.load_state(&state).unwrap_err().to_string()
    };
    let other = || Tensor::zeros([2, 1], (Kind::Float, Device::Cpu));
    assert!(error(&mut lars, &|s| drop(s.remove("mu.bias"))).contains("lacks mu.bias"));
    assert!(error(&mut lars, &|s| drop(s.insert("mu.bias".into(), other()))).contains("mu.bias is [2, 1]"));
    assert!(error(&mut lars, &|s| drop(s.insert("mu.x".into(), other()))).contains("has mu.x"));
}
