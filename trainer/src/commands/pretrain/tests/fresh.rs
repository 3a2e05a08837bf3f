use schemas::ViewPolicy;

use super::*;

/// A third of the views are fresh; masks follow a teacher, and CLS tokens are mimicked.
const FRESH: [&str; 12] = [
    "--set",
    "data.fresh=0.35",
    "--set",
    "mask.kind=focused",
    "--set",
    "mask.teacher=clip",
    "--set",
    "loss.w_cls=0.5",
    "--set",
    "optim.accum_iter=2",
    "--set",
    "optim.batch_size=2",
];

fn online(world: &World) -> [String; 2] {
    ["--online-teacher".to_owned(), format!("clip={}", world.teacher_dir().display())]
}

/// Arguments with the teacher inside the loop.
fn args<'a>(online: &'a [String; 2], more: &[&'a str]) -> Vec<&'a str> {
    [more, &[&*online[0], &*online[1]]].concat()
}

/// Weights, moments and losses bit for bit, also with shifted views, and whatever crops are kept in memory.
#[test]
fn a_run_with_fresh_views_resumes_exactly() {
    let mut shifted = World::new(9);
    shifted.grid = 6;
    shifted.build_cache();
    for (world, shift) in [(World::with_cache(9), "data.random_shift=false"), (shifted, "data.random_shift=true")] {
        let online = online(&world);
        let settings = args(&online, &[&FRESH[..], &["--set", shift, "--set", "schedule.epochs=5"]].concat());
        let whole = train(&world, "whole", &settings);
        let expected = losses(&whole);
        while losses(&world.path("cut")).len() < expected.len() {
            train(&world, "cut", &[&settings[..], &["--stop-after", "3"]].concat());
        }
        let cut = world.path("cut");
        assert_eq!(losses(&cut), expected);
        assert!(tensors(&cut) == tensors(&whole));

        let mut other = world.pretrain_args("other", &[&settings[..], &["--set", "data.pixel_cache_mib=4"]].concat());
        other.extend(["--set", "data.prefetch=1"].map(String::from));
        run(&other).unwrap();
        assert_eq!(losses(&world.path("other")), expected);
    }
}

/// With every view fresh, no rows are read: a cache without teachers does. The same views come for every way to read the images.
#[test]
fn all_views_fresh_need_no_rows() {
    let world = World::with_cache(8);
    let online = online(&world);
    let settings = args(&online, &["--set", "data.fresh=1.0", "--stop-after", "4"]);
    let with_rows = losses(&train(&world, "rows", &settings));
    fs::remove_dir_all(world.cache_dir().join("teachers")).unwrap();
    assert_eq!(losses(&train(&world, "no-rows", &settings)), with_rows);
    let stored = losses(&train(&world, "stored", &args(&online, &["--stop-after", "4"])));
    assert_ne!(stored, with_rows, "other views");
    // A part of them needs the rows of the others.
    let refused = error(&world, "some", &args(&online, &["--set", "data.fresh=0.5"]));
    assert!(format!("{refused:#}").contains("has no teacher"), "{refused:#}");

    let mut packed = World::new(8);
    packed.pack = schemas::Pack::Original;
    packed.build_cache();
    assert_eq!(losses(&train(&packed, "packed", &settings)), with_rows);
}

/// The update of a batch is that of its micro-batches, up to the order of sums: the targets of an image do not depend on which others are fresh.
#[test]
fn smaller_micro_batches_make_the_same_update() {
    let world = World::with_cache(8);
    let online = online(&world);
    let first = |name: &str, split: [&str; 2]| {
        let more = ["--set", split[0], "--set", split[1], "--set", "data.fresh=0.5", "--stop-after", "4"];
        losses(&train(&world, name, &args(&online, &more)))
    };
    let whole = first("whole", ["optim.batch_size=4", "optim.accum_iter=1"]);
    let parts = first("parts", ["optim.batch_size=1", "optim.accum_iter=4"]);
    for ((step, _, whole), (_, _, parts)) in whole.iter().zip(&parts) {
        for (name, value) in whole {
            let error = (value - parts[name]).abs() / value.abs();
            assert!(error < 1e-4, "step {step}, {name}: {value} and {}", parts[name]);
        }
    }
}

#[test]
fn fresh_views_that_cannot_be_are_refused() {
    let world = World::with_two_teachers(8);
    let online = online(&world);
    let both = ["--set", "mimic.teachers=[\"clip\", \"dino\"]", "--set", "data.fresh=0.5"];
    for (args, missing) in [
        (both.to_vec(), "Give --online-teacher clip=DIR --online-teacher dino=DIR,"),
        (args(&online, &both), "Give --online-teacher dino=DIR,"),
        (vec!["--set", "mask.kind=focused", "--set", "mask.teacher=clip", "--set", "data.fresh=1.0"], "clip=DIR,"),
    ] {
        let refused = error(&world, "without", &args);
        assert!(format!("{refused:#}").contains(missing), "{refused:#}");
        assert_eq!(crate::exit_status(&refused), ExitStatus::CouldNot);
    }
    for fresh in ["data.fresh=1.5", "data.fresh=-0.1", "data.fresh=nan"] {
        let refused = error(&world, "range", &args(&online, &["--set", fresh]));
        assert!(
            format!("{refused:#}").contains("data.fresh") && format!("{refused:#}").contains("[0, 1]"),
            "{refused:#}"
        );
    }
    train(&world, "run", &args(&online, &["--set", "data.fresh=0.5", "--stop-after", "1"]));
    let refused = error(&world, "run", &args(&online, &["--set", "data.fresh=0.25"]));
    assert!(format!("{refused:#}").contains("data.fresh = 0.5, now it is 0.25"), "{refused:#}");

    let mut center = World::new(8);
    center.policy = ViewPolicy::Center;
    center.build_cache();
    let online = [online[0].clone(), format!("clip={}", center.teacher_dir().display())];
    let refused = error(&center, "center", &args(&online, &["--set", "data.fresh=0.5"]));
    assert!(format!("{refused:#}").contains("--view-policy rrc"), "{refused:#}");
}
