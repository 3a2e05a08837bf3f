#![allow(clippy::disallowed_methods)] // Images are damaged.

use std::fs::{self, File};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type};
use clap::Parser;
use models::weights::Weights;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::ContentHash;
use tch::{Device, Kind};

use super::*;
use crate::cli::Cli;
use crate::testing::World;
use crate::train::checkpoint;

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn args(world: &World, model: &Path, out: &str, more: &[&str]) -> Vec<String> {
    let (model, images, out) = (model.display(), world.images_dir(), world.path(out));
    let args = format!(
        "trainer embed --device cpu --batch-size 5 --model {model} --images {} --out {}",
        images.display(),
        out.display()
    );
    args.split(' ').chain(more.iter().copied()).map(str::to_owned).collect()
}

fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    batches.into_iter().next().unwrap()
}

/// `[N, D]`
fn column(batch: &RecordBatch, name: &str) -> Tensor {
    let column = batch.column_by_name(name).unwrap().as_fixed_size_list();
    let values = column.values().as_primitive::<Float32Type>().values().to_vec();
    Tensor::from_slice(&values).view([batch.num_rows() as i64, -1])
}

fn world() -> World {
    let world = World::with_cache(12);
    run(&world.pretrain_args("run", &["--stop-after", "2", "--set", "loss.w_cls=0.5"])).unwrap();
    fs::write(world.images_dir().join("a/0005-broken.png"), "not an image").unwrap();
    world
}

#[test]
fn rows_hold_the_features_that_knn_sees() {
    let world = world();
    let model = world.path("run");
    run(&args(&world, &model, "e.parquet", &[])).unwrap();
    let batch = read(&world.path("e.parquet"));
    let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
    assert_eq!((source.len(), batch.num_rows()), (13, 12));
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: Vec::new(),
        max_bytes: u64::MAX,
        batch_size: 5,
        precision: models::precision::Precision::F32,
    };
    let loaded = Model::load(model.to_str().unwrap(), &HubSettings::default(), Device::Cpu).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let images = features::extract(&[loaded], &source, &extraction, &pool, &crate::dist::World::alone()).unwrap();
    for kind in ["cls", "mean"] {
        assert_eq!(column(&batch, kind), images.features[0][kind].get(0), "{kind}");
    }
    for (row, &i) in images.idxs.iter().enumerate() {
        assert_eq!(batch.column_by_name("key").unwrap().as_string::<i32>().value(row), source.key(i));
        let label = batch.column_by_name("label").unwrap().as_primitive::<Int32Type>().value(row);
        assert_eq!(Some(label), source.label(i));
        let name = batch.column_by_name("label_name").unwrap().as_string::<i32>().value(row);
        assert_eq!(name, source.label_names()[label as usize]);
        let hash = batch.column_by_name("content_hash").unwrap().as_fixed_size_binary().value(row);
        assert_eq!(hash, ContentHash::of(&source.read(i).unwrap()).0);
    }
    // The same as an array.
    run(&args(&world, &model, "e.npy", &["--features", "mean"])).unwrap();
    let array = Tensor::read_npy(world.path("e.npy")).unwrap();
    assert_eq!(array, column(&batch, "mean"));
    assert_eq!(fs::read_to_string(world.path("e.npy.keys.csv")).unwrap().lines().count(), 13);
}

/// Heads are linear: of a mean they give the mean of what they give.
#[test]
fn heads_and_patches_are_those_of_the_checkpoint() {
    let world = world();
    let model = world.path("run");
    run(&args(&world, &model, "e.parquet", &["--features", "cls,mean,patches,head.clip,head.clip.cls"])).unwrap();
    let batch = read(&world.path("e.parquet"));
    let file = checkpoint::newest(&model).unwrap().unwrap().join(checkpoint::MODEL);
    let weights = Weights::read(&file).unwrap();
    let (mean, cls) = (column(&batch, "mean"), column(&batch, "cls"));
    let patches = column(&batch, "patches").view([12, -1, mean.size()[1]]);
    let close = |a: &Tensor, b: &Tensor| assert!((a - b).abs().max().double_value(&[]) < 1e-5);
    close(&patches.mean_dim(1, false, Kind::Float), &mean);
    let head =
        |name: &str| ["weight", "bias"].map(|part| weights.tensors()[&format!("{name}.clip.{part}")].shallow_clone());
    let [weight, bias] = head("mimic_heads");
    let of_patches = patches.matmul(&weight.tr()) + bias;
    close(&column(&batch, "head.clip"), &of_patches.mean_dim(1, false, Kind::Float));
    let [weight, bias] = head("mimic_cls_heads");
    close(&column(&batch, "head.clip.cls"), &(cls.matmul(&weight.tr()) + bias));
    // k-NN takes them too.
    let images = world.images_dir().display().to_string();
    let knn = format!(
        "trainer knn --device cpu --k 3 --model {} --train {images} --test {images} --features head.clip --json",
        model.display()
    );
    let found: serde_json::Value =
        serde_json::from_str(&run(&knn.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap()).unwrap();
    let kinds: Vec<_> = found[0]["accuracy"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(kinds, ["head.clip"]);
}

/// An MLP is not linear: what its head gives for an image is the mean over the patches' predictions, and not the prediction of their mean.
#[test]
fn mlp_heads_are_those_of_the_checkpoint() {
    let world = World::with_cache(8);
    let settings =
        ["--stop-after", "2", "--set", "loss.w_cls=0.5", "--set", "mimic.head=mlp", "--set", "mimic.hidden=40"];
    run(&world.pretrain_args("run", &settings)).unwrap();
    let model = world.path("run");
    run(&args(&world, &model, "e.parquet", &["--features", "cls,mean,patches,head.clip,head.clip.cls"])).unwrap();
    let batch = read(&world.path("e.parquet"));
    let file = checkpoint::newest(&model).unwrap().unwrap().join(checkpoint::MODEL);
    let weights = Weights::read(&file).unwrap();
    let head = |kind: &str, tokens: &Tensor| {
        let of = |layer: &str| weights.tensors()[&format!("{kind}.clip.{layer}")].shallow_clone();
        let hidden = tokens.matmul(&of("fc1.weight").tr());
        let normed = hidden.layer_norm([40], Some(of("norm.weight")), Some(of("norm.bias")), 1e-5, true);
        normed.gelu("none").matmul(&of("fc2.weight").tr())
    };
    let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
    let mean = column(&batch, "mean");
    let patches = column(&batch, "patches").view([batch.num_rows() as i64, -1, mean.size()[1]]);
    let found = column(&batch, "head.clip");
    assert!(close(&found, &head("mimic_heads", &patches).mean_dim(1, false, Kind::Float)));
    assert!(!close(&found, &head("mimic_heads", &mean)));
    assert!(close(&column(&batch, "head.clip.cls"), &head("mimic_cls_heads", &column(&batch, "cls"))));
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is_computed() {
    let world = world();
    let model = world.path("run");
    for (out, more, why) in [
        ("e.txt", &[][..], "ends in .parquet or .npy"),
        ("e.npy", &[], "choose it with --features"),
        ("e.parquet", &["--features", "mean,mean"], "is given twice"),
        ("e.parquet", &["--features", "head.dino"], "has cls, mean, patches, head.clip, head.clip.cls"),
    ] {
        let error = format!("{:#}", run(&args(&world, &model, out, more)).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert!(!world.path(out).exists());
    }
    run(&args(&world, &model, "e.parquet", &[])).unwrap();
    let error = format!("{:#}", run(&args(&world, &model, "e.parquet", &[])).unwrap_err());
    assert!(error.contains("is there already"), "{error}");
}
