#![allow(clippy::disallowed_methods)] // Foreign files are made by writing them.

use super::*;
use crate::checkpoint::Checkpoint;

fn recipe(settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse(
        "[optim]\nbatch_size = 4\n[schedule]\nepochs = 2\n",
        "test",
        &settings,
    )
    .unwrap()
}

fn message(path: &Path, recipe: &Recipe) -> String {
    format!("{:#}", RunFolder::open(path, recipe).unwrap_err())
}

#[test]
fn the_same_recipe_opens_it_again_and_another_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/a");
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());
    assert_eq!(load_recipe(&run).unwrap(), recipe(&[]));
    // Nothing has been trained: the recipe may still be corrected.
    drop(RunFolder::open(&run, &recipe(&["optim.weight_decay=0.2"])).unwrap());
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());

    let state = checkpoint::State::new(1, 0, Default::default(), BTreeMap::new());
    let checkpoint = Checkpoint {
        state,
        model: BTreeMap::new(),
        optimizer: BTreeMap::new(),
    };
    checkpoint::save(&run, &checkpoint, "", 1).unwrap();
    drop(RunFolder::open(&run, &recipe(&[])).unwrap());
    let refused = message(&run, &recipe(&["optim.weight_decay=0.1"]));
    assert!(
        refused.contains("optim.weight_decay = 0.05, now it is 0.1"),
        "{refused}"
    );
    assert_eq!(load_recipe(&run).unwrap(), recipe(&[]));
    // What cannot change the result may change, and is saved.
    let faster = recipe(&["data.prefetch=8", "run.keep_checkpoints=5"]);
    drop(RunFolder::open(&run, &faster).unwrap());
    assert_eq!(load_recipe(&run).unwrap(), faster);
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
    let refused = refuse_other_data(Path::new("run"), &facts("10"), &facts("11"))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("samples = 10, now it is 11"), "{refused}");
    let refused = refuse_other_data(Path::new("run"), &BTreeMap::new(), &facts("11"))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("samples = absent, now it is 11"),
        "{refused}"
    );
}
