use std::path::Path;

use tch::Device;

use super::*;
use crate::{AdamWConfig, FusedAdamW, clip_grad_norm_};

/// See `tests/golden/ema/README.md`.
fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/ema/ema.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

const NAMES: [&str; 4] = ["0.weight", "0.bias", "2.weight", "2.bias"];

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
}

fn handles(params: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    params.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
}

#[test]
fn adamw_with_ema_goes_where_torch_goes() {
    let golden = golden();
    let params: BTreeMap<String, Tensor> = NAMES
        .iter()
        .map(|name| {
            let start = golden[&format!("start/{name}")].copy();
            (name.to_string(), start.set_requires_grad(true))
        })
        .collect();
    let mut optim = FusedAdamW::new(AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let (decay, no_decay): (Vec<_>, Vec<_>) = handles(&params).into_iter().partition(|(_, param)| param.dim() >= 2);
    optim.add_group(decay, 0.0, 0.05);
    optim.add_group(no_decay, 0.0, 0.0);
    let mut ema = Ema::new(handles(&params));
    let go = Tensor::from(true);
    for step in 0..20 {
        for group in 0..optim.num_groups() {
            optim.set_lr(group, 2e-3 * (step + 1) as f64);
        }
        optim.zero_grad();
        let hidden = golden[&format!("x{step}")].linear(&params["0.weight"], Some(&params["0.bias"])).gelu("none");
        let y = hidden.linear(&params["2.weight"], Some(&params["2.bias"]));
        let loss = (y - &golden[&format!("target{step}")]).square().mean(Kind::Float);
        let expected = golden["losses"].double_value(&[step]);
        assert!((loss.double_value(&[]) - expected).abs() < 1e-5 * expected);
        loss.backward();
        let _norm = clip_grad_norm_(&mut optim.grads(), 0.5).unwrap();
        optim.step_if(&go).unwrap();
        ema.update_if(0.9, &go).unwrap();
        if ![0, 9, 19].contains(&step) {
            continue;
        }
        let averages = ema.state();
        for name in NAMES {
            let after = relative_l2(&params[name], &golden[&format!("after{step}/{name}")]);
            let average = relative_l2(&averages[name], &golden[&format!("ema{step}/{name}")]);
            assert!(after < 1e-5 && average < 1e-5, "{name} after step {step}: {after:e}, its average {average:e}");
            assert!(
                relative_l2(&averages[name], &params[name]) > 1e-4,
                "the average is another thing than the parameter"
            );
        }
    }
}

#[test]
fn the_golden_script_still_makes_this_file() {
    let Some(made) = crate::adamw::tests::golden_made_again("ema") else {
        return;
    };
    let kept = golden();
    assert!(kept.keys().eq(made.keys()));
    for (name, tensor) in &kept {
        let difference = relative_l2(&made[name], tensor);
        assert!(difference < 1e-5, "{name}: {difference:e}");
    }
}

fn params() -> BTreeMap<String, Tensor> {
    let tensor = |value: f64, shape: &[i64]| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
    BTreeMap::from([
        ("a".to_owned(), tensor(1.0, &[3])),
        ("b".to_owned(), tensor(-2.0, &[2, 2])),
        // Scalars and what is larger than one lot of the kernel.
        ("c".to_owned(), tensor(0.5, &[])),
        ("d".to_owned(), tensor(0.25, &[(1 << 24) + 3])),
    ])
}

#[test]
fn a_refused_update_changes_nothing_and_others_move_every_average() {
    let mut params = params();
    let mut ema = Ema::new(handles(&params));
    let started = ema.state();
    for param in params.values_mut() {
        let _ = param.g_add_scalar_(1.0);
    }
    ema.update_if(0.75, &Tensor::from(false)).unwrap();
    for (name, average) in &ema.state() {
        assert_eq!(*average, &params[name] - 1.0, "{name}");
    }
    ema.update_if(0.75, &Tensor::from(true)).unwrap();
    for (name, average) in &started {
        // A quarter of the way, exact in f32; and the handles see it.
        assert_eq!(*average, &params[name] - 0.75, "{name}");
    }
}

#[test]
fn a_state_comes_back_and_a_strange_one_is_refused() {
    let params = params();
    let mut ema = Ema::new(handles(&params));
    let mut saved: BTreeMap<String, Tensor> = params.iter().map(|(name, t)| (name.clone(), t * 3.0)).collect();
    saved.insert("pos_embed".to_owned(), Tensor::from(1.0));
    ema.load_state(&saved).unwrap();
    for (name, average) in &ema.state() {
        assert_eq!(*average, saved[name]);
    }
    let c = saved.remove("c").unwrap();
    let refused = ema.load_state(&saved).unwrap_err().to_string();
    assert!(refused.contains("average of c: missing"), "{refused}");
    saved.insert("c".to_owned(), c.view([1]));
    let refused = ema.load_state(&saved).unwrap_err().to_string();
    assert!(refused.contains("shape [1], the parameter's is []"), "{refused}");
}
