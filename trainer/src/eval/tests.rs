use std::path::Path;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::testing::{World, overridden, write_images};

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(
        &Cli::try_parse_from(args).unwrap(),
        &HubSettings::default(),
        &mut out,
    )?;
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
    let mut args: Vec<String> = [
        "trainer",
        "knn",
        "--device",
        "cpu",
        "--k",
        "3",
        "--batch-size",
        "5",
        "--model",
    ]
    .map(String::from)
    .into();
    args.push(text(model));
    args.extend([
        "--train".to_owned(),
        text(&world.images_dir()),
        "--test".to_owned(),
        text(&world.path("test")),
    ]);
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
        (
            student.train_images,
            student.test_images,
            student.classes,
            student.k
        ),
        (12, 8, 2, 3)
    );
    assert_eq!(
        (student.test_images_in_train, student.skipped_images),
        (0, 0)
    );
    assert_eq!(
        student
            .accuracy
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>(),
        ["cls", "mean"]
    );
    let saved: KnnResult =
        serde_json::from_slice(&std::fs::read(world.path("run").join("eval/knn.json")).unwrap())
            .unwrap();
    assert_eq!(saved, student);

    // The checkpoint's file alone says the same as the run.
    let file = crate::checkpoint::newest(&world.path("run"))
        .unwrap()
        .unwrap()
        .join(crate::checkpoint::MODEL);
    assert_eq!(knn_json(&world, &file, &[]).accuracy, student.accuracy);

    let teacher = knn_json(&world, &world.teacher_dir(), &[]);
    assert_eq!(teacher.accuracy.len(), 2);
    assert!(teacher.model.contains("teacher"), "{}", teacher.model);
    let pixels = knn_json(&world, Path::new("pixels:16"), &[]);
    assert_eq!(
        pixels
            .accuracy
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>(),
        ["pixels"]
    );
    let table = run(&args(&world, Path::new("pixels:16"), &[])).unwrap();
    let percent = format!("{:.2}%", 100.0 * pixels.accuracy["pixels"].top1);
    assert!(
        table.contains("3-NN, 12 train and 8 test images, 2 classes") && table.contains(&percent),
        "{table}"
    );
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .unwrap();
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
        )
        .unwrap();
        images.features[0]["mean"].get(0)
    };
    let (trained, untrained) = (features(of_run), features(&untrained_spec));
    assert_ne!(trained, untrained);
    assert_eq!(untrained, features(&untrained_spec));
    assert_eq!(trained.size(), [12, 32]);
    let result = knn_json(&world, Path::new(&untrained_spec), &[]);
    assert!(result.model.starts_with("untrained"), "{}", result.model);
    assert!(
        world.path("run").join("eval/knn-untrained.json").exists()
            && !world.path("run").join("eval/knn.json").exists()
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
        let images = features::extract(&[model], &source, &extraction, &pool).unwrap();
        images.features[0]["mean"].shallow_clone()
    };
    let average_spec = format!("ema:{of_run}");
    let average = tensors(&average_spec);
    assert_ne!(average, tensors(&of_run));
    assert_ne!(average, tensors(&format!("untrained:{of_run}")));
    let file = crate::checkpoint::newest(Path::new(&of_run))
        .unwrap()
        .unwrap()
        .join(crate::checkpoint::EMA);
    assert_eq!(average, tensors(file.to_str().unwrap()));

    let result = knn_json(&world, Path::new(&average_spec), &[]);
    assert!(result.model.starts_with("average of"), "{}", result.model);
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
    assert_eq!(result.test_images_in_train, 12);
    assert_eq!(
        result.accuracy["pixels"].top1, 1.0,
        "each is its own nearest neighbour"
    );

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
    assert_eq!((result.classes, result.test_images), (2, 6));
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let world = world();
    let message =
        |model: &Path, more: &[&str]| format!("{:#}", run(&args(&world, model, more)).unwrap_err());
    assert!(message(Path::new("nowhere"), &[]).contains("no such file or folder"));
    let teacher = format!("untrained:{}", world.teacher_dir().display());
    for untrained in ["untrained:pixels", &teacher] {
        assert!(message(Path::new(untrained), &[]).contains("only a student can be untrained"));
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
    let alone: Vec<_> = specs
        .iter()
        .map(|spec| knn_json(&world, Path::new(spec), &[]))
        .collect();
    assert_eq!(together, alone);
    let table = run(&args(&world, Path::new(specs[0]), &more[..4])).unwrap();
    assert_eq!(table.lines().count(), 2 + 1 + 2 + 1, "{table}");
}

#[test]
fn test_images_of_unseen_classes_are_counted() {
    assert_eq!(count_of_unseen_classes(&[0, 1, 1], &[1, 2, 3, 2, 0]), 3);
    assert_eq!(count_of_unseen_classes(&[0, 1], &[1, 1]), 0);
}
