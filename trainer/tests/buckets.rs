//! Training from a bucket of a real S3 server, over a network that fails and damages what it carries.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "files are damaged on purpose, and tests unwrap")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

#[path = "../../tests/support/bucket.rs"]
mod bucket;
#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "the unit tests use the rest")]
mod testing;

use bucket::{Bucket, Fault, Request};
use schemas::Pack;
use testing::World;

fn trainer(args: &[String], bucket: &Bucket) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(&args[1..]).env_clear();
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_WAIT_POLICY"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs(bucket.env()).env("HF_HUB_OFFLINE", "1").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of metrics.jsonl without what depends on time and memory.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for timed in ["images_per_s", "wait_share", "device_idle_share", "mfu", "peak_memory_bytes"] {
            value.as_object_mut().unwrap().remove(timed).unwrap_or_else(|| panic!("a line without {timed}"));
        }
        value
    };
    text.lines().map(line).collect()
}

/// Weights of the newest checkpoint.
fn weights(run: &Path) -> Vec<u8> {
    let last = fs::read_to_string(run.join("LAST")).unwrap();
    fs::read(run.join("checkpoints").join(last.trim()).join("model.safetensors")).unwrap()
}

/// Every 41st request fails, in one way after the other; wrong bytes come where a hash shows them, in rows, records and images.
fn faults(request: &Request<'_>) -> Option<Fault> {
    let kinds =
        [Fault::InternalError, Fault::WrongByte, Fault::SlowDown, Fault::WrongByte, Fault::Cut, Fault::LostAnswer];
    let fault = (request.number % 41 == 40).then(|| kinds[(request.number / 41) as usize % kinds.len()]);
    let is_checked = request.method == "GET" && !request.path.contains("list-type");
    fault.filter(|fault| *fault != Fault::WrongByte || is_checked)
}

/// Every block of a folder that `--cache-dir` names, damaged in its middle.
fn damage(folder: &Path) -> u64 {
    let mut damaged = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damaged += damage(&path);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        // Behind the table, which fills whole pages.
        for at in (4096 + 100..bytes.len()).step_by(512) {
            bytes[at] ^= 1;
            damaged += 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    damaged
}

/// The same order of samples, losses and weights as from a disk: without a folder for blocks, with an empty one, with a full one, with one whose
/// blocks are damaged, and with packed images.
#[test]
fn a_run_over_a_bucket_is_the_run_over_a_disk() {
    let Some(bucket) = Bucket::start(faults) else { return };
    for pack in [Pack::None, Pack::Original] {
        let mut world = World::new(16);
        world.pack = pack;
        world.build_cache();
        let place = if pack == Pack::None { "plain" } else { "packed" };
        bucket.put_tree(&world.cache_dir(), &format!("{place}/cache"));
        bucket.put_tree(&world.images_dir(), &format!("{place}/images"));
        let local = trainer(&world.pretrain_args("local", &[]), &bucket);
        assert!(local.status.success(), "{}", stderr(&local));

        let mut requests = Vec::new();
        for (run, blocks) in
            [("none", None), ("cold", Some("blocks")), ("warm", Some("blocks")), ("damaged", Some("blocks"))]
        {
            let mut args = world.pretrain_args(run, &["--cache", &format!("s3://bucket/{place}/cache")]);
            if let Some(images) = args.iter().position(|arg| arg == "--images") {
                args[images + 1] = format!("s3://bucket/{place}/images");
            }
            if let Some(blocks) = blocks {
                args.extend(["--cache-dir".to_owned(), world.path(blocks).display().to_string()]);
                args.extend(["--cache-dir-limit".to_owned(), "64MiB".to_owned()]);
            }
            if run == "damaged" {
                assert!(damage(&world.path("blocks")) > 10);
            }
            let before = bucket.requests();
            let remote = trainer(&args, &bucket);
            assert!(remote.status.success(), "{place}, {run}: {}", stderr(&remote));
            assert_eq!(metrics(&world.path(run)), metrics(&world.path("local")), "{place}, {run}");
            assert!(weights(&world.path(run)) == weights(&world.path("local")), "{place}, {run}: other weights");
            requests.push(bucket.requests() - before);
        }
        // The rows of every epoch but the first come from the folder, and in the second run all of them.
        let [none, cold, warm, damaged] = requests[..] else { panic!("four runs") };
        assert!(none > cold && cold > warm && damaged > warm, "{place}: {requests:?}");
    }
    assert!(bucket.faults() > 10, "only {} requests failed", bucket.faults());
}
