use super::*;
use crate::train::checkpoint::Checkpoint;
use crate::train::micro_batch::tests::limit_memory_to;

fn settings<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|s| ["--set", s]).collect()
}

fn steps(run: &Path) -> Vec<u64> {
    let folders = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
        .collect();
    steps.sort_unstable();
    steps
}

/// What was trained, without the files' headers.
fn trained(run: &Path) -> Checkpoint {
    checkpoint::load(&checkpoint::newest(run).unwrap().unwrap()).unwrap()
}

/// Memory for two images where batches have four: the run goes on in parts, to the same place up to rounding; and stopping, with or
/// without the lack coming again, changes not one bit.
#[test]
fn running_out_of_memory_costs_nothing_but_time() {
    let world = World::with_cache(12);
    let args = settings(&["model.drop_path=0.2", "optim.accum_iter=2", "optim.ema_decay=0.9", "schedule.epochs=4"]);
    let plenty = train(&world, "plenty", &args);
    let limit = limit_memory_to(2);
    let short = train(&world, "short", &args);
    let state = trained(&short).state;
    assert_eq!((state.micro_batches, state.step), (2, 4));

    let (a, b) = (losses(&plenty), losses(&short));
    assert_eq!(a.len(), b.len());
    for ((step, _, a), (_, _, b)) in a.iter().zip(&b) {
        for (name, value) in a {
            // f32 sums in another order; a few steps of Adam pass it on.
            let error = (value - b[name]).abs() / value.abs();
            assert!(error < 1e-3, "{name} after step {step}: {value}, {}", b[name]);
        }
    }
    assert_ne!(trained(&plenty).model, trained(&short).model);

    let mut two = args.clone();
    two.extend(["--stop-after", "2"]);
    train(&world, "cut", &two);
    // There is memory again; the parts stay, and with them the order of the sums.
    drop(limit);
    let cut = train(&world, "cut", &args);
    assert_eq!(losses(&cut), losses(&short));
    assert!(tensors(&cut) == tensors(&short));
}

/// The same with several teachers, some of them dropped: which ones does not depend on the parts.
#[test]
fn running_out_of_memory_drops_no_other_teacher() {
    let world = World::with_two_teachers(12);
    let args = settings(&[
        "mimic.teachers=[\"clip\", \"dino\"]",
        "mimic.head=mlp",
        "mimic.loss=cosine_smooth_l1",
        "mimic.drop=0.5",
        "target.norm=standardize",
        "schedule.epochs=2",
    ]);
    let plenty = losses(&train(&world, "plenty", &args));
    let limit = limit_memory_to(2);
    let short = train(&world, "short", &args);
    drop(limit);
    assert_eq!(trained(&short).state.micro_batches, 2);
    for ((step, _, a), (_, _, b)) in plenty.iter().zip(&losses(&short)) {
        for (name, value) in a {
            let tolerance = if name.starts_with("mimic_kept") { 1e-6 } else { 1e-3 };
            assert!(
                (value - b[name]).abs() < tolerance * value.abs(),
                "{name} after step {step}: {value}, {}",
                b[name]
            );
        }
    }
}

#[test]
fn one_image_too_much_ends_the_run_with_a_word_of_advice() {
    let world = World::with_cache(8);
    let _limit = limit_memory_to(0);
    let message = format!("{:#}", error(&world, "run", &[]));
    assert!(message.contains("one image at a time") && message.contains("run.grad_checkpointing"), "{message}");
}

#[test]
fn checkpoints_of_every_so_many_steps_are_kept() {
    let world = World::with_cache(8);
    let args = settings(&["run.keep_every=5", "run.checkpoint_every=2", "run.keep_checkpoints=2", "schedule.epochs=8"]);
    let run = train(&world, "run", &args);
    assert_eq!(steps(&run), [5, 10, 15, 16]);
    // One of them, as a run of its own, goes where this one went.
    let folder = world.path("again");
    fs::create_dir_all(folder.join("checkpoints")).unwrap();
    fs::copy(run.join("recipe.toml"), folder.join("recipe.toml")).unwrap();
    let (from, to) = (run.join("checkpoints/step-00000010"), folder.join("checkpoints/step-00000010"));
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let name = entry.unwrap().file_name();
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    train(&world, "again", &args);
    assert!(tensors(&folder) == tensors(&run));
}

/// A plateau that is made longer while it lasts is the longer run's; after that it is refused.
#[test]
fn a_plateau_can_be_lengthened_until_its_decay() {
    let world = World::with_cache(8);
    let with = |epochs: &'static str, more: &[&'static str]| {
        let mut args = settings(&["schedule.kind=wsd", "schedule.decay_epochs=2", epochs]);
        args.extend(more);
        args
    };
    let long = train(&world, "long", &with("schedule.epochs=8", &[]));
    // Two steps an epoch: of five epochs the decay begins after step 6.
    train(&world, "grown", &with("schedule.epochs=5", &["--stop-after", "6"]));
    let grown = train(&world, "grown", &with("schedule.epochs=8", &[]));
    assert_eq!(losses(&grown), losses(&long));
    assert!(tensors(&grown) == tensors(&long));
    let rates: Vec<f64> = losses(&long).iter().map(|(_, lr, _)| *lr).collect();
    assert!(rates[2..13].iter().all(|&lr| lr == 3e-3), "{rates:?}");
    assert!(rates[13..].windows(2).all(|w| w[1] < w[0]), "{rates:?}");

    train(&world, "late", &with("schedule.epochs=5", &["--stop-after", "7"]));
    let message = format!("{:#}", error(&world, "late", &with("schedule.epochs=8", &[])));
    assert!(message.contains("schedule.epochs was 5, now it is 8"), "{message}");
    // And it can still be finished as it was begun.
    train(&world, "late", &with("schedule.epochs=5", &[]));
    assert_eq!(losses(&world.path("late")).len(), 10);
}

/// A skipped step moves no average: they stay finite, and follow again with the next good one.
#[test]
fn skipped_steps_leave_the_averages_alone() {
    let world = World::with_cache(8);
    let args = settings(&[
        "optim.lr=1e37",
        "optim.ema_decay=0.5",
        "schedule.warmup_epochs=0",
        "run.checkpoint_every=1",
        "run.keep_checkpoints=9",
        "run.stop_after_nonfinite=3",
    ]);
    error(&world, "run", &args);
    let averages = |step: u64| {
        let folder = world.path(&format!("run/checkpoints/step-{step:08}"));
        checkpoint::load(&folder).unwrap().ema.unwrap()
    };
    // The first step throws the weights so far that no loss is finite; the two after it that were still saved are skipped.
    let first = averages(1);
    assert!(first.values().all(|t| t.isfinite().all().int64_value(&[]) == 1));
    assert!(first == averages(2) && first == averages(3));
}
