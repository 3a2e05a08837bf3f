#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use schemas::hex;
use sha2::{Digest, Sha256};

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
    let mut tensors: BTreeMap<_, _> =
        kinds.into_iter().map(|kind| (format!("{kind:?}"), values.abs().to_kind(kind))).collect();
    tensors.insert("scalar".to_owned(), Tensor::from(7i64));
    tensors.insert("empty".to_owned(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)));
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
        Err(Error::WeightsFile(FileError::BadSafetensors { reason, .. })) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
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
                // A type may become another.
                Ok(_)
                | Err(
                    Error::WeightsFile(FileError::BadSafetensors { .. })
                    | Error::WeightsFile(FileError::UnsupportedType { .. }),
                ) => {}
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
    check(&with_header(&one("F32", "[1]", "[0,8]"), &[0; 8]), "damaged");
    check(&with_header(&one("F32", "[2]", "[4,12]"), &[0; 12]), "damaged");
    check(&with_header(&one("F32", "[2]", "[8,0]"), &[0; 8]), "damaged");
    check(&with_header(&one("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), &[0; 8]), "damaged");
    check(&with_header(&one("F32", "[0,18446744073709551615]", "[0,0]"), &[]), "impossible");
    check(&with_header(&one("F32", "[0,4611686018427387904,4]", "[0,0]"), &[]), "tensor a");
    // A terabyte that is not there.
    check(&with_header(&one("U8", "[1099511627776]", "[0,1099511627776]"), &[0; 8]), "describes");
    // Sixteen tensors whose sizes add up to nearly 2^64.
    let huge: Vec<String> = (0..16u64)
        .map(|i| {
            let size = (1u64 << 60) - 1;
            let (begin, end) = (i * size, (i + 1) * size);
            format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{begin},{end}]}}")
        })
        .collect();
    check(&with_header(&format!("{{{}}}", huge.join(",")), &[]), "describes");
}

/// Every type of the format that is not read, beside one that is.
#[test]
fn types_that_are_not_read_are_passed_over_by_name() {
    for (dtype, bytes) in [
        ("BOOL", 4),
        ("F8_E4M3", 4),
        ("F8_E5M2", 4),
        ("F8_E8M0", 4),
        ("F8_E4M3FNUZ", 4),
        ("F8_E5M2FNUZ", 4),
        ("F4", 2),
        ("F6_E2M3", 3),
        ("F6_E3M2", 3),
        ("U16", 8),
        ("U32", 16),
        ("U64", 32),
        ("C64", 32),
    ] {
        let end = 4 + bytes;
        let last = end + 4;
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"x":{{"dtype":"{dtype}","shape":[2,2],"data_offsets":[4,{end}]}},"z":{{"dtype":"F32","shape":[1],"data_offsets":[{end},{last}]}}}}"#
        );
        let mut data = 1f32.to_le_bytes().to_vec();
        data.extend(vec![1; bytes]);
        data.extend(3f32.to_le_bytes());
        let file = with_header(&header, &data);
        let weights = read_bytes(&file).unwrap_or_else(|e| panic!("{dtype}: {e}"));
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "z"], "{dtype}");
        assert_eq!(weights.get("z").unwrap().double_value(&[0]), 3.0, "{dtype}");
        assert_eq!(weights.sha256(), hex(&Sha256::digest(&file)), "{dtype}");
        let one = |name: &str| BTreeMap::from([(name.to_owned(), vec![1])]);
        weights.require(&one("a"), |name| name == "z").unwrap();
        let error = weights.require(&one("x"), |_| true).unwrap_err().to_string();
        assert!(
            error.contains(&format!("dtype {dtype} of tensor x is not supported")) && error.contains("f32"),
            "{error}"
        );
    }
    // One that no version known here has.
    let header = r#"{"x":{"dtype":"F3","shape":[2],"data_offsets":[0,1]}}"#;
    match read_bytes(&with_header(header, &[0])) {
        Err(Error::WeightsFile(FileError::UnsupportedType { tensor, dtype, .. })) => {
            assert_eq!((&*tensor, &*dtype), ("x", "F3"))
        }
        other => panic!("{other:?}"),
    }
}

/// Files of other programs, under any name: what they are is said, and none is called damaged.
#[test]
fn formats_that_are_not_read_are_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let zip_of = |names: &[&str], method| {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        for name in names {
            zip.start_file(*name, options).unwrap();
            zip.write_all(b"some bytes, some bytes, some bytes").unwrap();
        }
        zip.finish().unwrap().into_inner()
    };
    // The method says deflated, in the entry and in the directory.
    let stored = zip::CompressionMethod::Stored;
    let mut deflated = zip_of(&["a/data.pkl"], stored);
    let directory = deflated.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    (deflated[8], deflated[directory + 10]) = (8, 8);
    let mut tar = vec![b'x'; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    for (names, bytes, part) in [
        (&["m.gguf", "m.bin"][..], b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "GGUF"),
        (&["m.onnx", "m.bin", "m"], b"\x08\x08\x12\x07pytorch".to_vec(), "ONNX"),
        (&["tf_model.h5", "m.bin"], b"\x89HDF\r\n\x1a\n\0\0\0\0".to_vec(), "HDF5"),
        (&["m.npy", "m.pt"], b"\x93NUMPY\x01\0v\0".to_vec(), "NumPy array"),
        (&["m.npz", "m.pth"], zip_of(&["a.npy", "b.npy"], stored), ".npz"),
        (&["m.keras"], zip_of(&["config.json", "model.weights.h5"], stored), "Keras"),
        (&["m.zip", "m.pth"], zip_of(&["x/model.pth"], stored), "unpacked first"),
        (&["m.pth"], deflated, "compressed entries"),
        (&["m.pth.gz", "m.pth"], b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), "gzip"),
        (&["m.zst", "m.safetensors"], b"\x28\xb5\x2f\xfd\0\0\0\0".to_vec(), "Zstandard"),
        (&["m.tar", "m.pth", "m.safetensors"], tar, "tar archive"),
        (&["m.pkl", "m.pth"], b"\x80\x04\x95\x10\0\0\0\0\0\0\0}.".to_vec(), "pickle"),
        (&["flax_model.msgpack"], b"\x81\xa6params\x80 and more".to_vec(), "msgpack"),
        (&["m.tflite"], b"\x1c\0\0\0TFL3 and more".to_vec(), "TensorFlow Lite"),
        (&["m.dat"], b"nothing that is known here".to_vec(), "neither safetensors nor"),
    ] {
        for name in names {
            let path = folder.path().join(name);
            fs::write(&path, &bytes).unwrap();
            match Weights::read(&path) {
                Err(error @ Error::WeightsFile(FileError::UnreadFormat { .. })) => {
                    let text = error.to_string();
                    assert!(text.contains(part) && !text.contains("intact"), "{name}: {text}");
                }
                other => panic!("{name}: {other:?}"),
            }
            fs::remove_file(path).unwrap();
        }
    }
    let config = folder.path().join("config.json");
    fs::write(&config, "{\"model_type\": \"vit\"}").unwrap();
    let text = Weights::read(&config).unwrap_err().to_string();
    assert!(text.contains("without a weight_map") && text.contains("name the weights file"), "{text}");
    for name in ["tf_model.h5", "model.onnx"] {
        fs::write(folder.path().join(name), b"x").unwrap();
    }
    let text = Weights::read(folder.path()).unwrap_err().to_string();
    assert!(text.contains("tf_model.h5") && text.contains("model.onnx"), "{text}");
}

/// `torch.compile`, sharding and checkpointing of activations leave parts in names, in front and within.
#[test]
fn parts_that_wrappers_leave_in_names_are_taken_out() {
    let one = |names: &[&str]| {
        let tensors: BTreeMap<_, _> =
            names.iter().map(|name| ((*name).to_owned(), Tensor::from_slice(&[1f32]))).collect();
        let weights = read_bytes(&to_bytes(&tensors, None).unwrap()).unwrap();
        weights.names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        one(&["_orig_mod.a.w", "blocks.0._orig_mod.b", "x._fsdp_wrapped_module._checkpoint_wrapped_module.c"]),
        ["a.w", "blocks.0.b", "x.c"]
    );
    // Two of one name stay two.
    assert_eq!(one(&["_orig_mod.a", "a"]), ["_orig_mod.a", "a"]);
}

#[test]
fn a_folder_stands_for_its_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let bytes = to_bytes(&sample(), None).unwrap();
    let none = Weights::read(folder.path());
    assert!(matches!(none, Err(Error::WeightsFile(FileError::NoWeightsFile { found, .. })) if found.is_empty()));
    fs::write(path("b.safetensors"), &bytes).unwrap();
    assert_eq!(Weights::read(folder.path()).unwrap().path(), path("b.safetensors"));
    fs::write(path("a.safetensors"), &bytes).unwrap();
    let two = Weights::read(folder.path());
    let both = [path("a.safetensors"), path("b.safetensors")];
    assert!(matches!(two, Err(Error::WeightsFile(FileError::NoWeightsFile { found, .. })) if found == both));
    fs::write(path("model.safetensors"), &bytes).unwrap();
    assert_eq!(Weights::read(folder.path()).unwrap().path(), path("model.safetensors"));
    let absent = Weights::read(&path("absent.safetensors"));
    assert!(matches!(absent, Err(Error::WeightsFile(FileError::ReadWeights { .. }))));
}

#[test]
fn every_difference_is_listed() {
    let weights = read_bytes(&to_bytes(&sample(), None).unwrap()).unwrap();
    let mut expected: BTreeMap<String, Vec<i64>> =
        sample().iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
    let integers = ["Int", "Int16", "Int64", "Int8", "Uint8", "scalar"];
    expected.retain(|name, _| !integers.contains(&name.as_str()));
    weights.require(&expected, |name| integers.contains(&name)).unwrap();

    expected.insert("absent".to_owned(), vec![5]);
    expected.insert("Half".to_owned(), vec![3, 2]);
    expected.insert("Int8".to_owned(), vec![2, 3]);
    expected.remove("strided");
    let error = weights.require(&expected, |name| integers.contains(&name)).unwrap_err();
    let text = error.to_string();
    let Error::WeightsMismatch { mismatch, .. } = error else { panic!("{error:?}") };
    assert_eq!(mismatch.missing, [("absent".to_owned(), vec![5])]);
    assert_eq!(mismatch.unexpected, [("strided".to_owned(), vec![3, 2])]);
    let (found, expected) = (vec![2, 3], vec![3, 2]);
    assert_eq!(mismatch.misshaped, [Misshaped { name: "Half".to_owned(), found, expected }]);
    assert_eq!(mismatch.not_float, [("Int8".to_owned(), Kind::Int8)]);
    for part in ["absent [5]", "strided [3, 2]", "Half", "[2, 3]", "Int8"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_unwritable_type_and_a_full_disk_are_errors() {
    let tensors = BTreeMap::from([("mask".to_owned(), Tensor::from_slice(&[true]))]);
    assert!(matches!(to_bytes(&tensors, None), Err(Error::WriteWeights { .. })));
    let mut room = [0; 100];
    let full = write(&mut &mut room[..], &sample(), None);
    assert!(matches!(full, Err(Error::WriteWeights { .. })));
}
