//! Many processes take the steps of one.

use super::*;
use crate::dist::tests::in_many;
use crate::train::metrics;

/// Mixup and CutMix pair the images of a batch; every step has two batches.
const SETTINGS: [&str; 14] = [
    "--set",
    "augment.mixup=0.8",
    "--set",
    "augment.cutmix=1.0",
    "--set",
    "augment.label_smoothing=0.1",
    "--set",
    "augment.random_erasing=0.25",
    "--set",
    "augment.rand_augment=\"rand-m9-mstd0.5-inc1\"",
    "--set",
    "optim.ema_decay=0.9",
    "--set",
    "optim.accum_iter=2",
];

fn args(world: &World, out: &str, more: &[&str]) -> Vec<String> {
    overridden(super::args(world, out, &[&SETTINGS, more].concat()))
}

fn run_in(size: usize, args: &[String]) -> Vec<String> {
    let run = |place: &Place| {
        let mut out = Vec::new();
        let cli = Cli::try_parse_from(args).unwrap();
        crate::run(&cli, &HubSettings::default(), Some(place), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    in_many(size, run)
}

fn evaluations(world: &World, out: &str) -> Vec<Evaluation> {
    test_set::read(&world.path(out)).unwrap()
}

fn assert_same(world: &World, found: &str, expected: &str) {
    let [found_lines, expected_lines] = [found, expected].map(|out| metrics::read(&world.path(out)));
    assert_eq!(found_lines.len(), expected_lines.len());
    for (found, expected) in found_lines.iter().zip(&expected_lines) {
        for (name, value) in &expected.means {
            let difference = (found.means[name] - value).abs() / value.abs().max(1e-3);
            assert!(difference < 1e-5, "step {}, {name}: {} for {value}", found.step, found.means[name]);
        }
    }
    for (found, expected) in evaluations(world, found).iter().zip(evaluations(world, expected)) {
        assert_eq!((found.step, found.images, found.skipped), (expected.step, expected.images, expected.skipped));
        assert!((found.loss - expected.loss).abs() < 1e-5 * expected.loss, "{found} for {expected}");
        assert_eq!(found.accuracy, expected.accuracy);
    }
}

#[test]
fn any_number_of_processes_takes_the_same_steps_and_counts_each_test_image_once() {
    let world = world();
    let alone = run(&args(&world, "one", &[])).unwrap();
    for size in [2, 4] {
        let out = format!("in-{size}");
        let printed = run_in(size, &args(&world, &out, &[]));
        assert_eq!(printed[0].lines().count(), alone.lines().count(), "{}", printed[0]);
        assert!(printed[1..].iter().all(String::is_empty), "only rank 0 prints");
        assert_same(&world, &out, "one");
        assert!(evaluations(&world, &out).iter().all(|evaluation| evaluation.images == 10));
    }
    let changed = args(&world, "changed", &["--stop-after", "2"]);
    run_in(2, &changed);
    run_in(4, &changed);
    run(&args(&world, "changed", &[])).unwrap();
    assert_same(&world, "changed", "one");
}

#[test]
fn images_that_any_process_rejects_are_in_the_run_folder() {
    let world = world();
    let images = world.path("images");
    let mut names: Vec<PathBuf> = Vec::new();
    for class in ["a", "b"] {
        names.extend(fs::read_dir(images.join(class)).unwrap().map(|entry| entry.unwrap().path()));
    }
    names.sort();
    for name in [&names[3], &names[17]] {
        fs::write(name, "no image").unwrap();
    }
    run(&args(&world, "one", &[])).unwrap();
    run_in(2, &args(&world, "two", &[]));
    let rejects = |out: &str| fs::read_to_string(world.path(out).join("rejects.jsonl")).unwrap();
    assert_eq!(rejects("two"), rejects("one"));
    assert_eq!(rejects("two").lines().count(), 2);
    assert_same(&world, "two", "one");
}
