#![allow(clippy::unwrap_used, reason = "a test states what it expects by unwrapping")]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use std::path::PathBuf;

use clap::Parser;
use hub::HubSettings;
use models::encoder::EncoderConfig;
use models::init::Init;
use models::interop::{Format, import};
use models::mae::{Mae, MaeConfig};
use models::mcmae::McmaeEncoderConfig;
use models::params::ParamStore;
use models::params::Tensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use images::ImageSource;
use models::precision::Precision;
use models::weights::Weights;

use super::*;
use crate::cli::Cli;
use crate::eval::features::{self, Extraction, Model, Views};
use crate::recipe::{Experiment, Recipe};
use crate::testing::{RECIPE as WORLD_RECIPE, World};
use crate::train::run_folder;

mod python;

fn run(args: &[&str]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let cli = Cli::try_parse_from([&["trainer"], args].concat())?;
    crate::run(&cli, &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn export(run_or_file: &Path, format: &str, out: &Path, more: &[&str]) -> anyhow::Result<String> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (run_or_file, out) = (path(run_or_file), path(out));
    let args = ["export", "--run", &run_or_file, "--format", format, "--out", &out];
    run(&[&args, more].concat())
}

/// Every number random, norms and biases too, so that none can be left out unseen.
fn randomise(params: &ParamStore, seed: u64) {
    let _no_grad = tch::no_grad_guard();
    for (name, mut tensor) in params.trainable() {
        let noise = Init::Normal { std: 1.0 }.tensor(&tensor.size(), seed, &name);
        let fan_in = tensor.numel() as f64 / tensor.size()[0] as f64;
        let value = match &name[..] {
            "cls_token" | "mask_token" => noise * 0.3,
            _ if name.ends_with("bias") => noise * 0.2,
            _ if name.contains("norm") => noise * 0.2 + 1.0,
            _ => noise * fan_in.powf(-0.5),
        };
        tensor.copy_(&value);
    }
}

/// A student of the world's recipe with `settings`, with a mimic head: its checkpoint's file, and the network.
fn student(folder: &Path, settings: &[&str]) -> (PathBuf, Mae) {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    let recipe = Recipe::parse(WORLD_RECIPE, "a test", &settings).unwrap();
    let params = ParamStore::new(Device::Cpu, 1);
    let mae = Mae::new(&params.root(), &recipe.mae_config()).unwrap();
    let head = params.root().sub("mimic_heads").sub("clip");
    let _weight = head.param("weight", &[5, 32], Init::XavierUniform);
    randomise(&params, 5);
    let path = folder.join("student.safetensors");
    let header = Some((checkpoint::RECIPE_KEY, &recipe.to_toml()[..]));
    fs::write(&path, weights::to_bytes(&params.tensors(), header).unwrap()).unwrap();
    (path, mae)
}

/// What `trainer knn` sees of each image.
fn features(model: &Path, images: &Path) -> Vec<Tensor> {
    let hub = HubSettings::default();
    let models = [Model::load(model.to_str().unwrap(), &hub, Device::Cpu).unwrap()];
    let source = ImageSource::open(images.to_str().unwrap()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: Vec::new(),
        max_bytes: u64::MAX,
        batch_size: 4,
        precision: Precision::F32,
    };
    let found = features::extract(&models, &source, &extraction, &pool, &crate::dist::World::alone()).unwrap();
    let kinds = &found.features[0];
    kinds.values().map(Tensor::shallow_clone).collect()
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_is_exported_whole_and_says_where_it_is_from() {
    let world = World::with_cache(8);
    let args = world.pretrain_args("run", &["--stop-after", "2"]);
    let args: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    run(&args).unwrap();
    let (of_run, of_file) = (world.path("run"), world.path("file"));
    for format in Format::ALL {
        let out = world.path(format.name());
        if format == Format::ConvMae {
            let message = format!("{:#}", export(&of_run, "convmae", &out, &[]).unwrap_err());
            assert!(message.contains("is a ViT") && !out.exists(), "{message}");
            continue;
        }
        let said = export(&of_run, format.name(), &out, &[]).unwrap();
        assert!(said.contains("after step 2"), "{said}");
        let card = fs::read_to_string(out.join(CARD)).unwrap();
        let recipe = Recipe::load(&of_run.join(run_folder::RECIPE), &[]).unwrap();
        for words in ["| optimization steps | 2 |", "mimic clip", recipe.to_toml().trim()] {
            assert!(card.contains(words), "{words}: {card}");
        }
        // The digest is that of the recipe's text in the run folder.
        let digest = Sha256::digest(fs::read(of_run.join(run_folder::RECIPE)).unwrap());
        let digest = schemas::hex(&digest);
        assert!(card.contains(&digest), "{card}");
        assert_eq!(out.join(PREPROCESSOR).exists(), matches!(format, Format::HfMae | Format::HfVit));

        // The tensors are the checkpoint's; the same are got from its file.
        let newest = checkpoint::newest(&of_run).unwrap().unwrap().join(checkpoint::MODEL);
        let own = Weights::read(&newest).unwrap();
        let exported = Weights::read(&out).unwrap();
        assert_eq!(exported.metadata()["format"], "pt");
        let imported = import(&exported).unwrap();
        assert_eq!(imported.has_decoder(), format.holds_decoder());
        for (name, tensor) in &imported.tensors {
            assert_eq!(tensor, own.get(name).unwrap(), "{format}: {name}");
        }
        export(&newest, format.name(), &of_file, &[]).unwrap();
        assert_eq!(fs::read(of_file.join(checkpoint::MODEL)).unwrap(), fs::read(out.join(checkpoint::MODEL)).unwrap());
        fs::remove_dir_all(&of_file).unwrap();
    }
}

/// An exported student is evaluated as itself: the same pixels, norms and heads, by way of the code that reads other people's files.
#[test]
fn an_exported_student_has_the_features_that_it_had() {
    let temp = tempfile::tempdir().unwrap();
    let images = temp.path().join("images");
    crate::testing::write_images(&images, 6, 3);
    let (file, _) = student(temp.path(), &["model.num_heads=4"]);
    let own = features(&file, &images);
    for (format, more) in [
        ("timm", None),
        ("hf-vit", None),
        ("hf-mae", None),
        ("hf-mae", Some("--encoder-only")),
        ("mae", None),
        ("mae", Some("--encoder-only")),
    ] {
        let out = temp.path().join(format!("{format}{}", more.unwrap_or_default()));
        export(&file, format, &out, more.as_slice()).unwrap();
        assert_eq!(own.len(), 2);
        for (found, expected) in features(&out, &images).iter().zip(&own) {
            // The same arithmetic, but for where the position of CLS (zeros) is added.
            let difference = relative_l2(found, expected);
            assert!(difference < 1e-6, "{format} {more:?}: {difference:e}");
        }
    }
}

/// ConvMAE's published files are an encoder alone; with a decoder they are evaluated the same.
#[test]
fn a_file_in_convmaes_names_is_evaluated() {
    let temp = tempfile::tempdir().unwrap();
    let images = temp.path().join("images");
    crate::testing::write_images(&images, 6, 3);
    let recipe = Recipe::parse(WORLD_RECIPE, "a test", &[]).unwrap();
    let config = MaeConfig {
        encoder: EncoderConfig::Mcmae(McmaeEncoderConfig {
            img_size: [32, 32],
            embed_dims: [8, 12, 192],
            depths: [1, 1, 2],
            num_heads: 3,
            ..McmaeEncoderConfig::BASE
        }),
        ..recipe.mae_config()
    };
    let params = ParamStore::new(Device::Cpu, 1);
    let mae = Mae::new(&params.root(), &config).unwrap();
    randomise(&params, 5);
    let facts = Facts::of(mae.config(), 0.75);
    let found = [false, true].map(|decoder| {
        let exported = interop::export(&params.tensors(), &facts, Format::ConvMae, decoder).unwrap();
        let folder = temp.path().join(format!("convmae-{decoder}"));
        write(&folder, &exported, DepthWindow::default(), "").unwrap();
        // The file alone tells as much: the heads of a published width, a square.
        fs::remove_file(folder.join(CONFIG)).unwrap();
        (features(&folder, &images), folder)
    });
    let [(found, _), (fused, whole)] = &found;
    assert_eq!((found.len(), found[0].size()), (1, vec![1, 6, 192]));
    // With the projections of its stages a file is evaluated as its network was trained, and without on demand.
    assert_ne!(found, fused);
    let unfused = format!("unfused:{}", whole.display());
    assert_eq!(*found, features(Path::new(&unfused), &images));
    assert!(found[0].std(false).double_value(&[]) > 0.1);
}

#[test]
fn an_mcmae_run_goes_out_and_comes_in() {
    let world = World::with_cache(8);
    let vit = "patch_size = 8\nembed_dim = 32\ndepth = 2\nnum_heads = 2\n";
    let mcmae =
        "encoder = \"mcmae\"\nembed_dims = [8, 16, 32]\ndepths = [1, 1, 2]\nmlp_ratios = [2, 2, 2]\nnum_heads = 2\n";
    let recipe = WORLD_RECIPE.replace(vit, mcmae).replace("img_size = 32", "img_size = 64");
    let path = world.path("mcmae.toml");
    fs::write(&path, recipe).unwrap();
    let train = |name: &str, more: &[&str]| {
        let usual = ["--recipe", path.to_str().unwrap(), "--stop-after", "1"];
        let args = world.pretrain_args(name, &[&usual, more].concat());
        run(&args[1..].iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let last = checkpoint::load_last(&world.path(name), &mut |_| {}).unwrap();
        last.unwrap().model
    };
    let own = train("run", &[]);
    let images = world.images_dir();
    let expected = features(&world.path("run"), &images);
    let alone = export(&world.path("run"), "convmae", &world.path("no"), &["--encoder-only"]);
    assert!(alone.unwrap_err().to_string().contains("Give --unfused"));
    let unfused = format!("unfused:{}", world.path("run").display());
    let unfused = features(Path::new(&unfused), &images);
    assert_ne!(unfused, expected);
    for more in [None, Some("--encoder-only")] {
        let out = world.path(&format!("convmae{}", more.unwrap_or_default()));
        // With the decoder it is the whole network, fusion included.
        let (options, expected): (&[&str], _) = match more {
            None => (&[], &expected),
            Some(_) => (&["--encoder-only", "--unfused"], &unfused),
        };
        export(&world.path("run"), "convmae", &out, options).unwrap();
        assert_eq!(features(&out, &images), *expected);
        let exported = Weights::read(&out).unwrap();
        let projections = |name: &str| name.starts_with("stage1_output_decode");
        assert_eq!(exported.names().any(projections), more.is_none());

        // A tiny rate leaves what was taken where it was; the other parts are the seed's.
        let init = format!("model.init={}", out.display());
        let small = ["--set", "optim.lr=1e-6", "--set", "schedule.warmup_epochs=0", "--set", "run.seed=7"];
        let begun = train(&format!("from{}", more.unwrap_or_default()), &[&small[..], &["--set", &init]].concat());
        for (name, tensor) in &begun {
            let near = (tensor - &own[name]).abs().max().double_value(&[]) < 1e-5;
            let was_taken = exported.get(name).is_some() || name.ends_with("pos_embed");
            assert!(near || !was_taken, "{name}");
        }
        let decoder = "decoder_blocks.0.mlp.fc1.weight";
        let moved = (&begun[decoder] - &own[decoder]).abs().max().double_value(&[]) > 1e-5;
        assert_eq!(moved, more.is_some());
    }
    let message = export(&world.path("run"), "timm", &world.path("timm"), &[]).unwrap_err();
    assert!(format!("{message:#}").contains("convolution stages"), "{message:#}");
}

#[test]
fn parts_are_chosen() {
    let temp = tempfile::tempdir().unwrap();
    let (file, _) = student(temp.path(), &[]);
    let decoder_of = |format: &str, more: &[&str]| {
        let out = temp.path().join(format!("{format}{}", more.concat()));
        export(&file, format, &out, more).unwrap();
        import(&Weights::read(&out).unwrap()).unwrap().has_decoder()
    };
    assert!(decoder_of("mae", &[]) && decoder_of("hf-mae", &["--with-decoder"]));
    assert!(!decoder_of("mae", &["--encoder-only"]) && !decoder_of("hf-mae", &["--encoder-only"]));
    assert!(!decoder_of("timm", &[]) && !decoder_of("hf-vit", &["--encoder-only"]));
    let config = json(&temp.path().join("hf-mae--encoder-only").join(CONFIG));
    assert_eq!(config["architectures"], serde_json::json!(["ViTMAEModel"]));
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let (file, _) = student(temp.path(), &[]);
    let out = temp.path().join("out");
    let refused = |run: &Path, format: &str, more: &[&str], words: &str| {
        let message = format!("{:#}", export(run, format, &out, more).unwrap_err());
        assert!(message.contains(words), "{message}");
        let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!out.exists() || left.iter().all(|name| !name.to_string_lossy().ends_with("tmp")));
    };
    refused(&file, "timm", &["--with-decoder"], "no place for a decoder");
    refused(&file, "convmae", &[], "is a ViT");
    refused(&file, "onnx", &[], "[possible values: timm, hf-mae, hf-vit, mae, convmae]");
    refused(&file, "mae", &["--with-decoder", "--encoder-only"], "cannot be used with");
    refused(Path::new("nowhere"), "mae", &[], "neither a run folder");
    let folder = temp.path().join("run");
    fs::create_dir(&folder).unwrap();
    refused(&folder, "mae", &[], "neither a run folder");
    fs::write(folder.join(run_folder::RECIPE), WORLD_RECIPE).unwrap();
    refused(&folder, "mae", &[], "no checkpoint yet");

    let (fused, _) = student(temp.path(), &["model.fusion=[0]"]);
    refused(&fused, "hf-mae", &[], "model.fusion");
    refused(&fused, "hf-mae", &["--unfused"], "--encoder-only --unfused");
    for format in ["timm", "hf-vit", "mae", "hf-mae"] {
        let encoder: &[&str] = match format {
            "timm" | "hf-vit" => &[],
            _ => &["--encoder-only"],
        };
        refused(&fused, format, encoder, "Give --unfused");
    }
    let prefixed = PathBuf::from(format!("unfused:{}", fused.display()));
    let (by_prefix, by_flag) = (temp.path().join("prefix"), temp.path().join("flag"));
    export(&prefixed, "timm", &by_prefix, &[]).unwrap();
    export(&fused, "timm", &by_flag, &["--unfused"]).unwrap();
    let bytes = |folder: &Path, name: &str| fs::read(folder.join(name)).unwrap();
    assert!(bytes(&by_prefix, checkpoint::MODEL) == bytes(&by_flag, checkpoint::MODEL));
    assert!(fs::read_to_string(by_prefix.join(CARD)).unwrap().contains("| multi-layer fusion | left out"));
    let (file, _) = student(temp.path(), &[]);
    refused(&file, "timm", &["--unfused"], "--unfused: there is no multi-layer fusion");
    for (prefix, words) in [
        ("unfused", "student.safetensors: there is no multi-layer fusion"),
        ("teacher", "`teacher:` stands for files of other packages; leave it out"),
        ("untrained", "has learned nothing; leave out `untrained:`"),
        ("ema", "student.safetensors\" is a file"),
    ] {
        refused(Path::new(&format!("{prefix}:{}", file.display())), "timm", &[], words);
    }
    refused(Path::new("ema:nowhere"), "timm", &[], "\"nowhere\" does not exist");

    // An empty folder is as good as none; anything in it is not.
    fs::create_dir(&out).unwrap();
    export(&file, "timm", &out, &[]).unwrap();
    refused(&file, "timm", &[], "is not empty");
    // An exported file is not a checkpoint.
    let exported = out.join(checkpoint::MODEL);
    let message = export(&exported, "mae", &temp.path().join("again"), &[]).unwrap_err().to_string();
    assert!(message.contains("has no recipe"), "{message}");
}

#[test]
fn a_moving_average_is_exported_when_asked_for() {
    let world = World::with_cache(8);
    let settings = ["--set", "optim.ema_decay=0.5", "--stop-after", "2"];
    let args = world.pretrain_args("run", &settings);
    let args: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    run(&args).unwrap();
    let of_run = world.path("run");
    let (plain, average, file) = (world.path("plain"), world.path("average"), world.path("file"));
    export(&of_run, "mae", &plain, &[]).unwrap();
    let said = export(&of_run, "mae", &average, &["--ema"]).unwrap();
    assert!(said.contains("the average of"), "{said}");
    let named = PathBuf::from(format!("ema:{}", of_run.display()));
    assert!(export(&named, "mae", &world.path("named"), &[]).unwrap().contains("the average of"));
    let checkpoint = checkpoint::newest(&of_run).unwrap().unwrap();
    export(&checkpoint.join(checkpoint::EMA), "mae", &file, &[]).unwrap();
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&average) == weights(&file) && weights(&average) != weights(&plain));
    assert!(weights(&average) == weights(&world.path("named")));

    let none = world.pretrain_args("none", &["--stop-after", "1"]);
    let none: Vec<&str> = none[1..].iter().map(String::as_str).collect();
    run(&none).unwrap();
    let refused = export(&world.path("none"), "mae", &world.path("x"), &["--ema"]).unwrap_err();
    assert!(refused.to_string().contains("optim.ema_decay"), "{refused:#}");
}
