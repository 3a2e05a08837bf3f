//! Every operation against a real S3 server, behind a network that fails.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

#[path = "../../tests/support/bucket.rs"]
mod bucket;

use bucket::{Bucket, Fault, Request};
use storage::Settings;

/// Every fifth request fails, in one way after the other; two get no answer.
fn faults(request: &Request<'_>) -> Option<Fault> {
    let kinds = [Fault::InternalError, Fault::Cut, Fault::SlowDown, Fault::LostAnswer];
    match request.number {
        12 | 33 => Some(Fault::Silence),
        number => (number % 5 == 4).then(|| kinds[(number / 5) as usize % kinds.len()]),
    }
}

/// One test, because a process has one set of settings.
#[test]
fn every_operation_holds_over_a_network_that_fails() {
    let Some(bucket) = Bucket::start(faults) else { return };
    let variables = bucket.env().into_iter().map(|(name, value)| (name.to_owned(), value));
    storage::configure(Settings::from_vars(variables)).unwrap();
    let url = |key: &str| PathBuf::from(format!("s3://bucket/{key}"));

    // An upload in three parts, in place of an older one.
    let bytes: Vec<u8> = (0..35_000_000u64).map(|i| ((i * 2_654_435_761) >> 15) as u8).collect();
    let large = url("a/large");
    for end in [20_000_000, bytes.len()] {
        let mut file = storage::temporary().unwrap();
        file.write_all(&bytes[..end]).unwrap();
        storage::upload(&mut file, &large).unwrap();
        assert!(bucket.tree("a")["large"] == bytes[..end]);
    }

    // Ranges, some of them asked for ahead.
    let file = storage::open(&large).unwrap();
    assert_eq!(file.len().unwrap(), bytes.len() as u64);
    let pieces: Vec<(u64, usize)> = (0..60).map(|i| (i * 577_000, 1000 + i as usize * 911)).collect();
    file.prefetch(pieces[..40].iter().copied());
    for (offset, len) in pieces {
        let mut out = vec![0; len];
        file.read_exact_at(&mut out, offset).unwrap();
        assert!(out == bytes[offset as usize..][..len], "{len} bytes at {offset}");
    }

    // Conditional writes: whatever answers are lost, one writer wins, and it knows.
    for i in 0..10 {
        let lease = url(&format!("leases/{i}"));
        assert!(storage::put_new(&lease, b"one").unwrap() && !storage::put_new(&lease, b"two").unwrap());
        let (held, version) = storage::read_versioned(&lease).unwrap().unwrap();
        assert_eq!(held, b"one");
        assert!(storage::replace(&lease, b"three", &version).unwrap());
        assert!(!storage::replace(&lease, b"four", &version).unwrap());
        assert_eq!(storage::read(&lease).unwrap(), b"three");
    }

    // Listing, removing, and what is not there.
    let names: Vec<String> =
        storage::list(Path::new("s3://bucket")).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["a", "leases"]);
    assert_eq!(storage::walk(&url("leases/")).unwrap().len(), 10);
    storage::remove(&url("leases/3")).unwrap();
    storage::remove(&url("leases/3")).unwrap();
    assert!(!storage::exists(&url("leases/3")).unwrap() && storage::exists(&url("leases/4")).unwrap());
    storage::remove_tree(&url("leases")).unwrap();
    assert_eq!(storage::list(&url("leases")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage::open(&url("leases/4")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage::read(Path::new("s3://no-such-bucket/x")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(bucket.faults() > 20, "only {} requests failed", bucket.faults());
}
