use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn class_folders_at_any_depth_with_links_and_clutter() {
    let root = scratch();
    let at = |name: &str| root.path().join(name);
    write(at("zebra/z.JPG"), "z");
    write(at("ant/deep/er/a.png"), "a");
    write(at("ant/b.webp"), "b");
    write(at("empty/readme.txt"), "no image");
    write(at(".hidden/x.jpg"), "x");
    write(at("ant/.x.jpg"), "x");
    write(at("loose.gif"), "loose");
    write(at("ant/noextension"), "x");
    let elsewhere = scratch();
    write(elsewhere.path().join("l.tiff"), "linked folder");
    symlink(elsewhere.path(), at("linked")).unwrap();
    symlink(at("zebra/z.JPG"), at("ant/link.jpg")).unwrap();
    symlink(at("gone"), at("ant/leads-nowhere")).unwrap();

    let source = open(root.path()).unwrap();
    assert_eq!(source.kind(), "folder");
    assert_eq!(
        keys(&source),
        ["ant/b.webp", "ant/deep/er/a.png", "ant/link.jpg", "linked/l.tiff", "loose.gif", "zebra/z.JPG"]
    );
    assert_eq!(source.label_names(), ["ant", "empty", "linked", "zebra"]);
    assert_eq!(labels(&source), [Some(0), Some(0), Some(0), Some(2), None, Some(3)]);
    check_reading(&source, &[b"b", b"a", b"z", b"linked folder", b"loose", b"z"]);
}

/// Bytewise, as the digest and the sample numbers depend on it: `.` and `-` come before `/`, and capitals before small letters.
#[test]
fn the_order_is_that_of_the_bytes() {
    let root = scratch();
    for name in ["a/x.jpg", "a-b/x.jpg", "a.b/x.jpg", "B/x.jpg", "ä/x.jpg"] {
        write(root.path().join(name), "");
    }
    let source = open(root.path()).unwrap();
    assert_eq!(keys(&source), ["B/x.jpg", "a-b/x.jpg", "a.b/x.jpg", "a/x.jpg", "ä/x.jpg"]);
    // The folders alone are in another order than the paths, and the labels go by the folders.
    assert_eq!(source.label_names(), ["B", "a", "a-b", "a.b", "ä"]);
    assert_eq!(labels(&source), [Some(0), Some(2), Some(3), Some(1), Some(4)]);
}

#[test]
fn a_folder_without_images_is_refused() {
    let root = scratch();
    write(root.path().join("class/notes.txt"), "");
    match open(root.path()) {
        Err(e @ SourceError::NoImages { .. }) => {
            assert!(e.to_string().contains("jpg, jpeg, jpe, jfif, png"))
        }
        other => panic!("{other:?}"),
    }
}

/// The user sees all bad entries at once: a loop, a link to nothing, a name that is not text.
#[test]
fn entries_that_cannot_be_used_are_refused_together() {
    let root = scratch();
    write(root.path().join("class/a.jpg"), "");
    let (up, gone) = (root.path().join("class/up"), root.path().join("class/b.jpg"));
    symlink(root.path(), &up).unwrap();
    symlink(root.path().join("gone"), &gone).unwrap();
    write(root.path().join(std::ffi::OsStr::from_bytes(b"class/\xff.jpg")), "");
    let Err(error @ SourceError::BadEntries { .. }) = open(root.path()) else { panic!("three entries are bad") };
    let text = error.to_string();
    assert!(text.contains("3 entries cannot be used"), "{text}");
    for path in [&up, &gone] {
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
    assert!(text.contains("not valid UTF-8") && text.contains("os error 2"), "{text}");
    let SourceError::BadEntries { first, .. } = error else { unreachable!("matched above") };
    let mut kinds: Vec<_> = first
        .iter()
        .map(|error| match error {
            SourceError::LinkLoop { path } if *path == up => "loop",
            SourceError::Io { path, .. } if *path == gone => "gone",
            SourceError::NotUtf8 { .. } => "name",
            other => panic!("{other}"),
        })
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["gone", "loop", "name"]);
}

#[test]
fn a_long_list_of_bad_entries_is_cut() {
    let root = scratch();
    for i in 0..25 {
        symlink(root.path().join("gone"), root.path().join(format!("{i}.jpg"))).unwrap();
    }
    let text = open(root.path()).err().unwrap().to_string();
    assert!(text.contains("25 entries") && text.contains("and 15 more"), "{text}");
}

#[test]
fn a_file_that_vanished_is_the_disks_fault_and_a_giant_is_its_own() {
    let root = scratch();
    let gone = write(root.path().join("class/a.jpg"), "a");
    let giant = write(root.path().join("class/b.jpg"), "b");
    let source = open(root.path()).unwrap();
    fs::remove_file(&gone).unwrap();
    match source.read(0) {
        Err(e @ SourceError::Io { .. }) => {
            assert!(!e.is_bad_record() && e.to_string().contains("a.jpg"))
        }
        other => panic!("{other:?}"),
    }
    fs::OpenOptions::new().write(true).open(&giant).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
    match source.read(1) {
        Err(e @ SourceError::RecordTooLarge { .. }) => {
            assert!(e.is_bad_record() && e.to_string().contains("b.jpg"))
        }
        other => panic!("{other:?}"),
    }
}
