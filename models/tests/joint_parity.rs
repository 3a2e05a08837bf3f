//! Several teachers at once against an independent computation in PyTorch, on the golden files of `tests/golden/joint` (see the README there):
//! statistics of targets, every loss, and the gradient of every parameter.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test states what it expects and says what it found")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::blocks::ForwardOptions;
use models::cls_target::ClsStats;
use models::decoder::DecoderConfig;
use models::encoder::EncoderConfig;
use models::losses::{ClsLoss, MimicLoss};
use models::mae::MaeConfig;
use models::masking::{Masking, len_keep, random_masking};
use models::mimic::HeadKind;
use models::mr_mae::{Batch, Losses, MimicConfig, MimicTokens, MrMae, MrMaeConfig, Targets};
use models::params::ParamStore;
use models::precision::Precision;
use models::targets::{TargetNorm, TargetStats, hadamard};
use models::teacher_drop::{TeacherDrop, mean_kept};
use models::vit::VitConfig;
use models::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Relative L2 of losses, statistics and gradients. Both sides compute in f32 with other orders of summation, which makes 1e-7 in losses and 8e-7
/// in gradients; another eps in the norm of a head makes 7e-6 in its gradient (tests/golden/joint/README.md).
const TOLERANCE: f64 = 4e-6;

const CASES: [&str; 3] = ["eupe", "radio", "dropped"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(case: &str) -> Weights {
    read(&root().join("tests/golden/joint"), case)
}

fn read(folder: &Path, case: &str) -> Weights {
    Weights::read(&folder.join(case).with_extension("safetensors")).unwrap()
}

fn under(weights: &Weights, prefix: &str) -> BTreeMap<String, Tensor> {
    let tensors = weights.tensors().iter();
    tensors.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone()))).collect()
}

fn norm(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).norm().double_value(&[])
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

/// Means, variances and covariance of `[n, K]`, in f64.
fn stats(tokens: &Tensor) -> TargetStats {
    let tokens = tokens.to_kind(Kind::Double);
    let mean = tokens.mean_dim(0, true, Kind::Double);
    let centered = &tokens - &mean;
    let covariance = centered.tr().matmul(&centered) / tokens.size()[0] as f64;
    let vector = |t: &Tensor| Vec::try_from(t.contiguous().flatten(0, -1)).unwrap();
    TargetStats { mean: vector(&mean), variance: vector(&covariance.diag(0)), covariance: Some(vector(&covariance)) }
}

fn loss(kind: &str, beta: f64) -> MimicLoss {
    match kind {
        "l2" => MimicLoss::L2,
        "smooth_l1" => MimicLoss::SmoothL1 { beta },
        "cosine" => MimicLoss::Cosine,
        "cosine_smooth_l1" => MimicLoss::CosineSmoothL1 { beta },
        other => panic!("{other}"),
    }
}

struct Case {
    weights: Weights,
    config: MrMaeConfig,
    masking: Masking,
}

impl Case {
    /// The configuration of a golden file, with statistics measured here.
    fn new(weights: Weights) -> Case {
        let case: Value = serde_json::from_str(&weights.metadata()["case"]).unwrap();
        let number = |key: &str| case[key].as_i64().unwrap();
        let tensors = weights.tensors();
        let teachers = case["teachers"].as_object().unwrap().iter().map(|(id, how)| {
            let (float, word) = (|key: &str| how[key].as_f64().unwrap(), |key: &str| how[key].as_str().unwrap());
            let target_norm = |key: &str| serde_json::from_value::<TargetNorm>(how[key].clone()).unwrap();
            let (cls_norm, cls_sample) = (target_norm("cls_norm"), &tensors[&format!("cls_sample/{id}")]);
            let config = MimicConfig {
                width: cls_sample.size()[1],
                weight: float("weight"),
                cls_weight: float("cls_weight"),
                head: match how["head"].as_i64().unwrap() {
                    0 => HeadKind::Linear,
                    hidden => HeadKind::Mlp { hidden },
                },
                target_norm: target_norm("norm"),
                loss: loss(word("loss"), float("beta")),
                stats: Some(stats(&tensors[&format!("sample/{id}")])),
                cls_norm,
                cls_loss: match word("cls_loss") {
                    "angle" => ClsLoss::Angle,
                    kind => ClsLoss::Mimic(loss(kind, float("beta"))),
                },
                cls_stats: Some(ClsStats::measure(id, cls_sample, cls_norm).unwrap()),
            };
            (id.clone(), config)
        });
        let img_size = [case["img_size"][0].as_i64().unwrap(), case["img_size"][1].as_i64().unwrap()];
        let encoder = VitConfig {
            img_size,
            mlp_dim: number("mlp_ratio") * number("embed_dim"),
            ..VitConfig::mae(number("patch_size"), number("embed_dim"), number("depth"), number("num_heads"))
        };
        let config = MrMaeConfig {
            mae: MaeConfig {
                encoder: EncoderConfig::Vit(encoder),
                decoder: DecoderConfig {
                    embed_dim: number("decoder_embed_dim"),
                    depth: number("decoder_depth"),
                    num_heads: number("decoder_num_heads"),
                    mlp_ratio: number("mlp_ratio"),
                },
                norm_pix_loss: case["norm_pix_loss"].as_bool().unwrap(),
            },
            rec_weight: 0.5,
            mimic_tokens: MimicTokens::Encoder,
            teacher_drop: case["drop"].as_f64().unwrap(),
            teachers: teachers.collect(),
        };
        let keep = len_keep(tensors["noise"].size()[1], case["mask_ratio"].as_f64().unwrap());
        let masking = random_masking(&tensors["noise"], keep);
        Case { weights, config, masking }
    }

    /// The network with the file's parameters, after its statistics have been compared with those measured here.
    fn network(&self) -> (ParamStore, MrMae) {
        let store = ParamStore::new(Device::Cpu, 0);
        let network = MrMae::new(&store.root(), &self.config).unwrap();
        let params = under(&self.weights, "param/");
        let statistics = |name: &&String| name.contains("mimic_targets") || name.contains("mimic_cls_targets");
        for name in params.keys().filter(statistics) {
            let (found, expected) = (store.get(name).unwrap(), &params[name]);
            let difference = match expected.dim() {
                2 => difference_of_rotations(&found, expected),
                _ => relative_l2(&found, expected),
            };
            assert!(difference < TOLERANCE, "{name} differs by {difference:e}");
        }
        store.load("golden", &params).unwrap();
        (store, network)
    }

    /// The losses of images `first..first + n`.
    fn losses(&self, network: &MrMae, first: i64, n: i64) -> Losses {
        let rows = |t: &Tensor| t.narrow(0, first, n);
        let of = |prefix: &str| -> BTreeMap<String, Tensor> {
            under(&self.weights, prefix).iter().map(|(id, t)| (id.clone(), rows(t))).collect()
        };
        let (targets, cls_targets) = (of("tokens/"), of("cls/"));
        let masking = random_masking(&rows(&self.weights.tensors()["noise"]), self.masking.ids_keep.size()[1]);
        let uniform = &self.weights.tensors()["uniform"];
        let part = rows(uniform);
        let drop = TeacherDrop { uniform: &part, mean_kept: mean_kept(uniform, self.config.teacher_drop) };
        network.forward(&Batch {
            imgs: &rows(&self.weights.tensors()["imgs"]),
            masking: &masking,
            targets: Targets::All(&targets),
            cls_targets: &cls_targets,
            teacher_drop: Some(drop),
            pass: ForwardOptions::default(),
        })
    }
}

/// `H Uᵀ α` up to the signs of the eigenvectors, the columns of `U`, and to the Hadamard matrix `H`, of which there are several: Sylvester's in
/// the file, and the library's own.
fn difference_of_rotations(found: &Tensor, expected: &Tensor) -> f64 {
    let k = found.size()[0];
    let own = Tensor::from_slice(&hadamard(k as usize).unwrap()).reshape([k, k]).to_kind(Kind::Double);
    let sylvester = Tensor::from_slice(&[1f64, 1.0, 1.0, -1.0]).reshape([2, 2]);
    let sylvester = std::iter::successors(Some(sylvester.shallow_clone()), |h| Some(h.kron(&sylvester)));
    let sylvester = sylvester.into_iter().find(|h| h.size()[0] == k).unwrap();
    let eigenvectors = |h: &Tensor, scale: &Tensor| h.tr().matmul(&scale.to_kind(Kind::Double)).abs();
    relative_l2(&eigenvectors(&own, found), &eigenvectors(&sylvester, expected))
}

/// Every loss by its name in metrics.jsonl.
fn named(losses: &Losses) -> BTreeMap<String, Tensor> {
    let mut named = BTreeMap::from([("total".to_owned(), losses.total.shallow_clone())]);
    named.extend(losses.rec.iter().map(|rec| ("rec".to_owned(), rec.shallow_clone())));
    for (kind, terms) in
        [("mimic", &losses.mimic), ("mimic_cls", &losses.mimic_cls), ("mimic_kept", &losses.mimic_kept)]
    {
        named.extend(terms.iter().map(|(id, term)| (format!("{kind}.{id}"), term.shallow_clone())));
    }
    named
}

fn compare(name: &str, weights: Weights) {
    let case = Case::new(weights);
    let (store, network) = case.network();
    let losses = case.losses(&network, 0, case.weights.tensors()["imgs"].size()[0]);
    let expected = under(&case.weights, "loss/");
    let found = named(&losses);
    assert!(found.keys().eq(expected.keys()), "{name}: {:?}", found.keys());
    for (term, loss) in &found {
        let difference = relative_l2(&loss.reshape([1]), &expected[term]);
        println!("{name}: {term} differs by {difference:.1e}");
        assert!(difference < TOLERANCE, "{name}: {term} differs by {difference:e}");
    }
    losses.total.backward();
    compare_grads(name, &store, &under(&case.weights, "grad/"), TOLERANCE);
}

fn compare_grads(name: &str, store: &ParamStore, expected: &BTreeMap<String, Tensor>, tolerance: f64) {
    let trainable = store.trainable();
    assert!(trainable.keys().eq(expected.keys()), "{name}: other parameters are trained");
    let mut worst = (0.0, String::new());
    for (param, tensor) in trainable {
        let grad = tensor.grad();
        // The key third of this gradient is zero but for rounding: softmax does not see a constant added to all scores of a row.
        let difference = match param.ends_with("attn.qkv.bias") {
            true => [0, 2]
                .map(|i| relative_l2(&grad.chunk(3, 0)[i], &expected[&param].chunk(3, 0)[i]))
                .into_iter()
                .fold(0.0, f64::max),
            false => relative_l2(&grad, &expected[&param]),
        };
        assert!(difference < tolerance, "{name}: the gradient of {param} differs by {difference:e}");
        if difference > worst.0 {
            worst = (difference, param);
        }
    }
    println!("{name}: gradients differ by at most {:.1e}, at {}", worst.0, worst.1);
}

#[test]
fn agrees_with_pytorch() {
    for case in CASES {
        compare(case, golden(case));
    }
}

/// A batch that is computed in parts has the losses and gradients of the whole, also where teachers are dropped: parts keep unequal numbers of
/// teachers, and all are divided by the batch's.
#[test]
fn the_mean_over_parts_is_the_whole() {
    for name in CASES {
        let case = Case::new(golden(name));
        let (store, network) = case.network();
        let parts: Vec<_> = [0, 2, 4].map(|first| case.losses(&network, first, 2)).into();
        for part in &parts {
            (&part.total / 3.0).backward();
        }
        let totals = Tensor::stack(&parts.iter().map(|part| part.total.detach()).collect::<Vec<_>>(), 0);
        let difference = relative_l2(&totals.mean(Kind::Float).reshape([1]), &case.weights.tensors()["loss/total"]);
        assert!(difference < TOLERANCE, "{name}: the total differs by {difference:e}");
        compare_grads(name, &store, &under(&case.weights, "grad/"), TOLERANCE);
    }
}

/// Inside a bf16 scope the losses are f32, and what bf16 loses is the heads' and encoder's rounding alone: the losses of exact predictions are
/// zero to f32's precision, where bf16 would leave 2^-8 of a cosine.
#[test]
fn losses_are_f32_inside_a_bf16_scope() {
    for name in CASES {
        let case = Case::new(golden(name));
        let (_store, network) = case.network();
        let expected = named(&case.losses(&network, 0, 6));
        let _bf16 = Precision::Bf16.guard(Device::Cpu);
        for (term, loss) in named(&case.losses(&network, 0, 6)) {
            assert_eq!(loss.kind(), Kind::Float, "{name}: {term}");
            let difference = relative_l2(&loss.reshape([1]), &expected[&term].reshape([1]));
            assert!(difference < 0.02, "{name}: {term} differs by {difference:e}");
        }
        // The same tokens on both sides, f16 as in a cache: each loss is a difference of nearly equal numbers.
        let tokens = case.weights.tensors()["tokens/clip"].to_kind(Kind::BFloat16);
        for loss in [
            MimicLoss::L2,
            MimicLoss::SmoothL1 { beta: 1.0 },
            MimicLoss::Cosine,
            MimicLoss::CosineSmoothL1 { beta: 1.0 },
        ] {
            let (mean, each) = (loss.forward(&tokens, &tokens), loss.per_image(&tokens, &tokens));
            assert_eq!([mean.kind(), each.kind()], [Kind::Float; 2], "{loss:?}");
            assert!(
                mean.abs().double_value(&[]) < 1e-6 && each.abs().max().double_value(&[]) < 1e-6,
                "{loss:?}: {mean}"
            );
        }
    }
}

#[test]
fn the_golden_script_still_makes_these_files() {
    let python = Command::new(root().join("scripts/python-env")).arg("--if-present").output().unwrap();
    if !python.status.success() {
        println!("skipped: the Python environment is not installed (scripts/python-env installs it)");
        return;
    }
    let python = String::from_utf8(python.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python.trim())
        .arg("-B")
        .arg(root().join("scripts/golden/joint.py"))
        .args(["--out".as_ref(), folder.path()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for case in CASES {
        let (kept, new) = (golden(case), read(folder.path(), case));
        assert!(kept.names().eq(new.names()), "{case}");
        assert_eq!(kept.metadata(), new.metadata());
        for (name, tensor) in under(&kept, "loss/") {
            assert!(relative_l2(&under(&new, "loss/")[&name], &tensor) < TOLERANCE, "{case}: {name}");
        }
        compare(case, new);
    }
}
