#![allow(clippy::disallowed_methods, reason = "files are damaged")]

use super::*;

/// (step, tag's bytes are in it) of every record.
fn steps(run: &Path) -> Vec<u64> {
    let path = newest(&run.join(FOLDER)).unwrap().unwrap();
    let bytes = fs::read(path).unwrap();
    let mut at = 0;
    let mut steps = Vec::new();
    while let Some((data, length)) = record::unframe(&bytes[at..]) {
        steps.push(event::step_of(data).unwrap());
        at += length;
    }
    assert_eq!(at, bytes.len(), "nothing but whole records");
    steps
}

#[test]
fn a_resume_cuts_back_to_its_step_and_goes_on_in_the_same_file() {
    let run = tempfile::tempdir().unwrap();
    let mut log = EventLog::open(run.path(), 0).unwrap();
    for step in [10, 20, 30] {
        log.scalars(step, [("loss", 1.0), ("lr", 1e-3)]).unwrap();
    }
    drop(log);
    assert_eq!(steps(run.path()), [0, 10, 20, 30]);
    let mut log = EventLog::open(run.path(), 20).unwrap();
    log.image(25, "pictures", [2, 1], b"png").unwrap();
    drop(log);
    assert_eq!(steps(run.path()), [0, 10, 20, 25]);
    // Killed in the middle of a record.
    let path = newest(&run.path().join(FOLDER)).unwrap().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    EventLog::open(run.path(), 25).unwrap();
    assert_eq!(steps(run.path()), [0, 10, 20]);
    assert_eq!(fs::read_dir(run.path().join(FOLDER)).unwrap().count(), 1);
}
