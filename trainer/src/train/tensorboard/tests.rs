#![allow(clippy::disallowed_methods, reason = "files are damaged")]

use super::*;

#[test]
fn every_session_begins_a_file_after_the_others_and_leaves_them_as_they_are() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join(FOLDER);
    let mut log = EventLog::open(run.path(), 0).unwrap();
    for step in [10, 20, 30] {
        log.scalars(step, [("loss", 1.0), ("lr", 1e-3)]).unwrap();
    }
    drop(log);
    let first = files(&folder).unwrap();
    let bytes = fs::read(&first[0]).unwrap();
    // Killed in the middle of a record; the clock stands still or goes back.
    fs::write(&first[0], &bytes[..bytes.len() - 3]).unwrap();
    for sessions in 2..5 {
        let mut log = EventLog::open(run.path(), 20).unwrap();
        log.image(25, "pictures", [2, 1], b"png").unwrap();
        let paths = files(&folder).unwrap();
        assert_eq!(paths.len(), sessions);
        assert_eq!(*paths.last().unwrap(), log.path, "the newest is last");
        assert_eq!(fs::read(&paths[0]).unwrap(), bytes[..bytes.len() - 3]);
    }
}

#[test]
fn names_of_others_do_not_stand_in_the_way() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    for name in ["99999999999999999999.x", "", "zzz"] {
        fs::write(folder.join(format!("{PREFIX}{name}")), "").unwrap();
    }
    EventLog::open(run.path(), 0).unwrap();
}
