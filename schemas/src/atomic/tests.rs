use std::fs;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_visible_only_when_published() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("a/b/record.json");
    let mut file = AtomicFile::create(&target).unwrap();
    file.write_all(b"half of ").unwrap();
    assert!(!target.exists());
    file.write_all(b"it").unwrap();
    file.publish().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"half of it");
    assert_eq!(names(target.parent().unwrap()), ["record.json"]);
}

#[test]
fn a_grown_file_and_a_link_take_the_place_of_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write(&path("old"), b"old").unwrap();
    write(&path("grown"), b"grown").unwrap();
    rename(&path("grown"), &path("old")).unwrap();
    assert_eq!(fs::read(path("old")).unwrap(), b"grown");
    symlink(Path::new("../old"), &path("links/new")).unwrap();
    symlink(Path::new("../old"), &path("links/new")).unwrap();
    assert_eq!(fs::read(path("links/new")).unwrap(), b"grown");
    assert_eq!(names(&path("links")), ["new"]);
    // Where the name cannot be given, nothing is left behind.
    fs::create_dir(path("folder")).unwrap();
    write(&path("grown"), b"again").unwrap();
    assert!(rename(&path("grown"), &path("folder")).is_err());
    assert_eq!(names(dir.path()), ["folder", "links", "old"]);
}

#[test]
fn publishing_replaces_and_publish_new_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("LAST");
    write(&target, b"one").unwrap();
    write(&target, b"two").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"two");
    let mut late = AtomicFile::create(&target).unwrap();
    late.write_all(b"three").unwrap();
    assert!(!late.publish_new().unwrap());
    assert_eq!(fs::read(&target).unwrap(), b"two");
    let other = dir.path().join("FIRST");
    let mut first = AtomicFile::create(&other).unwrap();
    first.write_all(b"1").unwrap();
    assert!(first.publish_new().unwrap());
    assert_eq!(names(dir.path()), ["FIRST", "LAST"]);
}

#[test]
fn of_many_that_publish_at_once_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("cache.json");
    let publish = |i: u8| {
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(&[i]).unwrap();
        file.publish_new().unwrap()
    };
    let won: Vec<u8> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|i| (i, scope.spawn(move || publish(i)))).collect();
        threads.into_iter().filter_map(|(i, thread)| thread.join().unwrap().then_some(i)).collect()
    });
    assert_eq!(won.len(), 1);
    assert_eq!(fs::read(&target).unwrap(), won);
    assert_eq!(names(dir.path()), ["cache.json"]);
}

#[test]
fn dropping_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = AtomicFile::create(&dir.path().join("part")).unwrap();
    file.write_all(b"x").unwrap();
    let folder = AtomicDir::create(&dir.path().join("step")).unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    assert_eq!(names(dir.path()).len(), 2);
    drop(file);
    drop(folder);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_folder_appears_whole_and_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("step-000010");
    let folder = AtomicDir::create(&target).unwrap();
    let rival = AtomicDir::create(&target).unwrap();
    for file in ["model", "state"] {
        File::create_new(folder.path().join(file)).unwrap().write_all(file.as_bytes()).unwrap();
    }
    assert!(!target.exists());
    folder.publish().unwrap();
    assert_eq!(names(&target), ["model", "state"]);
    assert!(matches!(rival.publish(), Err(Error::AlreadyExists { path }) if path == target));
    assert!(matches!(AtomicDir::create(&target), Err(Error::AlreadyExists { path }) if path == target));
    assert_eq!(names(dir.path()), ["step-000010"]);
}

#[test]
fn only_the_stale_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("part-00000.parquet");
    let living = AtomicFile::create(&target).unwrap();
    let living_dir = AtomicDir::create(&target).unwrap();
    // What a killed process leaves: the name without the lock.
    for stale in [".part-00000.parquet.0123456789abcdef.tmp", ".part-00001.parquet.0123456789abcdef.tmp"] {
        File::create_new(dir.path().join(stale)).unwrap();
    }
    let stale_dir = dir.path().join(".part-00000.parquet.fedcba9876543210.tmp");
    fs::create_dir_all(stale_dir.join("inner")).unwrap();
    assert_eq!(remove_stale(&target).unwrap(), 2);
    assert_eq!(names(dir.path()).len(), 3, "the living two and the other part's stay");
    living.publish().unwrap();
    drop(living_dir);
    assert_eq!(names(dir.path()), [".part-00001.parquet.0123456789abcdef.tmp", "part-00000.parquet"]);
    assert_eq!(remove_stale(&dir.path().join("no/such/file")).unwrap(), 0);
    // All that is left in the folder, and nothing of the living or of others.
    let living = AtomicFile::create(&target).unwrap();
    File::create_new(dir.path().join(".notes.tmp")).unwrap();
    assert_eq!(remove_all_stale(dir.path()).unwrap(), 1);
    assert_eq!(names(dir.path()).len(), 3);
    living.publish().unwrap();
    assert_eq!(names(dir.path()), [".notes.tmp", "part-00000.parquet"]);
}

#[test]
fn temporary_names_are_told_from_others() {
    assert_eq!(target_name(".a.json.0123456789abcdef.tmp"), Some("a.json"));
    for other in [
        "a.json",
        ".a.json",
        ".a.json.tmp",
        ".a.0123456789abcdeg.tmp",
        "a.0123456789abcdef.tmp",
        "..0123456789abcdef.tmp",
    ] {
        assert_eq!(target_name(other), None, "{other}");
    }
}

#[test]
fn a_full_disk_is_told_apart() {
    // /dev/full answers every write with "no space left".
    let Ok(mut full) = OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    let error = full.write_all(b"x").unwrap_err();
    let error = Error::io("write", Path::new("c/part-00000.parquet"), error);
    assert!(matches!(&error, Error::DiskFull { path } if path.ends_with("part-00000.parquet")));
    assert!(error.is_io() && error.to_string().contains("c/part-00000.parquet"), "{error}");
}
