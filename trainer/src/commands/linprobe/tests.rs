use std::path::Path;

use clap::Parser;
use images::ImageSource;

use schemas::ContentHash;

use super::*;
use crate::cli::{Cli, Command};
use crate::eval::features::Model;
use crate::eval::probe::Head;
use crate::testing::{World, overridden, write_images};

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn world() -> World {
    let world = World::with_cache(24);
    write_images(&world.path("test"), 8, 99);
    world
}

fn args(world: &World, model: &str, more: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut args: Vec<String> = [
        "trainer",
        "linprobe",
        "--device",
        "cpu",
        "--batch-size",
        "5",
        "--probe-batch",
        "6",
        "--epochs",
        "20",
        "--warmup-epochs",
        "2",
        "--held-out",
        "0.3",
        "--views",
        "2",
        "--model",
        model,
    ]
    .map(String::from)
    .into();
    args.extend(["--train".to_owned(), text(&world.images_dir()), "--test".to_owned(), text(&world.path("test"))]);
    args.extend(more.iter().map(|s| s.to_string()));
    overridden(args)
}

fn parse(json: &str) -> Vec<LinprobeResult> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn students_teachers_and_pixels_are_probed_and_the_test_images_choose_nothing() {
    let world = world();
    run(&world.pretrain_args("run", &[])).unwrap();
    let run_path = world.path("run");
    let (student, teacher) = (run_path.to_str().unwrap(), world.teacher_dir());
    let more = ["--model", teacher.to_str().unwrap(), "--model", "pixels:16", "--json"];
    let results = parse(&run(&args(&world, student, &more)).unwrap());
    let kinds = |r: &LinprobeResult| r.features.keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(results.iter().map(kinds).collect::<Vec<_>>(), ["cls mean", "cls mean", "pixels"]);
    let saved: LinprobeResult =
        serde_json::from_slice(&std::fs::read(run_path.join("eval/linprobe.json")).unwrap()).unwrap();
    assert_eq!(saved, results[0]);
    for result in &results {
        assert_eq!((result.sets.train_images, result.sets.test_images, result.classes.classes), (24, 8, 2));
        assert!((1..24).contains(&result.held_out_images), "{}", result.held_out_images);
        for probe in result.features.values() {
            assert_eq!(probe.heads.len(), 8);
            let held_out = |head: &Head| head.held_out.as_ref().unwrap().top1;
            let chosen = probe.heads.iter().find(|head| head.blr == probe.blr).unwrap();
            assert!(probe.heads.iter().all(|head| held_out(head) <= held_out(chosen)));
            assert_eq!(probe.test, chosen.test);
        }
    }

    // Other test images change neither the choice nor what was held out.
    let mut other = args(&world, student, &["--json"]);
    let test = other.iter().position(|arg| arg == "--test").unwrap();
    write_images(&world.path("other"), 8, 7);
    other[test + 1] = world.path("other").to_str().unwrap().to_owned();
    let other = &parse(&run(&other).unwrap())[0];
    assert_eq!(other.held_out_images, results[0].held_out_images);
    for (kind, probe) in &other.features {
        let before = &results[0].features[kind];
        assert_eq!(probe.blr, before.blr);
        let held_out = |probe: &Probe| probe.heads.iter().map(|h| h.held_out.clone()).collect::<Vec<_>>();
        assert_eq!(held_out(probe), held_out(before));
    }

    let table = run(&args(&world, "pixels:16", &[])).unwrap();
    let percent = format!("{:.2}%", 100.0 * results[2].features["pixels"].test.top1);
    assert!(
        table.contains("linear probe, 20 epochs, 24 train and 8 test images, 2 classes") && table.contains(&percent),
        "{table}"
    );
}

/// The classes are vertical and horizontal stripes, which a linear classifier of pixels cannot learn in general from few images. It does fit
/// the training images themselves, which serve as test images here.
#[test]
fn a_probe_learns() {
    let world = world();
    let mut same = args(&world, "pixels:16", &["--views", "0", "--epochs", "300", "--blr", "40", "--json"]);
    let test = same.iter().position(|arg| arg == "--test").unwrap();
    same[test + 1] = world.images_dir().to_str().unwrap().to_owned();
    let result = &parse(&run(&same).unwrap())[0];
    assert_eq!((result.held_out_images, result.sets.test_images_in_train), (0, 24));
    let probe = &result.features["pixels"];
    assert_eq!(probe.heads.len(), 1);
    assert!(probe.heads[0].held_out.is_none());
    assert_eq!(probe.test.top1, 1.0, "{probe:?}");
}

#[test]
fn what_cannot_be_probed_is_refused_with_what_to_do() {
    let world = world();
    for (more, words) in [
        (&["--probe-batch", "64"][..], "--probe-batch 64"),
        (&["--features", "mean"], "--features mean: raw pixels at 16x16 has no such features; it has pixels"),
        (&["--blr", "0"], "--blr"),
        (&["--blr", "nan"], "--blr"),
        (&["--held-out", "0.9"], "--held-out"),
        (&["--held-out", "1e-9"], "hold out more"),
        (&["--warmup-epochs", "20"], "less than --epochs 20"),
        (&["--weight-decay=-1"], "--weight-decay"),
    ] {
        let error = run(&args(&world, "pixels:16", more)).unwrap_err();
        assert!(format!("{error:#}").contains(words), "{more:?}: {error:#}");
    }
}

#[test]
fn a_limit_on_memory_is_kept_and_is_not_0() {
    let world = world();
    let none = Cli::try_parse_from(args(&world, "pixels:16", &["--feature-gib", "0"])).unwrap_err().to_string();
    assert!(none.contains("'0' for '--feature-gib <GIB>'"), "{none}");
    let models = [Model::load("pixels:16", &HubSettings::default(), tch::Device::Cpu).unwrap()];
    let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: vec![],
        max_bytes: 24 * 16 * 16 * 3 * 4 - 1,
        batch_size: 5,
        precision: models::precision::Precision::F32,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let error =
        features::extract(&models, &source, &extraction, &pool, &crate::dist::World::alone()).unwrap_err().to_string();
    assert!(error.contains("fewer views") && error.contains("--feature-gib"), "{error}");
}

/// Copies of one image are all held out or none is.
#[test]
fn the_held_out_part_is_drawn_by_content() {
    let hashes: Vec<ContentHash> = (0..2000).map(|i| ContentHash::of(&[(i / 2) as u8, (i / 512) as u8])).collect();
    let images = Images { features: vec![], idxs: (0..2000).collect(), hashes: hashes.clone(), skipped: vec![] };
    let args = ["trainer", "linprobe", "--model", "pixels", "--train", "a", "--test", "b"];
    let Command::Linprobe(args) = Cli::try_parse_from(args).unwrap().command else { unreachable!() };
    let split = split(&images, &args).unwrap();
    assert!((120..280).contains(&split.held_out.len()), "{}", split.held_out.len());
    let sides: BTreeMap<_, _> = split.kept.iter().map(|&row| (hashes[row as usize].0, row)).collect();
    assert!(split.held_out.iter().all(|&row| !sides.contains_key(&hashes[row as usize].0)));
    assert_eq!(split.kept.len() + split.held_out.len(), split.all.len());
}

/// Crops are of the image and not of the process that looks at it, so that any number of processes trains the same heads, to the bit.
#[test]
fn any_number_of_processes_trains_the_same_heads() {
    let world = world();
    let args = args(&world, "pixels:16", &["--json"]);
    let alone = run(&args).unwrap();
    for size in [2, 3] {
        let printed = crate::dist::tests::in_many(size, |place| {
            let mut out = Vec::new();
            crate::run(&Cli::try_parse_from(&args).unwrap(), &HubSettings::default(), Some(place), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        });
        assert_eq!(printed[0], alone);
        assert!(printed[1..].iter().all(String::is_empty), "only rank 0 prints");
    }
}
