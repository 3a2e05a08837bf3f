//! No label is passed by, and no choice between two is made, in silence.

use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, StringArray};

use super::parquet::{image_column, label_column, table};
use super::tar::archive;
use super::*;

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn number() -> ArrayRef {
    Arc::new(Int64Array::from(vec![1, 0]))
}

fn with_columns(columns: Vec<(&str, ArrayRef)>, note: Option<&str>, within: &str) -> ImageSource {
    let root = scratch();
    let images = image_column(vec![Some(b"a"), Some(b"b")]);
    let columns = [("image", images)].into_iter().chain(columns).collect();
    write(root.path().join("t.parquet"), table(columns, note));
    open(root.path().join(format!("t.parquet{within}"))).unwrap()
}

fn with_members(members: &[(&str, &[u8])], within: &str) -> ImageSource {
    let root = scratch();
    write(root.path().join("s.tar"), archive(members));
    open(root.path().join(format!("s.tar{within}"))).unwrap()
}

fn notes(source: &ImageSource) -> String {
    source.findings().notes.join("\n")
}

#[test]
fn columns_that_could_be_labels_are_named_and_can_be_chosen() {
    for name in ["y", "label_idx", "species", "classId", "wnid", "anything"] {
        for column in [number(), text(&["fox", "ant"])] {
            let source = with_columns(vec![(name, column.clone())], None, "");
            assert_eq!(labels(&source), [None; 2], "{name}");
            let setting = format!("`::label={name}`");
            assert!(notes(&source).contains(&setting), "{}", notes(&source));
            let chosen = with_columns(vec![(name, column)], None, &format!("::label={name}"));
            assert_eq!(labels(&chosen), [Some(1), Some(0)], "{name}");
            assert_eq!(notes(&chosen), "");
        }
    }
    let both = with_columns(vec![("y", number())], None, "::image,label=y");
    assert_eq!(labels(&both), [Some(1), Some(0)]);
}

#[test]
fn of_two_label_columns_the_other_is_named() {
    for (taken, other, column) in [
        ("label", "category", text(&["fox", "ant"])),
        ("fine_label", "coarse_label", number()),
        ("label", "class", number()),
        ("label", "species", number()),
    ] {
        let columns = || vec![(taken, column.clone()), (other, number())];
        let source = with_columns(columns(), None, "");
        let said = notes(&source);
        let chosen = with_columns(columns(), None, &format!("::label={other}"));
        assert_eq!(labels(&chosen), [Some(1), Some(0)]);
        assert!(
            said.contains(&format!("`{taken}` and not from `{other}`")) && said.contains(&format!("`::label={other}`")),
            "{said}"
        );
    }
}

#[test]
fn members_that_could_be_labels_are_named_and_can_be_chosen() {
    for field in ["target", "y", "species", "idx"] {
        let member = format!("1.{field}");
        let members: &[(&str, &[u8])] = &[("1.jpg", b"a"), (&member, b"7\n")];
        let source = with_members(members, "");
        assert_eq!(labels(&source), [None]);
        let said = notes(&source);
        assert!(said.contains(&format!("`::label={field}`")), "{said}");
        for within in [format!("::label={field}"), format!("::*.jpg,label={field}")] {
            assert_eq!(labels(&with_members(members, &within)), [Some(7)]);
        }
    }
    // A name that reaches over the image's own extension, in any case.
    let whole = with_members(&[("x/g.JPG", b"a"), ("x/g.JPG.cls", b"3")], "");
    assert_eq!((labels(&whole), notes(&whole).len()), (vec![Some(3)], 0));
    let other = with_members(&[("x/g.JPG", b"a"), ("x/g.jpg.cls", b"3")], "");
    assert!(
        notes(&other).contains("belongs to no image of the data set") && notes(&other).contains("`s.tar/x/g.jpg.cls`")
    );
}

#[test]
fn of_two_label_members_the_other_is_named() {
    for (taken, other) in [("cls", "label"), ("cls", "target"), ("class", "label")] {
        let (one, two) = (format!("1.{taken}"), format!("1.{other}"));
        for swap in [false, true] {
            let mut members: Vec<(&str, &[u8])> = vec![("1.jpg", b"a"), (&one, b"1"), (&two, b"2")];
            if swap {
                members.swap(1, 2);
            }
            let source = with_members(&members, "");
            assert_eq!(labels(&source), [Some(1)]);
            let said = notes(&source);
            assert!(
                said.contains(&format!("`.{taken}` and not from `.{other}`"))
                    && said.contains(&format!("`::label={other}`")),
                "{said}"
            );
            let chosen = with_members(&members, &format!("::label={other}"));
            assert_eq!(labels(&chosen), [Some(2)]);
        }
    }
}

#[test]
fn a_label_in_the_path_is_named() {
    for folder in ["label=cat", "species=fox/year=2020", "y=3"] {
        let root = scratch();
        let columns = vec![("image", image_column(vec![Some(b"a")]))];
        let path = root.path().join(folder).join("t.parquet");
        let source = open(write(path, table(columns, None))).unwrap();
        let said = notes(&source);
        assert!(said.contains("around the file is not read as a label"), "{said}");
    }
}

#[test]
fn spaces_around_a_name_do_not_count_in_any_source() {
    let spaced = [" tabby cat", "tabby cat\t"];
    let table = with_columns(vec![("label", text(&spaced))], None, "");
    let tar = with_members(
        &[("1.jpg", b"a"), ("1.cls", spaced[0].as_bytes()), ("2.jpg", b"b"), ("2.cls", spaced[1].as_bytes())],
        "",
    );
    for source in [table, tar] {
        assert_eq!(source.label_names(), ["tabby cat"]);
        assert_eq!(labels(&source), [Some(0); 2]);
    }
}

#[test]
fn classes_that_differ_in_case_or_spaces_alone_are_named() {
    let table = with_columns(vec![("label", text(&["Cat", "cat"]))], None, "");
    let tar = with_members(&[("1.jpg", b"a"), ("1.cls", b"Cat"), ("2.jpg", b"b"), ("2.cls", b"cat")], "");
    let root = scratch();
    write(root.path().join("Cat/1.jpg"), "a");
    write(root.path().join("cat/1.jpg"), "a");
    for source in [table, tar, open(root.path()).unwrap()] {
        let said = notes(&source);
        assert_eq!(source.label_names().len(), 2);
        assert!(said.contains("\"Cat\" and \"cat\""), "{said}");
    }
    let spaces = with_columns(vec![("label", text(&["red fox", "red  fox"]))], None, "");
    assert!(notes(&spaces).contains("\"red  fox\" and \"red fox\""));
}

#[test]
fn a_class_beyond_the_names_is_refused_at_opening_with_its_row() {
    let note = r#"{"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}"#;
    for (values, row, value) in [(vec![Some(3), Some(0)], 0, 3), (vec![Some(2), Some(70)], 1, 70)] {
        let root = scratch();
        let columns = vec![("image", image_column(vec![Some(b"a"), Some(b"b")])), ("label", label_column(values))];
        let error = open(write(root.path().join("t.parquet"), table(columns, Some(note)))).unwrap_err().to_string();
        assert!(
            error.contains(&format!("t.parquet, row {row}: column `label` holds class {value}, but the file names 3")),
            "{error}"
        );
    }
}

#[test]
fn a_name_of_two_classes_is_refused_with_both() {
    let note = r#"{"info": {"features": {"label": {"names": ["a", "b", "\u0061"], "_type": "ClassLabel"}}}}"#;
    let root = scratch();
    let columns =
        vec![("image", image_column(vec![Some(b"a"), Some(b"b")])), ("label", label_column(vec![Some(0), Some(1)]))];
    let path = write(root.path().join("t.parquet"), table(columns, Some(note)));
    let error = open(path).unwrap_err().to_string();
    assert!(error.contains("t.parquet") && error.contains("calls class 0 and class 2 both \"a\""), "{error}");
}

#[test]
fn bytes_that_no_struct_calls_an_image_are_taken_by_name() {
    for name in ["jpg", "content", "image"] {
        let root = scratch();
        let bytes = BinaryArray::from(vec![Some(&b"first"[..]), Some(b"second")]);
        let columns: Vec<(&str, ArrayRef)> = vec![(name, Arc::new(bytes)), ("label", number())];
        let path = write(root.path().join("t.parquet"), table(columns, None));
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("t.parquet::{name}`")), "{error}");
        let source = open(format!("{}::{name}", path.display())).unwrap();
        assert_eq!(labels(&source), [Some(1), Some(0)]);
        let mut read = Vec::new();
        for index in 0..2 {
            read.push(source.read(index).unwrap());
        }
        assert_eq!(read, [&b"first"[..], b"second"]);
        let text = open(format!("{}::label", path.display())).unwrap_err();
        assert!(text.to_string().contains("no column of images is called `label`"));
    }
}

/// Labels that are passed by (of another field, or of no image) name no class and change no other label, whether those read are numbers or
/// names.
#[test]
fn labels_that_are_not_read_change_nothing() {
    let numbers = [("000", "2"), ("001", "0"), ("002", "1")];
    let names = [("000", "zebra"), ("001", "ant"), ("002", "cow")];
    for (taken, other) in [("cls", "label"), ("cls", "class"), ("class", "label"), ("cls", "cls.txt")] {
        // The other member first, as it is where tar sorts by name, and last.
        for order in [false, true] {
            let members = |read: [(&str, &str); 3], passed: &[(&str, &str)]| {
                let mut members: Vec<(String, Vec<u8>)> = Vec::new();
                for (key, text) in passed {
                    members.push((format!("{key}.{other}"), text.as_bytes().to_vec()));
                }
                for (key, text) in read {
                    members.push((format!("{key}.jpg"), b"x".to_vec()));
                    members.push((format!("{key}.{taken}"), text.as_bytes().to_vec()));
                }
                if order {
                    members.reverse();
                }
                members
            };
            let open = |members: Vec<(String, Vec<u8>)>| {
                let members: Vec<_> = (members.iter()).map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
                let source = with_members(&members, "");
                let of_key: std::collections::BTreeMap<_, _> =
                    (0..source.len()).map(|i| (source.key(i).to_owned(), source.label(i))).collect();
                (of_key.into_values().collect::<Vec<_>>(), source.label_names().to_vec())
            };
            let (found, classes) = open(members(numbers, &names));
            assert_eq!((found, classes.len()), (vec![Some(2), Some(0), Some(1)], 0), "{taken} {other}");
            // Fewer and more names than classes, and a member of no image.
            let (found, classes) = open(members(numbers, &[("000", "zebra"), ("nothing", "ant")]));
            assert_eq!((found, classes.len()), (vec![Some(2), Some(0), Some(1)], 0), "{taken} {other}");
            let supers = [("000", "a"), ("001", "b"), ("002", "c"), ("none", "aaa")];
            let (found, classes) = open(members(names, &supers));
            assert_eq!(found, [Some(2), Some(0), Some(1)], "{taken} {other}");
            assert_eq!(classes, ["ant", "cow", "zebra"], "{taken} {other}");
        }
    }
    // A label of no image in the field that is read.
    let members: [(&str, &[u8]); 5] =
        [("aaa.cls", b"aaa"), ("0.jpg", b"x"), ("0.cls", b"cow"), ("1.jpg", b"y"), ("1.cls", b"ant")];
    let source = with_members(&members, "");
    assert_eq!(source.label_names(), ["ant", "cow"]);
    assert_eq!(labels(&source), [Some(1), Some(0)]);
}

#[test]
fn a_field_that_no_image_has_is_refused() {
    let members: [(&str, &[u8]); 3] = [("0.jpg", b"x"), ("0.cls", b"1"), ("0.kind", b"fox")];
    let root = scratch();
    write(root.path().join("s.tar"), archive(&members));
    let open = |within: &str| open(root.path().join(format!("s.tar{within}")));
    let error = open("::label=knid").unwrap_err().to_string();
    for part in ["`.knid`", "`.cls`", "`.kind`"] {
        assert!(error.contains(part), "{error}");
    }
    for within in ["::label=kind", "::label=.kind"] {
        assert_eq!(labels(&open(within).unwrap()), [Some(0)]);
    }
    std::fs::create_dir(root.path().join("folder")).unwrap();
    write(root.path().join("folder/a.jpg"), b"x");
    let error = super::open(root.path().join("folder::label=x")).unwrap_err();
    assert!(error.to_string().contains("names of its subfolders"), "{error}");
}
