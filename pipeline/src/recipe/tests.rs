//! Layers, defaults, and what is refused in which words.

#![allow(clippy::disallowed_methods, reason = "tests write recipes into throw-away folders")]

use std::fs;

use clap::Parser;
use models::layers::Activation;
use models::teacher::{Layer, TeacherOptions};
use schemas::{TeacherId, ViewIdentity, ViewPolicy};

use super::*;
use crate::cli::{Cli, Command};

fn resolve(args: &[&str]) -> Result<Recipe, Error> {
    let cli = Cli::try_parse_from(["pipeline", "build-cache"].iter().chain(args)).expect("well-formed");
    let Command::BuildCache(args) = cli.command else { panic!("it says build-cache") };
    Recipe::of_build(&args)
}

/// A teacher of which only the path was said.
fn source(path: &str) -> TeacherSource {
    TeacherSource { path: path.into(), ..TeacherSource::default() }
}

/// The least that has to be said.
const LEAST: [&str; 6] = ["--images", "photos", "--out", "cache", "--teacher", "clip=models/clip"];

fn least_and(more: &[&str]) -> Result<Recipe, Error> {
    resolve(&[&LEAST, more].concat())
}

#[test]
fn defaults() {
    let recipe = least_and(&[]).unwrap();
    assert_eq!(recipe.data.images.as_deref(), Some("photos"));
    assert_eq!(recipe.teachers, BTreeMap::from([(TeacherId::new("clip").unwrap(), source("models/clip"))]));
    let views = ViewIdentity { policy: ViewPolicy::rrc(), views: 1, seed: 0, filter: "bicubic".into() };
    assert_eq!(recipe.view.identity(), views);
    assert_eq!((recipe.features.codec, recipe.features.precision), (CodecName::F16, None));
    assert_eq!((recipe.precision_on(Device::Cpu), recipe.batch_size_on(Device::Cpu)), (Precision::F32, 8));
    let gpu = Device::Cuda(0);
    assert_eq!((recipe.precision_on(gpu), recipe.batch_size_on(gpu)), (Precision::Bf16, 128));
    assert_eq!((recipe.features.grid, recipe.data.limit), (None, None));
    assert_eq!((recipe.cache.part_samples, recipe.run.device.as_str()), (None, "auto"));
    assert!(recipe.run.threads >= 1);
    // A part has about as many rows whatever the number of views.
    let part_samples = |views| least_and(&["--views", views]).unwrap().usual_part_samples();
    assert_eq!(recipe.usual_part_samples(), 1024);
    assert_eq!(part_samples("3"), 341);
    assert_eq!(part_samples("5000"), 1);
}

#[test]
fn flags_and_set_win_over_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    let text = "[data]\nimages = \"from-recipe\"\n[view]\nseed = 1\nviews = 2\n[teachers]\nclip = \"a\"\ndino = \"b\"\n[cache]\nout = \"c\"\n\
                [features]\ngrid = 7\ncodec = \"f32\"\n";
    fs::write(&path, text).unwrap();
    let recipe = path.to_str().unwrap();
    let four = |recipe: &Recipe| (recipe.view.seed, recipe.view.views, recipe.features.grid, recipe.features.codec);
    assert_eq!(four(&resolve(&["--recipe", recipe]).unwrap()), (1, 2, Some(7), CodecName::F32));
    let set = ["--recipe", recipe, "--set", "view.seed=2", "--set", "features.codec=f16", "--set", "features.grid = 8"];
    assert_eq!(four(&resolve(&set).unwrap()), (2, 2, Some(8), CodecName::F16));
    let config = resolve(&["--recipe", recipe, "--seed", "3", "--teacher", "clip=z", "--teacher", "third=y"]).unwrap();
    assert_eq!((config.view.seed, config.data.images.as_deref().unwrap()), (3, "from-recipe"));
    let teachers: Vec<_> = config.teachers.iter().map(|(id, dir)| (id.as_str(), dir.path.as_str())).collect();
    assert_eq!(teachers, [("clip", "z"), ("dino", "b"), ("third", "y")]);
}

#[test]
fn the_printed_recipe_resolves_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    for more in [&["--limit", "9", "--views", "4"][..], &["--view-policy", "full", "--threads", "3"]] {
        let recipe = least_and(more).unwrap();
        let text = recipe.to_toml(14, Device::Cpu);
        fs::write(dir.path().join("recipe.toml"), &text).unwrap();
        let again = resolve(&["--recipe", dir.path().join("recipe.toml").to_str().unwrap()]).unwrap();
        let (grid, batch_size, precision) = (Some(14), Some(8), Some(Precision::F32));
        let features = Features { grid, batch_size, precision, ..recipe.features };
        let run = Run { device: "cpu".into(), ..recipe.run };
        assert_eq!(again, Recipe { features, run, ..recipe }, "{text}");
        assert_eq!(again.to_toml(14, Device::Cpu), text);
    }
}

#[test]
fn every_mistake_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |text: &str| {
        let path = dir.path().join("recipe.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = recipe("[view]\nsede = 1\n");
    let long = least_and(&["--set", "view.seed=9223372036854775808"]).unwrap_err();
    assert!(long.to_string().contains("beyond 2^63 - 1"), "{long}");
    let error = least_and(&["--recipe", &unknown]).unwrap_err();
    assert!(
        matches!(&error, Error::Parse { origin, message } if *origin == unknown && message.contains("sede")),
        "{error}"
    );
    assert!(matches!(least_and(&["--recipe", "nowhere.toml"]).unwrap_err(), Error::Read { .. }));

    let check = |more: &[&str], words: &[&str]| {
        let error = least_and(more).expect_err(&format!("{more:?}")).to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{more:?}: {word:?} is not in: {error}"));
    };
    check(&["--set", "views.seed=1"], &["--set views.seed=1", "views"]);
    check(&["--set", "view.seed"], &["--set view.seed", "'='"]);
    check(&["--set", "=1"], &["names no key"]);
    check(&["--set", "view.seed.deep=1", "--set", "view.seed=1"], &["--set view.seed.deep=1"]);
    check(&["--set", "view.seed=many"], &["view.seed", "many", "a whole number"]);
    check(&["--teacher", "dino"], &["--teacher dino", "id=folder"]);
    check(&["--teacher", "clip=elsewhere"], &["--teacher clip=elsewhere", "twice"]);
    check(&["--teacher", "CLIP=x"], &["teachers.CLIP", "a-z"]);
    check(&["--set", "features.codec=f8"], &["features.codec", "f8", "f16"]);
    check(&["--set", "features.precision=f16"], &["features.precision", "bf16", "tf32"]);
    check(&["--set", "view.policy=random"], &["view.policy", "random", "center"]);
    check(&["--view-policy", "center", "--views", "2"], &["view.views", "one view"]);
    check(&["--view-policy", "full", "--set", "view.flip=0.5"], &["view.flip", "rrc"]);
    check(&["--set", "view.scale=[0.5, 0.2]"], &["view.scale", "low <= high"]);
    check(&["--set", "view.scale=[0.5, 1.5]"], &["view.scale"]);
    check(&["--set", "view.ratio=[0.0, 1.0]"], &["view.ratio"]);
    check(&["--set", "view.flip=1.5"], &["view.flip", "probability"]);
    check(&["--set", "view.flip=nan"], &["view.flip", "probability"]);
    check(&["--seed", "9223372036854775808"], &["view.seed", "must be less than 2^63"]);
    check(&["--grid", "257"], &["features.grid = 257: must be at most 256 patches along a side", "65536 tokens"]);
    least_and(&["--grid", "256"]).unwrap();
    let unknown = least_and(&["--set", "run.device=tpu"]).unwrap();
    let refused = format!("{:#}", crate::build_cache::open_device(&unknown).unwrap_err());
    assert!(refused.starts_with("run.device = \"tpu\": "), "{refused}");
    for (option, field) in [
        ("--views", "view.views"),
        ("--grid", "features.grid"),
        ("--batch-size", "features.batch_size"),
        ("--threads", "run.threads"),
        ("--limit", "data.limit"),
    ] {
        check(&[option, "0"], &[field, "at least 1"]);
    }
    check(&["--set", "cache.part_samples=0"], &["cache.part_samples", "at least 1"]);

    let missing = |args: &[&str], words: &[&str]| {
        let error = resolve(args).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "{error}"));
    };
    missing(&LEAST[2..], &["data.images", "--images"]);
    missing(&[&LEAST[..2], &LEAST[4..]].concat(), &["cache.out", "--out"]);
    missing(&LEAST[..4], &["teachers", "--teacher"]);
}

#[test]
fn the_recipes_that_are_shipped_resolve() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes");
    let recipes: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!recipes.is_empty());
    for recipe in recipes {
        least_and(&["--recipe", recipe.to_str().unwrap()]).unwrap();
    }
}

#[test]
fn teachers_may_be_tables_and_flags_fill_what_they_leave_open() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    fs::write(
        &recipe,
        "[teachers]\ndino = \"models/dino\"\n[teachers.clip]\npath = \"models/clip\"\nlayer = \"proj\"\n",
    )
    .unwrap();
    let recipe = recipe.display().to_string();
    let args = [
        "--images",
        "photos",
        "--out",
        "cache",
        "--recipe",
        &recipe,
        "--layer",
        "last_norm",
        "--activation",
        "quick_gelu",
    ];
    let config = resolve(&args).unwrap();
    let teacher = |id: &str| config.teachers[&TeacherId::new(id).unwrap()].options();
    assert_eq!(teacher("clip").layer, Layer::Proj);
    assert_eq!(teacher("dino").layer, Layer::LastNorm);
    assert_eq!(teacher("dino").activation, Some(Activation::QuickGelu));
    // What is printed repeats the build.
    fs::write(dir.path().join("again.toml"), config.to_toml(14, Device::Cpu)).unwrap();
    let again = resolve(&["--recipe", &dir.path().join("again.toml").display().to_string()]).unwrap();
    assert_eq!(again.teachers, config.teachers);
    let error = least_and(&["--set", "teachers.clip.layer=first"]).unwrap_err().to_string();
    assert!(error.contains("teachers.clip.layer") && error.contains("last_norm"), "{error}");
}

#[test]
fn images_are_packed_as_asked() {
    let pack = |text: &str| least_and(&["--pack", text]).map(|recipe| recipe.cache.pack);
    assert_eq!(least_and(&[]).unwrap().cache.pack, Pack::None);
    assert_eq!(pack("original").unwrap(), Pack::Original);
    let jpeg = Pack::Jpeg { short_side: 256, quality: 90 };
    assert_eq!(pack("jpeg:256:90").unwrap(), jpeg);
    for text in ["none", "original", "jpeg:256:90"] {
        let printed = least_and(&["--pack", text]).unwrap().to_toml(14, Device::Cpu);
        assert!(printed.contains(&format!("pack = \"{text}\"")), "{printed}");
    }
    for bad in ["jpeg", "jpeg:256", "jpeg:0:90", "jpeg:256:101", "jpeg:-1:90", "png", ""] {
        let error = pack(bad).unwrap_err().to_string();
        assert!(error.contains("--pack") && error.contains("jpeg:256:90"), "{error}");
    }
}

/// What is said about a teacher that its files do not say: as a table, by `--set`, by flags, and back as a recipe.
#[test]
fn facts_about_a_teacher_are_read_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |text: &str| {
        let path = dir.path().join("recipe.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let of = |more: &[&str]| {
        let args = [&["--images", "photos", "--out", "cache"], more].concat();
        let config = resolve(&args).unwrap();
        config.teachers[&TeacherId::new("clip").unwrap()].options()
    };
    let whole = TeacherOptions {
        activation: Some(Activation::Gelu),
        mean: Some([0.1, 0.2, 0.3]),
        std: Some([0.5; 3]),
        norm_eps: Some(1e-6),
        num_heads: Some(12),
        ..TeacherOptions::default()
    };
    let table = recipe(
        "[teachers.clip]\npath = \"x\"\nactivation = \"gelu\"\nmean = [0.1, 0.2, 0.3]\nstd = 0.5\neps = 1e-6\nheads = 12\n",
    );
    assert_eq!(of(&["--recipe", &table]), whole);
    let sets = [
        "--set",
        "teachers.clip.path=x",
        "--set",
        "teachers.clip.activation=gelu",
        "--set",
        "teachers.clip.mean=[0.1,0.2,0.3]",
        "--set",
        "teachers.clip.std=0.5",
        "--set",
        "teachers.clip.eps=1e-6",
        "--set",
        "teachers.clip.heads=12",
    ];
    assert_eq!(of(&sets), whole);
    assert_eq!(
        of(&[
            "--set",
            "teachers.clip.path=x",
            "--set",
            "teachers.clip.mean=0.1,0.2,0.3",
            "--set",
            "teachers.clip.std=0.5"
        ])
        .mean,
        whole.mean
    );
    let flags = [
        "--teacher",
        "clip=x",
        "--activation",
        "gelu",
        "--mean",
        "0.1,0.2,0.3",
        "--std",
        "0.5",
        "--eps",
        "1e-6",
        "--heads",
        "12",
    ];
    assert_eq!(of(&flags), whole);
    // What the recipe says of a teacher stands against flags for all.
    let flags = ["--recipe", &table, "--mean", "0", "--std", "1", "--heads", "3"];
    assert_eq!(of(&flags), whole);
    let printed = resolve(&[&["--images", "photos", "--out", "cache", "--recipe", &table][..]].concat())
        .unwrap()
        .to_toml(14, Device::Cpu);
    assert_eq!(of(&["--recipe", &recipe(&printed)]), whole);
}

#[test]
fn a_wrong_fact_about_a_teacher_is_refused_by_its_key() {
    let refused = |set: &[&str], parts: &[&str]| {
        let mut args = vec!["--images", "photos", "--out", "cache", "--set", "teachers.aug.path=x"];
        for set in set {
            args.extend(["--set", set]);
        }
        let error = resolve(&args).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(!error.contains("untagged"), "{error}");
    };
    refused(&["teachers.aug.means=0.5"], &["unknown key `means`", "`path`", "`mean`", "`std`", "`eps`", "`heads`"]);
    refused(&["teachers.aug.mean=[0.5,0.5]"], &["list of three"]);
    refused(&["teachers.aug.mean=half"], &["expected one number"]);
    refused(&["teachers.aug.mean=0.5"], &["teachers.aug", "give both"]);
    refused(&["teachers.aug.mean=0.5", "teachers.aug.std=0"], &["teachers.aug.std", "above 0 and at most 1"]);
    let bytes = "values from 0 to 255; divide mean and std by 255";
    for (mean, std, wrong) in [
        ("[123.675,116.28,103.53]", "[58.395,57.12,57.375]", "mean"),
        ("[0.485,0.456,0.406]", "58.395,57.12,57.375", "std"),
        ("127.5", "127.5", "mean"),
        ("0", "255", "std"),
        ("[0.5,0.5,116.28]", "0.5", "mean"),
    ] {
        refused(
            &[&format!("teachers.aug.mean={mean}"), &format!("teachers.aug.std={std}")],
            &[&format!("teachers.aug.{wrong} = ["), bytes],
        );
    }
    let flags = |mean: &str, std: &str| least_and(&["--mean", mean, "--std", std]);
    let error = flags("123.675,116.28,103.53", "58.395,57.12,57.375").unwrap_err();
    assert!(error.to_string().starts_with("teachers.clip.mean"));
    assert!(error.to_string().contains(bytes), "{error}");
    for (mean, std) in [("nan", "0.5"), ("inf", "0.5"), ("0.5", "nan"), ("0.5", "0")] {
        flags(mean, std).unwrap_err();
    }
    for (mean, std) in [("0.5", "0.5"), ("0", "1"), ("1", "1")] {
        flags(mean, std).unwrap();
    }
    refused(&["teachers.aug.eps=1.0"], &["teachers.aug.eps", "between 0 and 1"]);
    refused(&["teachers.aug.heads=0"], &["teachers.aug.heads", "at least 1"]);
    refused(&["teachers.other=7"], &["a teacher's path, or a table"]);
    refused(&["teachers.other.layer=last"], &["missing key `path`"]);
}

/// Whole tables, of every section, empty, nested and inline within a teacher; and one setting within another.
#[test]
fn a_table_is_no_value_of_set() {
    for (setting, key) in [
        ("features={batch_size=4}", "features.batch_size"),
        ("view = { seed = 3, views = 2 }", "view.seed"),
        ("data={}", "data.name"),
        ("run={threads=1}", "run.threads"),
        ("teachers={clip=\"x\"}", "teachers.clip"),
        ("teachers.dino={path=\"x\", heads=3}", "teachers.dino.heads"),
        ("cache={part_samples={a=1}}", "cache.part_samples"),
    ] {
        let error = least_and(&["--set", setting]).unwrap_err().to_string();
        assert!(error.contains("is a table"), "{error}");
        assert!(error.contains(&format!("--set {key}=VALUE")), "{error}");
    }
    let both = ["--set", "teachers.b.path=x", "--set", "teachers.b=y"];
    let error = least_and(&both).unwrap_err().to_string();
    assert!(error.contains("teachers.b is given twice"), "{error}");
}

/// Whatever a flag says, `--set` may not say as well, whichever stands first.
#[test]
fn a_setting_by_flag_and_by_set_is_refused() {
    for (flag, value, field) in [
        ("--images", "a", "data.images"),
        ("--out", "a", "cache.out"),
        ("--teacher", "clip=a", "teachers.clip"),
        ("--teacher", "clip=a", "teachers.clip.path"),
        ("--limit", "5", "data.limit"),
        ("--depth-window", "full-range", "data.depth_window"),
        ("--max-rejects", "3", "data.max_rejects"),
        ("--view-policy", "rrc", "view.policy"),
        ("--views", "2", "view.views"),
        ("--seed", "1", "view.seed"),
        ("--grid", "4", "features.grid"),
        ("--codec", "f16", "features.codec"),
        ("--calibration-images", "9", "features.calibration_images"),
        ("--precision", "f32", "features.precision"),
        ("--batch-size", "4", "features.batch_size"),
        ("--pack", "original", "cache.pack"),
        ("--part-samples", "7", "cache.part_samples"),
        ("--device", "cpu", "run.device"),
        ("--threads", "2", "run.threads"),
        ("--worker", "0/2", "run.worker"),
    ] {
        let setting = format!("{field}={}", value.trim_start_matches("clip="));
        let least: Vec<&str> = LEAST.chunks(2).filter(|pair| pair[0] != flag).flatten().copied().collect();
        for more in [[flag, value, "--set", &setting], ["--set", &setting, flag, value]] {
            let error = resolve(&[&least, &more[..]].concat()).expect_err(field).to_string();
            assert!(error.contains(flag) && error.contains(field) && error.contains("give one of them"), "{error}");
        }
    }
}

/// `--teacher` gives the path, and settings may say more about the teacher.
#[test]
fn a_teacher_by_flag_may_have_settings() {
    let config = least_and(&["--set", "teachers.clip.eps=1e-3", "--set", "teachers.clip.heads=4"]);
    let teacher = &config.unwrap().teachers[&TeacherId::new("clip").unwrap()];
    assert_eq!((teacher.path.as_str(), teacher.eps, teacher.heads), ("models/clip", Some(1e-3), Some(4)));
}
