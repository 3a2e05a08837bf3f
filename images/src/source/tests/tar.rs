use ::tar::{Builder, EntryType, Header};

use super::*;

/// A tar file with these members.
pub(super) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn members_are_grouped_by_key() {
    let root = scratch();
    let long = format!("{}/long.jpg", "folder/".repeat(40));
    let path = write(
        root.path().join("s.tar"),
        archive(&[
            ("./000.cls", b" 7\n"),
            ("./000.jpg", b"first"),
            ("000.json", b"{}"),
            ("sub/001.PNG", b"second"),
            ("sub/001.txt", b"a caption"),
            ("only.cls", b"3"),
            (".hidden.jpg", b"skipped"),
            (&long, b"third"),
            // Of another key than sub/001.
            ("001.cls", b"9"),
        ]),
    );
    let source = open(&path).unwrap();
    assert_eq!(source.kind(), "tar");
    let long = format!("s.tar/{}/long", "folder/".repeat(40));
    assert_eq!(keys(&source), ["s.tar/000", "s.tar/sub/001", long.as_str()]);
    assert_eq!(labels(&source), [Some(7), None, None]);
    assert!(source.label_names().is_empty());
    check_reading(&source, &[b"first", b"second", b"third"]);
}

#[test]
fn shards_by_glob_by_braces_and_by_folder_are_in_order() {
    let root = scratch();
    for i in [2, 0, 1, 10] {
        let (key, label) = (format!("{i}.jpg"), format!("{i}.cls"));
        write(
            root.path().join(format!("s-{i:03}.tar")),
            archive(&[(&key, b"image"), (&label, i.to_string().as_bytes())]),
        );
    }
    let sorted = ["s-000.tar/0", "s-001.tar/1", "s-002.tar/2", "s-010.tar/10"];
    for spec in [root.path().join("s-*.tar"), root.path().to_path_buf()] {
        let source = open(&spec).unwrap();
        assert_eq!(keys(&source), sorted);
        assert_eq!(labels(&source), [Some(0), Some(1), Some(2), Some(10)]);
    }
    assert_eq!(keys(&open(root.path().join("s-{000..002}.tar")).unwrap()), sorted[..3]);
    assert_eq!(keys(&open(root.path().join("s-{010,001}.tar")).unwrap()), [sorted[3], sorted[1]]);
    assert_eq!(keys(&open(root.path().join("s-00[12].tar")).unwrap()), sorted[1..3]);
    // Beside a class folder, shards are clutter.
    write(root.path().join("class/a.jpg"), "a");
    let folder = open(root.path()).unwrap();
    assert_eq!((folder.kind(), folder.findings().skipped.len()), ("folder", 4));
    assert!(folder.findings().notes[0].contains("4 .tar or .parquet files beside them"));
    let shards = open(root.path().join("s-*.tar")).unwrap();
    assert_eq!(shards.findings(), &Findings::default());
}

#[test]
fn more_shards_than_may_be_open_at_once() {
    let root = scratch();
    let n = 150;
    for i in 0..n {
        write(root.path().join(format!("{i:03}.tar")), archive(&[("a.jpg", format!("image {i}").as_bytes())]));
    }
    let source = open(root.path()).unwrap();
    let expected: Vec<String> = (0..n).map(|i| format!("image {i}")).collect();
    check_reading(&source, &expected.iter().map(|text| text.as_bytes()).collect::<Vec<_>>());
}

#[test]
fn two_images_of_one_key_are_refused_by_name() {
    let root = scratch();
    let refused = |members: &[(&str, &[u8])]| match open(write(root.path().join("s.tar"), archive(members))) {
        Err(SourceError::DuplicateKey { key, first, second }) => {
            assert_eq!(key, "s.tar/1");
            assert!(first.ends_with("s.tar at byte 512") && second.contains("s.tar at byte "), "{first}, {second}");
        }
        other => panic!("{other:?}"),
    };
    refused(&[("1.jpg", b"a"), ("2.jpg", b"b"), ("1.jpg", b"c")]);
    // The same shard twice.
    let path = root.path().join("t.tar");
    write(path.clone(), archive(&[("1.jpg", b"a")]));
    let twice = format!("{0}/{{t,t}}.tar", root.path().display());
    assert!(matches!(ImageSource::open(&twice), Err(SourceError::DuplicateKey { .. })));
}

/// Cut anywhere, in a header, in a member, between two members, or in the zeros at the end, a shard is refused.
#[test]
fn a_shard_cut_anywhere_is_refused_by_name() {
    let whole = archive(&[("1.jpg", &[1; 700]), ("1.cls", b"5"), ("2.jpg", &[2; 100])]);
    let end_of_members = whole.len() - 1024;
    let root = scratch();
    for end in (0..end_of_members + 512).step_by(100).chain([512, 1024, 2048, 3072, end_of_members]) {
        let path = write(root.path().join("cut.tar"), &whole[..end]);
        match open(&path) {
            Err(e @ SourceError::TruncatedTar { .. }) => {
                assert!(e.to_string().contains("cut.tar is truncated"), "{e}")
            }
            other => panic!("cut to {end} of {}: {other:?}", whole.len()),
        }
    }
    assert_eq!(open(write(root.path().join("whole.tar"), &whole)).unwrap().len(), 2);
}

#[test]
fn a_shard_cut_after_opening_is_refused_when_read() {
    let root = scratch();
    let path = write(root.path().join("s.tar"), archive(&[("1.jpg", &[1; 5000])]));
    let source = open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    match source.read(0) {
        Err(e @ SourceError::TruncatedTar { .. }) => {
            assert!(!e.is_bad_record() && e.to_string().contains("`s.tar/1`"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let root = scratch();
    let refused = |bytes: &[u8]| match open(write(root.path().join("s.tar"), bytes)) {
        Err(SourceError::CorruptTar { detail, .. }) => detail,
        other => panic!("{other:?}"),
    };
    // Whatever its length is.
    for len in [512, 1000, 4096] {
        let junk = refused(&b"no archive at all ".repeat(300)[..len]);
        assert!(junk.contains("does not begin with a header"), "{junk}");
    }
    let mut damaged = archive(&[("1.jpg", b"a"), ("2.jpg", b"b")]);
    damaged[1024 + 3] ^= 1;
    assert!(refused(&damaged).contains("checksum"));
    assert!(refused(&archive(&[("1.jpg", b"a"), ("1.cls", b"1"), ("1.cls", b"2")])).contains("two members `1.cls`"));
    for kind in [EntryType::Fifo, EntryType::Char, EntryType::Block] {
        assert!(refused(&with_special(kind, "1.jpg")).contains("`1.jpg` is not a plain file"));
    }
    for kind in [EntryType::Symlink, EntryType::Link] {
        let said = refused(&with_special(kind, "0.cls"));
        assert!(said.contains("`0.cls` is a link to a label") && said.contains("--dereference"));
    }
}

/// `0.jpg`, and a member `name` of another kind that leads to it.
fn with_special(kind: EntryType, name: &str) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_cksum();
    builder.append_data(&mut header, "0.jpg", &b"a"[..]).unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    builder.append_link(&mut header, name, "0.jpg").unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn links_to_images_are_counted_and_not_followed() {
    let root = scratch();
    for kind in [EntryType::Symlink, EntryType::Link] {
        let path = write(root.path().join("s.tar"), with_special(kind, "1.jpg"));
        let source = open(path).unwrap();
        assert_eq!(source.len(), 1);
        assert_eq!(source.findings().skipped_line(), "1: 1 link, not followed");
        let path = write(root.path().join("s.tar"), with_special(kind, "1.txt"));
        assert_eq!(open(path).unwrap().findings().skipped_count(), 0);
    }
}

#[test]
fn labels_that_are_no_classes_are_refused() {
    let root = scratch();
    for bad in ["", " \n", "-1", "1.5", "99999999999", "[1]", "{\"label\": 1}", "one\ntwo"] {
        match open(write(root.path().join("s.tar"), archive(&[("1.jpg", b"a"), ("1.cls", bad.as_bytes())]))) {
            Err(e @ SourceError::BadLabel { .. }) => {
                assert!(e.to_string().contains("s.tar, 1.cls: label"), "{e}")
            }
            other => panic!("{bad}: {other:?}"),
        }
    }
}

#[test]
fn a_member_name_that_is_not_text_is_refused() {
    let mut bytes = archive(&[("x.jpg", b"a")]);
    bytes[0] = 0xFF;
    let sum: u32 =
        bytes[..512].iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) }).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let root = scratch();
    assert!(matches!(open(write(root.path().join("s.tar"), bytes)), Err(SourceError::NotUtf8 { .. })));
}

#[test]
fn a_shard_without_images_is_refused() {
    let root = scratch();
    let path = write(root.path().join("s.tar"), archive(&[("1.txt", b"a"), ("1.cls", b"1")]));
    assert!(matches!(open(path), Err(SourceError::NoImages { .. })));
}
