use std::path::Path;

use clap::Parser;
use images::ImageSource;

use super::*;
use crate::cli::Cli;
use crate::data::classes::{Matching, count_of_unseen_classes};
use crate::eval::features::{Fusion, Model};
use crate::testing::{World, overridden, write_images};
use crate::train::checkpoint;

mod many;

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// A world with 12 images to vote and 8 others to classify.
fn world() -> World {
    let world = World::with_cache(12);
    write_images(&world.path("test"), 8, 99);
    world
}

fn args(world: &World, model: &Path, more: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut args: Vec<String> =
        ["trainer", "knn", "--device", "cpu", "--k", "3", "--batch-size", "5", "--model"].map(String::from).into();
    args.push(text(model));
    args.extend(["--train".to_owned(), text(&world.images_dir()), "--test".to_owned(), text(&world.path("test"))]);
    args.extend(more.iter().map(|s| s.to_string()));
    overridden(args)
}

fn knn_json(world: &World, model: &Path, more: &[&str]) -> KnnResult {
    let mut results = parse(&run(&args(world, model, &[more, &["--json"]].concat())).unwrap());
    assert_eq!(results.len(), 1);
    results.remove(0)
}

fn parse(json: &str) -> Vec<KnnResult> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn students_teachers_and_pixels_are_judged_alike() {
    let world = world();
    run(&world.pretrain_args("run", &[])).unwrap();
    let student = knn_json(&world, &world.path("run"), &[]);
    assert_eq!(
        (student.sets.train_images, student.sets.test_images, student.classes.classes, student.k),
        (12, 8, 2, 3)
    );
    assert_eq!((student.sets.test_images_in_train, student.sets.skipped_images), (0, 0));
    assert_eq!(student.accuracy.keys().map(String::as_str).collect::<Vec<_>>(), ["cls", "mean"]);
    let saved: KnnResult =
        serde_json::from_slice(&std::fs::read(world.path("run").join("eval/knn.json")).unwrap()).unwrap();
    assert_eq!(saved, student);

    // The checkpoint's file alone says the same as the run.
    let file =
        crate::train::checkpoint::newest(&world.path("run")).unwrap().unwrap().join(crate::train::checkpoint::MODEL);
    assert_eq!(knn_json(&world, &file, &[]).accuracy, student.accuracy);
    // While the file is in its checkpoint folder, it is verified against the checkpoint's digests.
    let mut damaged = std::fs::read(&file).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    #[allow(clippy::disallowed_methods, reason = "damage is made by writing over a file")]
    std::fs::write(&file, damaged).unwrap();
    let error = run(&args(&world, &file, &[])).unwrap_err().to_string();
    assert!(error.contains("is damaged (SHA-256"), "{error}");

    let teacher = knn_json(&world, &world.teacher_dir(), &[]);
    assert_eq!(teacher.accuracy.len(), 2);
    assert!(teacher.model.model.contains("teacher"), "{}", teacher.model.model);
    let pixels = knn_json(&world, Path::new("pixels:16"), &[]);
    assert_eq!(pixels.accuracy.keys().map(String::as_str).collect::<Vec<_>>(), ["pixels"]);
    let table = run(&args(&world, Path::new("pixels:16"), &[])).unwrap();
    let percent = format!("{:.2}%", 100.0 * pixels.accuracy["pixels"].top1);
    assert!(table.contains("3-NN, 12 train and 8 test images, 2 classes") && table.contains(&percent), "{table}");
}

#[test]
fn more_neighbors_than_images_are_told() {
    assert_eq!(too_few(20, 20), None);
    let few = too_few(500, 20).unwrap();
    assert!(few.starts_with("--k 500: --train has 20 images") && few.ends_with("give a smaller --k"), "{few}");
    assert!(too_few(2, 1).unwrap().contains("has 1 image that"));
}

/// The untrained student is that of step 0, not the trained one; and both agree with themselves.
#[test]
fn untrained_means_before_the_first_step() {
    let world = world();
    run(&world.pretrain_args("run", &["--set", "optim.lr=0.05"])).unwrap();
    let run_path = world.path("run");
    let of_run = run_path.to_str().unwrap();
    let untrained_spec = format!("untrained:{of_run}");
    let features = |spec: &str| {
        let models = [Model::load(spec, &HubSettings::default(), tch::Device::Cpu).unwrap()];
        let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let images = features::extract(
            &models,
            &source,
            &Extraction {
                views: Views::CENTER,
                kinds: vec!["mean".to_owned()],
                max_bytes: u64::MAX,
                batch_size: 5,
                precision: models::precision::Precision::F32,
            },
            &pool,
            &crate::dist::World::alone(),
        )
        .unwrap();
        images.features[0]["mean"].get(0)
    };
    let (trained, untrained) = (features(of_run), features(&untrained_spec));
    assert_ne!(trained, untrained);
    assert_eq!(untrained, features(&untrained_spec));
    assert_eq!(trained.size(), [12, 32]);
    let result = knn_json(&world, Path::new(&untrained_spec), &[]);
    assert!(result.model.model.starts_with("untrained"), "{}", result.model.model);
    assert!(
        world.path("run").join("eval/knn-untrained.json").exists() && !world.path("run").join("eval/knn.json").exists()
    );
}

/// `ema:RUN` is the average, which is neither the trained student nor the untrained one; and its file alone is the same.
#[test]
fn a_moving_average_is_evaluated_when_asked_for() {
    let world = world();
    let settings = ["--set", "optim.lr=0.05", "--set", "optim.ema_decay=0.8"];
    run(&world.pretrain_args("run", &settings)).unwrap();
    let of_run = world.path("run").to_str().unwrap().to_owned();
    let tensors = |spec: &str| {
        let model = Model::load(spec, &HubSettings::default(), tch::Device::Cpu).unwrap();
        let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().build().unwrap();
        let extraction = features::Extraction {
            views: features::Views::CENTER,
            kinds: Vec::new(),
            max_bytes: u64::MAX,
            batch_size: 5,
            precision: models::precision::Precision::F32,
        };
        let images = features::extract(&[model], &source, &extraction, &pool, &crate::dist::World::alone()).unwrap();
        images.features[0]["mean"].shallow_clone()
    };
    let average_spec = format!("ema:{of_run}");
    let average = tensors(&average_spec);
    assert_ne!(average, tensors(&of_run));
    assert_ne!(average, tensors(&format!("untrained:{of_run}")));
    let file =
        crate::train::checkpoint::newest(Path::new(&of_run)).unwrap().unwrap().join(crate::train::checkpoint::EMA);
    assert_eq!(average, tensors(file.to_str().unwrap()));

    let result = knn_json(&world, Path::new(&average_spec), &[]);
    assert!(result.model.model.starts_with("average of"), "{}", result.model.model);
    assert!(world.path("run").join("eval/knn-ema.json").exists());
    assert!(!world.path("run").join("eval/knn.json").exists());

    run(&world.pretrain_args("plain", &["--stop-after", "2"])).unwrap();
    let refused = |spec: String| {
        let loaded = Model::load(&spec, &HubSettings::default(), tch::Device::Cpu);
        format!("{:#}", loaded.unwrap_err())
    };
    let none = refused(format!("ema:{}", world.path("plain").display()));
    assert!(none.contains("no optim.ema_decay"), "{none}");
    let no_run = refused(format!("ema:{}", world.teacher_dir().display()));
    assert!(no_run.contains("only a run folder"), "{no_run}");
}

/// Images that vote for themselves are counted, and classes are matched by name, not by number.
#[test]
fn overlap_is_counted_and_classes_are_matched_by_name() {
    let world = world();
    let mut same = args(&world, Path::new("pixels"), &["--json"]);
    let test = same.iter().position(|arg| arg == "--test").unwrap();
    same[test + 1] = world.images_dir().to_str().unwrap().to_owned();
    let k = same.iter().position(|arg| arg == "--k").unwrap();
    same[k + 1] = "1".to_owned();
    let result = &parse(&run(&same).unwrap())[0];
    assert_eq!(result.sets.test_images_in_train, 12);
    assert_eq!(result.accuracy["pixels"].top1, 1.0, "each is its own nearest neighbor");

    // A test set with class b alone: its label 0 is the train set's label 1.
    #[allow(clippy::disallowed_methods)] // A folder is moved.
    std::fs::rename(
        world.images_dir().join("b"),
        world
            .path("only/b")
            .parent()
            .map(|p| {
                std::fs::create_dir_all(p).unwrap();
                p.join("b")
            })
            .unwrap(),
    )
    .unwrap();
    let mut only_b = same;
    only_b[test + 1] = world.path("only").to_str().unwrap().to_owned();
    let train = only_b.iter().position(|arg| arg == "--train").unwrap();
    only_b[train + 1] = world.path("test").to_str().unwrap().to_owned();
    let result = &parse(&run(&only_b).unwrap())[0];
    assert_eq!((result.classes.classes, result.sets.test_images), (2, 6));
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let world = world();
    let message = |model: &Path, more: &[&str]| format!("{:#}", run(&args(&world, model, more)).unwrap_err());
    assert!(message(Path::new("nowhere"), &[]).contains("no such file or folder"));
    let teacher = format!("untrained:{}", world.teacher_dir().display());
    for untrained in ["untrained:pixels", &teacher] {
        assert!(message(Path::new(untrained), &[]).contains("only a student can be untrained"));
    }
    for (model, words) in [
        ("untrained:nowhere", "there is no such file or folder: give"),
        ("", "nothing is named"),
        ("untrained:", "nothing is named"),
        ("ema:", "nothing is named"),
    ] {
        let refusal = message(Path::new(model), &[]);
        assert!(refusal.contains(words), "{model}: {refusal}");
    }
    assert!(message(Path::new("pixels:0"), &[]).contains("from 1 to 1024"));
}

/// Models of several input sizes share one pass over the images, and each gets what it gets alone.
#[test]
fn several_models_are_judged_as_each_alone() {
    let world = world();
    let teacher = world.teacher_dir();
    let specs = ["pixels:16", teacher.to_str().unwrap(), "pixels:24"];
    let more = ["--model", specs[1], "--model", specs[2], "--json"];
    let together = parse(&run(&args(&world, Path::new(specs[0]), &more)).unwrap());
    let alone: Vec<_> = specs.iter().map(|spec| knn_json(&world, Path::new(spec), &[])).collect();
    assert_eq!(together, alone);
    let table = run(&args(&world, Path::new(specs[0]), &more[..4])).unwrap();
    assert_eq!(table.lines().count(), 2 + 1 + 2 + 1, "{table}");
}

#[test]
fn test_images_of_unseen_classes_are_counted() {
    let count = |train: &[i64], test: &[i64]| count_of_unseen_classes(train, test, 0).ok();
    assert_eq!(count(&[0, 1, 1], &[1, 2, 3, 2, 0]), Some(3));
    assert_eq!(count(&[0, 1], &[1, 1]), Some(0));
    assert_eq!(count(&[0, 1], &[2, 3, 2]), None, "none could be right");
}

/// A student of multi-layer fusion is evaluated as it was trained, and without on demand, which is what its exports compute; each result
/// says which, and lies in a file of its own.
#[test]
fn students_of_fusion_are_evaluated_fused() {
    let world = world();
    let settings = ["--set", "model.fusion=[0]", "--set", "optim.lr=0.02"];
    run(&world.pretrain_args("fused", &settings)).unwrap();
    run(&world.pretrain_args("plain", &["--stop-after", "2"])).unwrap();
    let path_of = |name: &str| world.path(name).display().to_string();
    let load = |spec: &str| Model::load(spec, &HubSettings::default(), tch::Device::Cpu);
    let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().build().unwrap();
    let features = |spec: &str| {
        let extraction = Extraction {
            views: Views::CENTER,
            kinds: Vec::new(),
            max_bytes: u64::MAX,
            batch_size: 5,
            precision: models::precision::Precision::F32,
        };
        let model = [load(spec).unwrap()];
        let images = features::extract(&model, &source, &extraction, &pool, &crate::dist::World::alone()).unwrap();
        let found = &images.features[0];
        tch::Tensor::cat(&[&found["cls"], &found["mean"]], -1)
    };
    let (fused, unfused) = (path_of("fused"), format!("unfused:{}", path_of("fused")));
    assert_ne!(features(&fused), features(&unfused));
    let exported = path_of("exported");
    let export = ["trainer", "export", "--run", &fused, "--format", "timm", "--out", &exported];
    let refused = run(&export.map(str::to_owned)).unwrap_err();
    assert!(refused.to_string().contains("Give --unfused"), "{refused:#}");
    assert!(!world.path("exported").exists());
    let mut export = export.map(str::to_owned).to_vec();
    export.push("--unfused".to_owned());
    run(&export).unwrap();
    let card = std::fs::read_to_string(world.path("exported").join("README.md")).unwrap();
    assert!(card.contains("| multi-layer fusion | left out"), "{card}");
    let difference = crate::testing::relative_l2(&features(&exported), &features(&unfused));
    assert!(difference < 1e-5, "{difference:e}");
    // Before the first step, in either order of the words.
    let untrained =
        [format!("untrained:{fused}"), format!("untrained:{unfused}"), format!("unfused:untrained:{fused}")];
    let [whole, without, reversed] = untrained.each_ref().map(|spec| features(spec));
    assert_ne!(whole, without);
    assert_eq!(without, reversed);

    let result = knn_json(&world, Path::new(&fused), &[]);
    assert_eq!(result.model.fusion, Some(Fusion::Fused));
    assert!(result.model.model.ends_with(", fused"), "{}", result.model.model);
    let result = knn_json(&world, Path::new(&unfused), &[]);
    assert_eq!(result.model.fusion, Some(Fusion::Unfused));
    assert!(result.model.model.ends_with(", unfused"), "{}", result.model.model);
    let saved = |file: &str| {
        let text = std::fs::read_to_string(world.path("fused/eval").join(file)).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(saved("knn.json")["fusion"], "fused");
    assert_eq!(saved("knn-unfused.json")["fusion"], "unfused");
    // A result without the field is of an older version, which left fusion out: it stays beside the new result.
    let mut before = saved("knn.json");
    before.as_object_mut().unwrap().remove("fusion");
    let text = before.to_string();
    schemas::atomic::write(&world.path("fused/eval/knn.json"), text.as_bytes()).unwrap();
    knn_json(&world, Path::new(&fused), &[]);
    assert_eq!(saved("knn.json"), before);
    assert_eq!(saved("knn-2.json")["fusion"], "fused");

    let plain = knn_json(&world, Path::new(&path_of("plain")), &[]);
    assert_eq!(plain.model.fusion, None);
    for spec in [path_of("plain"), "pixels".to_owned(), world.teacher_dir().display().to_string()] {
        let refused = load(&format!("unfused:{spec}")).unwrap_err();
        assert!(format!("{refused:#}").contains("model.fusion"), "{refused:#}");
    }
}

/// Sets whose classes do not meet give no result, from any command; an answer to the question gives one and is recorded.
#[test]
fn classes_that_do_not_meet_give_no_result() {
    let world = world();
    #[allow(clippy::disallowed_methods)] // Folders are renamed.
    for (name, other) in [("a", "first"), ("b", "second")] {
        let test = world.path("test");
        std::fs::rename(test.join(name), test.join(other)).unwrap();
    }
    let pixels = Path::new("pixels:8");
    for command in ["knn", "linprobe"] {
        let mut args = args(&world, pixels, &[]);
        if command == "linprobe" {
            let k = args.iter().position(|arg| arg == "--k").unwrap();
            args.drain(k..k + 2);
            args[1] = command.to_owned();
            args.extend(["--probe-batch", "4"].map(str::to_owned));
        }
        let refused = run(&args).unwrap_err();
        let message = format!("{refused:#}");
        for words in ["no class of --test", "\"first\"", "--match-classes number"] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(crate::exit_status(&refused), program::ExitStatus::CouldNot);
    }
    let result = knn_json(&world, pixels, &["--match-classes", "number"]);
    assert_eq!((result.classes.classes, result.classes.match_classes), (2, Matching::Number));
    assert_eq!(result.classes.test_images_of_unseen_classes, 0);
    // A class that only the test set has: its images are counted, and count as wrong.
    #[allow(clippy::disallowed_methods)]
    std::fs::rename(world.path("test/first"), world.path("test/a")).unwrap();
    let result = knn_json(&world, pixels, &[]);
    assert_eq!((result.classes.classes, result.classes.test_images_of_unseen_classes), (3, 4));
    assert!(result.accuracy["pixels"].top1 <= 0.5);
}

/// Records in a new checkpoint of a run that its images were seen through `window`.
fn trained_through(run: &Path, window: &str) {
    let mut last = checkpoint::load_last(run, &mut |_| ()).unwrap().unwrap();
    let fact = (crate::pretrained::depth_window::FACT.to_owned(), window.to_owned());
    last.state.data.extend([fact]);
    last.state.step += 1;
    let keep = checkpoint::Keep { newest: 1, every: None };
    checkpoint::save(run, &last, keep).unwrap();
}

/// Pixels seen through another window are another question, and so are another precision and, for the probe, other features or rates. What a
/// run was trained with goes into its export, and comes back from there.
#[test]
fn how_images_were_seen_is_part_of_the_question_and_of_an_export() {
    let world = world();
    let of_run = world.path("run");
    run(&world.pretrain_args("run", &["--stop-after", "1"])).unwrap();
    trained_through(&of_run, "0,4095");
    let usual = knn_json(&world, &of_run, &[]);
    assert_eq!(usual.model.depth_window.to_string(), "0,4095");
    let other = knn_json(&world, &of_run, &["--depth-window", "high-byte"]);
    assert!(other.model.depth_window.is_high_byte());
    let bf16 = knn_json(&world, &of_run, &["--precision", "bf16"]);
    assert_eq!(bf16.model.precision.as_deref(), Some("bf16"));
    let written = |name: &str| -> KnnResult {
        let text = std::fs::read_to_string(of_run.join("eval").join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(written("knn.json"), usual);
    assert_eq!(written("knn-2.json"), other);
    assert_eq!(written("knn-3.json"), bf16);

    let export = world.path("export");
    let (run_path, export_path) = (of_run.to_str().unwrap(), export.to_str().unwrap());
    let words = ["trainer", "export", "--run", run_path, "--format", "timm", "--out", export_path];
    run(&words.map(str::to_owned)).unwrap();
    let read = |name: &str| std::fs::read_to_string(export.join(name)).unwrap();
    assert!(read("config.json").contains(r#""depth_window": "0,4095""#));
    assert!(read("README.md").contains("from 0 and 4095 to 0 and 255"));
    let file = export.join("model.safetensors");
    for exported in [&export, &file] {
        let result = knn_json(&world, exported, &[]);
        assert_eq!(result.model.depth_window.to_string(), "0,4095");
    }

    trained_through(&of_run, "high-byte");
    let again = world.path("again");
    let words = ["trainer", "export", "--run", run_path, "--format", "timm", "--out", again.to_str().unwrap()];
    run(&words.map(str::to_owned)).unwrap();
    let config = std::fs::read_to_string(again.join("config.json")).unwrap();
    assert!(!config.contains("depth_window"), "{config}");
}
