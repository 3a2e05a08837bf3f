//! Files of `torch.save`: goldens that torch wrote, damaged ones, hostile ones.

use std::io::Cursor;
use std::process::Command;

use zip::write::SimpleFileOptions;

use super::*;

const READ: [&str; 8] = [
    "kinds.pth",
    "views.pth",
    "checkpoint2.pth",
    "checkpoint3.pth",
    "checkpoint4.pth",
    "checkpoint5.pth",
    "whole.pth",
    "module.pt",
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/weights")
}

fn assert_same(found: &Weights, expected: &Weights, what: &str) {
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{what}");
    for name in expected.names() {
        let (found, expected) = (found.get(name).unwrap(), expected.get(name).unwrap());
        assert_eq!(found.kind(), expected.kind(), "{what}: {name}");
        assert_eq!(found.size(), expected.size(), "{what}: {name}");
        assert!(found.equal(expected), "{what}: {name}");
    }
}

fn check_folder(folder: &Path) {
    for file in READ {
        let path = folder.join(file);
        let found = Weights::read(&path).unwrap();
        let expected = Weights::read(&path.with_extension("safetensors")).unwrap();
        assert!(!expected.is_empty());
        assert_same(&found, &expected, file);
        assert_eq!(found.path(), path);
        assert_eq!(found.sha256(), hex(&Sha256::digest(fs::read(&path).unwrap())));
    }
}

#[test]
fn files_of_torch_save_hold_what_torch_saved() {
    check_folder(&golden());
}

#[test]
fn files_that_torch_saves_now_are_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = Command::new(root.join("scripts/python-env")).arg("--if-present").output();
    let Some(python) = python.ok().filter(|found| found.status.success()) else {
        println!("skipped: scripts/python-env finds no Python");
        return;
    };
    let python = String::from_utf8(python.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(python.trim())
        .arg(root.join("scripts/golden/weights.py"))
        .arg("--out")
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    check_folder(folder.path());
}

#[test]
fn other_formats_of_torch_are_named() {
    let error = Weights::read(&golden().join("legacy.pth")).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::WeightsFile(FileError::UnreadFormat { .. })), "{text}");
    assert!(text.contains("before version 1.6") && text.contains("safetensors.torch"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, expected) in [(&tar[..], "tar archive"), (b"weights", "no zip archive"), (b"", "an empty file")] {
        let path = folder.path().join("model.pth");
        fs::write(&path, bytes).unwrap();
        let text = Weights::read(&path).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_damaged_file_is_refused_or_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    let (mut flipped, mut refused) = (0, 0);
    for file in ["kinds.pth", "views.pth"] {
        let bytes = fs::read(golden().join(file)).unwrap();
        let intact = Weights::read(&golden().join(file)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= if at % 9 == 8 { 0xff } else { 1 << (at % 9) };
            fs::write(&path, &damaged).unwrap();
            flipped += 1;
            // Bytes that say nothing about the tensors, such as times and padding, may differ.
            match Weights::read(&path) {
                Ok(found) => assert_same(&found, &intact, &format!("{file}, byte {at}")),
                Err(_) => refused += 1,
            }
            fs::write(&path, &bytes[..at]).unwrap();
            Weights::read(&path).expect_err("a file cut short");
        }
    }
    println!("{refused} of {flipped} flips refused");
    assert!(refused > flipped / 4, "only {refused} of {flipped} refused");
}

/// torch ends its archives with the records of zip64, whatever their size; the names in them begin with that of the file. No
/// length of it keeps the directory from being found.
#[test]
fn files_of_every_name_are_read() {
    let pickle = view("FloatStorage", 4, 0, &[4], &[1]);
    for length in 1..=64 {
        let mut archive = archive_named(&"n".repeat(length), &pickle, "little");
        let end = archive.len() - 22;
        let directory: [u8; 4] = archive[end + 16..end + 20].try_into().unwrap();
        let directory = u64::from(u32::from_le_bytes(directory));
        let mut records = b"PK\x06\x06".to_vec();
        records.extend(44u64.to_le_bytes());
        records.extend([0x1e, 3, 45, 0]);
        records.extend([0; 8]);
        for number in [3, 3, end as u64 - directory, directory] {
            records.extend(number.to_le_bytes());
        }
        records.extend(b"PK\x06\x07\0\0\0\0");
        records.extend((end as u64).to_le_bytes());
        records.extend(1u32.to_le_bytes());
        assert_eq!(records.len(), 76);
        archive.splice(end..end, records);
        let found = read_archive(&archive).unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(found.get("w").unwrap().size(), [4], "{length}");
    }
}

/// An archive with `pickle` and one storage of four f32.
fn archive_of(pickle: &[u8], byteorder: &str) -> Vec<u8> {
    archive_named("a", pickle, byteorder)
}

/// The same, saved under the name `root`.
fn archive_named(root: &str, pickle: &[u8], byteorder: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let data: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let entries = [("data.pkl", pickle), ("byteorder", byteorder.as_bytes()), ("data/0", &data)];
    for (name, bytes) in entries {
        zip.start_file(format!("{root}/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn read_pickle(pickle: &[u8]) -> Result<Weights> {
    read_archive(&archive_of(pickle, "little"))
}

fn read_archive(bytes: &[u8]) -> Result<Weights> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    fs::write(&path, bytes).unwrap();
    Weights::read(&path)
}

fn refused(pickle: &[u8], expected: &str) {
    match read_pickle(pickle) {
        Err(Error::WeightsFile(FileError::BadTorchFile { reason, .. })) => {
            assert!(reason.contains(expected), "{reason:?} without {expected:?}")
        }
        Err(Error::WeightsFile(FileError::UnreadFormat { what, .. })) => {
            assert!(what.contains(expected), "{what:?} without {expected:?}")
        }
        Err(Error::WeightsFile(FileError::HarmfulTorchFile { function, .. })) => {
            assert!(function.contains(expected), "{function:?} without {expected:?}")
        }
        other => panic!("expected a refusal with {expected:?}, got {other:?}"),
    }
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    let values: Vec<u8> = values.iter().flat_map(|&value| int(value)).collect();
    [b"(", &values[..], b"t"].concat()
}

/// `{"w": <view of a storage>}`.
fn view(class: &str, numel: i64, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text("0"),
        text("cpu"),
        int(numel),
        b"tQ".to_vec(),
        int(offset),
        ints(size),
        ints(stride),
        b"\x89NtRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn views_are_held_within_their_storage() {
    let good = read_pickle(&view("FloatStorage", 4, 1, &[2], &[2])).unwrap();
    assert_eq!(Vec::<f32>::try_from(good.get("w").unwrap()).unwrap(), [2.0, 4.0]);
    for (numel, offset, size, stride) in [
        (4, 0, &[5][..], &[1][..]),
        (4, 1, &[4], &[1]),
        (4, 0, &[2, 2], &[3, 1]),
        (4, -1, &[2], &[1]),
        (4, 3, &[2], &[-1]),
        (4, 0, &[-2, -2], &[1, 1]),
        (4, 0, &[2, 2], &[1]),
        (4, 0, &[1 << 32, 1 << 32], &[0, 0]),
        (4, 0, &[1 << 62, 0], &[1, 1]),
        (4, 0, &[2], &[i64::MAX]),
        (4, i64::MAX, &[2], &[1]),
        (4, 5, &[0], &[1]),
    ] {
        refused(&view("FloatStorage", numel, offset, size, stride), "tensor w: ");
    }
    for numel in [3, 5, 0, -1, i64::MAX, i64::MIN] {
        refused(&view("FloatStorage", numel, 0, &[1], &[1]), "tensor w: ");
    }
    refused(&view("DoubleStorage", 4, 0, &[1], &[1]), "has 16 bytes");
    refused(&view("BoolStorage", 16, 0, &[1], &[1]), "booleans");
}

/// Views that torch makes of what it has already: repeated, turned, overlapping. A few bytes must not stand for any amount of memory.
#[test]
fn views_of_any_strides_are_read() {
    let values = |size: &[i64], stride: &[i64]| {
        let weights = read_pickle(&view("FloatStorage", 4, 0, size, stride)).unwrap();
        Vec::<f32>::try_from(weights.get("w").unwrap().contiguous().view(-1)).unwrap()
    };
    assert_eq!(values(&[3], &[0]), [1.0; 3]);
    assert_eq!(values(&[64], &[0]), [1.0; 64]);
    assert_eq!(values(&[2, 2], &[1, 2]), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(&[2, 3], &[0, 1]), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    assert_eq!(values(&[3, 2], &[1, 1]), [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]);
    for size in [1 << 25, 1 << 40] {
        refused(&view("FloatStorage", 4, 0, &[size], &[0]), "repeat their elements");
    }
}

/// Each stands beside a tensor that is read, as it may in a file whose tower needs it not.
#[test]
fn tensors_of_types_that_are_not_read_are_passed_over_by_name() {
    let call = |function: &str, arguments: &[u8]| {
        [format!("c{}\n(", function.replacen('|', "\n", 1)).as_bytes(), arguments, b"tR"].concat()
    };
    let plain = view("FloatStorage", 4, 0, &[4], &[1]);
    let dtype = [&b"NK\0))\x89N"[..], b"ctorch\nfloat8_e4m3fn\n"].concat();
    let complex = view("ComplexFloatStorage", 2, 0, &[1], &[1]);
    let complex = &complex[9..complex.len() - 2];
    for (value, word) in [
        (call("torch._utils|_rebuild_qtensor", b"NK\0))"), "quantized"),
        (call("torch._utils|_rebuild_sparse_tensor", b"N"), "sparse"),
        (call("torch._utils|_rebuild_sparse_csr_tensor", b"N"), "sparse"),
        (call("torch._utils|_rebuild_meta_tensor_no_storage", b"N"), "meta"),
        (call("torch._utils|_rebuild_wrapper_subclass", b"N"), "wrapper_subclass"),
        (call("torch._utils|_rebuild_tensor_v3", &dtype), "float8_e4m3fn"),
        (complex.to_vec(), "ComplexFloat"),
        (call("torch._utils|_rebuild_parameter", &call("torch._utils|_rebuild_qtensor", b"N")), "quantized"),
    ] {
        let pickle = [&plain[..plain.len() - 1], &text("x"), &value, b"s."].concat();
        let weights = read_pickle(&pickle).unwrap_or_else(|e| panic!("{word}: {e}"));
        assert_eq!(weights.names().collect::<Vec<_>>(), ["w"], "{word}");
        assert_eq!(weights.unread().collect::<Vec<_>>(), ["x"], "{word}");
        let expected = BTreeMap::from([("w".to_owned(), vec![4]), ("x".to_owned(), vec![1])]);
        match weights.require(&expected, |_| false) {
            Err(Error::WeightsFile(FileError::UnsupportedType { tensor, dtype, .. })) => {
                assert!(tensor == "x" && dtype.contains(word), "{dtype}")
            }
            other => panic!("{word}: {other:?}"),
        }
    }
}

#[test]
fn nothing_is_run() {
    let path = golden().join("remote.pth");
    let error = Weights::read(&path).unwrap_err().to_string();
    assert!(error.contains("posix.system") && error.contains("Do not open"), "{error}");
    // No line that opens the file in Python goes with it.
    assert!(!error.contains("torch.load"), "{error}");
    for (module, name) in
        [("os", "system"), ("builtins", "eval"), ("__builtin__", "exec"), ("subprocess", "Popen"), ("os.path", "join")]
    {
        let call = [format!("\x02}}c{module}\n{name}\n(").into_bytes(), text("echo run > ran"), b"tR.".to_vec()];
        refused(&[&b"\x80"[..], &call.concat()].concat(), name);
    }
    // Named from the stack, as protocol 4 does.
    let stacked = [b"\x80\x04".to_vec(), text("os"), text("system"), b"\x93.".to_vec()].concat();
    refused(&stacked, "os.system");
    // A class that is not known is an object without tensors.
    let unknown =
        [b"\x80\x02}".to_vec(), text("w"), b"ca.b\nC\n)R}".to_vec(), text("x"), b"K\x01sbs.".to_vec()].concat();
    assert!(read_pickle(&unknown).unwrap().is_empty());
}

#[test]
fn hostile_pickles_are_refused() {
    refused(b"", "0 are left");
    refused(b"\x80\x01.", "protocol 1");
    refused(b"\x80\x02.", "stack is empty");
    refused(b"\x80\x02N", "0 are left");
    refused(b"\x80\x02NN.", "after its end");
    refused(b"\x80\x02(.", "stack is empty");
    refused(b"\x80\x02(0.", "stack is empty");
    refused(b"\x80\x02t.", "no mark");
    refused(b"\x80\x02}(Nu.", "key without a value");
    refused(b"\x80\x02h\x05.", "memo 5 is empty");
    refused(b"\x80\x02NNR.", "no class or function");
    refused(b"\x80\x02NQ.", "names no storage");
    refused(b"\x80\x02N(NNe.", "no list");
    refused(b"\x80\x02cnumpy\n\xff\n.", "UTF-8");
    refused(b"\x80\x02cnumpy", "without an end");
    // INST and EXT1, which torch.save does not write.
    refused(b"\x80\x02(ios\nsystem\n.", "opcode 0x69");
    refused(b"\x80\x02\x82\x01.", "opcode 0x82");
    for huge in [
        b"X\xff\xff\xff\xff".as_slice(),
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\0\0\0\0\0\0\0\x80",
        b"\x8b\xff\xff\xff\x7f",
    ] {
        refused(&[b"\x80\x02", huge, b"."].concat(), "are left");
    }
    refused(&[b"\x80\x02", &vec![b'N'; (4 << 20) + 1][..], b"."].concat(), "more than");
    // A list that contains itself, a hundred thousand nested lists, as many dictionaries.
    assert!(read_pickle(b"\x80\x02]q\0h\0a.").unwrap().is_empty());
    let deep = [b"\x80\x02".to_vec(), vec![b']'; 100_000], vec![b'a'; 99_999], b".".to_vec()].concat();
    assert!(read_pickle(&deep).unwrap().is_empty());
    let key = text("a");
    let deep =
        [b"\x80\x02}".to_vec(), [&key[..], b"}"].concat().repeat(100_000), vec![b's'; 100_000], b".".to_vec()].concat();
    refused(&deep, "nest");
    let cyclic = [b"\x80\x02}q\0".to_vec(), text("a"), b"h\0s.".to_vec()].concat();
    refused(&cyclic, "nest");
    // Each of 60 dictionaries holds the one before it twice: 2^60 places.
    let mut bomb = b"\x80\x02}q\0".to_vec();
    for i in 0..60u8 {
        bomb.extend([&b"}("[..], &text("a"), &[b'h', i], &text("b"), &[b'h', i], &[b'u', b'q', i + 1]].concat());
    }
    // The dictionaries stay on the stack above a mark, which POP_MARK clears, and the last comes back from the memo.
    let bomb = [&b"\x80\x02("[..], &bomb[2..], b"1", b"h\x3c."].concat();
    refused(&bomb, "hold more than");
}

#[test]
fn byte_order_and_names_are_checked() {
    let pickle = view("FloatStorage", 4, 0, &[4], &[1]);
    let big = read_archive(&archive_of(&pickle, "big")).unwrap_err().to_string();
    assert!(big.contains("byte order"), "{big}");
    let alone = [&pickle[..2], &pickle[9..pickle.len() - 2], b"."].concat();
    refused(&alone, "without a name");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.pth");
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("readme", SimpleFileOptions::default()).unwrap();
    fs::write(&path, zip.finish().unwrap().into_inner()).unwrap();
    let text = Weights::read(&path).unwrap_err().to_string();
    assert!(text.contains("no single data.pkl"), "{text}");
}
