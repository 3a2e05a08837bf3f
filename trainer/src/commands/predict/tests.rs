#![allow(clippy::disallowed_methods)] // Images are damaged.

use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;
use crate::cli::Cli;
use crate::eval::test_set::FINETUNE_FILE;
use crate::testing::{World, write_images};

fn run(args: &str) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args.split(' ')).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// A fine-tuned run `tuned`, and the images `test` that it was evaluated on.
fn world() -> World {
    let world = World::with_cache(24);
    write_images(&world.path("test"), 10, 99);
    let args = world.pretrain_args("pretrained", &["--stop-after", "2"]);
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut Vec::new()).unwrap();
    let recipe = "[augment]\nrand_augment = \"none\"\nmixup = 0.0\ncutmix = 0.0\ncrop_pct = 0.8\n[optim]\nbatch_size = 8\nlr = 2e-3\n\
                  [schedule]\nepochs = 2\nwarmup_epochs = 1\n[run]\nprecision = \"f32\"\n";
    schemas::atomic::write(&world.path("finetune.toml"), recipe.as_bytes()).unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    run(&format!(
        "trainer finetune --device cpu --threads 2 --init {} --train {} --test {} --recipe {} --out {}",
        path("pretrained"),
        world.images_dir().display(),
        path("test"),
        path("finetune.toml"),
        path("tuned")
    ))
    .unwrap();
    world
}

fn predict(world: &World, model: &str, images: &str, out: &str, more: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let path = |name: &str| world.path(name).display().to_string();
    run(&format!(
        "trainer predict --device cpu --batch-size 3 --model {} --images {} --out {}{more}",
        path(model),
        path(images),
        path(out)
    ))?;
    let text = fs::read_to_string(world.path(out)).unwrap();
    Ok(text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

#[test]
fn predictions_are_those_of_the_evaluation() {
    let world = world();
    let rows = predict(&world, "tuned", "test", "p.csv", "").unwrap();
    assert_eq!(rows[0], ["key", "class", "class_index", "score"]);
    assert_eq!(rows.len(), 11);
    // The class of an image is its folder.
    let right = rows[1..].iter().filter(|row| row[0].split('/').next().unwrap() == row[1]).count();
    let result: serde_json::Value =
        serde_json::from_slice(&fs::read(world.path("tuned").join(FINETUNE_FILE)).unwrap()).unwrap();
    assert!((right as f64 / 10.0 - result["last"]["top1"].as_f64().unwrap()).abs() < 1e-9);
    // Both classes of each image, the better one first, and their probabilities sum to 1.
    let both = predict(&world, "tuned", "test", "both.csv", " --top 5").unwrap();
    assert_eq!(both[0][4..], ["class_2", "class_index_2", "score_2"]);
    for (one, two) in rows[1..].iter().zip(&both[1..]) {
        assert_eq!(one[..], two[..4]);
        let [first, second] = [&two[3], &two[6]].map(|score| score.parse::<f32>().unwrap());
        assert!(first >= second && (first + second - 1.0).abs() < 1e-5 && two[1] != two[4]);
    }
}

#[test]
fn images_without_labels_and_damaged_ones_are_taken() {
    let world = world();
    let flat = world.path("flat");
    fs::create_dir_all(&flat).unwrap();
    for (i, entry) in fs::read_dir(world.path("test/a")).unwrap().enumerate() {
        fs::copy(entry.unwrap().path(), flat.join(format!("{i}.png"))).unwrap();
    }
    fs::write(flat.join("broken.png"), "not an image").unwrap();
    let rows = predict(&world, "tuned", "flat", "p.csv", "").unwrap();
    assert_eq!(rows.len(), 6);
    assert!(rows.iter().all(|row| row[0] != "broken.png"));
    // A file of weights finds the names of its run.
    let best = predict(&world, "tuned/best/model.safetensors", "flat", "best.csv", "").unwrap();
    assert!(best[1..].iter().all(|row| row[1] == "a" || row[1] == "b"));
}

#[test]
fn a_network_without_classes_is_refused() {
    let world = world();
    let error = format!("{:#}", predict(&world, "pretrained", "test", "p.csv", "").unwrap_err());
    assert!(error.contains("fine-tune it first"), "{error}");
    let error = format!("{:#}", predict(&world, "teacher", "test", "p.csv", "").unwrap_err());
    assert!(error.contains("was not fine-tuned"), "{error}");
    assert!(!Path::new(&world.path("p.csv")).exists());
}
