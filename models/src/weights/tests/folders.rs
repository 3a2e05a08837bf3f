//! Folders and sharded sets.

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights").join(name)
}

/// A copy of the golden set that a test may spoil.
fn set() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in golden("sharded").read_dir().unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

const INDEX: &str = "model.safetensors.index.json";

fn bad_index(folder: &Path) -> String {
    match Weights::read(folder) {
        Err(Error::WeightsFile(FileError::BadIndex { reason, path })) => {
            assert_eq!(path, folder.join(INDEX));
            reason
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_sharded_set_is_one_file() {
    let weights = Weights::read(&golden("sharded")).unwrap();
    assert_eq!(weights.path(), golden("sharded").join(INDEX));
    let whole = Weights::read(&golden("kinds.safetensors")).unwrap();
    let expected: Vec<&str> = whole.names().filter(|name| *name != "int8").collect();
    assert_eq!(weights.names().collect::<Vec<_>>(), expected);
    for name in expected {
        let (found, wanted) = (weights.get(name).unwrap(), whole.get(name).unwrap());
        assert_eq!((found.kind(), found.size()), (wanted.kind(), wanted.size()));
        assert!(found.equal(wanted), "{name}");
    }
    let lines: String = (1..=3)
        .map(|i| {
            let name = format!("model-{i:05}-of-00003.safetensors");
            let bytes = fs::read(golden("sharded").join(&name)).unwrap();
            format!("{name}  {}\n", hex(&Sha256::digest(bytes)))
        })
        .collect();
    assert_eq!(weights.sha256(), hex(&Sha256::digest(lines)));
}

#[test]
fn a_set_that_disagrees_with_its_index_is_refused() {
    let shard = |i: u32| format!("model-{i:05}-of-00003.safetensors");

    let folder = set();
    fs::remove_file(folder.path().join(shard(2))).unwrap();
    let reason = bad_index(folder.path());
    assert!(reason.contains(&shard(2)) && reason.contains("missing") && reason.contains("float32"), "{reason}");

    // The shards exchanged: every tensor is where another is expected.
    let folder = set();
    let path = |i| folder.path().join(shard(i));
    let (first, second) = (fs::read(path(1)).unwrap(), fs::read(path(2)).unwrap());
    fs::write(path(1), &second).unwrap();
    let reason = bad_index(folder.path());
    assert!(reason.contains("the index places it in"), "{reason}");
    fs::write(path(1), &first).unwrap();

    // One shard holds another's tensor too.
    let both = Weights::read(&golden("sharded")).unwrap();
    let extra = [("float32".to_owned(), both.get("float32").unwrap().shallow_clone())].into();
    fs::write(path(3), to_bytes(&extra, None).unwrap()).unwrap();
    let reason = bad_index(folder.path());
    assert!(reason.contains("float32") && reason.contains(&shard(3)) && reason.contains(&shard(2)), "{reason}");
}

#[test]
fn a_damaged_index_is_refused() {
    let folder = set();
    let text = fs::read_to_string(golden("sharded").join(INDEX)).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from));
        fs::write(folder.path().join(INDEX), text.replacen(from, to, 1)).unwrap();
        let reason = bad_index(folder.path());
        assert!(reason.contains(expected), "{reason:?} without {expected:?}");
    };
    check("\"model-00001-of-00003.safetensors\"", "\"../model-00001-of-00003.safetensors\"", "plain file name");
    check("\"model-00001-of-00003.safetensors\"", "\"/etc/passwd\"", "plain file name");
    check("\"model-00001-of-00003.safetensors\"", "\"sub\\\\a.safetensors\"", "plain file name");
    check("\"model-00001-of-00003.safetensors\"", "\"..\"", "plain file name");
    check("\"model-00001-of-00003.safetensors\"", "7", "not the index");
    // A tensor claimed by two shards, and one that none holds.
    let claim = "\"weight_map\": {";
    check(claim, "\"weight_map\": {\"float64\": \"model-00002-of-00003.safetensors\",", "claimed by");
    check(claim, "\"weight_map\": {\"absent\": \"model-00002-of-00003.safetensors\",", "absent");
    // Another JSON file, such as a config.json.
    fs::write(folder.path().join(INDEX), text.replacen(claim, "\"x\": {", 1)).unwrap();
    let other = Weights::read(folder.path());
    assert!(matches!(other, Err(Error::WeightsFile(FileError::NotWeights { .. }))), "{other:?}");
    fs::write(folder.path().join(INDEX), "{\"weight_map\": {}}").unwrap();
    assert!(bad_index(folder.path()).contains("no tensor"));
    for end in 0..text.len() - 2 {
        fs::write(folder.path().join(INDEX), &text[..end]).unwrap();
        bad_index(folder.path());
    }
}

#[test]
fn the_order_of_names_in_a_folder() {
    // From the last choice to the first: each one added wins over those before it.
    let order = [
        ("weird.pth", "kinds.pth"),
        ("open_clip_pytorch_model.bin", "views.pth"),
        ("pytorch_model.bin.index.json", ""),
        ("pytorch_model.bin", "kinds.pth"),
        ("open_clip_model.safetensors", "kinds.safetensors"),
        ("model.safetensors.index.json", ""),
        ("model.safetensors", "views.safetensors"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, from) in order {
        let path = folder.path().join(name);
        if from.is_empty() {
            fs::write(&path, "{}").unwrap();
        } else {
            fs::copy(golden(from), &path).unwrap();
        }
        assert_eq!(weights_file(folder.path()).unwrap(), path);
    }

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["a.pt", "b.bin", "c.pth"] {
        fs::copy(golden("kinds.pth"), path(name)).unwrap();
    }
    let several = weights_file(folder.path()).unwrap_err();
    let text = several.to_string();
    assert!(["a.pt", "b.bin", "c.pth"].iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn what_downloads_leave_in_the_place_of_weights_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    for name in ["model.safetensors", "model.pth", "model"] {
        for (content, part) in [
            (pointer, "git lfs pull"),
            ("\n<!DOCTYPE html><html><body>403</body></html>", "web page"),
            ("\u{feff}<HTML><body>log in</body></HTML>", "web page"),
            ("<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            match Weights::read(&path) {
                Err(error @ Error::WeightsFile(FileError::NotWeights { .. })) => {
                    assert!(error.to_string().contains(part), "{error}")
                }
                other => panic!("{name}, {content:?}: {other:?}"),
            }
        }
    }
}
