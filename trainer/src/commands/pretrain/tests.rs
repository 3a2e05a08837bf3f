#![allow(clippy::disallowed_methods)] // Images are renamed and files damaged.

use std::fs;
use std::path::Path;

use clap::Parser;
use images::rng::{Purpose, Rng};
use schemas::Codec;

use super::*;
use crate::cli::Cli;
use crate::testing::World;
use crate::train::metrics::{self, Skipped};

/// What a run is given: caches, images, teachers; and what is refused of them.
mod data;
/// Views that no cache has.
mod fresh;
mod many;
/// Images that are not where the cache has them.
mod places;
/// Several caches, and several generations of one.
mod several;
/// Students that see a random part of each view.
mod shifted;
#[path = "../../../../tests/support/sources.rs"]
mod sources;
/// Running out of memory, other lengths, kept checkpoints.
mod survival;
/// Every switch of the method.
mod switches;
/// Evaluations while a student is trained.
mod watched;

fn run(args: &[String]) -> anyhow::Result<()> {
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut Vec::new()).map(|_| ())
}

/// Trains into `name` and gives the run folder.
fn train(world: &World, name: &str, more: &[&str]) -> std::path::PathBuf {
    run(&world.pretrain_args(name, more)).unwrap();
    world.path(name)
}

fn error(world: &World, name: &str, more: &[&str]) -> anyhow::Error {
    run(&world.pretrain_args(name, more)).unwrap_err()
}

/// The bytes of the newest checkpoint's tensors: weights, moments, and the averages if there are any.
fn tensors(run: &Path) -> [Vec<u8>; 3] {
    let folder = checkpoint::newest(run).unwrap().unwrap();
    let read = |file: &str| fs::read(folder.join(file)).unwrap();
    let ema = folder.join(checkpoint::EMA).exists();
    [read(checkpoint::MODEL), read("optimizer.safetensors"), if ema { read(checkpoint::EMA) } else { vec![] }]
}

/// What metrics.jsonl says that does not depend on time: step, learning rate and losses.
fn losses(run: &Path) -> Vec<(u64, f64, BTreeMap<String, f64>)> {
    crate::train::metrics::read(run).into_iter().map(|line| (line.step, line.lr, line.means)).collect()
}

#[test]
fn losses_fall() {
    let world = World::with_cache(12);
    for precision in ["f32", "bf16"] {
        let settings = ["--set", "schedule.epochs=60", "--set", &format!("run.precision={precision}")];
        let lines = losses(&train(&world, precision, &settings));
        assert_eq!(lines.len(), 180);
        let mean = |lines: &[(u64, f64, BTreeMap<String, f64>)], name: &str| {
            lines.iter().map(|(_, _, means)| means[name]).sum::<f64>() / lines.len() as f64
        };
        for name in ["rec", "mimic.clip"] {
            let (first, last) = (mean(&lines[..6], name), mean(&lines[174..], name));
            assert!(last < 0.8 * first, "{precision}: {name} went from {first} to {last}");
        }
    }
}

/// Stopping and resuming anywhere is not stopping: weights, moments, averages and logged losses bit for bit. The world has two views of
/// each image, which take turns.
#[test]
fn resuming_anywhere_is_not_stopping() {
    let settings: Vec<&str> = [
        "optim.accum_iter=2",
        "optim.batch_size=2",
        "optim.clip_grad=0.5",
        "optim.ema_decay=0.9",
        "optim.ema_warmup=true",
        "model.drop_path=0.2",
        "mask.kind=focused",
        "mask.teacher=clip",
        "run.log_every=4",
        "schedule.epochs=6",
    ]
    .into_iter()
    .flat_map(|setting| ["--set", setting])
    .collect();
    let world = World::with_cache(13);
    assert_eq!(world.views, 2);
    let whole = train(&world, "whole", &settings);
    assert!(!tensors(&whole)[2].is_empty(), "averages are saved");
    assert_eq!(losses(&whole).len(), 18 / 4 + 1, "a line every four steps and one at the end");

    for seed in 0..4 {
        let mut rng = Rng::new(seed, Purpose::Select, &[]);
        let name = format!("cut-{seed}");
        let finished = || crate::train::metrics::read(&world.path(&name)).last().is_some_and(|l| l.step == 18);
        let mut cuts = Vec::new();
        while !finished() {
            let stop = (1 + rng.range(6)).to_string();
            let mut args = settings.clone();
            // In some of the stretches, blocks are computed again in backward; in two of the runs, in none or all.
            let checkpointing = match seed {
                0 => "run.grad_checkpointing=false",
                1 => "run.grad_checkpointing=true",
                _ if rng.range(2) == 0 => "run.grad_checkpointing=false",
                _ => "run.grad_checkpointing=true",
            };
            args.extend(["--set", checkpointing, "--stop-after", &stop]);
            train(&world, &name, &args);
            cuts.push(format!("{stop} ({checkpointing})"));
        }
        let cut = world.path(&name);
        assert_eq!(losses(&cut), losses(&whole), "cut after {cuts:?}");
        // Not the files' bytes: their headers hold the recipe, in which gradient checkpointing may differ.
        let load = |run: &Path| checkpoint::load(&checkpoint::newest(run).unwrap().unwrap()).unwrap();
        let (found, expected) = (load(&cut), load(&whole));
        assert!(
            found.model == expected.model && found.optimizer == expected.optimizer && found.ema == expected.ema,
            "weights, moments or averages differ, cut after {cuts:?}"
        );
    }
}

/// Work after the last checkpoint is lost and done again; the log shows each step once.
#[test]
fn lines_after_the_last_checkpoint_are_written_once() {
    let world = World::with_cache(8);
    let whole = train(&world, "whole", &[]);
    let cut = train(&world, "cut", &["--stop-after", "6"]);
    // As if killed after step 8, when the last checkpoint was that of step 6.
    let mut log = fs::read_to_string(cut.join(metrics::METRICS)).unwrap();
    for line in fs::read_to_string(whole.join(metrics::METRICS)).unwrap().lines().skip(6).take(2) {
        log += &format!("{line}\n");
    }
    fs::write(cut.join(metrics::METRICS), log).unwrap();
    // And while it wrote a checkpoint that the resumed run never comes to.
    let half = cut.join("checkpoints/.step-00000007.0123456789abcdef.tmp");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), "half").unwrap();
    train(&world, "cut", &[]);
    assert!(!half.exists());
    assert_eq!(losses(&cut), losses(&whole));
    assert!(tensors(&cut) == tensors(&whole));
}

#[test]
fn a_finished_run_says_so_and_changes_nothing() {
    let world = World::with_cache(8);
    let run = train(&world, "run", &[]);
    let before = (tensors(&run), fs::read(run.join(metrics::METRICS)).unwrap());
    train(&world, "run", &[]);
    assert!(before == (tensors(&run), fs::read(run.join(metrics::METRICS)).unwrap()));
}

#[test]
fn the_number_of_loader_threads_changes_nothing() {
    let world = World::with_cache(8);
    let two = train(&world, "two", &[]);
    let mut args = world.pretrain_args("one", &["--set", "data.pixel_cache_mib=4"]);
    let threads = args.iter().position(|arg| arg == "--threads").unwrap();
    args[threads + 1] = "1".to_owned();
    run(&args).unwrap();
    // Not the files' bytes: the model's header holds the recipe, in which the memory for crops differs.
    let load = |run: &Path| checkpoint::load(&checkpoint::newest(run).unwrap().unwrap()).unwrap();
    let (two, one) = (load(&two), load(&world.path("one")));
    assert!(two.model == one.model && two.optimizer == one.optimizer);
}

#[test]
fn another_recipe_or_another_cache_is_refused_by_name() {
    let mut world = World::with_cache(8);
    train(&world, "run", &["--stop-after", "2"]);
    let message = format!("{:#}", error(&world, "run", &["--set", "optim.weight_decay=0.1"]));
    assert!(message.contains("optim.weight_decay = 0.05, now it is 0.1"), "{message}");

    fs::remove_dir_all(world.cache_dir()).unwrap();
    world.codec = Codec::F32;
    world.build_cache();
    let message = format!("{:#}", error(&world, "run", &[]));
    assert!(message.contains("teacher.clip.features = cached as f16, now it is cached as f32"), "{message}");
}

#[test]
fn plain_mae_needs_no_teacher_rows() {
    let world = World::with_cache(8);
    fs::remove_dir_all(world.cache_dir().join("teachers")).unwrap();
    let lines = losses(&train(&world, "mae", &["--set", "mimic.teachers=[]", "--set", "loss.w_rec=1"]));
    assert_eq!(lines[0].2.keys().map(String::as_str).collect::<Vec<_>>(), ["grad_norm", "loss", "rec"]);
    assert_eq!(lines[0].2["loss"], lines[0].2["rec"]);
    let refused = error(&world, "mimic", &[]);
    assert!(format!("{refused:#}").contains("has no teacher"), "{refused:#}");
    assert_eq!(crate::exit_status(&refused), program::ExitStatus::CouldNot);
}

/// A rate that throws the weights out of the range of f32: every later step is skipped and recorded, and the run stops.
#[test]
fn a_diverged_run_stops_and_leaves_the_batches() {
    let world = World::with_cache(8);
    let settings = ["optim.lr=1e38", "schedule.warmup_epochs=0", "schedule.epochs=9", "run.stop_after_nonfinite=3"];
    let settings: Vec<&str> = settings.into_iter().flat_map(|setting| ["--set", setting]).collect();
    let message = format!("{:#}", error(&world, "run", &settings));
    assert!(message.contains("3 steps in a row"), "{message}");
    let text = fs::read_to_string(world.path("run").join(metrics::NONFINITE)).unwrap();
    let skipped: Vec<Skipped> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(skipped.iter().map(|s| s.step).collect::<Vec<_>>(), [2, 3, 4]);
    for skipped in &skipped {
        assert_eq!(skipped.samples.len(), 4);
        assert!(skipped.samples.iter().all(|&(id, view)| id < 8 && view < 2), "{skipped:?}");
    }
    let lines = crate::train::metrics::read(&world.path("run"));
    assert_eq!(lines.iter().map(|line| line.skipped).collect::<Vec<_>>(), [0, 1, 1, 1]);
}

/// A checkpoint that has been damaged since is passed over: the run goes back one and ends the same.
#[test]
fn a_damaged_checkpoint_costs_steps_and_nothing_else() {
    let world = World::with_cache(8);
    let whole = train(&world, "whole", &[]);
    let cut = train(&world, "cut", &["--stop-after", "6"]);
    let file = checkpoint::newest(&cut).unwrap().unwrap().join("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    train(&world, "cut", &[]);
    assert!(tensors(&cut) == tensors(&whole));
    assert_eq!(losses(&cut), losses(&whole));
}
