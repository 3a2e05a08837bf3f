#![allow(clippy::disallowed_methods)] // Images are damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use hub::HubSettings;
use images::rng::{Purpose, Rng};
use models::weights::{self, Weights};
use schemas::atomic::AtomicFile;

use super::*;
use crate::cli::Cli;
use crate::eval::test_set::FINETUNE_FILE;
use crate::recipe::Experiment;
use crate::recipe::finetune::FinetuneRecipe;
use crate::testing::{World, overridden, write_images};
use crate::train::best::BEST;
use crate::train::micro_batch::tests::limit_memory_to;

mod damaged;
mod many;
mod reading;

/// A recipe that fits the world: 3 steps of 8 images an epoch.
const RECIPE: &str = r#"
[model]
drop_path = 0.2
[augment]
rand_augment = "none"
random_erasing = 0.0
mixup = 0.0
cutmix = 0.0
crop_pct = 1.0
[optim]
batch_size = 8
lr = 2e-3
[schedule]
epochs = 4
warmup_epochs = 1
[run]
precision = "f32"
log_every = 1
checkpoint_every = 5
"#;

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// A world with a short pretraining in `pretrained`, 24 images to train on and 10 to classify.
fn world() -> World {
    let world = World::with_cache(24);
    write_images(&world.path("test"), 10, 99);
    run(&world.pretrain_args("pretrained", &["--stop-after", "2"])).unwrap();
    schemas::atomic::write(&world.path("finetune.toml"), RECIPE.as_bytes()).unwrap();
    world
}

fn args(world: &World, name: &str, more: &[&str]) -> Vec<String> {
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mut args: Vec<String> = ["trainer", "finetune", "--device", "cpu", "--threads", "2"].map(String::from).into();
    for (option, path) in [
        ("--init", world.path("pretrained")),
        ("--train", world.images_dir()),
        ("--test", world.path("test")),
        ("--recipe", world.path("finetune.toml")),
        ("--out", world.path(name)),
    ] {
        args.extend([option.to_owned(), text(path)]);
    }
    args.extend(more.iter().map(|s| s.to_string()));
    overridden(args)
}

fn tune(world: &World, name: &str, more: &[&str]) -> PathBuf {
    run(&args(world, name, more)).unwrap();
    world.path(name)
}

fn error(world: &World, name: &str, more: &[&str]) -> String {
    format!("{:#}", run(&args(world, name, more)).unwrap_err())
}

/// The bytes of the newest checkpoint's tensors and of the best weights.
fn tensors(run: &Path) -> Vec<Vec<u8>> {
    let folder = checkpoint::newest(run).unwrap().unwrap();
    [folder.join("model.safetensors"), folder.join("optimizer.safetensors"), run.join(BEST)]
        .map(|file| fs::read(file).unwrap())
        .into()
}

fn losses(run: &Path) -> Vec<(u64, f64, BTreeMap<String, f64>)> {
    crate::train::metrics::read(run).into_iter().map(|line| (line.step, line.lr, line.means)).collect()
}

#[test]
fn learns_and_writes_what_it_found() {
    let world = world();
    let settings = ["--set", "schedule.epochs=40", "--set", "model.drop_path=0.0", "--json"];
    let printed = run(&args(&world, "tuned", &settings)).unwrap();
    let run_path = world.path("tuned");
    let result: FinetuneResult = serde_json::from_str(&printed).unwrap();
    let saved: FinetuneResult = serde_json::from_slice(&fs::read(run_path.join(FINETUNE_FILE)).unwrap()).unwrap();
    assert_eq!(saved, result);
    assert_eq!((result.train_images, result.classes, result.evaluations.len()), (24, 2, 40));
    assert_eq!((result.last.step, result.last.epoch, result.last.images), (120, 40, 10));
    assert!(result.best.accuracy.top1 >= result.last.accuracy.top1);
    assert_eq!(result.evaluations.iter().find(|e| e.accuracy.top1 == result.best.accuracy.top1), Some(&result.best));
    assert!(
        crate::train::metrics::read(&run_path)
            .iter()
            .all(|line| line.mfu.is_some_and(|mfu| mfu > 0.0 && mfu.is_finite()))
    );
    let lines = losses(&run_path);
    let mean = |lines: &[(u64, f64, BTreeMap<String, f64>)]| {
        lines.iter().map(|(_, _, means)| means["loss"]).sum::<f64>() / lines.len() as f64
    };
    // Two classes start at ln 2 = 0.69; label smoothing of 0.1 ends at 0.2.
    let (first, last) = (mean(&lines[..6]), mean(&lines[114..]));
    assert!((0.6..0.8).contains(&first) && last < 0.75 * first, "from {first} to {last}");
    assert!(result.best.accuracy.top1 >= 0.7, "{:?}", result.best);
    let names: Vec<String> = serde_json::from_slice(&fs::read(run_path.join(CLASSES)).unwrap()).unwrap();
    assert_eq!(names, ["a", "b"]);

    // Said again, nothing is done again.
    let before = tensors(&run_path);
    let table = run(&args(&world, "tuned", &settings[..4])).unwrap();
    assert!(table.contains("24 train and 10 test images, 2 classes") && table.contains("last"), "{table}");
    assert!(tensors(&run_path) == before);
}

/// Stopping and resuming anywhere is not stopping: weights, moments, logged losses and evaluations bit for bit.
#[test]
fn resuming_anywhere_is_not_stopping() {
    let settings: Vec<&str> = [
        "optim.batch_size=4",
        "optim.accum_iter=2",
        "optim.clip_grad=0.5",
        "optim.ema_decay=0.9",
        "augment.rand_augment=rand-m9-mstd0.5-inc1",
        "augment.random_erasing=0.5",
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "augment.crop_pct=0.875",
        "run.log_every=4",
        "schedule.epochs=5",
    ]
    .into_iter()
    .flat_map(|setting| ["--set", setting])
    .collect();
    let world = world();
    let whole = tune(&world, "whole", &settings);
    for seed in 0..3 {
        let mut rng = Rng::new(seed, Purpose::Select, &[]);
        let name = format!("cut-{seed}");
        let finished = || world.path(&name).join(FINETUNE_FILE).exists();
        let mut cuts = Vec::new();
        while !finished() {
            let stop = (1 + rng.range(6)).to_string();
            let threads = ["1", "3"][cuts.len() % 2];
            let mut more = settings.clone();
            more.extend(["--stop-after", &stop, "--threads", threads]);
            tune(&world, &name, &more);
            cuts.push(stop);
        }
        let cut = world.path(&name);
        assert_eq!(losses(&cut), losses(&whole), "cut after {cuts:?}");
        assert!(tensors(&cut) == tensors(&whole), "tensors differ, cut after {cuts:?}");
        let result = |run: &Path| fs::read(run.join(FINETUNE_FILE)).unwrap();
        assert!(result(&cut) == result(&whole), "results differ, cut after {cuts:?}");
    }
}

/// An average is evaluated and kept as the best; what is trained goes on as without it.
#[test]
fn a_moving_average_is_what_is_judged() {
    let world = world();
    let plain = tune(&world, "plain", &["--set", "schedule.epochs=3"]);
    let settings = ["--set", "schedule.epochs=3", "--set", "optim.ema_decay=0.99"];
    let averaged = tune(&world, "averaged", &settings);
    assert_eq!(losses(&averaged), losses(&plain));
    // Tensors, since the files' headers hold the recipes.
    let same = |a: &Path, b: &Path| {
        let (a, b) = (Weights::read(a).unwrap(), Weights::read(b).unwrap());
        a.tensors() == b.tensors()
    };
    let model = |run: &Path| {
        let folder = checkpoint::newest(run).unwrap().unwrap();
        folder.join(checkpoint::MODEL)
    };
    assert!(same(&model(&averaged), &model(&plain)));
    assert!(!same(&averaged.join(BEST), &plain.join(BEST)));
    let evaluated = |run: &Path| test_set::read(run).unwrap();
    assert_ne!(evaluated(&averaged), evaluated(&plain));
}

/// Each setting of a recipe changes what is trained.
#[test]
fn no_setting_is_ignored() {
    let world = world();
    let weights = |name: &str, setting: &str| {
        let more = ["--set", "schedule.epochs=2", "--set", setting];
        tensors(&tune(&world, name, &more))[0].clone()
    };
    let base = weights("base", "run.seed=0");
    for (i, setting) in [
        "model.pool=cls",
        "model.drop_path=0.0",
        "model.img_size=48",
        "augment.crop_scale=[0.5, 1.0]",
        "augment.flip=0.0",
        "augment.label_smoothing=0.0",
        "augment.rand_augment=rand-m9-mstd0.5-inc1",
        "augment.random_erasing=1.0",
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "optim.lr=1e-3",
        "optim.layer_decay=1.0",
        "optim.betas=[0.9, 0.95]",
        "optim.eps=1e-3",
        "optim.weight_decay=0.5",
        "optim.clip_grad=0.01",
        "schedule.warmup_epochs=0",
        "schedule.min_lr=1e-3",
        "run.seed=1",
        "run.precision=bf16",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(weights(&format!("other-{i}"), setting) != base, "{setting} changes nothing");
    }
}

/// A student's file and MAE's names alone start the same training as the run they are from.
#[test]
fn starts_from_a_file_as_from_its_run() {
    let world = world();
    let stop = ["--stop-after", "2"];
    let of_run = tune(&world, "of-run", &stop);
    let file = checkpoint::newest(&world.path("pretrained")).unwrap().unwrap().join(checkpoint::MODEL);
    let with_init = |init: &Path, name: &str| {
        let mut args = args(&world, name, &stop);
        let at = args.iter().position(|arg| arg == "--init").unwrap();
        args[at + 1] = init.to_str().unwrap().to_owned();
        run(&args).map(|_| tensors_without_best(&world.path(name)))
    };
    assert!(with_init(&file, "of-file").unwrap() == tensors_without_best(&of_run));

    // The teacher of the world is a bare ViT in timm's names; its width was never published, so its heads are not guessed.
    let teacher = world.path("vit").join("model.safetensors");
    fs::create_dir(world.path("vit")).unwrap();
    fs::copy(world.teacher_dir().join("model.safetensors"), &teacher).unwrap();
    let message = format!("{:#}", with_init(&teacher, "no-heads").unwrap_err());
    assert!(message.contains("num_attention_heads"), "{message}");
    let config = r#"{"num_attention_heads": 1}"#;
    fs::write(world.path("vit").join("config.json"), config).unwrap();
    with_init(&teacher, "of-vit").unwrap();
    let tuned =
        Weights::read(&checkpoint::newest(&world.path("of-vit")).unwrap().unwrap().join(checkpoint::MODEL)).unwrap();
    assert_eq!(tuned.get("head.weight").unwrap().size(), [2, 64]);
    assert!(tuned.get("norm.weight").is_none() && tuned.get("fc_norm.weight").is_some());

    let not_a_vit = world.path("not-a-vit.safetensors");
    let tensors = BTreeMap::from([("x".to_owned(), Tensor::zeros([2], (Kind::Float, tch::Device::Cpu)))]);
    let mut out = AtomicFile::create(&not_a_vit).unwrap();
    weights::write(&mut out, &tensors, None).unwrap();
    out.flush().unwrap();
    out.publish().unwrap();
    let refused = format!("{:#}", with_init(&not_a_vit, "refused").unwrap_err());
    assert!(refused.contains("not-a-vit.safetensors") && refused.contains("student"), "{refused}");
}

/// The other encoder in the same loop: probed and fine-tuned without a CLS token, stopped and gone on with.
#[test]
fn masked_convolutions_are_tuned_and_probed() {
    let world = world();
    let vit = "patch_size = 8\nembed_dim = 32\ndepth = 2\nnum_heads = 2\n";
    let mcmae =
        "encoder = \"mcmae\"\nembed_dims = [8, 16, 32]\ndepths = [1, 1, 2]\nmlp_ratios = [2, 2, 2]\nnum_heads = 2\n";
    let recipe = crate::testing::RECIPE.replace(vit, mcmae).replace("img_size = 32", "img_size = 64");
    assert!(recipe.contains("mcmae") && recipe.contains("64"));
    let path = world.path("mcmae.toml");
    schemas::atomic::write(&path, recipe.as_bytes()).unwrap();
    let recipe = ["--recipe", path.to_str().unwrap(), "--stop-after", "2"];
    run(&world.pretrain_args("mcmae", &recipe)).unwrap();
    let init = world.path("mcmae").to_str().unwrap().to_owned();

    let tune = |name: &str, more: &[&str]| {
        let mut args = args(&world, name, more);
        let at = args.iter().position(|arg| arg == "--init").unwrap();
        args[at + 1].clone_from(&init);
        run(&args).unwrap();
        world.path(name)
    };
    let whole = tune("whole", &[]);
    for _ in 0..3 {
        tune("cut", &["--stop-after", "5"]);
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), losses(&whole));
    assert!(tensors(&cut) == tensors(&whole));
    let best = Weights::read(&whole.join(BEST)).unwrap();
    assert!(best.get("blocks1.0.attn.weight").is_some());
    assert!(best.names().all(|name| !name.contains("output_decode") && name != "norm.weight"));

    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (train, test) = (text(world.images_dir()), text(world.path("test")));
    let probe = [
        "trainer",
        "linprobe",
        "--device",
        "cpu",
        "--model",
        &init,
        "--train",
        &train,
        "--test",
        &test,
        "--probe-batch",
        "6",
        "--epochs",
        "2",
        "--warmup-epochs",
        "1",
        "--held-out",
        "0.3",
        "--json",
    ];
    let printed = run(&probe.map(String::from)).unwrap();
    let results: Vec<crate::commands::linprobe::LinprobeResult> = serde_json::from_str(&printed).unwrap();
    assert_eq!(results[0].features.keys().collect::<Vec<_>>(), ["mean"]);
}

fn tensors_without_best(run: &Path) -> [Vec<u8>; 2] {
    let folder = checkpoint::newest(run).unwrap().unwrap();
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(folder.join(file)).unwrap())
}

#[test]
fn what_cannot_be_tuned_is_refused_with_what_to_do() {
    let world = world();
    for (more, words) in [
        (&["--set", "optim.batch_size=64"][..], "cannot fill one step"),
        (&["--set", "optim.batchsize=64"], "batchsize"),
        (&["--set", "model.drop_path=1.0"], "model.drop_path = 1"),
        (&["--set", "model.img_size=33"], "model.img_size = 33"),
        (&["--set", "augment.crop_scale=[0.5, 0.2]"], "augment.crop_scale"),
        (&["--set", "augment.label_smoothing=1.5"], "label_smoothing"),
        (&["--set", "optim.layer_decay=0.0"], "layer_decay"),
        (&["--set", "optim.blr=1e-3"], "excludes optim.blr"),
        (&["--set", "schedule.epochs=70000"], "schedule.epochs"),
        (&["--set", "run.eval_every=0"], "run.eval_every"),
        (&["--init", "nowhere"], "--init nowhere: give a run folder"),
    ] {
        let mut args = args(&world, "refused", &[]);
        if more[0] == "--init" {
            let at = args.iter().position(|arg| arg == "--init").unwrap();
            args[at + 1] = more[1].to_owned();
        } else {
            args.extend(more.iter().map(|s| s.to_string()));
        }
        let message = format!("{:#}", run(&args).unwrap_err());
        assert!(message.contains(words), "{more:?}: {message}");
    }

    // A run goes on with its own recipe, images and weights alone.
    tune(&world, "begun", &["--stop-after", "2"]);
    assert!(error(&world, "begun", &["--set", "optim.layer_decay=0.5"]).contains("optim.layer_decay"));
    write_images(&world.path("test"), 12, 99);
    assert!(error(&world, "begun", &[]).contains("test ="), "{}", error(&world, "begun", &[]));
}

#[test]
fn resolving_is_idempotent() {
    let recipe = FinetuneRecipe::parse(RECIPE, "a recipe", &[]).unwrap();
    let again = FinetuneRecipe::parse(&recipe.to_toml(), "saved", &[]).unwrap();
    assert_eq!(recipe, again);
    // MAE's ViT-B by default: 5e-4 per 256 images.
    let text = "[optim]\nbatch_size = 1024\n[schedule]\nepochs = 100\nwarmup_epochs = 5\n";
    let recipe = FinetuneRecipe::parse(text, "a recipe", &[]).unwrap();
    assert!((recipe.schedule().lr - 2e-3).abs() < 1e-12);
    assert_eq!((recipe.optim.layer_decay, recipe.model.drop_path), (Some(0.65), 0.1));
}

/// Memory for four images where batches have eight: the run goes on in parts, to the same place up to rounding, although images are mixed with
/// others of their whole batch; and a run that is stopped and started again keeps the parts and changes not one bit.
#[test]
fn running_out_of_memory_costs_nothing_but_time() {
    let world = world();
    let settings = ["schedule.epochs=2", "augment.mixup=0.8", "augment.cutmix=1.0", "run.grad_checkpointing=true"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let plenty = tune(&world, "plenty", &settings);
    let limit = limit_memory_to(4);
    let short = tune(&world, "short", &settings);
    let state = checkpoint::read_state(&checkpoint::newest(&short).unwrap().unwrap()).unwrap();
    assert_eq!((state.micro_batches, state.step), (2, 6));
    let (a, b) = (losses(&plenty), losses(&short));
    assert_eq!(a.len(), b.len());
    for ((step, _, a), (_, _, b)) in a.iter().zip(&b) {
        // f32 sums in another order; a few steps of Adam pass it on.
        let error = (a["loss"] - b["loss"]).abs() / a["loss"].abs();
        assert!(error < 1e-3, "loss after step {step}: {}, {}", a["loss"], b["loss"]);
    }
    tune(&world, "cut", &[&settings[..], &["--stop-after", "3"]].concat());
    drop(limit);
    let cut = tune(&world, "cut", &settings);
    assert_eq!(losses(&cut), losses(&short));
    assert!(tensors(&cut) == tensors(&short));
}

/// A `wsd` run may be lengthened from its plateau, and `run.keep_every` keeps the checkpoints that it takes.
#[test]
fn a_plateau_can_be_lengthened() {
    let world = world();
    let wsd = |epochs: &'static str| {
        let settings =
            ["schedule.kind=wsd", "schedule.decay_epochs=1", "schedule.warmup_epochs=0", "run.keep_every=4", epochs];
        settings.iter().flat_map(|setting| ["--set", *setting]).collect::<Vec<_>>()
    };
    tune(&world, "run", &[&wsd("schedule.epochs=3")[..], &["--stop-after", "5"]].concat());
    let run = tune(&world, "run", &wsd("schedule.epochs=4"));
    assert_eq!(losses(&run).last().unwrap().0, 12);
    for step in [4, 8] {
        assert!(checkpoint::folder(&run, step).is_dir(), "step {step} is kept");
    }
    // Its decay is over: another length would need it taken back.
    let refused = error(&world, "run", &wsd("schedule.epochs=6"));
    assert!(refused.contains("a decay cannot be taken back"), "{refused}");
}
