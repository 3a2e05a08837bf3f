//! Sources and caches in a bucket of a real S3 server, and a network that fails.

use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use images::rng::{Purpose, Rng};

use super::bucket::{Bucket, Fault, Request};
use super::support::{World, assert_same_tree, output, program, run, stderr, stdout, tree};

/// Processes that build one cache.
const WORKERS: usize = 3;

/// Kills in all.
const KILLS: u64 = 30;

/// A build that asks for nothing so long hangs. Only then does this matter.
const PATIENCE: Duration = Duration::from_secs(600);

/// Every `each`-th request fails, in one way after the other.
fn faults(each: u64, kinds: &'static [Fault]) -> impl Fn(&Request<'_>) -> Option<Fault> + Send + Sync + 'static {
    move |request| {
        let fails = request.number % each == each - 1;
        fails.then(|| kinds[(request.number / each) as usize % kinds.len()])
    }
}

const OF_A_NETWORK: &[Fault] = &[Fault::InternalError, Fault::SlowDown, Fault::Cut, Fault::LostAnswer];

fn with_bucket(bucket: &Bucket, args: &[String]) -> Output {
    program(args).envs(bucket.env()).output().expect("the program starts")
}

/// The command `pipeline WORDS`, in the bucket.
fn pipeline(bucket: &Bucket, words: &[&str]) -> Output {
    let args: Vec<String> = std::iter::once(&"pipeline").chain(words).map(|word| (*word).to_owned()).collect();
    with_bucket(bucket, &args)
}

/// Arguments of a build into a bucket.
fn into_bucket(world: &World, name: &str, more: &[&str]) -> Vec<String> {
    let out = format!("s3://bucket/{name}");
    let mut all = vec!["--out", &*out, "--threads", "1"];
    all.extend(more);
    world.build_args("unused", &all)
}

fn assert_same_as_bucket(bucket: &Bucket, prefix: &str, expected: &Path) {
    let (found, expected) = (bucket.tree(prefix), tree(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "other objects in {prefix}");
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{prefix}/{name} has other bytes");
    }
}

/// Three workers on one bucket behind a network that fails, and one of them is killed again and again: no row is lost or doubled, `verify` finds
/// nothing, and the cache is that of one worker on a disk, byte for byte.
#[test]
fn workers_that_are_killed_on_a_bucket_build_the_same_cache() {
    let Some(bucket) = Bucket::start(faults(23, OF_A_NETWORK)) else { return };
    let world = World::new();
    let small = ["--set", "cache.part_samples=2"];
    let whole = output(&world.build_args("whole", &[&["--threads", "1"][..], &small].concat()));
    assert!(whole.status.success(), "{}", stderr(&whole));

    let (mut killed, mut cache) = (0, 0);
    while killed < KILLS {
        let name = format!("killed-{cache}");
        let args = into_bucket(&world, &name, &small);
        let start = || {
            let mut command = program(&args);
            command.envs(bucket.env()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut workers: Vec<Child> = (0..WORKERS).map(|_| start()).collect();
        loop {
            let mut rng = Rng::new(1, Purpose::Select, &[killed, cache]);
            // A moment is a number of requests and a few milliseconds more, however fast the machine is.
            let (requests, millis) = (bucket.requests() + 5 + rng.range(60), rng.range(20));
            let began = Instant::now();
            let ended = loop {
                if workers.iter_mut().all(|worker| worker.try_wait().unwrap().is_some()) {
                    break true;
                }
                if bucket.requests() >= requests {
                    break false;
                }
                assert!(began.elapsed() < PATIENCE, "no worker asks for anything");
                sleep(Duration::from_millis(1));
            };
            if ended || killed == KILLS {
                break;
            }
            sleep(Duration::from_millis(millis));
            let worker = &mut workers[rng.range(WORKERS as u64) as usize];
            if worker.try_wait().unwrap().is_none() {
                worker.kill().unwrap();
                killed += 1;
            }
            worker.wait().unwrap();
            *worker = start();
        }
        for mut worker in workers {
            worker.wait().unwrap();
        }
        // Those that were killed last have left what the next build clears away.
        let last = with_bucket(&bucket, &args);
        assert!(last.status.success(), "{}", stderr(&last));
        assert_same_as_bucket(&bucket, &name, &world.path("whole"));
        let verified = pipeline(&bucket, &["verify", &format!("s3://bucket/{name}")]);
        assert_eq!(verified.status.code(), Some(0), "{}{}", stdout(&verified), stderr(&verified));
        cache += 1;
    }
    assert!(bucket.faults() > 20, "only {} requests failed", bucket.faults());
}

/// The same images as a folder, as shards and as a list of shards give the same cache from a bucket as from a disk, and what reads caches
/// reads this one; damage on the way is noticed and mended, whatever it hits.
#[test]
fn sources_and_readers_take_urls() {
    let wrong = |request: &Request<'_>| {
        let is_cache = request.path.contains("/teachers/") || request.path.contains("/samples/");
        let is_wrong = request.method == "GET" && is_cache && !request.path.contains("list-type");
        let fault = if is_wrong { Fault::WrongByte } else { Fault::SlowDown };
        (request.number % 97 == 96).then_some(fault)
    };
    let Some(bucket) = Bucket::start(wrong) else { return };
    let world = World::new();
    bucket.put_tree(&world.path("images"), "images");
    for part in ["cat", "dog"] {
        let file = std::fs::File::create(world.path(&format!("{part}.tar"))).unwrap();
        let mut shard = tar::Builder::new(file);
        shard.append_dir_all(part, world.path("images").join(part)).unwrap();
        shard.finish().unwrap();
        bucket.put(&format!("shards/{part}.tar"), &std::fs::read(world.path(&format!("{part}.tar"))).unwrap());
    }
    let folder = world.path("images").display().to_string();
    let shards = world.path("{cat,dog}.tar").display().to_string();
    for (name, disk, url) in [
        ("folder", &*folder, "s3://bucket/images"),
        ("braces", &*shards, "s3://bucket/shards/{cat,dog}.tar"),
        ("glob", &*shards, "s3://bucket/shards/*.tar"),
        ("prefix", &*shards, "s3://bucket/shards/"),
    ] {
        let local = output(&world.build_args(name, &["--images", disk, "--threads", "1"]));
        assert!(local.status.success(), "{}", stderr(&local));
        let remote = format!("{name}-of-a-bucket");
        let built = with_bucket(&bucket, &world.build_args(&remote, &["--images", url, "--threads", "2"]));
        assert!(built.status.success(), "{url}: {}", stderr(&built));
        assert_same_tree(&world.path(&remote), &world.path(name));
    }

    // What reads a cache says the same of it in the bucket and on the disk.
    let whole = world.path("folder");
    bucket.put_tree(&whole, "whole");
    let url = "s3://bucket/whole";
    let verified = pipeline(&bucket, &["verify", url]);
    assert_eq!(verified.status.code(), Some(0), "{}{}", stdout(&verified), stderr(&verified));
    for words in [&["inspect", "CACHE", "--row", "3"][..], &["stats", "CACHE", "--json"]] {
        let on = |cache: &str| words.iter().map(|word| word.replace("CACHE", cache)).collect::<Vec<String>>();
        let whole = whole.to_str().unwrap();
        let (_, expected) = run([vec!["pipeline".to_owned()], on(whole)].concat()).unwrap();
        let found = with_bucket(&bucket, &[vec!["pipeline".to_owned()], on(url)].concat());
        assert!(found.status.success(), "{words:?}: {}", stderr(&found));
        assert_eq!(stdout(&found).replace(url, "X"), expected.replace(whole, "X"), "{words:?}");
    }
    let listed = pipeline(&bucket, &["list", "s3://bucket"]);
    assert!(
        stdout(&listed).contains("s3://bucket/whole") && stdout(&listed).contains("complete"),
        "{}",
        stdout(&listed)
    );
    assert!(bucket.faults() > 4, "only {} requests failed", bucket.faults());
}

/// A teacher that is added in the bucket has the bytes of one that was there from the first.
#[test]
fn a_teacher_is_added_in_a_bucket() {
    let Some(bucket) = Bucket::start(faults(11, OF_A_NETWORK)) else { return };
    let world = World::new();
    assert!(output(&world.build_args("whole", &["--threads", "1"])).status.success());
    let one = into_bucket(&world, "one", &[]);
    let dino = one.iter().position(|arg| arg.starts_with("teachers.dino")).unwrap();
    let one: Vec<String> = [&one[..dino - 1], &one[dino + 1..]].concat();
    let built = with_bucket(&bucket, &one);
    assert!(built.status.success(), "{}", stderr(&built));
    let teacher = format!("dino={}", world.path("dino").display());
    let images = world.path("images").display().to_string();
    let added = pipeline(
        &bucket,
        &[
            "add-teacher",
            "s3://bucket/one",
            "--images",
            &images,
            "--teacher",
            &teacher,
            "--batch-size",
            "5",
            "--device",
            "cpu",
        ],
    );
    assert!(added.status.success(), "{}", stderr(&added));
    assert_same_as_bucket(&bucket, "one", &world.path("whole"));
}

/// A store that cannot be reached is told with the URL and status 75, and no secret is in any message; what is wrong for good has status 2.
#[test]
fn a_store_that_fails_is_told_without_secrets() {
    let Some(bucket) = Bucket::start(|request| request.path.contains("down").then_some(Fault::SlowDown)) else {
        return;
    };
    for (url, code, words) in [
        ("s3://bucket/down", 75, "the server answered 503"),
        ("s3://bucket/nothing", 2, "cache.json"),
        ("s3://no-such-bucket/cache", 2, "cache.json"),
        ("ftp://bucket/cache", 2, "ftp:// is not supported"),
    ] {
        let args = ["pipeline", "verify", url].map(str::to_owned);
        let failed = program(&args).envs(bucket.env()).env("RUST_LOG", "trace").output().unwrap();
        let said = stderr(&failed);
        assert_eq!(failed.status.code(), Some(code), "{url}: {said}");
        assert!(said.contains(url) && said.contains(words), "{url}: {said}");
        assert!(!said.contains("a-secret-that-nobody-shows") && !said.contains("panicked"), "{url}: {said}");
    }
}
