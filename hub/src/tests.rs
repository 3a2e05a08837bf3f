#![allow(clippy::disallowed_methods, reason = "tests write throw-away caches")]

use std::fs;

use super::*;

mod local;
mod remote;
mod server;

/// Never asks to stop.
fn go_on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Puts a snapshot into a cache, files and all, and lets `main` be it.
fn fill(cache: &Path, commit: &str, files: &[(&str, &str)]) {
    let root = cache.join("models--org--name");
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), commit).unwrap();
    let snapshot = root.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for (name, content) in files {
        fs::write(snapshot.join(name), content).unwrap();
    }
}

/// Tensors as their bytes; enough for files that are refused, and for safetensors.
#[derive(Debug)]
struct Bytes;

impl weights::Backend for Bytes {
    type Tensor = Vec<u8>;

    fn empty(dtype: weights::Dtype, shape: &[i64]) -> Result<Vec<u8>, String> {
        let numel: i64 = shape.iter().product();
        Ok(vec![0; numel as usize * dtype.bitsize() / 8])
    }

    fn bytes(tensor: &mut Vec<u8>) -> Result<&mut [u8], String> {
        Ok(tensor)
    }

    fn view(storage: &Vec<u8>, _: &[i64], _: &[i64], _: i64) -> Result<Vec<u8>, String> {
        Ok(storage.clone())
    }
}

fn read_weights(path: &Path) -> weights::Result<weights::WeightsFile<Vec<u8>>> {
    weights::WeightsFile::read::<Bytes>(path)
}
