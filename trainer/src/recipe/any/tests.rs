use clap::Parser;
use hub::HubSettings;

use super::*;
use crate::cli::Cli;

const SHORT: &str = "[optim]\nbatch_size = 4\n[schedule]\nepochs = 2\n";

fn kind(text: &str, settings: &[&str]) -> &'static str {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    match AnyRecipe::parse(text, "a test", &settings).unwrap() {
        AnyRecipe::Pretrain(_) => "pretrain",
        AnyRecipe::Finetune(_) => "finetune",
    }
}

#[test]
fn kinds_are_told_apart_by_what_one_of_them_has() {
    assert_eq!(kind(SHORT, &[]), "pretrain");
    assert_eq!(kind(&format!("{SHORT}[augment]\nmixup = 0.8\n"), &[]), "finetune");
    assert_eq!(kind(&format!("[model]\npool = \"cls\"\n{SHORT}"), &[]), "finetune");
    assert_eq!(kind(SHORT, &["optim.layer_decay=0.5"]), "finetune");
    assert_eq!(kind(SHORT, &["optim.ema_decay=0.5"]), "pretrain");
    // Every shipped recipe is of the kind that its name says, also after it is resolved.
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut kinds = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(recipes).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let recipe = AnyRecipe::load(&path, &[]).unwrap();
        let expected = match name.starts_with("finetune") {
            true => "finetune",
            false => "pretrain",
        };
        assert_eq!(kind(&recipe.to_toml(), &[]), expected, "{name}");
        *kinds.entry(expected).or_insert(0) += 1;
    }
    assert!(kinds["finetune"] >= 3 && kinds["pretrain"] >= 4, "{kinds:?}");
}

#[test]
fn what_is_wrong_is_told_of_the_kind_that_it_is() {
    let message = |text: &str| AnyRecipe::parse(text, "a test", &[]).unwrap_err().to_string();
    let tune = message(&format!("{SHORT}[augment]\nmixup = 0.8\n[run]\npictures = 3\n"));
    assert!(tune.contains("pictures"), "{tune}");
    let stray = AnyRecipe::parse(&format!("{SHORT}[mask]\nratio = 0.5\n"), "a test", &["optim.layer_decay=0.5".into()]);
    let stray = stray.unwrap_err().to_string();
    assert!(stray.starts_with("optim.layer_decay = 0.5: is a setting of fine-tuning"), "{stray}");
    let pretrain = message("[optim]\nbatchsize = 4\n[schedule]\nepochs = 2\n");
    assert!(pretrain.contains("batchsize"), "{pretrain}");
}

/// Every section that a recipe has, with a key that none has: the message offers the section's keys, and none of the other kind's.
#[test]
fn an_unknown_key_is_offered_what_its_recipe_takes() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let own = [("tiny.toml", "`pictures`"), ("finetune_tiny.toml", "`layer_decay` `prefetch`")];
    for (name, own, foreign) in [(own[0].0, own[0].1, own[1].1), (own[1].0, own[1].1, own[0].1)] {
        let path = recipes.join(name);
        let text = recipe::read(&path).unwrap();
        let resolved: toml::Table = AnyRecipe::load(&path, &[]).unwrap().to_toml().parse().unwrap();
        let mut offered = String::new();
        for section in resolved.keys().chain([&"sectoin".to_owned()]) {
            let set = AnyRecipe::load(&path, &[format!("{section}.stray=1")]).unwrap_err().to_string();
            let line = format!("[{section}]\nstray = 1");
            let text = match text.contains(&format!("[{section}]")) {
                true => text.replace(&format!("[{section}]"), &line),
                false => format!("{text}\n{line}\n"),
            };
            let file = AnyRecipe::parse(&text, "a test", &[]).unwrap_err().to_string();
            for message in [set, file] {
                assert!(message.contains("unknown key `s") && message.contains(", expected "), "{name}: {message}");
                assert!(!message.contains("in a recipe of"), "{name}: {message}");
                for key in foreign.split(' ') {
                    assert!(section == "data" || !message.contains(key), "{name}, {section}: {message}");
                }
                offered += &message;
            }
        }
        assert!(own.split(' ').all(|key| offered.contains(key)), "{name}: {offered}");
    }
    // Where the kind does not show, both are offered.
    for settings in [&["optim.layer_dcay=0.5".to_owned()][..], &["modle.pool=cls".to_owned()]] {
        let message = AnyRecipe::parse(SHORT, "a test", settings).unwrap_err().to_string();
        assert!(message.contains("; in a recipe of fine-tuning: unknown key"), "{message}");
    }
    let message = AnyRecipe::parse(SHORT, "a test", &["mask.rato=0.5".to_owned()]).unwrap_err().to_string();
    assert!(message.contains("`ratio`") && !message.contains("fine-tuning"), "{message}");
}

/// A whole recipe of the other kind is named as what it is.
#[test]
fn a_recipe_of_the_other_kind_is_told_from_a_typo() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let message = format!("{:#}", load::<Recipe>(&recipes.join("finetune_tiny.toml"), &[]).unwrap_err());
    assert!(message.contains("is a recipe of `trainer finetune`, not of `trainer pretrain`"), "{message}");
    let message = format!("{:#}", load::<FinetuneRecipe>(&recipes.join("tiny.toml"), &[]).unwrap_err());
    assert!(message.contains("is a recipe of `trainer pretrain`, not of `trainer finetune`"), "{message}");
    let stray = ["augment.mixup=0.8".to_owned()];
    let message = format!("{:#}", load::<Recipe>(&recipes.join("tiny.toml"), &stray).unwrap_err());
    assert!(message.starts_with("--set augment.mixup=0.8: unknown key `augment`"), "{message}");
}

/// `trainer config` prints either kind with every default, as the kind itself resolves it.
#[test]
fn either_kind_is_printed_resolved() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    for name in ["finetune_tiny.toml", "tiny.toml"] {
        let path = recipes.join(name);
        let args = ["trainer", "config", "--recipe", path.to_str().unwrap(), "--set", "run.seed=7"];
        let mut out = Vec::new();
        crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out).unwrap();
        let settings = ["run.seed=7".to_owned()];
        let expected = match name.starts_with("finetune") {
            true => FinetuneRecipe::load(&path, &settings).unwrap().to_toml(),
            false => Recipe::load(&path, &settings).unwrap().to_toml(),
        };
        let printed = String::from_utf8(out).unwrap();
        assert_eq!(printed, expected);
        assert!(printed.contains("seed = 7") && printed.contains("eps = "), "{printed}");
    }
}
