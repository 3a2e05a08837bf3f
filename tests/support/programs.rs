//! Both programs in the test's own process, over a small world: pictures, the demo's teachers, a cache, a run of 20 steps.

use std::path::{Path, PathBuf};

use crate::{root, write_bmp_folders};
use clap::Parser;
use hub::HubSettings;

/// The program `pipeline` in this process, over a command line that must succeed.
pub fn pipeline(args: &[&str]) -> pipeline::ExitStatus {
    let cli = pipeline::cli::Cli::try_parse_from(std::iter::once(&"pipeline").chain(args))
        .unwrap_or_else(|error| panic!("pipeline {args:?}: {error}"));
    pipeline::run(&cli, &pipeline::Environment::default(), &mut Vec::new())
        .unwrap_or_else(|error| panic!("pipeline {args:?}: {error:#}"))
}

/// The program `trainer` in this process.
pub fn trainer(args: &[&str]) -> anyhow::Result<()> {
    let cli = trainer::cli::Cli::try_parse_from(std::iter::once(&"trainer").chain(args))?;
    trainer::run(&cli, &HubSettings::default(), None, &mut Vec::new()).map(|_| ())
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is UTF-8")
}

/// One of the demo's teachers.
pub fn teacher(name: &str) -> PathBuf {
    root().join("assets/teachers").join(name)
}

/// 40 pictures and an f32 cache of two views of each, from both of the demo's teachers.
pub fn build(dir: &Path) -> (PathBuf, PathBuf) {
    let (images, cache) = (dir.join("images"), dir.join("cache"));
    write_bmp_folders(&images, 40);
    let clip = format!("clip={}", teacher("clip-tiny").display());
    let dino = format!("dino={}", teacher("dino-tiny").display());
    let status = pipeline(&[
        "build-cache",
        "--images",
        text(&images),
        "--out",
        text(&cache),
        "--teacher",
        &clip,
        "--teacher",
        &dino,
        "--views",
        "2",
        "--grid",
        "8",
        "--codec",
        "f32",
        "--batch-size",
        "16",
        "--device",
        "cpu",
        "--set",
        "cache.part_samples=16",
    ]);
    assert_eq!(status, pipeline::ExitStatus::Fine);
    (images, cache)
}

/// Pretrains for 20 steps over such a cache.
pub fn pretrain(cache: &Path, images: &Path, run: &Path, more: &[&str]) -> anyhow::Result<()> {
    let recipe = root().join("trainer/recipes/tiny.toml");
    let mut args = vec![
        "pretrain",
        "--cache",
        text(cache),
        "--images",
        text(images),
        "--out",
        text(run),
        "--recipe",
        text(&recipe),
        "--device",
        "cpu",
        "--set",
        "optim.batch_size=8",
        "--set",
        "run.log_every=1",
        "--set",
        "schedule.epochs=4",
        "--set",
        "mimic.teachers=['clip','dino']",
        "--set",
        "mask.kind='focused'",
        "--set",
        "mask.mode='multinomial'",
        "--set",
        "mask.teacher='dino'",
    ];
    args.extend(more);
    trainer(&args)
}

/// Every logged value that is a loss or the gradient's norm, step by step.
pub fn losses(run: &Path) -> Vec<Vec<(String, f64)>> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("the run's metrics");
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("a metrics line is JSON");
        let object = value.as_object().expect("a metrics line is an object");
        let is_loss = |name: &str| matches!(name, "loss" | "rec" | "grad_norm") || name.starts_with("mimic.");
        let found = object.iter().filter(|(name, _)| is_loss(name));
        found.map(|(name, value)| (name.clone(), value.as_f64().expect("losses are numbers"))).collect()
    };
    log.lines().map(line).collect()
}
