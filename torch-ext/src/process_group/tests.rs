use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use tch::Kind;

use super::*;

/// A store that this process keeps, and its port.
pub(crate) fn served() -> (Store, u16) {
    // Somebody else may take a port between the question and its use.
    for _ in 0..50 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Ok(store) = Store::open("127.0.0.1", port, true, Duration::from_secs(60), "test/") {
            return (store, port);
        }
    }
    panic!("no port is free");
}

/// Runs `rank` as each of `size` processes of a group, each in a thread, and returns what they return.
pub(crate) fn in_group<T: Send>(size: usize, rank: impl Fn(usize, Arc<ProcessGroup>) -> T + Sync) -> Vec<T> {
    let (_store, port) = served();
    let run = |number: usize| {
        let timeout = Duration::from_secs(60);
        let store = Store::open("127.0.0.1", port, false, timeout, "test/").unwrap();
        let group = ProcessGroup::gloo(&store, number, size, "127.0.0.1", "", timeout).unwrap();
        rank(number, Arc::new(group))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn what_one_process_sets_all_can_read() {
    let (kept, port) = served();
    let other = Store::open("127.0.0.1", port, false, Duration::from_secs(60), "test/").unwrap();
    assert_eq!(other.get("a").unwrap(), None);
    kept.set("a", b"one\0two").unwrap();
    kept.set("empty", b"").unwrap();
    // Requests of one process are answered in order, so this one's answer says that both have arrived.
    assert_eq!(kept.get("empty").unwrap().unwrap(), b"");
    assert_eq!(other.get("a").unwrap().unwrap(), b"one\0two");
    assert_eq!(other.get("empty").unwrap().unwrap(), b"");
    other.delete("a").unwrap();
    assert_eq!(other.get("a").unwrap(), None);
    assert_eq!(kept.get("a").unwrap(), None);
    let elsewhere = Store::open("127.0.0.1", port, false, Duration::from_secs(60), "other/").unwrap();
    assert_eq!(elsewhere.get("empty").unwrap(), None, "prefixes keep names apart");
}

#[test]
fn a_port_that_is_taken_and_a_store_that_is_gone_are_errors() {
    let (kept, port) = served();
    let Err(Error::Group { operation, message }) =
        Store::open("127.0.0.1", port, true, Duration::from_secs(60), "test/")
    else {
        panic!("the port is in use");
    };
    assert_eq!(operation, "opening the store");
    assert!(message.contains("EADDRINUSE"), "{message}");
    let other = Store::open("127.0.0.1", port, false, Duration::from_secs(60), "test/").unwrap();
    drop(kept);
    assert!(matches!(other.get("a"), Err(Error::Group { operation: "reading from the store", .. })));
}

#[test]
fn all_get_the_same_bits() {
    let found = in_group(3, |rank, group| {
        let mut sum = Tensor::from_slice(&[0.1f32, 1e8, -3.0]) * (rank as f64 + 1.0);
        let mut least = Tensor::from_slice(&[rank as i64, -(rank as i64)]);
        let mut greatest = least.copy();
        let mut root = Tensor::from_slice(&[rank as f32; 2]);
        group.all_reduce(&mut sum, Reduction::Sum).unwrap();
        group.all_reduce(&mut least, Reduction::Min).unwrap();
        group.all_reduce(&mut greatest, Reduction::Max).unwrap();
        group.broadcast(&mut root, 2).unwrap();
        group.check().unwrap();
        let bits = |t: &Tensor| Vec::<i32>::try_from(t.view_dtype(Kind::Int)).unwrap();
        let whole = |t: &Tensor| Vec::<i64>::try_from(t).unwrap();
        (bits(&sum), whole(&least), whole(&greatest), bits(&root))
    });
    assert!(found.iter().all(|of_rank| *of_rank == found[0]));
    let (sum, least, greatest, root) = &found[0];
    let sum: Vec<f32> = sum.iter().map(|&bits| f32::from_bits(bits as u32)).collect();
    assert!((sum[0] - 0.6).abs() < 1e-6 && sum[1] == 6e8 && sum[2] == -18.0, "{sum:?}");
    assert_eq!((least.as_slice(), greatest.as_slice()), ([0, -2].as_slice(), [2, 0].as_slice()));
    assert_eq!(root[0], 2f32.to_bits() as i32);
}

#[test]
fn a_process_that_leaves_is_noticed_at_once() {
    let found = in_group(2, |rank, group| {
        let mut tensor = Tensor::from_slice(&[1f32; 1000]);
        group.all_reduce(&mut tensor, Reduction::Sum).unwrap();
        match rank {
            0 => group.all_reduce(&mut tensor, Reduction::Sum).map_err(|e| e.to_string()),
            _ => Ok(()),
        }
    });
    assert!(found[0].as_ref().unwrap_err().starts_with("all-reduce: "), "{found:?}");
    assert!(!found[0].as_ref().unwrap_err().contains("Timed out"), "it does not wait for the timeout: {found:?}");
}

#[test]
fn a_process_that_does_not_come_is_waited_for_until_the_timeout() {
    let (store, port) = served();
    let (first, second) = (
        Store::open("127.0.0.1", port, false, Duration::from_secs(60), "test/").unwrap(),
        Store::open("127.0.0.1", port, false, Duration::from_secs(60), "test/").unwrap(),
    );
    let group =
        |store: &Store, rank| ProcessGroup::gloo(store, rank, 2, "127.0.0.1", "", Duration::from_secs(2)).unwrap();
    thread::scope(|scope| {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let second = &second;
        scope.spawn(move || {
            let group = group(second, 1);
            // Holds its connections and does nothing.
            let _ = wait.recv();
            drop(group);
        });
        let group = group(&first, 0);
        let mut tensor = Tensor::from_slice(&[1f32]);
        let error = group.all_reduce(&mut tensor, Reduction::Sum).unwrap_err();
        // Gloo has several words for it.
        let message = error.to_string().to_lowercase();
        assert!(message.contains("timed out") || message.contains("timeout"), "{message}");
        drop(done);
    });
    drop(store);
}

#[test]
fn a_wrong_address_is_an_error() {
    let (store, _) = served();
    let timeout = Duration::from_secs(2);
    assert!(ProcessGroup::gloo(&store, 0, 1, "", "no-such-interface", timeout).is_err());
    assert!(Store::open("a\0b", 1, false, timeout, "").is_err());
    if crate::resolve_device("cuda").is_err() {
        let error = ProcessGroup::nccl_id().unwrap_err();
        assert!(matches!(error, Error::Group { operation: "naming the group", .. }), "{error}");
    }
}
