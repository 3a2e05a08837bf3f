#![allow(clippy::unwrap_used, reason = "a test states what it expects by unwrapping")]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use std::collections::BTreeMap;
use std::fs;

use clap::Parser;
use models::mae::Mae;
use models::params::Tensors;
use models::weights;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::cli::Cli;
use crate::recipe::Experiment;
use crate::testing::{RECIPE as WORLD_RECIPE, World};

fn run(args: &[String]) -> anyhow::Result<()> {
    let cli = Cli::try_parse_from(args).unwrap();
    crate::run(&cli, &HubSettings::default(), None, &mut Vec::new()).map(drop)
}

/// A student of the world's recipe, trained by other means: its file in MAE's names.
fn published(world: &World, name: &str, seed: u64, decoder: bool) -> (String, Tensors) {
    let recipe = Recipe::parse(WORLD_RECIPE, "a test", &[]).unwrap();
    let params = ParamStore::new(Device::Cpu, seed);
    let _network = Mae::new(&params.root(), &recipe.mae_config()).unwrap();
    let mut tensors = params.tensors();
    tensors.retain(|name, _| decoder || !(name.contains("decoder") || name == "mask_token"));
    for (name, tensor) in &mut tensors {
        if !name.ends_with("pos_embed") {
            *tensor = &*tensor + 0.01;
        }
    }
    let path = world.path(name);
    let detached: Tensors = tensors.iter().map(|(n, t)| (n.clone(), t.detach())).collect();
    fs::write(&path, weights::to_bytes(&detached, None).unwrap()).unwrap();
    (path.to_str().unwrap().to_owned(), detached)
}

fn checkpoint_of(world: &World, run: &str) -> BTreeMap<String, Tensor> {
    let last = checkpoint::load_last(&world.path(run), &mut |_| {}).unwrap();
    last.unwrap().model
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// One step of a tiny rate from the weights leaves them where they were, but for that step; the rest is as the seed makes it.
#[test]
fn a_run_starts_from_what_it_is_given() {
    let world = World::with_cache(8);
    let (with_decoder, whole) = published(&world, "whole.safetensors", 40, true);
    let (encoder, _) = published(&world, "encoder.safetensors", 40, false);
    let step = |run_name: &str, init: Option<&str>| {
        let mut more = vec!["--stop-after", "1", "--set", "optim.lr=1e-6", "--set", "schedule.warmup_epochs=0"];
        let init = init.map(|init| format!("model.init={init}"));
        if let Some(init) = &init {
            more.extend(["--set", init]);
        }
        run(&world.pretrain_args(run_name, &more)).unwrap();
        checkpoint_of(&world, run_name)
    };
    let fresh = step("fresh", None);
    for (run_name, init, decoder) in [("whole", &with_decoder, true), ("encoder", &encoder, false)] {
        let found = step(run_name, Some(init));
        for (name, tensor) in &found {
            let is_decoder = name.contains("decoder") || name == "mask_token";
            let expected = match whole.get(name) {
                Some(given) if decoder || !is_decoder => given,
                _ => &fresh[name],
            };
            assert!(distance(tensor, expected) < 1e-5, "{run_name}: {name}");
        }
        let head = &found["mimic_heads.clip.weight"];
        assert!(distance(head, &fresh["mimic_heads.clip.weight"]) < 1e-5);
    }
    assert!(distance(&fresh["blocks.0.attn.qkv.weight"], &whole["blocks.0.attn.qkv.weight"]) > 1e-2);

    // A run is a place to start from too; its heads stay behind.
    let of_run = world.path("whole");
    let found = step("again", Some(of_run.to_str().unwrap()));
    let before = checkpoint_of(&world, "whole");
    assert!(distance(&found["norm.weight"], &before["norm.weight"]) < 1e-5);

    // And so is the moving average of a run that keeps one.
    let args = ["--stop-after", "2", "--set", "optim.lr=0.05", "--set", "optim.ema_decay=0.9"];
    run(&world.pretrain_args("averaged", &args)).unwrap();
    let averaged = checkpoint::load_last(&world.path("averaged"), &mut |_| {}).unwrap().unwrap();
    let average = &averaged.ema.unwrap()["blocks.0.attn.qkv.weight"];
    let of_average = format!("ema:{}", world.path("averaged").display());
    let found = step("from-average", Some(&of_average));
    assert!(distance(&found["blocks.0.attn.qkv.weight"], average) < 1e-5);
    assert!(distance(average, &averaged.model["blocks.0.attn.qkv.weight"]) > 1e-3);

    // The untrained student of such a run is what it started from.
    let spec = format!("untrained:{}", world.path("encoder").display());
    let hub = HubSettings::default();
    crate::eval::features::Model::load(&spec, &hub, Device::Cpu).unwrap();
    fs::remove_file(&encoder).unwrap();
    let error = crate::eval::features::Model::load(&spec, &hub, Device::Cpu).unwrap_err();
    assert!(format!("{error:#}").contains("model.init"), "{error:#}");
}

#[test]
fn a_resume_with_other_weights_is_refused() {
    let world = World::with_cache(8);
    let (path, _) = published(&world, "start.safetensors", 40, true);
    let init = format!("model.init={path}");
    let args = world.pretrain_args("run", &["--stop-after", "1", "--set", &init]);
    run(&args).unwrap();
    run(&args).unwrap();
    // The same weights elsewhere are the same.
    let moved = world.path("moved.safetensors");
    fs::copy(&path, &moved).unwrap();
    let elsewhere = format!("model.init={}", moved.display());
    run(&world.pretrain_args("run", &["--stop-after", "1", "--set", &elsewhere])).unwrap();
    let message = format!("{:#}", run(&world.pretrain_args("run", &["--stop-after", "1"])).unwrap_err());
    assert!(message.contains("model.init"), "{message}");
    published(&world, "start.safetensors", 41, true);
    let message = format!("{:#}", run(&args).unwrap_err());
    assert!(message.contains("init.weights_sha256"), "{message}");
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let world = World::with_cache(8);
    let message = |init: &str, more: &[&str]| {
        let init = format!("model.init={init}");
        let more = [&["--stop-after", "1", "--set", &init], more].concat();
        format!("{:#}", run(&world.pretrain_args("run", &more)).unwrap_err())
    };
    let (path, _) = published(&world, "start.safetensors", 40, true);
    let wider = message(&path, &["--set", "model.embed_dim=64"]);
    assert!(
        wider.contains("norm.weight: found [32], the network has [64]") && wider.contains("start.safetensors"),
        "{wider}"
    );
    assert!(message(&path, &["--set", "model.depth=1"]).contains("unexpected"));
    assert!(message(&path, &["--set", "model.decoder_depth=2"]).contains("decoder_blocks.1"));
    assert!(message("nowhere", &[]).contains("model.init = \"nowhere\""));
    let no_run = message(&format!("ema:{path}"), &[]);
    assert!(no_run.contains("only a run folder has a moving average") && no_run.contains("is a file"), "{no_run}");
    let none = world.path("none.safetensors");
    let tensors: Tensors = [("a".to_owned(), Tensor::ones([1], (Kind::Float, Device::Cpu)))].into();
    fs::write(&none, weights::to_bytes(&tensors, None).unwrap()).unwrap();
    assert!(message(none.to_str().unwrap(), &[]).contains("holds no student"));

    // The numbers of heads are said by the file beside the weights, or by a checkpoint's recipe.
    let folder = world.path("hf");
    fs::create_dir(&folder).unwrap();
    fs::copy(&path, folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("config.json"), r#"{"num_attention_heads": 2}"#).unwrap();
    let heads = message(folder.to_str().unwrap(), &["--set", "model.num_heads=4"]);
    assert!(heads.contains("has 2 attention heads, and model.num_heads is 4"), "{heads}");
    run(&world.pretrain_args("before", &["--stop-after", "1"])).unwrap();
    let before = world.path("before");
    let no_average = message(&format!("ema:{}", before.display()), &[]);
    assert!(no_average.contains("keeps no moving average"), "{no_average}");
    let heads = message(before.to_str().unwrap(), &["--set", "model.num_heads=4"]);
    assert!(heads.contains("trained with model.num_heads = 2"), "{heads}");
}
