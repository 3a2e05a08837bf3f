use super::*;
use crate::eval::watch::Watched;
use crate::testing::{overridden, write_images};
use crate::train::best::BEST;

/// Ten images to vote and six to classify, of two classes, beside the images of pretraining.
fn labeled(world: &World) -> [String; 2] {
    [("eval-train", 10, 100), ("eval-test", 6, 200)].map(|(name, n, seed)| {
        write_images(&world.path(name), n, seed);
        world.path(name).display().to_string()
    })
}

fn watched(run: &Path) -> Vec<Watched> {
    let text = fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `trainer knn` and `trainer linprobe` say of `model`.
fn evaluated(command: &str, model: &str, [train, test]: &[String; 2], more: &[&str]) -> serde_json::Value {
    let mut args = vec!["trainer", command, "--model", model, "--train", train, "--test", test, "--json"];
    args.extend(more);
    let mut printed = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut printed).unwrap();
    serde_json::from_slice(&printed).unwrap()
}

#[test]
fn a_student_is_evaluated_as_by_the_commands_and_trained_as_without() {
    let world = World::with_cache(12);
    let sets = labeled(&world);
    // Three steps are an epoch.
    let base = ["--set", "schedule.epochs=5", "--set", "run.keep_every=3", "--set", "optim.ema_decay=0.9"];
    let unwatched = train(&world, "unwatched", &base);
    assert!(!unwatched.join("evaluations.jsonl").exists() && !unwatched.join(BEST).exists());
    let mut args = base.to_vec();
    let watching = ["--eval-train", &sets[0], "--eval-test", &sets[1], "--eval-linprobe"];
    args.extend(watching);
    args.extend(["--set", "run.eval_every=2"]);
    let whole = train(&world, "whole", &args);
    assert_eq!(losses(&whole), losses(&unwatched));
    assert!(trained_tensors(&whole) == trained_tensors(&unwatched));
    assert_eq!(pictures(&whole), pictures(&unwatched));

    let lines = watched(&whole);
    assert_eq!(lines.iter().map(|line| (line.step, line.epoch)).collect::<Vec<_>>(), [(6, 2), (12, 4), (15, 5)]);
    assert!(lines.iter().all(|line| (line.train_images, line.test_images) == (10, 6)));
    // The last evaluation is of the run's averages as they were saved.
    let averages = format!("ema:{}", whole.display());
    let knn = evaluated("knn", &averages, &sets, &[]);
    let probe = evaluated("linprobe", &averages, &sets, &["--views", "0", "--probe-batch", "2"]);
    for kind in ["cls", "mean"] {
        assert_eq!(lines[2].top1[&format!("knn.{kind}")], knn[0]["accuracy"][kind]["top1"].as_f64().unwrap());
        let found = lines[2].top1[&format!("linprobe.{kind}")];
        assert_eq!(found, probe[0]["features"][kind]["test"]["top1"].as_f64().unwrap());
    }
    // The first of the best evaluations has its weights kept.
    let best = lines.iter().fold(&lines[0], |best, line| if line.score() > best.score() { line } else { best });
    let kept = evaluated("knn", &whole.join(BEST).display().to_string(), &sets, &[]);
    let top1 = |kind: &str| kept[0]["accuracy"][kind]["top1"].as_f64().unwrap();
    assert_eq!((top1("cls"), top1("mean")), (best.top1["knn.cls"], best.top1["knn.mean"]));

    // Stopped within an epoch and at an evaluation, the run ends with the same lines and the same best weights.
    for stops in ["4", "6"] {
        let name = format!("stopped-{stops}");
        let mut first = args.clone();
        first.extend(["--stop-after", stops]);
        train(&world, &name, &first);
        let again = train(&world, &name, &args);
        assert_eq!(watched(&again), lines);
        assert!(fs::read(again.join(BEST)).unwrap() == fs::read(whole.join(BEST)).unwrap());
        assert!(tensors(&again) == tensors(&whole));
    }
    // An evaluation that a signal kept from happening is made up for.
    let text = fs::read_to_string(whole.join("evaluations.jsonl")).unwrap();
    let first_two: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    fs::write(whole.join("evaluations.jsonl"), first_two).unwrap();
    train(&world, "whole", &args);
    assert_eq!(watched(&whole), lines);
    let sessions = fs::read_dir(whole.join("tb")).unwrap().map(|file| file.unwrap().path());
    let events = fs::read(sessions.max().unwrap()).unwrap();
    assert!(events.windows(13).any(|bytes| bytes == b"eval/knn.mean"));
}

/// The names of a run's pictures.
fn pictures(run: &Path) -> Vec<String> {
    let sheets = image_grid::pictures(run).unwrap();
    assert!(!sheets.is_empty());
    sheets.iter().map(|sheet| sheet.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

/// Weights, moments and averages without the files' headers, which hold the recipe.
fn trained_tensors(run: &Path) -> [BTreeMap<String, Tensor>; 2] {
    let checkpoint = checkpoint::load(&checkpoint::newest(run).unwrap().unwrap()).unwrap();
    [checkpoint.model, checkpoint.optimizer]
}

#[test]
fn what_cannot_be_evaluated_on_is_refused_before_training() {
    let world = World::with_cache(8);
    let sets = labeled(&world);
    let message = |more: &[&str]| format!("{:#}", error(&world, "run", more));
    let lacking = message(&["--set", "run.eval_every=1"]);
    assert!(lacking.contains("run.eval_every") && lacking.contains("--eval-train"), "{lacking}");
    let nowhere = message(&["--eval-train", "/nowhere", "--eval-test", &sets[1]]);
    assert!(nowhere.contains("--eval-train /nowhere"), "{nowhere}");
    let flat = message(&["--eval-train", &sets[0], "--eval-test", &format!("{}/a", sets[1])]);
    assert!(flat.contains("--eval-test"), "{flat}");
    let half = Cli::try_parse_from(world.pretrain_args("run", &["--eval-train", &sets[0]])).unwrap_err().to_string();
    assert!(half.contains("--eval-test"), "{half}");
    assert!(!world.path("run").join("checkpoints").exists());
}

/// Many processes share the images, and find what one finds; also where an evaluation is made up for.
#[test]
fn any_number_of_processes_watches_alike() {
    let world = World::with_cache(12);
    let sets = labeled(&world);
    let base = ["--set", "schedule.epochs=4", "--set", "optim.ema_decay=0.9", "--set", "run.eval_every=1"];
    let watching = ["--eval-train", &sets[0], "--eval-test", &sets[1], "--eval-linprobe"];
    let args = |out: &str, more: &[&str]| overridden(world.pretrain_args(out, &[&base[..], more].concat()));
    let in_many = |size: usize, args: Vec<String>| {
        let done = crate::dist::tests::in_many(size, |place| {
            crate::run(&Cli::try_parse_from(&args).unwrap(), &HubSettings::default(), Some(place), &mut Vec::new())
        });
        done.into_iter().for_each(|done| assert_eq!(done.unwrap(), ExitStatus::Fine));
    };
    in_many(2, args("two", &watching));
    let two = watched(&world.path("two"));
    assert_eq!(two.iter().map(|line| line.step).collect::<Vec<_>>(), [3, 6, 9, 12]);
    assert!(two.iter().all(|line| (line.train_images, line.test_images) == (10, 6)));
    // Its weights have sums in another order than those of one process, so it is compared with itself.
    let averages = format!("ema:{}", world.path("two").display());
    let knn = evaluated("knn", &averages, &sets, &[]);
    for kind in ["cls", "mean"] {
        assert_eq!(two[3].top1[&format!("knn.{kind}")], knn[0]["accuracy"][kind]["top1"].as_f64().unwrap());
    }
    assert!(world.path("two").join(BEST).exists());

    // Without the evaluation of its last step, a run is evaluated by the next call.
    in_many(2, args("late", &[&watching[..], &["--stop-after", "9"]].concat()));
    let file = world.path("late").join("evaluations.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let without_last: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    #[allow(clippy::disallowed_methods, reason = "damage is made by writing over a file")]
    fs::write(&file, without_last).unwrap();
    in_many(2, args("late", &watching));
    assert_eq!(watched(&world.path("late")), two);
}
