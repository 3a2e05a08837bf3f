//! Every naming that writers of WebDataset shards make.

use super::tar::archive;
use super::*;

fn opened(members: &[(&str, &[u8])]) -> (tempfile::TempDir, ImageSource) {
    let root = scratch();
    let source = open(write(root.path().join("s.tar"), archive(members))).unwrap();
    (root, source)
}

#[test]
fn names_with_dots_are_images() {
    let names = [
        ("000000012.jpg", "000000012"),
        ("plain.JPEG", "plain"),
        ("track 22.05.jpg", "track 22.05"),
        ("track 22.06.jpg", "track 22.06"),
        ("photo.v2.jpg", "photo.v2"),
        ("IMG.2024.01.02.png", "IMG.2024.01.02"),
        ("v1.0/data.set/000.jpg", "v1.0/data.set/000"),
        ("v1.0/data.set/a.b.webp", "v1.0/data.set/a.b"),
        ("pair.left.jpg", "pair.left"),
        ("pair.right.jpg", "pair.right"),
        ("pair.depth.png", "pair.depth"),
        ("http:||site.org|a.jpg", "http:||site"),
        ("ends.with..jpg", "ends.with."),
        ("x.jpg.jpg", "x.jpg"),
        ("./lead/ing.tif", "lead/ing"),
    ];
    let members: Vec<_> = names.iter().map(|(name, _)| (*name, name.as_bytes())).collect();
    let (_root, source) = opened(&members);
    let expected: Vec<_> = names
        .iter()
        .map(|(name, key)| match *name {
            // Its last dot is that of the extension.
            "http:||site.org|a.jpg" => "s.tar/http:||site.org|a".to_owned(),
            _ => format!("s.tar/{key}"),
        })
        .collect();
    assert_eq!(keys(&source), expected);
    assert_eq!(source.findings(), &Findings::default());
    check_reading(&source, &members.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>());
}

#[test]
fn a_label_belongs_to_its_image_or_to_the_whole_sample() {
    let (_root, source) = opened(&[
        ("track 22.05.jpg", b""),
        ("track 22.05.cls", b"1"),
        ("track 22.06.jpg", b""),
        ("track 22.cls", b"2"),
        ("pair.left.jpg", b""),
        ("pair.right.jpg", b""),
        ("pair.cls", b"3"),
        ("plain.cls.txt", b"4\n"),
        ("plain.jpg", b""),
        ("json.jpg", b""),
        ("json.cls.json", b"5"),
        ("upper.JPG", b""),
        ("upper.CLS", b" 6 \r\n"),
        ("class.jpg", b""),
        ("class.class", b"7.0"),
        ("label.jpg", b""),
        ("label.label", b"\"8\""),
        // The more telling name counts.
        ("both.jpg", b""),
        ("both.label", b"0"),
        ("both.cls", b"9"),
        ("none.jpg", b""),
    ]);
    assert_eq!(labels(&source), [1, 2, 3, 3, 4, 5, 6, 7, 8, 9].map(Some).into_iter().chain([None]).collect::<Vec<_>>());
    assert!(source.label_names().is_empty());
    let [note] = &source.findings().notes[..] else { panic!("{:?}", source.findings()) };
    assert!(note.contains("and not from `.label`"), "{note}");
}

#[test]
fn labels_that_are_names_are_numbered_by_their_order() {
    let (root, source) = opened(&[
        ("1.jpg", b""),
        ("1.cls", b"dog\n"),
        ("2.jpg", b""),
        ("2.cls", b"\"cat\""),
        ("3.jpg", b""),
        ("3.cls", " Gürteltier ".as_bytes()),
        ("4.jpg", b""),
    ]);
    assert_eq!(source.label_names(), ["Gürteltier", "cat", "dog"]);
    assert_eq!(labels(&source), [Some(2), Some(1), Some(0), None]);

    // Numbers in one shard and names in another cannot be one numbering.
    write(root.path().join("t.tar"), archive(&[("1.jpg", b""), ("1.cls", b"0")]));
    match open(root.path().join("?.tar")) {
        Err(e @ SourceError::MixedLabels { .. }) => {
            let text = e.to_string();
            assert!(text.contains("t.tar/1.cls") && text.contains("s.tar/1.cls"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// `.label` and `.class` may hold anything; content that is not a class is noted and not an error.
#[test]
fn other_members_that_hold_no_class_are_named() {
    let (_root, source) = opened(&[("1.jpg", b""), ("1.label", b"\x00\xff\x01"), ("2.jpg", b""), ("2.class", b"a\nb")]);
    assert_eq!(labels(&source), [None; 2]);
    let notes = source.findings().notes.join("\n");
    assert!(notes.contains("members .label are not read") && notes.contains("members .class are not read"), "{notes}");
}

#[test]
fn masks_beside_an_image_are_skipped_and_named() {
    let members: [(&str, &[u8]); 5] = [
        ("1.jpg", b"image"),
        ("1.seg.png", b"mask"),
        ("1.depth.png", b"depth"),
        ("2.left.jpg", b"left"),
        ("2.seg.png", b"no image of its own is beside it"),
    ];
    let (root, source) = opened(&members);
    assert_eq!(keys(&source), ["s.tar/1", "s.tar/2.left", "s.tar/2.seg"]);
    let findings = source.findings();
    assert_eq!(findings.skipped_line(), "2: 2 further image of a sample");
    assert!(findings.notes[0].contains("`::*.seg.png` behind the source"), "{:?}", findings.notes);

    let select = |pattern: &str| {
        let source = open(root.path().join(format!("s.tar::{pattern}"))).unwrap();
        assert_eq!(source.findings(), &Findings::default());
        keys(&source).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(select("*.seg.png"), ["s.tar/1.seg", "s.tar/2.seg"]);
    assert_eq!(select("*.jpg"), ["s.tar/1", "s.tar/2.left"]);
    assert_eq!(select("*").len(), 5);
}

/// Whether `1.png` is a second photo or a mask of `1.jpg` cannot be known.
#[test]
fn two_images_that_differ_in_their_extension_are_asked_about() {
    let root = scratch();
    for [first, second] in [["1.jpg", "1.png"], ["a/1.v2.png", "a/1.v2.jpg"]] {
        let path = write(root.path().join("s.tar"), archive(&[(first, b"a"), (second, b"b")]));
        match open(&path) {
            Err(e @ SourceError::SeveralImages { .. }) => {
                let text = e.to_string();
                assert!(text.contains(first) && text.contains(second) && text.contains("s.tar::*`"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    write(root.path().join("s.tar"), archive(&[("1.jpg", b"a"), ("1.png", b"b"), ("2.png", b"c")]));
    let all = open(root.path().join("s.tar::*")).unwrap();
    assert_eq!(keys(&all), ["s.tar/1.jpg", "s.tar/1.png", "s.tar/2"]);
    check_reading(&all, &[b"a", b"b", b"c"]);
    let one = open(root.path().join("s.tar::*.jpg")).unwrap();
    assert_eq!(keys(&one), ["s.tar/1"]);
}
