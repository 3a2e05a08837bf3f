#![allow(clippy::disallowed_methods)] // Damage is made by writing over files.

use tch::{Device, Kind};

use super::*;

fn checkpoint(step: u64) -> Checkpoint {
    let tensors = |names: &[&str]| -> BTreeMap<String, Tensor> {
        let tensor = |value: f64| Tensor::full([2, 3], value, (Kind::Float, Device::Cpu));
        names.iter().map(|name| (name.to_string(), tensor(step as f64 + 0.1))).collect()
    };
    let window = Window { steps: 3, skipped: 1, sums: BTreeMap::from([("loss".to_owned(), 0.1 + 0.2)]) };
    Checkpoint {
        state: State::new(step, 1, 2, window, BTreeMap::from([("samples".to_owned(), "10".to_owned())])),
        model: tensors(&["cls_token", "norm.weight"]),
        optimizer: tensors(&["exp_avg.cls_token"]),
        ema: Some(tensors(&["cls_token", "norm.weight"])),
        recipe: "[optim]".to_owned(),
    }
}

fn load_quietly(run: &Path) -> (u64, Vec<String>) {
    let mut notices = Vec::new();
    let found = load_last(run, &mut |notice| notices.push(notice)).unwrap().unwrap();
    (found.state.step, notices)
}

fn newest_only(newest: usize) -> Keep {
    Keep { newest, every: None }
}

fn run_with(steps: &[u64], keep: usize) -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    for &step in steps {
        save(run.path(), &checkpoint(step), newest_only(keep)).unwrap();
    }
    run
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let run = run_with(&[120], 2);
    let expected = checkpoint(120);
    let found = load_last(run.path(), &mut |notice| panic!("{notice}")).unwrap().unwrap();
    assert_eq!(State { sha256: BTreeMap::new(), ..found.state }, expected.state);
    assert_eq!(
        (found.model, found.optimizer, found.ema, found.recipe),
        (expected.model, expected.optimizer, expected.ema, expected.recipe)
    );
    assert_eq!(fs::read_to_string(run.path().join(LAST)).unwrap(), "step-00000120\n");
    let file = newest(run.path()).unwrap().unwrap().join(MODEL);
    assert_eq!(Weights::read(&file).unwrap().metadata()[RECIPE_KEY], "[optim]");
}

#[test]
fn an_empty_run_has_none() {
    let run = tempfile::tempdir().unwrap();
    assert!(load_last(run.path(), &mut |_| ()).unwrap().is_none());
}

#[test]
fn old_checkpoints_go_and_the_newest_stay() {
    let run = run_with(&[10, 20, 30, 40], 2);
    assert_eq!(steps(run.path()).unwrap(), [30, 40]);
    // A resume that went back to 30 saves 35: what lay ahead is gone.
    save(run.path(), &checkpoint(35), newest_only(2)).unwrap();
    assert_eq!(steps(run.path()).unwrap(), [30, 35]);
}

#[test]
fn those_of_every_so_many_steps_stay_for_good() {
    let run = tempfile::tempdir().unwrap();
    let keep = Keep { newest: 2, every: Some(30) };
    for step in (10..=100).step_by(10) {
        save(run.path(), &checkpoint(step), keep).unwrap();
    }
    assert_eq!(steps(run.path()).unwrap(), [30, 60, 90, 100]);
    for step in [30, 60] {
        let found = load(&run.path().join(FOLDER).join(folder_name(step))).unwrap();
        assert_eq!(found.state.step, step);
    }
    // The newest whole checkpoint is loaded first, whether or not it is kept for good.
    assert_eq!(load_quietly(run.path()), (100, vec![]));
}

/// A checkpoint without averages and with whole batches has neither the file nor the field.
#[test]
fn what_is_not_there_is_not_written() {
    let run = tempfile::tempdir().unwrap();
    let mut plain = checkpoint(5);
    plain.ema = None;
    plain.state.micro_batches = 1;
    let folder = save(run.path(), &plain, newest_only(1)).unwrap();
    assert!(!folder.join(EMA).exists());
    let text = fs::read_to_string(folder.join(STATE)).unwrap();
    assert!(!text.contains("parts"), "{text}");
    let found = load(&folder).unwrap();
    assert!(found.ema.is_none() && found.state.micro_batches == 1);
}

/// Training changes the tensors while they are being written; the next one waits for the one before.
#[test]
fn a_checkpoint_has_the_values_of_the_moment_it_was_taken() {
    let run = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(run.path(), newest_only(2));
    for step in [10, 20] {
        let taken = checkpoint(step);
        let tensors = [&taken.model, &taken.optimizer, taken.ema.as_ref().unwrap()];
        let handles: Vec<Tensor> =
            (tensors.iter().copied().flatten()).map(|(_, tensor)| tensor.shallow_clone()).collect();
        writer.save(taken).unwrap();
        for mut handle in handles {
            let _ = handle.fill_(-1.0);
        }
    }
    writer.finish().unwrap();
    assert_eq!(steps(run.path()).unwrap(), [10, 20]);
    assert_eq!(load_quietly(run.path()), (20, vec![]));
    for step in [10, 20] {
        let (found, expected) = (load(&run.path().join(FOLDER).join(folder_name(step))).unwrap(), checkpoint(step));
        assert_eq!((found.model, found.optimizer, found.ema), (expected.model, expected.optimizer, expected.ema));
    }
}

/// `check` reports it before the next checkpoint is due, and the earlier checkpoints stay.
#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let run = run_with(&[10], 2);
    let in_the_way = run.path().join(FOLDER).join(folder_name(20));
    fs::write(&in_the_way, "a file").unwrap();
    let mut writer = Writer::new(run.path(), newest_only(2));
    writer.check().unwrap();
    writer.save(checkpoint(20)).unwrap();
    let error = loop {
        if let Err(error) = writer.check() {
            break format!("{error:#}");
        }
        std::thread::yield_now();
    };
    assert!(error.contains("step-00000020"), "{error}");
    writer.finish().unwrap();
    fs::remove_file(in_the_way).unwrap();
    assert_eq!(load_quietly(run.path()), (10, vec![]));
}

/// Any flipped byte of any file of the newest checkpoint is noticed, and the one before is used.
#[test]
fn a_damaged_checkpoint_is_passed_over_aloud() {
    let run = run_with(&[10, 20], 2);
    let folder = newest(run.path()).unwrap().unwrap();
    for file in [MODEL, OPTIMIZER, EMA, STATE] {
        let path = folder.join(file);
        let whole = fs::read(&path).unwrap();
        // Every 13th byte: all fields of the short files, headers and data.
        for position in (0..whole.len()).step_by(13) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            // White space of the JSON between values carries nothing and may change into white space only.
            if damaged[position].is_ascii_whitespace() && whole[position].is_ascii_whitespace() {
                continue;
            }
            fs::write(&path, damaged).unwrap();
            let (step, notices) = load_quietly(run.path());
            assert_eq!(step, 10, "{file}, byte {position}");
            assert!(notices[0].contains(file), "{file}, byte {position}: {notices:?}");
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(load_quietly(run.path()).0, 10, "{file} cut short");
        fs::remove_file(&path).unwrap();
        assert_eq!(load_quietly(run.path()).0, 10, "{file} gone");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(load_quietly(run.path()), (20, vec![]));
}

#[test]
fn last_decides_and_its_loss_is_survived() {
    let run = run_with(&[10, 20], 2);
    // Killed between publishing 20 and writing LAST.
    fs::write(run.path().join(LAST), "step-00000010\n").unwrap();
    assert_eq!(load_quietly(run.path()), (10, vec![]));
    // Killed before the first LAST.
    fs::remove_file(run.path().join(LAST)).unwrap();
    assert_eq!(load_quietly(run.path()), (20, vec![]));
    fs::write(run.path().join(LAST), "rubbish").unwrap();
    let (step, notices) = load_quietly(run.path());
    assert!(step == 20 && notices[0].contains("names no checkpoint"), "{notices:?}");
    fs::write(run.path().join(LAST), "step-00000030\n").unwrap();
    let (step, notices) = load_quietly(run.path());
    assert!(step == 20 && notices[0].contains("step-00000030, which is gone"), "{notices:?}");
}

#[test]
fn without_any_whole_checkpoint_nothing_is_guessed() {
    let run = run_with(&[10], 2);
    fs::remove_file(newest(run.path()).unwrap().unwrap().join(MODEL)).unwrap();
    let error = load_last(run.path(), &mut |_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("no checkpoint is whole"), "{error:#}");
}
