//! Weights files: safetensors, sharded sets, and zip archives of `torch.save`.
//!
//! The first byte of an input says how the rest becomes a file (`Mode`).

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::LazyLock;

use hub::weights::{Backend, Dtype, WeightsFile};
use serde_json::json;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use crate::scratch;

/// Bytes that a test may ask for: more than any input here is long.
const MOST: u64 = 16 << 20;

/// Tensors as bytes; refuses what no file of these sizes can hold, as a promise of the reader is that it asks for none.
struct Bytes;

#[derive(Debug)]
struct Tensor {
    data: Vec<u8>,
    element_bytes: usize,
}

impl Backend for Bytes {
    type Tensor = Tensor;

    fn empty(dtype: Dtype, shape: &[i64]) -> Result<Tensor, String> {
        let element_bytes = dtype.bitsize() / 8;
        let numel = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(u64::try_from(n).ok()?));
        let bytes = numel.and_then(|numel| numel.checked_mul(element_bytes as u64));
        let bytes = bytes.filter(|&bytes| bytes <= MOST);
        let bytes = bytes.unwrap_or_else(|| panic!("a tensor of shape {shape:?} is asked for, larger than its file"));
        Ok(Tensor { data: vec![0; bytes as usize], element_bytes })
    }

    fn bytes(tensor: &mut Tensor) -> Result<&mut [u8], String> {
        Ok(&mut tensor.data)
    }

    fn view(storage: &Tensor, shape: &[i64], strides: &[i64], offset: i64) -> Result<Tensor, String> {
        assert_eq!(shape.len(), strides.len());
        assert!(shape.iter().chain(strides).all(|&value| value >= 0) && offset >= 0);
        let elements = (storage.data.len() / storage.element_bytes) as i64;
        if !shape.contains(&0) {
            let last = shape.iter().zip(strides).fold(offset, |at, (&n, &step)| at + (n - 1) * step);
            assert!(last < elements, "a view reaches element {last} of {elements}");
        }
        Ok(Tensor { data: Vec::new(), element_bytes: storage.element_bytes })
    }
}

fn read(path: &Path) {
    match WeightsFile::<Tensor>::read::<Bytes>(path) {
        Ok(file) => {
            let _ = file.require_read(|_| true);
            let names: usize = file.tensors.keys().chain(file.unread.keys()).map(String::len).sum();
            assert!(names as u64 <= 4 * MOST, "names of {names} bytes");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Safetensors: 0 the file; 1 header and data, with a zero byte between them; 2 the index of a sharded set.
fn safetensors(input: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let Some((&mode, rest)) = input.split_first() else {
        return Vec::new();
    };
    match mode % 3 {
        0 => vec![("model.safetensors", rest.to_vec())],
        1 => {
            let at = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
            vec![("model.safetensors", safetensors_of(&rest[..at], rest.get(at + 1..).unwrap_or_default()))]
        }
        _ => {
            let header = |name: &str| json!({name: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).to_string();
            vec![
                ("a.safetensors", safetensors_of(header("x").as_bytes(), &[1, 2])),
                ("b.safetensors", safetensors_of(header("y").as_bytes(), &[3, 4])),
                ("model.safetensors.index.json", rest.to_vec()),
            ]
        }
    }
}

fn safetensors_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

pub fn safetensors_files(input: &[u8], dir: &Path) {
    safetensors(input).iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
}

pub fn run_safetensors(input: &[u8]) {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch::folder);
    let files = safetensors(input);
    safetensors_files(input, FOLDER.path());
    if let Some((name, _)) = files.last() {
        read(&FOLDER.path().join(name));
    }
}

pub fn safetensors_seeds() -> Vec<Vec<u8>> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [22, 30]},
        "d": {"dtype": "BOOL", "shape": [0, 7], "data_offsets": [30, 30]},
        "_orig_mod.e": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [30, 32]},
    });
    let header = header.to_string();
    let index = r#"{"metadata": {"total_size": 4}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
    vec![
        [&[0][..], &safetensors_of(header.as_bytes(), &[7; 32])].concat(),
        [&[1][..], header.as_bytes(), &[0], &[7; 32]].concat(),
        [&[2][..], index.as_bytes()].concat(),
        [&[0][..], b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"].concat(),
    ]
}

/// Archives: 0 the file as it is; 1 the file with the CRC of each entry computed; 2 and more a pickle, in an archive with two storages.
fn torch(input: &[u8]) -> Option<Vec<u8>> {
    let (&mode, rest) = input.split_first()?;
    Some(match mode % 4 {
        0 => rest.to_vec(),
        1 => with_crcs(rest.to_vec()),
        _ => archive_of(rest),
    })
}

/// Gives every entry of the directory, and the entry's own header, the CRC of the bytes where the entry says they are.
fn with_crcs(mut zip: Vec<u8>) -> Vec<u8> {
    let number = |zip: &[u8], at: usize, width: usize| -> Option<usize> {
        let bytes = zip.get(at..at + width)?;
        Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    };
    let mut fixes = Vec::new();
    let entries = zip.windows(4).enumerate().filter(|(_, found)| *found == b"PK\x01\x02").map(|(at, _)| at);
    for entry in entries {
        let fix = || {
            let (size, local) = (number(&zip, entry + 20, 4)?, number(&zip, entry + 42, 4)?);
            let names = number(&zip, local + 26, 2)? + number(&zip, local + 28, 2)?;
            let data = zip.get(local + 30 + names..)?.get(..size)?;
            Some([(entry + 16, crc32fast::hash(data)), (local + 14, crc32fast::hash(data))])
        };
        fixes.extend(fix().into_iter().flatten());
    }
    for (at, crc) in fixes {
        if let Some(place) = zip.get_mut(at..at + 4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
    }
    zip
}

fn archive_of(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in
        [("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[1; 16]), ("a/data/1", &[2; 4])]
    {
        zip.start_file(name, stored).expect("an entry");
        zip.write_all(bytes).expect("an entry");
    }
    zip.finish().expect("an archive").into_inner()
}

pub fn torch_files(input: &[u8], dir: &Path) {
    if let Some(archive) = torch(input) {
        scratch::write(&dir.join("model.pth"), &archive);
    }
}

pub fn run_torch(input: &[u8]) {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch::folder);
    torch_files(input, FOLDER.path());
    read(&FOLDER.path().join("model.pth"));
}

/// The opcodes that torch.save writes.
fn view(class: &str, key: &str, numel: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut pickle = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n".to_vec();
    pickle.extend(class.as_bytes());
    pickle.push(b'\n');
    for text in [key, "cpu"] {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
    }
    pickle.extend([b'K', numel, b't', b'Q', b'K', 0]);
    for numbers in [size, stride] {
        pickle.push(b'(');
        numbers.iter().for_each(|&n| pickle.extend([b'K', n]));
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    pickle
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"}(".to_vec();
    for (name, value) in entries {
        pickle.push(b'X');
        pickle.extend((name.len() as u32).to_le_bytes());
        pickle.extend(name.as_bytes());
        pickle.extend(value);
    }
    pickle.push(b'u');
    pickle
}

pub fn torch_seeds() -> Vec<Vec<u8>> {
    let tensors = dict(&[
        ("w", view("FloatStorage", "0", 4, &[2, 2], &[2, 1])),
        ("b", view("BoolStorage", "1", 4, &[4], &[1])),
        ("half", view("HalfStorage", "0", 8, &[0, 3], &[3, 1])),
        ("complex", view("ComplexFloatStorage", "0", 2, &[2], &[1])),
    ]);
    let whole = |body: &[u8]| [b"\x80\x02", body, b"."].concat();
    let module = [
        b"cnet\nNet\n)\x81}(X\x0b\0\0\0_parameters".to_vec(),
        dict(&[("w", view("FloatStorage", "0", 4, &[4], &[1]))]),
        b"ub".to_vec(),
    ]
    .concat();
    let pickles = [
        whole(&tensors),
        whole(&dict(&[("teacher", dict(&[("state_dict", tensors.clone())])), ("epoch", b"K\x07".to_vec())])),
        whole(&module),
        whole(b"ccollections\nOrderedDict\n](X\x01\0\0\0aK\x01\x86e\x85Rq\x00h\x00\x86"),
        [b"\x80\x04\x95\0\0\0\0\0\0\0\0".to_vec(), tensors, b"\x94.".to_vec()].concat(),
    ];
    let mut seeds: Vec<Vec<u8>> = pickles.iter().map(|pickle| [&[2][..], pickle].concat()).collect();
    for mode in [0, 1] {
        seeds.push([&[mode][..], &archive_of(&pickles[0])].concat());
    }
    seeds
}
