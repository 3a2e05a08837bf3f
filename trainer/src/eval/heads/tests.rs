use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Tensor};

use super::*;
use crate::recipe::schedule::{Descent, Schedule, scale_lr};
use crate::testing::relative_l2;
use crate::train::optim::lars::{Lars, LarsConfig};

const BLRS: [f64; 3] = [1.0, 10.0, 60.0];
const BATCH: usize = 8;

/// See `tests/golden/linprobe/README.md`.
fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/linprobe/probe.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn ints(t: &Tensor) -> Vec<i64> {
    Vec::try_from(t.flatten(0, -1)).unwrap()
}

#[test]
fn heads_learn_as_each_alone_does_in_pytorch() {
    let golden = golden();
    let (views, _, dim) = golden["features"].size3().unwrap();
    let heads = Heads::new(BLRS.len(), 4, dim, 0, Device::Cpu);
    tch::no_grad(|| heads.weight.shallow_clone().copy_(&golden["start"]));
    let lrs = BLRS.map(|blr| scale_lr(blr, BATCH));
    let mut lars = Lars::new(LarsConfig::default(), &lrs, heads.params());
    let schedule = Schedule { lr: 1.0, min_lr: 0.0, warmup_epochs: 1.0, epochs: 3.0, descent: Descent::Cosine };
    let mut losses = Vec::new();
    for epoch in 0..3 {
        let batches = golden["order"].get(epoch).split(BATCH as i64, 0);
        for (step, rows) in batches.iter().enumerate() {
            let x = golden["features"].get(epoch % views).index_select(0, rows);
            let labels = golden["labels"].index_select(0, rows);
            let at = epoch as f64 + step as f64 / batches.len() as f64;
            losses.push(heads.step(&mut lars, &x, &labels, schedule.lr_at(at)));
        }
    }
    let close = |what: &str, found: &Tensor, expected: &Tensor| {
        let difference = relative_l2(&found.detach(), &expected.view(&found.size()[..]));
        assert!(difference < 1e-5, "{what} differs by {difference:e}");
    };
    close("the mean", &heads.running_mean, &golden["running_mean"]);
    close("the variance", &heads.running_var, &golden["running_var"]);
    let losses = Tensor::stack(&losses, 1); // [R, steps]
    let test_labels = ints(&golden["test_labels"]);
    let all: Vec<i64> = (0..test_labels.len() as i64).collect();
    let accuracy = heads
        .accuracy(&Labeled { features: &golden["test_features"].unsqueeze(0), labels: &test_labels, rows: &all })
        .unwrap();
    for i in 0..BLRS.len() {
        let of_head = |t: &Tensor| t.get(i as i64);
        for (what, found) in
            [("losses", of_head(&losses)), ("weight", of_head(&heads.weight)), ("bias", of_head(&heads.bias))]
        {
            close(&format!("{what} at {}", BLRS[i]), &found, &golden[&format!("{what}.{i}")]);
        }
        let right = accuracy[i].top1 * all.len() as f64;
        assert_eq!(right.round() as i64, ints(&golden[&format!("correct.{i}")])[0]);
    }
}

/// A head that is trained alone equals one that is trained among others, and equal seeds give equal heads.
#[test]
fn heads_do_not_see_each_other() {
    let golden = golden();
    let labels = ints(&golden["labels"]);
    let rows: Vec<i64> = (0..labels.len() as i64).collect();
    let set = Labeled { features: &golden["features"], labels: &labels, rows: &rows };
    let train = |blrs: &[f64], seed| {
        let training =
            Training { blrs: blrs.to_vec(), epochs: 4, warmup_epochs: 1.0, batch_size: 16, weight_decay: 1e-4, seed };
        super::train(&set, 4, &training, Device::Cpu).unwrap()
    };
    let (together, losses) = train(&BLRS, 5);
    for (i, &blr) in BLRS.iter().enumerate() {
        let (alone, loss) = train(&[blr], 5);
        let difference = relative_l2(&together.weight.get(i as i64), &alone.weight.get(0));
        assert!(difference < 1e-5, "{blr}: {difference:e}");
        assert!((loss[0] - losses[i]).abs() < 1e-5);
    }
    assert_eq!(train(&BLRS, 5).0.weight, together.weight);
    assert_ne!(train(&BLRS, 6).0.weight, together.weight);
}

#[test]
fn the_golden_script_still_makes_these_files() {
    let Some(folder) = crate::testing::made_again("linprobe") else {
        return;
    };
    for name in ["lars", "probe"] {
        crate::testing::same_tensors(&folder, "linprobe", &format!("{name}.safetensors"), 1e-5);
    }
}

#[test]
fn more_scores_than_a_batch_can_hold_are_refused() {
    let golden = golden();
    let set = Labeled { features: &golden["features"], labels: &[0; 128], rows: &[0; 128] };
    let training =
        Training { blrs: vec![0.1; 8], epochs: 1, warmup_epochs: 0.0, batch_size: 128, weight_decay: 0.0, seed: 0 };
    let error = train(&set, 1_000_000, &training, Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("too many scores"), "{error}");
}
