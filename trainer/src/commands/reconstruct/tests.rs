use std::fs;

use clap::Parser;
use hub::HubSettings;

use crate::cli::Cli;
use crate::testing::World;
use crate::train::image_grid::pictures;

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// A run leaves pictures with its checkpoints, and the command draws others; both are keyed.
#[test]
fn runs_and_the_command_draw() {
    let world = World::with_cache(8);
    run(&world.pretrain_args("run", &["--set", "optim.ema_decay=0.5"])).unwrap();
    let found = pictures(&world.path("run")).unwrap();
    assert_eq!(found.len(), 3, "one with each checkpoint: {found:?}");
    let drawn = image::open(&found[0]).unwrap();
    assert_eq!(drawn.width(), 4 * 128 + 3 * 4, "and the map of one teacher");
    run(&world.pretrain_args("none", &["--set", "run.pictures=0"])).unwrap();
    assert!(pictures(&world.path("none")).unwrap().is_empty());

    let text = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let draw_of = |model: &str, out: &str, more: &[&str]| {
        let mut args = ["trainer", "reconstruct", "--device", "cpu", "--count", "3"].map(String::from).to_vec();
        args.extend(["--model".into(), model.into(), "--images".into(), text("images")]);
        args.extend(["--out".into(), text(out)]);
        args.extend(more.iter().map(|s| s.to_string()));
        run(&args)
    };
    let draw = |out: &str, more: &[&str]| draw_of(&text("run"), out, more);
    assert!(draw("a.png", &[]).unwrap().contains("3 images"));
    draw("b.png", &[]).unwrap();
    draw("c.png", &["--seed", "1"]).unwrap();
    let bytes = |name: &str| fs::read(world.path(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png") && bytes("a.png") != bytes("c.png"));
    // A moving average is named as elsewhere, and prefixes without a meaning here are refused.
    let prefixed = |prefix: &str| draw_of(&format!("{prefix}:{}", text("run")), "e.png", &[]);
    assert!(prefixed("ema").unwrap().contains("the average of"));
    draw("f.png", &["--ema"]).unwrap();
    assert!(bytes("e.png") == bytes("f.png") && bytes("e.png") != bytes("a.png"));
    for prefix in ["unfused", "teacher", "untrained"] {
        let refused = prefixed(prefix).unwrap_err().to_string();
        assert!(refused.starts_with("--model") && refused.contains("leave "), "{refused}");
        assert!(refused.contains(&format!("`{prefix}:`")), "{refused}");
    }
    let refused = draw("d.png", &["--mask-ratio", "1.5"]).unwrap_err();
    assert!(refused.to_string().contains("--mask-ratio"), "{refused:#}");
}
