//! Archives that were joined, splits that lie together, and shards of one name.

use super::parquet::{image_column, table};
use super::tar::archive;
use super::*;

fn rows(n: usize) -> Vec<u8> {
    table(vec![("image", image_column(vec![Some(b"a"); n]))], None)
}

#[test]
fn joined_archives_are_read_to_the_end() {
    let root = scratch();
    let [a, b, c] = ["a", "b", "c"].map(|name| archive(&[(&format!("{name}.jpg"), name.as_bytes())]));
    let members = |archive: &[u8]| archive[..1024].to_vec();
    let zeros = |blocks: usize| vec![0; 512 * blocks];
    for (name, parts) in [
        ("joined", vec![a.clone(), b.clone(), c.clone()]),
        ("a lone zero block", vec![members(&a), zeros(1), members(&b), zeros(1), c.clone()]),
        ("no mark between", vec![members(&a), members(&b), c.clone()]),
        ("tape records of 10 KiB", vec![members(&a), zeros(18), members(&b), zeros(18), c.clone(), zeros(16)]),
        ("zeros in front", vec![zeros(2), a.clone(), b.clone(), c.clone()]),
        ("zeros of no whole block behind", vec![a.clone(), b.clone(), c.clone(), vec![0; 100]]),
    ] {
        let source = open(write(root.path().join("s.tar"), parts.concat())).unwrap();
        assert_eq!(keys(&source), ["s.tar/a", "s.tar/b", "s.tar/c"], "{name}");
        assert_eq!(source.findings(), &Findings::default(), "{name}");
        check_reading(&source, &[b"a", b"b", b"c"]);
    }
}

#[test]
fn what_is_no_archive_behind_the_end_is_named() {
    let root = scratch();
    let a = archive(&[("a.jpg", b"a")]);
    for junk in [&b"not a tar"[..], &b"not a tar".repeat(200), b"\x1f\x8b compressed", &JUNK_BLOCK] {
        let source = open(write(root.path().join("s.tar"), [&a[..], junk].concat())).unwrap();
        assert_eq!(keys(&source), ["s.tar/a"]);
        let note = format!("s.tar: the {} bytes after the end of the archive, from byte 2048 on", junk.len());
        assert!(source.findings().notes[0].contains(&note), "{:?}", source.findings().notes);
    }
    // Members behind it would be lost, as would those of an archive that is cut or damaged.
    let b = archive(&[("b.jpg", &[1; 2000])]);
    match open(write(root.path().join("s.tar"), [&a[..], &JUNK_BLOCK, &b].concat())) {
        Err(SourceError::CorruptTar { detail, .. }) => {
            assert!(detail.contains("bytes 2048 to 2560 are not a tar archive, and members follow"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
    for cut in [600, 1500, 2560] {
        match open(write(root.path().join("s.tar"), [&a[..], &b[..cut]].concat())) {
            Err(SourceError::TruncatedTar { .. }) => {}
            other => panic!("{cut}: {other:?}"),
        }
    }
    // If the header after the first archive is damaged, the second archive would be lost silently.
    let mut damaged = b;
    damaged[3] ^= 1;
    damaged.extend(archive(&[("c.jpg", b"c")]));
    match open(write(root.path().join("s.tar"), [&a[..], &damaged].concat())) {
        Err(SourceError::CorruptTar { detail, .. }) => {
            assert!(detail.contains("members follow"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
}

const JUNK_BLOCK: [u8; 512] = [b'x'; 512];

#[test]
fn a_compressed_tar_says_so() {
    let root = scratch();
    for (magic, name) in [
        (&b"\x1f\x8b\x08"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\x03\x04", "zip"),
    ] {
        let bytes = [magic, &[7; 600]].concat();
        match open(write(root.path().join("s.tar"), bytes)) {
            Err(e @ SourceError::CorruptTar { .. }) => assert!(e.to_string().contains(name), "{e}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn splits_in_one_folder_are_asked_about() {
    let refused = |root: &Path| match open(root) {
        Err(e @ SourceError::Splits { .. }) => e.to_string().replace(root.to_str().unwrap(), "ROOT"),
        other => panic!("{other:?}"),
    };
    // Parquet, as a hub's snapshot has it.
    let root = scratch();
    for name in ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"] {
        write(root.path().join(format!("{name}.parquet")), rows(1));
    }
    let text = refused(root.path());
    assert!(
        text.contains("test (1 file), train (2 files)")
            && text.contains("`ROOT/test-00000-of-00001.parquet`, `ROOT/train-*-of-00002.parquet`")
            && text.contains("`ROOT/*.parquet` for all"),
        "{text}"
    );
    assert_eq!(open(root.path().join("train-*.parquet")).unwrap().len(), 2);
    assert!(open(root.path().join("train-*.parquet")).unwrap().findings().notes.is_empty());
    // All of them, if they are asked for; and it is said.
    let all = open(root.path().join("*.parquet")).unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.findings().notes[0].contains("several splits as one data set: test (1 file), train (2 files)"));

    // Tars.
    let root = scratch();
    for name in ["imagenet-train-000", "imagenet-train-001", "imagenet-val-000"] {
        write(root.path().join(format!("{name}.tar")), archive(&[("a.jpg", b"a")]));
    }
    let text = refused(root.path());
    assert!(text.contains("`ROOT/imagenet-train-*.tar`, `ROOT/imagenet-val-000.tar`"), "{text}");

    // Folders, as ImageNet, COCO and MVTec have them.
    for (files, expected) in [
        (&["train/n01/a.jpg", "val/n01/b.jpg"][..], "`ROOT/train`, `ROOT/val`"),
        (&["Training/a.jpg", "Testing/b.jpg"], "`ROOT/Testing`, `ROOT/Training`"),
        (&["train2017/a.jpg", "val2017/b.jpg", "annotations/c.json"], "`ROOT/train2017`, `ROOT/val2017`"),
        (&["images/train/a.jpg", "images/test/b.jpg"], "`ROOT::*/test/*`, `ROOT::*/train/*`"),
        (&["cap/train/good/a.png", "cap/test/bad/b.png"], "`ROOT::*/test/*`, `ROOT::*/train/*`"),
    ] {
        let root = scratch();
        for file in files {
            write(root.path().join(file), "x");
        }
        let text = refused(root.path());
        assert!(text.contains(expected) && text.contains("`ROOT::*` for all"), "{text}");
        // What the message offers opens.
        assert_eq!(open(root.path().join("").to_str().unwrap().to_owned() + "::*").unwrap().len(), 2);
        for choice in expected.split("`, `").map(|choice| choice.trim_matches('`')) {
            let choice = choice.replace("ROOT", root.path().to_str().unwrap());
            assert_eq!(ImageSource::open(&choice).unwrap().len(), 1, "{choice}");
        }
    }
}

#[test]
fn classes_that_sound_like_splits_are_classes() {
    for files in [
        &["train/a.jpg", "car/b.jpg"][..],
        &["train station/a.jpg", "test tube/b.jpg"],
        &["train/a.jpg", "test/notes.txt"],
        &["valley/a.jpg", "trainer/b.jpg"],
    ] {
        let root = scratch();
        for file in files {
            write(root.path().join(file), "x");
        }
        assert!(open(root.path()).is_ok(), "{files:?}");
    }
}

#[test]
fn shards_of_one_name_get_their_folders_into_their_keys() {
    let root = scratch();
    let at = |name: &str| root.path().join(name);
    for (i, folder) in ["x/block_0", "x/block_1"].iter().enumerate() {
        write(at(&format!("{folder}/part_8.tar")), archive(&[("000.jpg", &[i as u8])]));
        write(at(&format!("{folder}/0000.parquet")), rows(2));
        write(at(&format!("{folder}/only_{i}.tar")), archive(&[("000.jpg", b"a")]));
    }
    for spec in ["x/{block_0,block_1}/part_8.tar", "x/*/part_8.tar", "*/block_?/part_8.tar"] {
        let source = open(at(spec)).unwrap();
        assert_eq!(keys(&source), ["block_0/part_8.tar/000", "block_1/part_8.tar/000"], "{spec}");
        check_reading(&source, &[&[0], &[1]]);
    }
    let source = open(at("*/*/0000.parquet")).unwrap();
    assert_eq!(
        keys(&source),
        ["block_0/0000.parquet/0", "block_0/0000.parquet/1", "block_1/0000.parquet/0", "block_1/0000.parquet/1"]
    );
    // Only the shards whose keys would clash.
    let source = open(at("x/*/*.tar")).unwrap();
    assert_eq!(keys(&source), ["only_0.tar/000", "block_0/part_8.tar/000", "only_1.tar/000", "block_1/part_8.tar/000"]);
    // Keys that were unique stay as caches have them, whatever their shards are called.
    write(at("y/a/part_8.tar"), archive(&[("000.jpg", b"a")]));
    write(at("y/b/part_8.tar"), archive(&[("001.jpg", b"b")]));
    assert_eq!(keys(&open(at("y/*/part_8.tar")).unwrap()), ["part_8.tar/000", "part_8.tar/001"]);
    // One file by two ways is one file.
    std::os::unix::fs::symlink(at("y/a"), at("y/c")).unwrap();
    assert!(matches!(open(at("y/{a,c}/part_8.tar")), Err(SourceError::DuplicateKey { .. })));
}

#[test]
fn files_of_several_splits_in_folders_are_said() {
    let root = scratch();
    for split in ["train", "test"] {
        write(root.path().join(format!("default/{split}/0000.parquet")), rows(1));
    }
    let source = open(root.path().join("default/*/0000.parquet")).unwrap();
    assert_eq!(keys(&source), ["test/0000.parquet/0", "train/0000.parquet/0"]);
    assert!(source.findings().notes[0].contains("test (1 file), train (1 file)"));
}
