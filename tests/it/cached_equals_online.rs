//! The proof that a cache is right: the same run, once from the cache and once with the teacher inside the loop, gives the same losses.
//! And: what `verify` says about a damaged row is what the trainer says when it meets it.

use std::path::{Path, PathBuf};

use clap::Parser;
use models::hub::HubSettings;
use tests::{root, write_bmp_folders};

fn pipeline(args: &[&str]) -> pipeline::ExitStatus {
    let cli = pipeline::cli::Cli::parse_from(std::iter::once(&"pipeline").chain(args));
    pipeline::run(cli, &HubSettings::default())
        .unwrap_or_else(|error| panic!("pipeline {args:?}: {error:#}"))
}

fn trainer(args: &[&str]) -> anyhow::Result<()> {
    let cli = trainer::cli::Cli::parse_from(std::iter::once(&"trainer").chain(args));
    trainer::run(&cli, &HubSettings::default(), &mut Vec::new()).map(|_| ())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is UTF-8")
}

fn teacher(name: &str) -> PathBuf {
    root().join("assets/teachers").join(name)
}

/// 40 pictures and an f32 cache of two views of each, from both of the demo's teachers.
fn build(dir: &Path) -> (PathBuf, PathBuf) {
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

fn pretrain(cache: &Path, images: &Path, run: &Path, more: &[&str]) -> anyhow::Result<()> {
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
fn losses(run: &Path) -> Vec<Vec<(String, f64)>> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("the run's metrics");
    let line = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("a metrics line is JSON");
        let object = value.as_object().expect("a metrics line is an object");
        let is_loss =
            |name: &str| matches!(name, "loss" | "rec" | "grad_norm") || name.starts_with("mimic.");
        let found = object.iter().filter(|(name, _)| is_loss(name));
        found
            .map(|(name, value)| (name.clone(), value.as_f64().expect("losses are numbers")))
            .collect()
    };
    log.lines().map(line).collect()
}

/// Tolerance 1e-5 relative. The f32 cache holds what the teacher computed, bit for bit; what may differ are the last bits of the teacher's
/// matrix products, whose kernels depend on the batch's size (16 views in the build, 8 in the loop), 2^-24 each. libtorch gets one thread
/// here, as each lane of the build has, since the order of a sum depends on the number of threads too. Over 20 AdamW steps a difference
/// grows, but stays far below what any mistake in the join, the crop or the normalisation makes.
#[test]
fn cached_equals_online() {
    torch_ext::set_num_threads(1).expect("libtorch takes a thread count");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, cache) = build(dir.path());
    let (cached, online) = (dir.path().join("cached"), dir.path().join("online"));
    pretrain(&cache, &images, &cached, &[]).expect("the cached run");
    let clip = format!("clip={}", teacher("clip-tiny").display());
    let dino = format!("dino={}", teacher("dino-tiny").display());
    pretrain(
        &cache,
        &images,
        &online,
        &["--online-teacher", &clip, "--online-teacher", &dino],
    )
    .expect("the online run");

    let (cached, online) = (losses(&cached), losses(&online));
    assert_eq!(cached.len(), 20, "40 pictures in batches of 8, 4 epochs");
    assert_eq!(online.len(), 20);
    let mut worst = 0f64;
    for (step, (a, b)) in cached.iter().zip(&online).enumerate() {
        assert_eq!(
            a.len(),
            5,
            "loss, rec, two mimic losses and the gradient's norm"
        );
        for ((name, a), (_, b)) in a.iter().zip(b) {
            let difference = (a - b).abs() / b.abs();
            worst = worst.max(difference);
            assert!(
                difference < 1e-5,
                "step {}: {name} is {a} cached and {b} online",
                step + 1
            );
        }
    }
    let first: f64 = cached[0]
        .iter()
        .find(|(name, _)| name == "loss")
        .expect("logged")
        .1;
    let last: f64 = cached[19]
        .iter()
        .find(|(name, _)| name == "loss")
        .expect("logged")
        .1;
    assert!(last < first, "the loss did not fall: {first} to {last}");
    println!("largest relative difference over 20 steps: {worst:.1e}");
}

/// A row that is damaged on disk stops training with the words that `verify` has for it.
#[test]
fn the_trainer_refuses_a_damaged_row_in_the_words_of_verify() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, cache) = build(dir.path());
    let part = cache.join("teachers/clip/part-00001.parquet");
    let mut bytes = std::fs::read(&part).expect("a teacher's part");
    // The middle of the file lies in the tokens of some row: they are nearly all of it.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    #[allow(
        clippy::disallowed_methods,
        reason = "this test damages a file on purpose, in place"
    )]
    std::fs::write(&part, bytes).expect("writable");

    let report = schemas::verify(&cache, &mut |_| {}).expect("verify looks at every file");
    let said: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    let row = said
        .iter()
        .find(|problem| problem.contains("row"))
        .unwrap_or_else(|| panic!("no row is named: {said:?}"));
    assert!(row.contains("part-00001.parquet"), "{row}");

    let refused = pretrain(&cache, &images, &dir.path().join("run"), &[])
        .expect_err("the row is in every epoch");
    assert!(
        format!("{refused:#}").contains(row.as_str()),
        "verify: {row}\ntrainer: {refused:#}"
    );
    assert_eq!(trainer::exit_code(&refused), 1, "the data has problems");
}
