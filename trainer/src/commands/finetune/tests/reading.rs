//! What a fine-tuning leaves is read by everything that reads a student: evaluated, exported, tuned further.

use std::process::Command;

use images::ImageSource;
use models::precision::Precision;
use models::teacher::Teacher;
use tch::Device;

use super::*;
use crate::eval::features::{self, ByKind, Extraction, Model, Views};
use crate::eval::test_set::read_center;
use crate::testing::relative_l2;

fn features_of(model: &str, images: &Path) -> ByKind {
    let hub = HubSettings::default();
    let models = [Model::load(model, &hub, Device::Cpu).unwrap()];
    let source = ImageSource::open(images.to_str().unwrap()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: Vec::new(),
        max_bytes: u64::MAX,
        batch_size: 4,
        precision: Precision::F32,
    };
    let mut found =
        features::extract(&models, &source, &extraction, &pool.unwrap(), &crate::dist::World::alone()).unwrap();
    found.features.remove(0)
}

/// The scores that the head in `file` gives of features `[1, N, D]`.
fn scores(file: &Path, features: &Tensor) -> Tensor {
    let weights = Weights::read(file).unwrap();
    let head = |name: &str| weights.get(name).unwrap().shallow_clone();
    features.get(0).linear(&head("head.weight"), Some(head("head.bias")))
}

fn kinds(features: &ByKind) -> Vec<&str> {
    features.keys().map(String::as_str).collect()
}

/// The features that `trainer knn` and `trainer linprobe` see are those that the head classifies: with it they give the loss that the
/// run's own evaluation found. Of the weights and of their average, from the run and from a file.
#[test]
fn features_of_a_tuned_run_are_what_its_head_classifies() {
    let world = world();
    for (pool, kind, all) in [("mean", "mean", &["mean"][..]), ("cls", "cls", &["cls", "mean"])] {
        for ema in [false, true] {
            let name = format!("tuned-{pool}-{ema}");
            let pool = format!("model.pool={pool}");
            let mut settings = vec!["--set", &pool, "--set", "optim.lr=1e-2"];
            if ema {
                settings.extend(["--set", "optim.ema_decay=0.8"]);
            }
            let run_path = tune(&world, &name, &settings);
            let last = test_set::read(&run_path).unwrap().pop().unwrap();
            let newest = checkpoint::newest(&run_path).unwrap().unwrap();
            let (model, file) = match ema {
                false => (run_path.display().to_string(), checkpoint::MODEL),
                true => (format!("ema:{}", run_path.display()), checkpoint::EMA),
            };
            let found = features_of(&model, &world.path("test"));
            assert_eq!(kinds(&found), all, "{name}");
            let source = ImageSource::open(world.path("test").to_str().unwrap()).unwrap();
            let labels: Vec<i64> = (0..source.len()).map(|idx| i64::from(source.label(idx).unwrap())).collect();
            let loss = scores(&newest.join(file), &found[kind])
                .cross_entropy_for_logits(&Tensor::from_slice(&labels))
                .double_value(&[]);
            assert!((loss - last.loss).abs() < 1e-5, "{name}: {loss}, {last:?}");
            let of_file = features_of(newest.join(file).to_str().unwrap(), &world.path("test"));
            assert_eq!(of_file[kind], found[kind], "{name}");
            if ema {
                let plain = features_of(run_path.to_str().unwrap(), &world.path("test"));
                assert_ne!(plain[kind], found[kind]);
            }
        }
    }

    // The commands, and where their results go.
    let tuned = world.path("tuned-mean-true").display().to_string();
    for (model, file) in [(tuned.clone(), "knn"), (format!("ema:{tuned}"), "knn-ema")] {
        let images = [world.images_dir(), world.path("test")].map(|p| p.display().to_string());
        let args = [
            "trainer", "knn", "--device", "cpu", "--k", "3", "--model", &model, "--train", &images[0], "--test",
            &images[1],
        ];
        let table = run(&args.map(String::from)).unwrap();
        assert!(table.contains("mean") && !table.contains("cls"), "{table}");
        assert!(Path::new(&tuned).join(format!("eval/{file}.json")).is_file());
    }
    let hub = HubSettings::default();
    let untrained = Model::load(&format!("untrained:{tuned}"), &hub, Device::Cpu).unwrap_err();
    assert!(format!("{untrained:#}").starts_with("--model untrained:"), "{untrained:#}");
}

/// A run from before its encoder was recorded says what to do, and the same command makes it readable without another step.
#[test]
fn an_older_run_is_completed_by_its_own_command() {
    let world = world();
    let run_path = tune(&world, "older", &[]);
    let recipe = fs::read_to_string(run_path.join(run_folder::RECIPE)).unwrap();
    let (without, _) = recipe.split_once("[encoder]").unwrap();
    schemas::atomic::write(&run_path.join(run_folder::RECIPE), without.as_bytes()).unwrap();
    let before = tensors(&run_path);
    let load = || Model::load(run_path.to_str().unwrap(), &HubSettings::default(), Device::Cpu);
    let message = format!("{:#}", load().unwrap_err());
    assert!(message.contains("once more"), "{message}");
    tune(&world, "older", &[]);
    load().unwrap();
    assert!(tensors(&run_path) == before);
}

/// Another tuning starts from a tuned run, from a run's average, and from a student before its first step.
#[test]
fn runs_are_started_from_by_every_name_that_evaluation_has() {
    let world = world();
    let tuned = tune(&world, "tuned", &["--set", "optim.ema_decay=0.8", "--stop-after", "2"]);
    let pretrained = world.path("pretrained").display().to_string();
    let first = |spec: &str, name: &str| {
        let mut args =
            args(&world, name, &["--stop-after", "1", "--set", "optim.lr=1e-12", "--set", "schedule.min_lr=0.0"]);
        let at = args.iter().position(|arg| arg == "--init").unwrap();
        args[at + 1] = spec.to_owned();
        run(&args).map(|_| {
            let folder = checkpoint::newest(&world.path(name)).unwrap().unwrap();
            let weights = Weights::read(&folder.join(checkpoint::MODEL)).unwrap();
            weights.get("blocks.0.attn.qkv.weight").unwrap().shallow_clone()
        })
    };
    let of = |file: &Path| {
        let weights = Weights::read(file).unwrap();
        weights.get("blocks.0.attn.qkv.weight").unwrap().shallow_clone()
    };
    let newest = checkpoint::newest(&tuned).unwrap().unwrap();
    let again = first(tuned.to_str().unwrap(), "again").unwrap();
    assert!(relative_l2(&again, &of(&newest.join(checkpoint::MODEL))) < 1e-6);
    let average = first(&format!("ema:{}", tuned.display()), "average").unwrap();
    assert!(relative_l2(&average, &of(&newest.join(checkpoint::EMA))) < 1e-6);
    let student = first(&pretrained, "student").unwrap();
    let fresh = first(&format!("untrained:{pretrained}"), "fresh").unwrap();
    assert!(relative_l2(&fresh, &student) > 1e-3);
    for (spec, words) in [
        (format!("untrained:{}", tuned.display()), "give a run of pretraining, or leave out `untrained:`"),
        (
            "ema:nowhere".to_owned(),
            "only a run folder has a moving average (`ema:RUN`, --ema), and \"nowhere\" does not exist",
        ),
        (
            format!("ema:{}", newest.join(checkpoint::MODEL).display()),
            "model.safetensors\" is a file; a checkpoint's average",
        ),
        (format!("ema:{}", world.path("test").display()), "test\" is a folder without a run's recipe.toml"),
        (format!("ema:untrained:{pretrained}"), "before its first step has no moving average"),
        (format!("teacher:ema:{pretrained}"), "no untrained form and no moving average"),
        (format!("ema:{pretrained}"), "keeps no moving average"),
    ] {
        let message = format!("{:#}", first(&spec, "refused").unwrap_err());
        assert!(message.contains(words), "{spec}: {message}");
    }
}

/// A teacher's tower is tuned as it is: at a learning rate of nothing the run has the frozen teacher's features, pixels and all.
#[test]
fn a_tower_is_tuned_from_the_frozen_teachers_features() {
    let world = world();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/teachers");
    for teacher in ["clip-tiny", "dino-tiny"] {
        let folder = assets.join(teacher).display().to_string();
        let frozen = features_of(&folder, &world.path("test"));
        let tune_by = |name: &str, more: &[&str]| {
            let mut args = args(&world, name, more);
            let at = args.iter().position(|arg| arg == "--init").unwrap();
            args[at + 1] = format!("teacher:{folder}");
            run(&args).unwrap();
            world.path(name)
        };
        let still =
            ["--stop-after", "1", "--set", "optim.lr=1e-12", "--set", "schedule.min_lr=0.0", "--set", "model.pool=cls"];
        let run_path = tune_by(&format!("still-{teacher}"), &still);
        let tuned = features_of(run_path.to_str().unwrap(), &world.path("test"));
        for kind in ["cls", "mean"] {
            let difference = relative_l2(&tuned[kind], &frozen[kind]);
            println!("{teacher}: {kind} differs by {difference:.1e}");
            assert!(difference < 1e-6, "{teacher} {kind}: {difference:e}");
        }
        let noise = ["--set", "augment.random_erasing=0.5", "--set", "schedule.epochs=2"];
        let run_path = tune_by(&format!("tuned-{teacher}"), &noise);
        assert_eq!(test_set::read(&run_path).unwrap().len(), 2);
        let moved = features_of(run_path.to_str().unwrap(), &world.path("test"));
        assert_eq!(kinds(&moved), ["mean"]);
        // Stopped and gone on with, it is the same run.
        let mut half = noise.to_vec();
        half.extend(["--stop-after", "3"]);
        tune_by(&format!("cut-{teacher}"), &half);
        let cut = tune_by(&format!("cut-{teacher}"), &half);
        assert!(tensors(&cut) == tensors(&run_path));
        // Which packages take it is told.
        let (from, out) = (run_path.display().to_string(), world.path("out").display().to_string());
        let export = ["trainer", "export", "--run", &from, "--format", "timm", "--out", &out];
        let message = format!("{:#}", run(&export.map(String::from)).unwrap_err());
        assert!(message.contains("teacher's tower") && message.contains("trainer knn"), "{message}");
    }
    // CLIP needs no prefix: no student has such names.
    let clip = assets.join("clip-tiny").display().to_string();
    let start = Start::load(&clip, &HubSettings::default()).unwrap();
    let teacher = Teacher::load(Path::new(&clip), Device::Cpu).unwrap();
    assert!(start.description.contains(&teacher.info().arch), "{}", start.description);
}

/// timm and transformers build what an exported folder says, load it strictly, and give the scores that the run gives.
#[test]
fn packages_load_a_classifier_strictly_and_give_its_scores() {
    let world = world();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = Command::new(root.join("scripts/python-env")).arg("--if-present").output().unwrap();
    for (pool, kind, formats) in [("mean", "mean", &["timm"][..]), ("cls", "cls", &["timm", "hf-vit"])] {
        let name = format!("tuned-{pool}");
        let pool = format!("model.pool={pool}");
        let run_path = tune(&world, &name, &["--set", &pool, "--set", "optim.lr=1e-2", "--set", "optim.ema_decay=0.8"]);
        let newest = checkpoint::newest(&run_path).unwrap().unwrap();
        let model = format!("ema:{}", run_path.display());
        let expected = scores(&newest.join(checkpoint::EMA), &features_of(&model, &world.path("test"))[kind]);
        for format in formats {
            let (from, out) = (run_path.display().to_string(), world.path(&format!("{name}-{format}")));
            let to = out.display().to_string();
            let export = ["trainer", "export", "--run", &from, "--ema", "--format", format, "--out", &to];
            let said = run(&export.map(String::from)).unwrap();
            assert!(said.contains("head of 2 classes") && said.contains("average of"), "{said}");
            let card = fs::read_to_string(out.join("README.md")).unwrap();
            assert!(card.contains("image-classification") && card.contains("[encoder]"), "{card}");
            if *format == "timm" {
                // What a teacher is read as has the features of the run.
                let (own, read) = (features_of(&model, &world.path("test")), features_of(&to, &world.path("test")));
                assert_eq!(kinds(&own), kinds(&read));
                for (kind, own) in &own {
                    let difference = relative_l2(&read[kind], own);
                    assert!(difference < 1e-5, "{pool} {kind}: {difference:e}");
                }
                let start = Start::load(&format!("teacher:{to}"), &HubSettings::default()).unwrap();
                let params = models::params::ParamStore::new(Device::Cpu, 0);
                let cls = Classifier::new(&params, &start.encoder, models::classifier::Pool::Cls, 2);
                assert_eq!(cls.is_err(), kind == "mean", "a CLS token without a norm is not classified");
            }
            if !python.status.success() {
                println!("skipped: scripts/python-env has not been run, so no package was asked");
                continue;
            }
            let imgs = pixels_of(&world.path("test"));
            let given = world.path("in.safetensors");
            let inputs = BTreeMap::from([("imgs".to_owned(), imgs)]);
            fs::write(&given, weights::to_bytes(&inputs, None).unwrap()).unwrap();
            let found = world.path("out.safetensors");
            let output = Command::new(String::from_utf8_lossy(&python.stdout).trim())
                .arg(root.join("scripts/golden/students.py"))
                .args(["--load", &format!("{format}-classifier"), "--folder", &to, "--inputs"])
                .arg(&given)
                .arg("--out")
                .arg(&found)
                .env("HF_HUB_OFFLINE", "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let logits = Weights::read(&found).unwrap().get("logits").unwrap().shallow_clone();
            let difference = relative_l2(&logits, &expected);
            println!("{pool} {format}: scores differ by {difference:.1e}");
            assert!(difference < 1e-5, "{pool} {format}: {difference:e}");
        }
    }
    let refused = |format: &str, more: &[&str]| {
        let (from, out) = (world.path("tuned-mean").display().to_string(), world.path("no").display().to_string());
        let args = ["trainer", "export", "--run", &from, "--format", format, "--out", &out];
        let args: Vec<String> = args.iter().chain(more).map(|s| s.to_string()).collect();
        format!("{:#}", run(&args).unwrap_err())
    };
    assert!(refused("hf-vit", &[]).contains("Choose timm"));
    assert!(refused("mae", &[]).contains("a format of pretraining"));
    assert!(refused("timm", &["--with-decoder"]).contains("no decoder"));
}

/// The central squares of a folder's images as a student sees them, `[N, 3, S, S]` in the order of the source.
fn pixels_of(images: &Path) -> Tensor {
    let source = ImageSource::open(images.to_str().unwrap()).unwrap();
    let test = TestSet {
        labels: vec![0; source.len()],
        img_size: 32,
        normalization: [crate::data::normalize::IMAGENET_MEAN, crate::data::normalize::IMAGENET_STD],
        crop_pct: 1.0,
        batch_size: 4,
        source,
    };
    let all: Vec<_> =
        (0..test.source.len()).map(|i| read_center(&test.source, i, test.crop_pct, test.img_size).unwrap()).collect();
    Normalize::imagenet(Device::Cpu)
        .forward(&crate::data::batch::stack(all.iter(), test.img_size).unwrap())
        .contiguous()
}

/// The images of a folder as a tar shard whose `.cls` members are `numbers` of the folders `a` and `b`.
fn shard(images: &Path, tar: &Path, numbers: [u32; 2]) -> String {
    let source = ImageSource::open(images.to_str().unwrap()).unwrap();
    let mut archive = ::tar::Builder::new(Vec::new());
    for idx in 0..source.len() {
        let class = numbers[source.label(idx).unwrap() as usize].to_string();
        for (extension, data) in [("png", source.read(idx).unwrap()), ("cls", class.into_bytes())] {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            let name = format!("{idx:04}.{extension}");
            archive.append_data(&mut header, name, &data[..]).unwrap();
        }
    }
    schemas::atomic::write(tar, &archive.into_inner().unwrap()).unwrap();
    tar.display().to_string()
}

/// The two outputs of a run's classifier that training has raised, in order.
fn raised(run: &Path) -> Vec<usize> {
    let file = checkpoint::newest(run).unwrap().unwrap().join(checkpoint::MODEL);
    let bias = Weights::read(&file).unwrap();
    let bias = Vec::<f32>::try_from(bias.get("head.bias").unwrap().shallow_clone()).unwrap();
    let mut order: Vec<usize> = (0..bias.len()).collect();
    order.sort_by(|&a, &b| bias[b].total_cmp(&bias[a]));
    order.truncate(2);
    order.sort_unstable();
    order
}

/// Output `i` is label `i`, gaps included, in the head, in `classes.json` and in the exports; a run that has its outputs in another order
/// keeps that to its end.
#[test]
fn outputs_are_the_labels_of_the_training_set() {
    let world = world();
    let [train, test] = [(world.images_dir(), "train.tar"), (world.path("test"), "test.tar")]
        .map(|(images, tar)| shard(&images, &world.path(tar), [2, 10]));
    let tune = |name: &str, more: &[&str]| {
        let settings = ["--set", "schedule.epochs=8", "--set", "optim.lr=1e-2"];
        let mut args = args(&world, name, &[&settings, more].concat());
        for (option, spec) in [("--train", &train), ("--test", &test)] {
            let at = args.iter().position(|arg| arg == option).unwrap();
            args[at + 1].clone_from(spec);
        }
        run(&args).unwrap();
        world.path(name)
    };
    let names = |run: &Path| -> Vec<String> { serde_json::from_slice(&fs::read(run.join(CLASSES)).unwrap()).unwrap() };
    let label_names = |run: &Path, out: &str| {
        let out = world.path(out).display().to_string();
        let run_path = run.display().to_string();
        let args = ["trainer", "export", "--run", &run_path, "--format", "timm", "--out", &out];
        super::run(&args.map(String::from)).unwrap();
        let config = fs::read(Path::new(&out).join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["num_classes"], 11);
        serde_json::from_value::<Vec<String>>(config["label_names"].clone()).unwrap()
    };
    let numbers: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let new = tune("new", &[]);
    assert_eq!(names(&new), numbers);
    assert_eq!(label_names(&new, "new-timm"), numbers);
    assert_eq!(raised(&new), [2, 10]);

    // A run whose outputs were numbered by the sorted text of the labels.
    let old = tune("old", &["--stop-after", "1"]);
    let mut as_text = numbers.clone();
    as_text.sort_unstable();
    assert_eq!((&*as_text[2], &*as_text[3]), ("10", "2"));
    let mut checkpoint = checkpoint::load_last(&old, &mut |_| ()).unwrap().unwrap();
    let fact = format!("11 classes, {}", finetuned::digest(&as_text));
    checkpoint.state.data.insert("classes".to_owned(), fact);
    let keep = Keep { newest: 1, every: None };
    checkpoint::save(&old, &checkpoint, keep).unwrap();
    let text = serde_json::to_string(&as_text).unwrap();
    schemas::atomic::write(&old.join(CLASSES), text.as_bytes()).unwrap();
    tune("old", &[]);
    assert_eq!(names(&old), as_text);
    assert_eq!(label_names(&old, "old-timm"), as_text);
    assert_eq!(raised(&old), [2, 3]);
}
