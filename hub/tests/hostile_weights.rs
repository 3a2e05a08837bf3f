//! Weights files that fuzzing has found or kept, and small ones that would cost gigabytes or hours if their numbers were believed.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests unwrap, and write throw-away files")]

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use hub::weights::{Backend, Dtype, Error, WeightsFile};
use zip::write::SimpleFileOptions;

/// Tensors as bytes. More than [`MOST`] in one is what a reader asks for that believes a length of a file.
#[derive(Debug)]
struct Bytes(Vec<u8>);

const MOST: u64 = 16 << 20;

impl Backend for Bytes {
    type Tensor = Bytes;

    fn empty(dtype: Dtype, shape: &[i64]) -> Result<Bytes, String> {
        let numel = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(u64::try_from(n).ok()?));
        let bytes =
            numel.and_then(|numel| numel.checked_mul(dtype.bitsize() as u64 / 8)).filter(|&bytes| bytes <= MOST);
        Ok(Bytes(vec![0; bytes.expect("no tensor is larger than its file") as usize]))
    }

    fn bytes(tensor: &mut Bytes) -> Result<&mut [u8], String> {
        Ok(&mut tensor.0)
    }

    fn view(_: &Bytes, _: &[i64], _: &[i64], _: i64) -> Result<Bytes, String> {
        Ok(Bytes(Vec::new()))
    }
}

fn read(path: &Path) -> Result<WeightsFile<Bytes>, Error> {
    WeightsFile::<Bytes>::read::<Bytes>(path)
}

/// The files of a folder, sorted.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/found").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Every kept input is read or refused with a reason that names the file; some are read.
#[test]
fn kept_inputs_are_read_or_refused() {
    for folder in ["safetensors", "torch"] {
        let mut read_files = 0;
        for path in files(folder) {
            match read(&path) {
                Ok(file) => {
                    read_files += 1;
                    assert_eq!(file.path, path);
                }
                Err(error) => {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
        }
        assert!(read_files > 0, "no file of {folder} is read");
    }
}

/// Files that torch wrote, with a whole module, a TorchScript archive and checkpoints among them, are within all limits.
#[test]
fn files_of_torch_are_within_the_limits() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights");
    for file in ["kinds.pth", "views.pth", "checkpoint2.pth", "checkpoint5.pth", "whole.pth", "module.pt"] {
        let found = read(&golden.join(file)).unwrap_or_else(|e| panic!("{e}"));
        assert!(!found.tensors.is_empty(), "{file}");
    }
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// What reading an archive with this pickle says.
fn refusal(archive: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    fs::write(&path, archive).unwrap();
    match read(&path) {
        Err(Error::BadTorchFile { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

/// 3000 entries, and 20 000 dictionaries made of them in 140 kB: a gigabyte if each were copied.
#[test]
fn a_pickle_that_copies_without_end_is_refused() {
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00](K\x01K\x02\x86q\x01".to_vec();
    pickle.extend(b"h\x01".repeat(3000));
    pickle.extend(b"e\x85q\x020");
    pickle.extend(b"h\x00h\x02R0".repeat(20_000));
    pickle.extend(b"N.");
    let reason = refusal(&archive(&[("a/data.pkl", &pickle)]));
    assert!(reason.contains("objects of more than"), "{reason}");
}

/// A long key again and again on the way to every tensor: names of gigabytes.
#[test]
fn names_longer_than_any_network_has_are_refused() {
    // A storage, a tensor, and dictionaries that hold each other's predecessor twice, 12 deep: 4096 names of 12 long keys.
    let mut pickle = b"\x80\x02".to_vec();
    let tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89NtRq\x00";
    for (memo, letter) in [(1, b'a'), (2, b'b')] {
        pickle.push(b'X');
        pickle.extend(2000u32.to_le_bytes());
        pickle.extend([letter; 2000]);
        pickle.extend([b'q', memo, b'0']);
    }
    pickle.extend(tensor);
    for _ in 0..12 {
        pickle.extend(b"0}(h\x01h\x00h\x02h\x00uq\x00");
    }
    pickle.extend(b".");
    let reason = refusal(&archive(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]));
    assert!(reason.contains("the names of its tensors"), "{reason}");
}

/// Many entries of the directory over the same bytes: each would be a storage nearly as long as the file.
#[test]
fn storages_that_overlap_are_refused() {
    let mut pickle = b"\x80\x02}(".to_vec();
    for key in ["0", "1"] {
        pickle.extend(
            format!("X\x01\0\0\0{key}ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nByteStorage\n")
                .as_bytes(),
        );
        pickle.extend(format!("X\x01\0\0\0{key}X\x03\0\0\0cpu").as_bytes());
        pickle.extend(b"M\xe8\x03tQK\0M\xe8\x03\x85K\x01\x85\x89NtR");
    }
    pickle.extend(b"u.");
    let sound = archive(&[("a/data.pkl", &pickle), ("a/data/0", &[7; 1000]), ("a/data/1", &[7; 1000])]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    fs::write(&path, &sound).unwrap();
    assert_eq!(read(&path).unwrap().tensors.len(), 2);

    // The second entry says it lies where the first does, whose bytes are then cut out.
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|found| found == what).unwrap();
    let second = find(&sound, b"a/data/1") - 30;
    let directory = sound.windows(4).position(|found| found == b"PK\x01\x02").unwrap();
    let first = find(&sound, b"a/data/0") - 30;
    let mut overlapping = [&sound[..second], &sound[directory..]].concat();
    let cut = directory - second;
    let entries: Vec<usize> =
        overlapping.windows(4).enumerate().filter(|(_, found)| *found == b"PK\x01\x02").map(|(at, _)| at).collect();
    overlapping[entries[2] + 42..entries[2] + 46].copy_from_slice(&(first as u32).to_le_bytes());
    let end = overlapping.len() - 22;
    overlapping[end + 16..end + 20].copy_from_slice(&((directory - cut) as u32).to_le_bytes());
    let reason = refusal(&overlapping);
    assert!(reason.contains("overlaps others"), "{reason}");
}
