use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::*;

/// Twelve classes, in an order that no sorting gives.
const WORDS: [&str; 12] =
    ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "café", "Ångström"];

/// How a source says which class an image is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Folders of these words.
    Folders,
    /// The same folders as macOS archives them, with accents separate from their letters.
    DecomposedFolders,
    /// Parquet whose metadata names the classes, in the order of [`WORDS`].
    ClassLabel,
    /// Folders `0` to `11`, which sort as 0, 1, 10, 11, 2.
    NumberFolders,
    /// Folders `000` to `011`.
    PaddedFolders,
    /// Tar members `.cls` with 0 to 11.
    Tar,
    /// Parquet with integers alone.
    Integers,
}

use Kind::*;

const KINDS: [Kind; 7] = [Folders, DecomposedFolders, ClassLabel, NumberFolders, PaddedFolders, Tar, Integers];

impl Kind {
    fn name(self, class: usize) -> String {
        match self {
            Folders | ClassLabel => WORDS[class].to_owned(),
            DecomposedFolders => WORDS[class].nfd().collect(),
            NumberFolders | Tar | Integers => class.to_string(),
            PaddedFolders => format!("{class:03}"),
        }
    }

    /// A source of one image for each of `classes`, in this order.
    fn source(self, dir: &Path, classes: &[usize]) -> ImageSource {
        let spec = match self {
            Tar => tar(dir, classes),
            ClassLabel => parquet(dir, classes, Some(&WORDS)),
            Integers => parquet(dir, classes, None),
            _ => {
                let names: Vec<String> = classes.iter().map(|&class| self.name(class)).collect();
                folders(dir, &names)
            }
        };
        ImageSource::open(&spec).unwrap()
    }
}

/// An image in each of the class folders; image `i` is called `i.png`.
fn folders(dir: &Path, names: &[impl AsRef<str>]) -> String {
    for (i, name) in names.iter().enumerate() {
        let path = dir.join(name.as_ref()).join(format!("{i:03}.png"));
        schemas::atomic::write(&path, b"opening reads no image").unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

fn tar(dir: &Path, labels: &[usize]) -> String {
    let mut archive = ::tar::Builder::new(Vec::new());
    for (i, label) in labels.iter().enumerate() {
        for (extension, data) in [("png", "an image".to_owned()), ("cls", label.to_string())] {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            let name = format!("{i:03}.{extension}");
            archive.append_data(&mut header, name, data.as_bytes()).unwrap();
        }
    }
    let path = dir.join("shard.tar");
    schemas::atomic::write(&path, &archive.into_inner().unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn parquet(dir: &Path, labels: &[usize], names: Option<&[&str]>) -> String {
    let n = labels.len();
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"an image"; n]));
    let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; n]));
    let images = StructArray::try_from(vec![("bytes", bytes), ("path", paths)]).unwrap();
    let labels: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("image", Arc::new(images)), ("label", Arc::new(Int64Array::from(labels)))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let note = names.map(|names| {
        let label = serde_json::json!({"_type": "ClassLabel", "names": names});
        let features = serde_json::json!({"image": {"_type": "Image"}, "label": label});
        let note = serde_json::json!({"info": {"features": features}});
        vec![KeyValue::new("huggingface".to_owned(), note.to_string())]
    });
    let properties = WriterProperties::builder().set_key_value_metadata(note);
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    let path = dir.join("table.parquet");
    schemas::atomic::write(&path, &writer.into_inner().unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn matched(
    train: &ImageSource,
    test: &ImageSource,
    matching: Matching,
    numbering: Numbering,
) -> Result<Classes, String> {
    let set = |option, source| Set { option, source };
    let (train, test) = (set("--train", train), set("--test", test));
    Classes::of(&train, &test, matching, numbering).map_err(|error| format!("{error:#}"))
}

/// The class that each image of a source is truly of. Images of folders come in the folders' order; their names tell them apart.
fn truth(source: &ImageSource, classes: &[usize]) -> Vec<usize> {
    let place = |key: &str| key.rsplit('/').next()?.split('.').next()?.parse().ok();
    (0..source.len()).map(|idx| classes[place(source.key(idx)).unwrap_or(idx)]).collect()
}

/// Every kind of source to train on beside every kind to test on, for every answer to `--match-classes`: an image has the class of its
/// truth's images, or there is a refusal that names the setting.
#[test]
fn all_pairs_of_kinds_are_right_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    // The test set has fewer classes, in another order and with several images of some.
    let (of_train, of_test): (Vec<usize>, _) = ((0..12).collect(), [11usize, 3, 10, 2, 3, 0, 7]);
    let sources: Vec<[ImageSource; 2]> = (KINDS.iter().enumerate())
        .map(|(i, kind)| {
            [("train", &of_train[..]), ("test", &of_test[..])]
                .map(|(which, classes)| kind.source(&dir.path().join(format!("{which}{i}")), classes))
        })
        .collect();
    let words = [Folders, DecomposedFolders, ClassLabel];
    let numbers = [Tar, Integers];
    let mut counts = BTreeMap::new();
    for (&a, [train, _]) in KINDS.iter().zip(&sources) {
        for (&b, [_, test]) in KINDS.iter().zip(&sources) {
            for matching in [Matching::Auto, Matching::Name, Matching::Similar, Matching::Number] {
                let case = format!("{a:?} and {b:?} by {matching:?}");
                let both = |kinds: &[Kind]| kinds.contains(&a) && kinds.contains(&b);
                // Number 10 is the name of a folder and the place of another: only the user knows which is meant. The test set's folders
                // are too few for the numbers of a training set to be their places.
                let sorted_as_text = a == NumberFolders && numbers.contains(&b);
                let right = match matching {
                    Matching::Auto => both(&words) || (!words.contains(&a) && !words.contains(&b) && !sorted_as_text),
                    Matching::Name | Matching::Similar => words.contains(&a) == words.contains(&b),
                    // The test set's own folders are fewer, so their places are others.
                    Matching::Number => both(&[ClassLabel, Tar, Integers]),
                };
                let is_number_of_folders = matching == Matching::Number && !right;
                if is_number_of_folders {
                    // The user says that the numbers agree; nothing can check it.
                    continue;
                }
                let found = matched(train, test, matching, Numbering::InUse);
                *counts.entry(right).or_insert(0) += 1;
                match found {
                    Ok(classes) => {
                        assert!(right, "{case}: {classes:?}");
                        assert_eq!(classes.unseen_images(), 0, "{case}");
                        let mut of_truth = BTreeMap::new();
                        let labels = classes.of_train(train, 0..train.len()).unwrap();
                        for (truth, label) in truth(train, &of_train).into_iter().zip(labels) {
                            assert_eq!(of_truth.insert(truth, label), None, "{case}");
                        }
                        let labels = classes.of_test(test, 0..test.len()).unwrap();
                        for (truth, label) in truth(test, &of_test).into_iter().zip(labels) {
                            assert_eq!(of_truth[&truth], label, "{case}: class {truth}");
                        }
                    }
                    Err(refusal) => {
                        assert!(!right, "{case}: {refusal}");
                        for words in ["--match-classes", "--train", "--test"] {
                            assert!(refusal.contains(words), "{case}: {refusal}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(counts.values().sum::<usize>(), 3 * 49 + 9, "{counts:?}");
}

/// Class `i` is the training set's label `i`, whatever the test set is: the order of a `ClassLabel`, of `ImageFolder`, of the numbers.
#[test]
fn the_training_set_numbers_the_classes() {
    let dir = tempfile::tempdir().unwrap();
    // Classes 4 and 9 are in neither set.
    let of_train = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11];
    for (i, kind) in KINDS.into_iter().enumerate() {
        let train = kind.source(&dir.path().join(format!("train{i}")), &of_train);
        let test = kind.source(&dir.path().join(format!("test{i}")), &[11, 5, 10]);
        let classes = matched(&train, &test, Matching::Auto, Numbering::Labels).unwrap();
        let labels = classes.of_train(&train, 0..train.len()).unwrap();
        for (idx, label) in labels.into_iter().enumerate() {
            assert_eq!(train.label(idx).map(i64::from), Some(label), "{kind:?}");
        }
        let mut folders: Vec<String> = of_train.iter().map(|&class| kind.name(class)).collect();
        folders.sort_unstable();
        let expected: Vec<String> = match kind {
            ClassLabel => WORDS.map(str::to_owned).into(),
            Tar | Integers => (0..12).map(|class| class.to_string()).collect(),
            _ => folders,
        };
        assert_eq!(classes.names(), expected, "{kind:?}");
        let in_use = matched(&train, &test, Matching::Auto, Numbering::InUse).unwrap();
        assert_eq!(in_use.len(), 10, "{kind:?}");
    }
}

/// Python's `sorted`, by code point and not by language, case or length; hidden folders are no classes, empty ones are.
#[test]
fn folders_are_sorted_as_by_image_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (train, test) = (dir.path().join("train"), dir.path().join("test"));
    let names = [
        "zebra",
        "Zebra",
        "a b",
        "a-b",
        "a.b",
        "a_b",
        "aB",
        "ab",
        "10",
        "2",
        "é",
        "e",
        "\u{ff21}",
        "\u{1d400}",
        "ß",
        "~",
        "!",
    ];
    folders(&train, &names);
    for name in ["c, empty", ".hidden"] {
        std::fs::create_dir_all(train.join(name)).unwrap();
    }
    folders(&test, &["aB", "c, empty"]);
    let open = |path: &Path| ImageSource::open(path.to_str().unwrap()).unwrap();
    let classes = matched(&open(&train), &open(&test), Matching::Auto, Numbering::Labels).unwrap();
    let expected = [
        "!",
        "10",
        "2",
        "Zebra",
        "a b",
        "a-b",
        "a.b",
        "aB",
        "a_b",
        "ab",
        "c, empty",
        "e",
        "zebra",
        "~",
        "ß",
        "é",
        "\u{ff21}",
        "\u{1d400}",
    ];
    assert_eq!(classes.names(), expected);
    // The class without a training image keeps its place, and its test images count as wrong.
    let labels = classes.of_test(&open(&test), 0..2).unwrap();
    assert_eq!((labels, classes.unseen_images()), (vec![7, 10], 1));
}

/// Names that nearly match: what is one class, what are two, and what is asked.
#[test]
fn names_that_nearly_match() {
    use Matching::{Auto, Name, Similar};
    let dir = tempfile::tempdir().unwrap();
    let asked = Err("--match-classes similar");
    let ambiguous = Err("could each be");
    let nothing = Err("no class of --test is one of --train");
    type Expected = Result<&'static [i64], &'static str>;
    let cases: [(&[&str], &[&str], Matching, Expected); 21] = [
        (&["dog", "cat"], &["Cat", "Dog"], Auto, asked),
        (&["dog", "cat"], &["Cat", "Dog"], Name, nothing),
        (&["dog", "cat"], &["Cat", "Dog"], Similar, Ok(&[0, 1])),
        // Letters, each in both cases.
        (&["A", "a", "B", "b"], &["B", "a"], Auto, Ok(&[1, 2])),
        (&["A", "B", "b"], &["a", "b"], Auto, asked),
        (&["A", "B", "b"], &["a", "b"], Name, Ok(&[3, 2])),
        (&["DOG", "Dog", "x"], &["dog", "x"], Auto, ambiguous),
        (&["DOG", "Dog", "x"], &["dog", "x"], Similar, ambiguous),
        (&["DOG", "Dog", "x"], &["dog", "x"], Name, Ok(&[3, 2])),
        // German capitals, a ligature, a full-width letter: other characters, perhaps one name.
        (&["straße", "x"], &["STRASSE", "x"], Auto, asked),
        (&["straße", "x"], &["STRASSE", "x"], Similar, Ok(&[0, 1])),
        (&["fish", "x"], &["\u{fb01}sh", "x"], Auto, asked),
        (&["A", "x"], &["\u{ff21}", "x"], Similar, Ok(&[1, 0])),
        // Hangul and a doubly accented letter, composed and not.
        (&["한국", "ệ"], &["\u{1112}\u{1161}\u{11ab}\u{1100}\u{116e}\u{11a8}", "e\u{323}\u{302}"], Auto, Ok(&[0, 1])),
        // Numbers by value, as far as they are numbers and only one could be meant.
        (&["1", "2", "10"], &["02", "010", "01"], Auto, Ok(&[0, 1, 2])),
        (&["007", "x"], &["7", "x"], Name, Ok(&[0, 1])),
        (&["7", "007", "x"], &["007", "7"], Auto, Ok(&[0, 1])),
        (&["7", "007", "x"], &["07", "x"], Auto, ambiguous),
        (&["7up", "x"], &["07up", "x"], Auto, Ok(&[2, 1])),
        (&["n01440764", "x"], &["n1440764"], Auto, nothing),
        (&["-1", "1", "1.0"], &["+1", "1"], Auto, Ok(&[3, 1])),
    ];
    for (i, (train, test, matching, expected)) in cases.into_iter().enumerate() {
        let case = format!("{train:?} and {test:?} by {matching:?}");
        let [train, test] = [("train", train), ("test", test)].map(|(which, names)| {
            let spec = folders(&dir.path().join(format!("{which}{i}")), names);
            ImageSource::open(&spec).unwrap()
        });
        let found = matched(&train, &test, matching, Numbering::Labels);
        match (found, expected) {
            (Ok(classes), Ok(expected)) => {
                assert_eq!(classes.of_test(&test, 0..test.len()).unwrap(), expected, "{case}");
            }
            (Err(refusal), Err(words)) => assert!(refusal.contains(words), "{case}: {refusal}"),
            (found, expected) => panic!("{case}: {found:?}, expected {expected:?}"),
        }
    }
    // One name twice in one set.
    let twice = folders(&dir.path().join("twice"), &["caf\u{e9}", "cafe\u{301}"]);
    let twice = ImageSource::open(&twice).unwrap();
    let refusal = matched(&twice, &twice, Auto, Numbering::InUse).unwrap_err();
    assert!(refusal.contains("two classes have one name") && refusal.contains("\\u{301}"), "{refusal}");
}

/// Names that are numbers beside numbers: right where value and place agree or only one is possible, a question where not.
#[test]
fn numbers_beside_names_that_are_numbers() {
    use Matching::{Auto, Name, Number};
    let dir = tempfile::tempdir().unwrap();
    let asked = Err("--match-classes number if it is");
    type Expected = Result<&'static [i64], &'static str>;
    let cases: [(&[&str], &[usize], Matching, Expected); 12] = [
        (&["0", "1", "2"], &[2, 0], Auto, Ok(&[2, 0])),
        (&["00", "01", "02"], &[2, 0], Auto, Ok(&[2, 0])),
        // Counted from 1: label 1 may be the folder 1 or the second of the folders.
        (&["1", "2", "3"], &[1, 2], Auto, asked),
        (&["1", "2", "3"], &[1, 2], Name, Ok(&[0, 1])),
        (&["1", "2", "3"], &[1, 2], Number, Ok(&[1, 2])),
        // There is no place 3 from 0 on, so the name is meant.
        (&["1", "2", "3"], &[3, 1], Auto, Ok(&[2, 0])),
        (&["5", "70"], &[70, 5, 6], Auto, Ok(&[1, 0, 2])),
        (&["x", "y"], &[0, 1], Auto, asked),
        (&["x", "y"], &[0, 1], Number, Ok(&[0, 1])),
        (&["x", "y"], &[0, 1], Name, Err("no class of --test is one of --train")),
        (&["x", "y"], &[7, 8], Auto, Err("no class of --test is one of --train")),
        (&["7", "007"], &[7, 9], Auto, Err("are both the number 7")),
    ];
    for (i, (names, numbers, matching, expected)) in cases.into_iter().enumerate() {
        let named = folders(&dir.path().join(format!("named{i}")), names);
        let numbered = tar(&dir.path().join(format!("numbered{i}")), numbers);
        let [named, numbered] = [named, numbered].map(|spec| ImageSource::open(&spec).unwrap());
        let case = format!("{names:?} and {numbers:?} by {matching:?}");
        match (matched(&named, &numbered, matching, Numbering::Labels), expected) {
            (Ok(classes), Ok(expected)) => {
                let found = classes.of_test(&numbered, 0..numbered.len()).unwrap();
                assert_eq!(found, expected, "{case}");
                // The other way round the same images are of one class.
                let other = matched(&numbered, &named, matching, Numbering::Labels).unwrap();
                let of_numbered = other.of_train(&numbered, 0..numbered.len()).unwrap();
                let of_named = other.of_test(&named, 0..named.len()).unwrap();
                for (class, same) in expected.iter().zip(of_numbered) {
                    let partner = of_named.get(*class as usize);
                    assert!(partner.is_none_or(|&partner| partner == same), "{case}: {other:?}");
                }
            }
            (Err(refusal), Err(words)) => assert!(refusal.contains(words), "{case}: {refusal}"),
            (found, expected) => panic!("{case}: {found:?}, expected {expected:?}"),
        }
    }
}

/// Numbers keep their gaps as outputs without a use; numbers that are no count of classes are refused before anything is allocated.
#[test]
fn gaps_between_numbers_stay() {
    let dir = tempfile::tempdir().unwrap();
    let source = |name: &str, labels: &[usize]| ImageSource::open(&tar(&dir.path().join(name), labels)).unwrap();
    let train = source("train", &[3, 10, 7, 3]);
    let test = source("test", &[7, 12, 3, 12]);
    let classes = matched(&train, &test, Matching::Auto, Numbering::Labels).unwrap();
    assert_eq!((classes.len(), classes.unseen_images()), (13, 2));
    assert_eq!(classes.names()[10], "10");
    assert_eq!(classes.of_train(&train, 0..4).unwrap(), [3, 10, 7, 3]);
    assert_eq!(classes.of_test(&test, 0..4).unwrap(), [7, 12, 3, 12]);
    let in_use = matched(&train, &test, Matching::Auto, Numbering::InUse).unwrap();
    assert_eq!(in_use.names(), ["3", "7", "10", "12"]);

    let sparse = source("sparse", &[5, 2_147_483_647]);
    let refusal = matched(&sparse, &sparse, Matching::Auto, Numbering::Labels).unwrap_err();
    assert!(refusal.contains("labels go up to 2147483647"), "{refusal}");
    let in_use = matched(&sparse, &sparse, Matching::Auto, Numbering::InUse).unwrap();
    assert_eq!(in_use.len(), 2, "what has no outputs can be as sparse as it likes");
}

/// The outputs of a classifier that exists stay where they are: numbers sorted as text, a `ClassLabel` sorted, classes without images left
/// out, as classifiers were once numbered.
#[test]
fn a_stored_order_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    for (i, kind) in KINDS.into_iter().enumerate() {
        let of_train: Vec<usize> = (0..12).filter(|class| *class != 4).collect();
        let train = kind.source(&dir.path().join(format!("train{i}")), &of_train);
        let test = kind.source(&dir.path().join(format!("test{i}")), &[11, 2]);
        let mut stored: Vec<String> = of_train.iter().map(|&class| kind.name(class)).collect();
        stored.sort_unstable();
        let classes = matched(&train, &test, Matching::Auto, Numbering::Labels).unwrap();
        let kept = classes.clone().in_order_of(&stored);
        assert_eq!(kept.names(), stored, "{kind:?}");
        let labels = kept.of_train(&train, 0..train.len()).unwrap();
        for (truth, label) in truth(&train, &of_train).into_iter().zip(labels) {
            assert_eq!(stored[label as usize], kind.name(truth), "{kind:?}");
        }
        // An order of other classes is none of these images'.
        assert_eq!(classes.clone().in_order_of(&stored[1..]), classes, "{kind:?}");
    }
}

/// A flat validation folder, and other images without a class.
#[test]
fn images_without_a_label_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let train = ImageSource::open(&folders(&dir.path().join("train"), &["a", "b"])).unwrap();
    let flat = ImageSource::open(&folders(&dir.path().join("flat"), &[".", "."])).unwrap();
    let mixed = ImageSource::open(&folders(&dir.path().join("mixed"), &["a", "."])).unwrap();
    for (test, count) in [(&flat, "2 of 2"), (&mixed, "1 of 2")] {
        let refusal = matched(&train, test, Matching::Auto, Numbering::InUse).unwrap_err();
        for words in ["--test", "has no label", count] {
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}

#[test]
fn one_class_has_no_image_and_two_have_none() {
    assert_eq!(places_kept(1, 5), "1 of the 5 classes has no image; its place is kept");
    assert_eq!(places_kept(2, 5), "2 of the 5 classes have no image; their places are kept");
}
