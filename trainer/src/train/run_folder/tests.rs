#![allow(clippy::disallowed_methods)] // Foreign files are made by writing them.

use super::*;
use crate::recipe::Experiment;
use crate::recipe::Recipe;
use crate::train::checkpoint::{Checkpoint, Keep};

fn recipe(settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse("[optim]\nbatch_size = 4\n[schedule]\nepochs = 2\n", "test", &settings).unwrap()
}

fn message(path: &Path, recipe: &Recipe) -> String {
    format!("{:#}", RunFolder::open(path, recipe).unwrap_err())
}

#[test]
fn the_same_recipe_opens_it_again_and_another_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/a");
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());
    assert_eq!(load::<Recipe>(&run).unwrap(), recipe(&[]));
    // Nothing has been trained: the recipe may still be corrected.
    drop(RunFolder::open(&run, &recipe(&["optim.weight_decay=0.2"])).unwrap());
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());

    let state = checkpoint::State::new(1, 0, 1, Default::default(), BTreeMap::new());
    let checkpoint =
        Checkpoint { state, model: BTreeMap::new(), optimizer: BTreeMap::new(), ema: None, recipe: String::new() };
    let keep = Keep { newest: 1, every: None };
    checkpoint::save(&run, &checkpoint, keep).unwrap();
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());
    let refused = message(&run, &recipe(&["optim.weight_decay=0.1"]));
    assert!(refused.contains("optim.weight_decay = 0.05, now it is 0.1"), "{refused}");
    assert_eq!(load::<Recipe>(&run).unwrap(), recipe(&[]));
    // What cannot change the result may change, and is saved.
    let faster = recipe(&["data.prefetch=8", "run.keep_checkpoints=5"]);
    drop(RunFolder::open(&run, &faster).unwrap());
    assert_eq!(load::<Recipe>(&run).unwrap(), faster);
}

#[test]
fn a_plateau_may_have_another_length_until_it_ends() {
    let wsd =
        |epochs: &str| recipe(&["schedule.kind=wsd", "schedule.decay_epochs=2", &format!("schedule.epochs={epochs}")]);
    let refused = |before: &str, now: &str, epoch: f64| {
        let dir = Path::new("run");
        refuse_other_length(dir, &wsd(before).schedule(), &wsd(now).schedule(), epoch).err().map(|e| e.to_string())
    };
    assert_eq!(refused("10", "10", 9.0), None);
    assert_eq!(refused("10", "20", 8.0), None);
    assert_eq!(refused("20", "10", 8.0), None);
    let begun = refused("10", "20", 8.25).unwrap();
    assert!(begun.contains("with 10 the decay begins at epoch 8") && begun.contains("run.keep_every"), "{begun}");
    let missed = refused("20", "10", 8.25).unwrap();
    assert!(missed.contains("with 10 the decay begins at epoch 8"), "{missed}");
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let held = RunFolder::open(dir.path(), &recipe(&[])).unwrap();
    assert!(message(dir.path(), &recipe(&[])).contains("another process"));
    drop(held);
    RunFolder::open(dir.path(), &recipe(&[])).unwrap();
}

#[test]
fn a_folder_of_other_things_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "precious").unwrap();
    assert!(message(dir.path(), &recipe(&[])).contains("thesis.tex"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn other_data_is_refused_by_name() {
    let facts = |samples: &str| BTreeMap::from([("samples".to_owned(), samples.to_owned())]);
    refuse_other_data(Path::new("run"), &facts("10"), &facts("10")).unwrap();
    let refused = refuse_other_data(Path::new("run"), &facts("10"), &facts("11")).unwrap_err().to_string();
    assert!(refused.contains("samples = 10, now it is 11"), "{refused}");
    let refused = refuse_other_data(Path::new("run"), &BTreeMap::new(), &facts("11")).unwrap_err().to_string();
    assert!(refused.contains("samples = absent, now it is 11"), "{refused}");
}

#[test]
fn a_lock_ends_with_its_run_even_if_another_process_has_the_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunFolder::open(dir.path(), &recipe(&[])).unwrap();
    assert!(in_use(dir.path()));
    assert!(message(dir.path(), &recipe(&[])).contains("another process is training"));
    // A child process that is being started holds the file like this.
    let _inherited = run.lock.try_clone().unwrap();
    drop(run);
    assert!(!in_use(dir.path()));
    RunFolder::open(dir.path(), &recipe(&[])).unwrap();
}

#[test]
fn a_new_run_among_images_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let spec = images.to_str().unwrap();
    let refused = |run: &str| refuse_among_images(&dir.path().join(run), &[("--train", spec)]).is_err();
    assert!(refused("images/run") && refused("images/deep/run") && refused("images"));
    assert!(!refused("images-run") && !refused("run"));
    let shards = format!("{spec}/{{0..9}}.tar");
    refuse_among_images(&images.join("run"), &[("--train", &shards)]).unwrap();
    // An existing run may continue.
    fs::create_dir(images.join("run")).unwrap();
    fs::write(images.join("run").join(RECIPE), "").unwrap();
    assert!(!refused("images/run"));
}

#[test]
fn facts_are_told_in_plain_words() {
    let views =
        schemas::ViewIdentity { policy: schemas::ViewPolicy::rrc(), views: 2, seed: 7, filter: "bicubic".to_owned() };
    let text = plain(&format!("{views:?}"));
    assert!(
        text.starts_with("(policy: rrc (scale: [") && text.ends_with("views: 2, seed: 7, filter: \"bicubic\")"),
        "{text}"
    );
    let pack = schemas::Pack::Jpeg { short_side: 256, quality: 90 };
    assert_eq!(plain(&format!("{pack:?}")), "jpeg (short_side: 256, quality: 90)");
    assert_eq!(plain(&format!("{:?}", schemas::Pack::None)), "none");
    assert_eq!(plain("12 (SHA-256 0f{)"), "12 (SHA-256 0f{)");
}
