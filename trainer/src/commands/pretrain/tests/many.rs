//! Many processes take the steps of one.

use super::*;
use crate::dist::tests::in_many;
use crate::testing::overridden;
use crate::train::metrics::{self, Line};
use crate::train::micro_batch::tests::limit_memory_to;

/// Everything that is drawn for a batch or an image: two teachers of which some are dropped, stochastic depth, masks, two batches a step.
const SETTINGS: [&str; 12] = [
    "--set",
    "mimic.teachers=[\"clip\",\"dino\"]",
    "--set",
    "mimic.drop=0.5",
    "--set",
    "model.drop_path=0.3",
    "--set",
    "optim.accum_iter=2",
    "--set",
    "optim.clip_grad=0.5",
    "--set",
    "optim.ema_decay=0.9",
];

fn world() -> World {
    World::with_two_teachers(24)
}

fn args(world: &World, out: &str, more: &[&str]) -> Vec<String> {
    overridden(world.pretrain_args(out, &[&SETTINGS, more].concat()))
}

/// Runs a command as one of many processes.
fn run_at(place: &Place, args: &[String]) -> anyhow::Result<ExitStatus> {
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), Some(place), &mut Vec::new())
}

fn run_in(size: usize, args: &[String]) {
    for done in in_many(size, |place| run_at(place, args)) {
        assert_eq!(done.unwrap(), ExitStatus::Fine);
    }
}

/// The same steps, with the same losses and gradients up to the order of f32 sums.
fn assert_same(found: &[Line], expected: &[Line]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.step, found.lr, found.skipped), (expected.step, expected.lr, expected.skipped));
        assert_eq!(found.means.keys().collect::<Vec<_>>(), expected.means.keys().collect::<Vec<_>>());
        for (name, value) in &expected.means {
            let difference = (found.means[name] - value).abs() / value.abs().max(1e-3);
            assert!(difference < 1e-5, "step {}, {name}: {} for {value}", found.step, found.means[name]);
        }
    }
}

#[test]
fn any_number_of_processes_takes_the_same_steps() {
    let world = world();
    run(&args(&world, "one", &[])).unwrap();
    let one = metrics::read(&world.path("one"));
    assert_eq!(one.len(), 12);
    for (size, more) in [(2, &[][..]), (4, &[]), (2, &["--set", "dist.overlap=false", "--set", "dist.bucket_mib=1"])] {
        let out = format!("{size}-{}", more.len());
        run_in(size, &args(&world, &out, more));
        let found = metrics::read(&world.path(&out));
        assert_same(&found, &one);
        assert!(found.iter().all(|line| line.world_size == Some(size) && line.slowest_rank < Some(size)));
    }
    // One run, by two, four and one processes.
    let changed = args(&world, "changed", &["--stop-after", "4"]);
    run_in(2, &changed);
    run_in(4, &changed);
    run(&changed).unwrap();
    assert_same(&metrics::read(&world.path("changed")), &one);
}

#[test]
fn divided_moments_are_those_of_one_process() {
    let world = world();
    let shard = ["--set", "optim.shard_state=true"];
    run(&args(&world, "one", &[])).unwrap();
    run_in(2, &args(&world, "whole", &[]));
    run_in(2, &args(&world, "divided", &shard));
    // Stopped, and gone on with by another number of processes, and by one without divided moments.
    let stopped = args(&world, "stopped", &[&shard[..], &["--stop-after", "5"]].concat());
    run_in(2, &stopped);
    run_in(2, &args(&world, "stopped", &shard));
    let changed = args(&world, "changed", &[&shard[..], &["--stop-after", "5"]].concat());
    run_in(4, &changed);
    run_in(2, &changed);
    run(&args(&world, "changed", &[])).unwrap();

    let state = |out: &str| {
        let last = checkpoint::load_last(&world.path(out), &mut |_| ()).unwrap().unwrap();
        [last.model, last.optimizer, last.ema.unwrap()]
    };
    let whole = state("whole");
    for out in ["divided", "stopped"] {
        for (found, expected) in state(out).iter().zip(&whole) {
            assert!(found.keys().eq(expected.keys()));
            assert!(found.iter().all(|(name, tensor)| *tensor == expected[name]), "{out}: other bits");
        }
    }
    assert_same(&metrics::read(&world.path("changed")), &metrics::read(&world.path("one")));
}

#[test]
fn rounded_gradients_train_nearly_the_same() {
    let world = world();
    run(&args(&world, "one", &[])).unwrap();
    run_in(2, &args(&world, "bf16", &["--set", "dist.bucket_type=\"bf16\""]));
    let last = |out: &str| metrics::read(&world.path(out)).last().unwrap().means["loss"];
    let (one, bf16) = (last("one"), last("bf16"));
    assert!(one != bf16 && (one - bf16).abs() < 0.01 * one, "{one} and {bf16}");
}

#[test]
fn lack_of_memory_in_one_process_changes_nothing() {
    let world = world();
    run(&args(&world, "one", &[])).unwrap();
    let short = args(&world, "short", &["--stop-after", "7"]);
    let done = in_many(2, |place| {
        // Whole batches of 4 images fit one, and single images the other.
        let _limit = (place.rank == 1).then(|| limit_memory_to(1));
        run_at(place, &short)
    });
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let last = checkpoint::load_last(&world.path("short"), &mut |_| ()).unwrap().unwrap();
    assert_eq!(last.state.micro_batches, 4);
    // Four processes have half batches, of which one image at a time is two.
    run_in(4, &args(&world, "short", &[]));
    assert_same(&metrics::read(&world.path("short")), &metrics::read(&world.path("one")));
}

#[test]
fn the_images_of_a_skipped_step_are_those_of_all_processes() {
    let world = world();
    let broken = ["--set", "optim.lr=1e38", "--set", "schedule.warmup_epochs=0", "--set", "run.stop_after_nonfinite=3"];
    let one = run(&args(&world, "one", &broken)).unwrap_err().to_string();
    assert!(one.contains("3 steps in a row"), "{one}");
    let many = args(&world, "many", &broken);
    for error in in_many(4, |place| run_at(place, &many).unwrap_err()) {
        assert!(format!("{error:#}").contains("3 steps in a row"), "{error:#}");
    }
    let skipped = |out: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(world.path(out).join(metrics::NONFINITE)).unwrap();
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["samples"].clone()).collect()
    };
    assert_eq!(skipped("many"), skipped("one"));
}

/// One process has a loss that is not finite, and all skip its step and no other.
#[test]
fn an_image_of_one_process_that_overflows_costs_all_the_step() {
    let mut world = World::new(24);
    (world.codec, world.overflowing) = (schemas::Codec::F32, Some(5));
    world.build_cache();
    let settings = ["--set", "target.norm=none", "--set", "schedule.epochs=2", "--set", "run.log_every=1"];
    let args = |out: &str| overridden(world.pretrain_args(out, &settings));
    run(&args("one")).unwrap();
    run_in(2, &args("two"));
    let lines = ["one", "two"].map(|out| metrics::read(&world.path(out)));
    // Twelve steps of two epochs; the line of a skipped step has no means.
    assert_eq!(lines[0].iter().map(|line| line.skipped).sum::<u64>(), 2);
    assert_eq!(lines[0].len(), 12);
    assert_same(&lines[1], &lines[0]);
    let skipped = |out: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(world.path(out).join(metrics::NONFINITE)).unwrap();
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["samples"].clone()).collect()
    };
    assert_eq!(skipped("two"), skipped("one"));
    let has_it = |samples: &serde_json::Value| samples.as_array().unwrap().iter().any(|sample| sample[0] == 5);
    assert_eq!(skipped("one").iter().filter(|samples| has_it(samples)).count(), 2);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let world = world();
    let found = in_many(2, |place| {
        let lr = format!("optim.lr=0.00{}", place.rank + 1);
        run_at(place, &args(&world, "recipes", &["--set", &lr])).unwrap_err()
    });
    for error in found {
        let message = format!("{error:#}");
        assert!(message.contains("rank 1 differs from rank 0 in optim.lr: 0.002, rank 0 has 0.001"), "{message}");
        assert_eq!(crate::exit_status(&error), ExitStatus::CouldNot);
    }
    assert!(!world.path("recipes").join("checkpoints").exists());

    let uneven = args(&world, "uneven", &[]);
    let found = in_many(3, |place| run_at(place, &uneven).unwrap_err().to_string());
    assert!(found[0].contains("cannot be divided among 3 processes"), "{found:?}");

    let place = Place { rank: 1, world_size: 2, ..some_place() };
    let train = world.path("images").display().to_string();
    let embed = ["trainer", "embed", "--model", "pixels", "--images", &train, "--out", "pixels.npy"].map(str::to_owned);
    let error = run_at(&place, &embed).unwrap_err().to_string();
    assert!(error.contains("runs as one process") && error.contains("rank 1 of 2"), "{error}");
}

fn some_place() -> Place {
    let vars = [("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")];
    let get = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Place::from_vars(get).unwrap().unwrap()
}
