#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::fs;

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use tch::Device;

use super::*;

mod folders;
mod torch_files;

fn sample() -> BTreeMap<String, Tensor> {
    let values = Tensor::from_slice(&[1.5f32, -2.25, 0.0, 3.0, 4.0, 5.0]).reshape([2, 3]);
    let kinds = [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
    ];
    let mut tensors: BTreeMap<_, _> = kinds
        .into_iter()
        .map(|kind| (format!("{kind:?}"), values.abs().to_kind(kind)))
        .collect();
    tensors.insert("scalar".to_owned(), Tensor::from(7i64));
    tensors.insert(
        "empty".to_owned(),
        Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)),
    );
    tensors.insert("strided".to_owned(), values.transpose(0, 1));
    tensors
}

fn read_bytes(bytes: &[u8]) -> Result<Weights> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    Weights::read(&path)
}

/// The reason why `bytes` are no intact file.
fn refused(bytes: &[u8]) -> String {
    match read_bytes(bytes) {
        Err(Error::BadSafetensors { reason, .. }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        data,
    ]
    .concat()
}

#[test]
fn what_is_written_is_read() {
    let tensors = sample();
    let bytes = to_bytes(&tensors, Some(("run", "{\"step\": 3}"))).unwrap();
    let weights = read_bytes(&bytes).unwrap();
    assert!(weights.names().eq(tensors.keys()));
    for (name, tensor) in &tensors {
        let read = weights.get(name).unwrap();
        assert_eq!(read.kind(), tensor.kind(), "{name}");
        assert_eq!(read, tensor, "{name}");
    }
    assert_eq!(weights.metadata()["run"], "{\"step\": 3}");
    assert_eq!(weights.sha256(), hex(&Sha256::digest(&bytes)));
}

#[test]
fn the_bytes_are_a_function_of_the_tensors_and_aligned() {
    let bytes = to_bytes(&sample(), Some(("key", "text"))).unwrap();
    assert_eq!(bytes, to_bytes(&sample(), Some(("key", "text"))).unwrap());
    // The reference reader takes them, and finds every tensor at a multiple of its element's size.
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header_len % 8, 0);
    let start = bytes.as_ptr() as usize;
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let offset = view.data().as_ptr() as usize - start;
        assert_eq!(offset % (view.dtype().bitsize() / 8), 0, "{name}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = to_bytes(&sample(), None).unwrap();
    for len in 0..bytes.len() {
        refused(&bytes[..len]);
    }
    refused(&[&bytes[..], b"x"].concat());
}

#[test]
fn a_damaged_header_is_an_error_or_another_file_but_no_panic() {
    let bytes = to_bytes(&sample(), None).unwrap();
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for position in 0..header_end {
        for flip in [0x01, 0x10, 0x80] {
            let mut damaged = bytes.clone();
            damaged[position] ^= flip;
            match read_bytes(&damaged) {
                Ok(_) | Err(Error::BadSafetensors { .. }) => {}
                Err(other) => panic!("byte {position}: {other:?}"),
            }
        }
    }
}

#[test]
fn hostile_headers_are_refused_before_anything_is_allocated() {
    let check = |bytes: &[u8], part: &str| {
        let reason = refused(bytes);
        assert!(reason.contains(part), "{reason}");
    };
    check(b"", "too few");
    check(&u64::MAX.to_le_bytes(), "claims");
    check(&[&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), "claims");
    check(&with_header("no json", b""), "damaged");
    check(&with_header("[1, 2]", b""), "damaged");
    check(&with_header(&"[".repeat(10_000), b""), "damaged");
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    check(
        &with_header(&one("F32", "[1]", "[0,8]"), &[0; 8]),
        "damaged",
    );
    check(
        &with_header(&one("F32", "[2]", "[4,12]"), &[0; 12]),
        "damaged",
    );
    check(
        &with_header(&one("F32", "[2]", "[8,0]"), &[0; 8]),
        "damaged",
    );
    check(
        &with_header(&one("F99", "[2]", "[0,8]"), &[0; 8]),
        "damaged",
    );
    check(
        &with_header(&one("BOOL", "[2]", "[0,2]"), &[0; 2]),
        "tensor a: the type",
    );
    check(
        &with_header(
            &one("F32", "[4294967296,4294967296,4294967296]", "[0,8]"),
            &[0; 8],
        ),
        "damaged",
    );
    check(
        &with_header(&one("F32", "[0,18446744073709551615]", "[0,0]"), &[]),
        "impossible",
    );
    check(
        &with_header(&one("F32", "[0,4611686018427387904,4]", "[0,0]"), &[]),
        "tensor a",
    );
    // A terabyte that is not there.
    check(
        &with_header(&one("U8", "[1099511627776]", "[0,1099511627776]"), &[0; 8]),
        "describes",
    );
    // Sixteen tensors whose sizes add up to nearly 2^64.
    let huge: Vec<String> = (0..16u64)
        .map(|i| {
            let size = (1u64 << 60) - 1;
            let (begin, end) = (i * size, (i + 1) * size);
            format!(
                "\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{begin},{end}]}}"
            )
        })
        .collect();
    check(
        &with_header(&format!("{{{}}}", huge.join(",")), &[]),
        "describes",
    );
}

#[test]
fn a_folder_stands_for_its_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let bytes = to_bytes(&sample(), None).unwrap();
    let none = Weights::read(folder.path());
    assert!(matches!(none, Err(Error::NoWeightsFile { found, .. }) if found.is_empty()));
    fs::write(path("b.safetensors"), &bytes).unwrap();
    assert_eq!(
        Weights::read(folder.path()).unwrap().path(),
        path("b.safetensors")
    );
    fs::write(path("a.safetensors"), &bytes).unwrap();
    let two = Weights::read(folder.path());
    let both = [path("a.safetensors"), path("b.safetensors")];
    assert!(matches!(two, Err(Error::NoWeightsFile { found, .. }) if found == both));
    fs::write(path("model.safetensors"), &bytes).unwrap();
    assert_eq!(
        Weights::read(folder.path()).unwrap().path(),
        path("model.safetensors")
    );
    let absent = Weights::read(&path("absent.safetensors"));
    assert!(matches!(absent, Err(Error::ReadWeights { .. })));
}

#[test]
fn every_difference_is_listed() {
    let weights = read_bytes(&to_bytes(&sample(), None).unwrap()).unwrap();
    let mut expected: BTreeMap<String, Vec<i64>> = sample()
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.size()))
        .collect();
    let integers = ["Int", "Int16", "Int64", "Int8", "Uint8", "scalar"];
    expected.retain(|name, _| !integers.contains(&name.as_str()));
    weights
        .require(&expected, |name| integers.contains(&name))
        .unwrap();

    expected.insert("absent".to_owned(), vec![5]);
    expected.insert("Half".to_owned(), vec![3, 2]);
    expected.insert("Int8".to_owned(), vec![2, 3]);
    expected.remove("strided");
    let error = weights
        .require(&expected, |name| integers.contains(&name))
        .unwrap_err();
    let text = error.to_string();
    let Error::WeightsMismatch { mismatch, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(mismatch.missing, [("absent".to_owned(), vec![5])]);
    assert_eq!(mismatch.unexpected, [("strided".to_owned(), vec![3, 2])]);
    let (found, expected) = (vec![2, 3], vec![3, 2]);
    assert_eq!(
        mismatch.misshaped,
        [Misshaped {
            name: "Half".to_owned(),
            found,
            expected
        }]
    );
    assert_eq!(mismatch.not_float, [("Int8".to_owned(), Kind::Int8)]);
    for part in ["absent [5]", "strided [3, 2]", "Half", "[2, 3]", "Int8"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_unwritable_type_and_a_full_disk_are_errors() {
    let tensors = BTreeMap::from([("mask".to_owned(), Tensor::from_slice(&[true]))]);
    assert!(matches!(
        to_bytes(&tensors, None),
        Err(Error::WriteWeights { .. })
    ));
    let mut room = [0; 100];
    let full = write(&mut &mut room[..], &sample(), None);
    assert!(matches!(full, Err(Error::WriteWeights { .. })));
}
