use std::path::Path;
use std::process::Command;

use tch::{Device, Kind};

use super::*;
use crate::grads::{all_finite, clip_grad_norm_};

/// See `tests/golden/adamw/README.md`.
fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/adamw/adamw.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

const NAMES: [&str; 3] = ["bias", "sometimes", "weight"];

fn lr(step: usize, group: usize) -> f64 {
    1e-2 * (step + 1) as f64 / (group + 1) as f64
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
}

fn leaf(start: &Tensor) -> Tensor {
    start.copy().set_requires_grad(true)
}

/// Gives `param` the gradient `grad`, by differentiating their product.
fn set_grad(param: &mut Tensor, grad: &Tensor) {
    (&*param * grad).sum(Kind::Float).backward();
}

fn params(golden: &BTreeMap<String, Tensor>) -> BTreeMap<&'static str, Tensor> {
    NAMES.into_iter().map(|name| (name, leaf(&golden[&format!("start/{name}")]))).collect()
}

fn optimizer(params: &BTreeMap<&'static str, Tensor>) -> FusedAdamW {
    let mut optimizer = FusedAdamW::new(AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let of = |names: &[&str]| names.iter().map(|n| (n.to_string(), params[n].shallow_clone())).collect::<Vec<_>>();
    optimizer.add_group(of(&["weight", "sometimes"]), 0.0, 0.05);
    optimizer.add_group(of(&["bias"]), 0.0, 0.0);
    optimizer
}

/// Step `step` of the golden run.
fn take_step(
    optimizer: &mut FusedAdamW,
    params: &mut BTreeMap<&'static str, Tensor>,
    golden: &BTreeMap<String, Tensor>,
    step: usize,
) {
    optimizer.zero_grad();
    for (name, param) in params.iter_mut() {
        if let Some(grad) = golden.get(&format!("grad{step}/{name}")) {
            set_grad(param, grad);
        }
    }
    for group in 0..optimizer.num_groups() {
        optimizer.set_lr(group, lr(step, group));
    }
    let refused = step == 5;
    optimizer.step_if(&Tensor::from(!refused)).unwrap();
}

#[test]
fn takes_the_steps_of_torch() {
    let golden = golden();
    let mut params = params(&golden);
    let mut optimizer = optimizer(&params);
    for step in 0..6 {
        take_step(&mut optimizer, &mut params, &golden, step);
        for (name, param) in &params {
            let difference = relative_l2(param, &golden[&format!("after{step}/{name}")]);
            assert!(difference < 1e-6, "{name} after step {step}: {difference:e}");
        }
    }
    let state = optimizer.state();
    assert_eq!(state.len(), 9);
    for (name, tensor) in &state {
        let difference = relative_l2(tensor, &golden[name]);
        assert!(difference < 1e-6, "{name}: {difference:e}");
    }
    assert_eq!(state["step.weight"].double_value(&[]), 5.0, "the refused step is not counted");
    assert_eq!(state["step.sometimes"].double_value(&[]), 4.0, "neither is one without gradient");
}

fn copy(state: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    state.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
}

/// The tensors that `scripts/golden/NAME.py` writes today; `None`, and a word about it, without the Python environment.
pub(crate) fn golden_made_again(name: &str) -> Option<BTreeMap<String, Tensor>> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let python = Command::new(scripts.join("python-env")).arg("--if-present").output().unwrap();
    if !python.status.success() {
        println!("skipped: the Python environment is not installed (scripts/python-env installs it)");
        return None;
    }
    let python = String::from_utf8(python.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python.trim())
        .arg(scripts.join(format!("golden/{name}.py")))
        .args(["--out".as_ref(), folder.path()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = folder.path().join(format!("{name}.safetensors"));
    let tensors = Tensor::read_safetensors(file).unwrap();
    Some(tensors.into_iter().collect())
}

#[test]
fn the_golden_script_still_makes_this_file() {
    let Some(made) = golden_made_again("adamw") else {
        return;
    };
    let kept = golden();
    assert!(kept.keys().eq(made.keys()));
    for (name, tensor) in &kept {
        let difference = relative_l2(&made[name], tensor);
        assert!(difference < 1e-6, "{name}: {difference:e}");
    }
}

#[test]
fn a_restored_optimizer_takes_the_same_steps() {
    let golden = golden();
    let run = |resume_before: Option<usize>| {
        let mut params = params(&golden);
        let mut optimizer = optimizer(&params);
        for step in 0..5 {
            if resume_before == Some(step) {
                let state = copy(&optimizer.state());
                params = params.iter().map(|(name, p)| (*name, leaf(&p.detach()))).collect();
                optimizer = self::optimizer(&params);
                optimizer.load_state(&state).unwrap();
            }
            take_step(&mut optimizer, &mut params, &golden, step);
        }
        (params, optimizer.state())
    };
    assert_eq!(run(None), run(Some(3)));
}

#[test]
fn a_step_refused_changes_not_one_bit() {
    let golden = golden();
    let mut params = params(&golden);
    let mut optimizer = optimizer(&params);
    take_step(&mut optimizer, &mut params, &golden, 0);
    let before = (params.values().map(Tensor::copy).collect::<Vec<_>>(), copy(&optimizer.state()));
    let bad = Tensor::full([7], f64::NAN, (Kind::Float, Device::Cpu));
    optimizer.zero_grad();
    set_grad(params.get_mut("bias").unwrap(), &bad);
    let go = all_finite(&optimizer.grads()).unwrap();
    optimizer.step_if(&go).unwrap();
    let after = (params.values().map(Tensor::copy).collect::<Vec<_>>(), copy(&optimizer.state()));
    assert_eq!(before, after);
}

#[test]
fn gradients_are_forgotten_and_counted() {
    let golden = golden();
    let mut params = params(&golden);
    let mut optimizer = optimizer(&params);
    assert!(optimizer.grads().is_empty());
    optimizer.step().expect("a step without gradients changes nothing and succeeds");
    set_grad(params.get_mut("bias").unwrap(), &golden["grad0/bias"]);
    assert_eq!(optimizer.grads(), [golden["grad0/bias"].shallow_clone()]);
    optimizer.zero_grad();
    assert!(optimizer.grads().iter().all(|grad| grad.abs().max().double_value(&[]) == 0.0));
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_nothing_is_loaded() {
    let golden = golden();
    let params = params(&golden);
    let mut optimizer = optimizer(&params);
    let good: BTreeMap<String, Tensor> = optimizer.state().into_iter().map(|(name, t)| (name, t.ones_like())).collect();
    let check = |optimizer: &mut FusedAdamW, state: &BTreeMap<String, Tensor>, name: &str, word: &str| {
        let refused = optimizer.load_state(state);
        let Err(Error::OptimizerState { param, problem }) = refused else { panic!("{refused:?}") };
        assert_eq!(param, name);
        assert!(problem.contains(word), "{problem}");
        assert_eq!(optimizer.state()["step.bias"].double_value(&[]), 0.0);
    };
    let mut state = copy(&good);
    state.remove("exp_avg_sq.weight");
    check(&mut optimizer, &state, "exp_avg_sq.weight", "missing");
    let mut state = copy(&good);
    state.insert("step.other".to_owned(), Tensor::from(1.0));
    check(&mut optimizer, &state, "step.other", "unexpected");
    let mut state = copy(&good);
    state.insert("exp_avg.bias".to_owned(), Tensor::zeros([8], (Kind::Float, Device::Cpu)));
    check(&mut optimizer, &state, "exp_avg.bias", "[8], the parameter's is [7]");
    optimizer.load_state(&good).unwrap();
    assert_eq!(optimizer.state(), good);
}

#[test]
#[should_panic(expected = "bias is in the optimizer twice")]
fn a_parameter_is_optimized_once() {
    let params = params(&golden());
    optimizer(&params).add_group([("bias".to_owned(), params["bias"].shallow_clone())], 0.1, 0.0);
}

#[test]
fn clipping_is_that_of_torch() {
    let golden = golden();
    // The order of the list is that of Python's, since the norm of norms depends on it in the last bit.
    let names = ["weight", "bias", "sometimes"];
    for (case, max_norm) in [("clipped", 1.0), ("unclipped", 1e3)] {
        let mut grads = names.map(|name| golden[&format!("grad4/{name}")].copy());
        let norm = clip_grad_norm_(&mut grads, max_norm).unwrap();
        assert!(relative_l2(&norm.reshape([1]), &golden[&format!("{case}/norm")]) < 1e-6);
        for (name, grad) in names.iter().zip(&grads) {
            assert!(relative_l2(grad, &golden[&format!("{case}/{name}")]) < 1e-6, "{case} {name}");
        }
    }
}
