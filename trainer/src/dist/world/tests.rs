use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Runs `rank` as each of `size` processes that train together, each in a thread, and returns what they return.
pub(crate) fn in_many<T: Send>(size: usize, rank: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    static RESTARTS: AtomicU64 = AtomicU64::new(0);
    let (_store, port) = served();
    in_many_at(port, RESTARTS.fetch_add(1, Ordering::Relaxed), size, rank)
}

/// [`in_many`] with a store that is there already, after `restarts` attempts.
fn in_many_at<T: Send>(port: u16, restarts: u64, size: usize, rank: impl Fn(&Place) -> T + Sync) -> Vec<T> {
    let place = |number: usize| Place {
        rank: number,
        world_size: size,
        local_rank: number,
        local_world_size: size,
        master: ("127.0.0.1".into(), port),
        agent_store: true,
        restarts,
        interfaces: String::new(),
    };
    thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = (0..size).map(|number| scope.spawn(move || rank(&place(number)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// A store that this process keeps, as torchrun's agent does, and its port.
fn served() -> (torch_ext::Store, u16) {
    // Somebody else may take a port between the question and its use.
    for _ in 0..50 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Ok(store) = torch_ext::Store::open("127.0.0.1", port, true, Duration::from_secs(60), "agent/") {
            return (store, port);
        }
    }
    panic!("no port is free");
}

#[test]
fn what_is_said_reaches_all() {
    let found = in_many(3, |place| {
        in_world(Some(place), |world| {
            world.connect(Device::Cpu, Duration::from_secs(60))?;
            let number = world.rank() as f64;
            let led: Vec<u8> = world.lead(|| Ok(vec![7, world.rank() as u8]))?;
            let gathered = world.gather(format!("rank {}", world.rank()))?;
            let again = world.gather(world.rank())?;
            let tensor = Tensor::from_slice(&[number, 1.0]);
            world.broadcast([&tensor])?;
            let range = world.range(1001);
            Ok((led, gathered, again, world.sum(&[number, 2.0])?, Vec::<f64>::try_from(tensor)?, range))
        })
    });
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    for (rank, (led, gathered, again, sum, tensor, _)) in found.iter().enumerate() {
        assert_eq!(
            (led.as_slice(), sum.as_slice(), tensor.as_slice()),
            ([7, 0].as_slice(), [3.0, 6.0].as_slice(), [0.0, 1.0].as_slice())
        );
        let expected: &[&str] = if rank == 0 { &["rank 0", "rank 1", "rank 2"] } else { &[] };
        assert_eq!(gathered, expected);
        assert_eq!(again.len(), expected.len());
    }
    let ranges: Vec<_> = found.into_iter().flat_map(|(.., range)| range).collect();
    assert_eq!(ranges, (0..1001).collect::<Vec<_>>(), "each once");
}

/// A process that is left over from an earlier attempt still speaks into the same store, and nobody listens.
#[test]
fn an_earlier_attempt_is_not_heard() {
    let (_store, port) = served();
    let old = torch_ext::Store::open("127.0.0.1", port, false, Duration::from_secs(60), "mr-mae/3/").unwrap();
    let failed = serde_json::to_vec(&Ending::Failed("long ago".to_owned())).unwrap();
    for (key, value) in
        [("here/1", &b""[..]), ("all-here", b"1"), ("lead/0", b"17"), ("end/0", &failed), ("end/1", &failed)]
    {
        old.set(key, value).unwrap();
    }
    let found = in_many_at(port, 4, 2, |place| {
        in_world(Some(place), |world| {
            world.connect(Device::Cpu, Duration::from_secs(60))?;
            Ok((world.lead(|| Ok(4))?, world.sum(&[1.0])?))
        })
    });
    for found in found {
        assert_eq!(found.unwrap(), (4, vec![2.0]));
    }
}

#[test]
fn a_process_that_fails_is_named_with_what_it_said() {
    let found = in_many(3, |place| {
        in_world(Some(place), |world| {
            world.connect(Device::Cpu, Duration::from_secs(60))?;
            world.set_step(12);
            ensure!(world.rank() != 1, "the disk is on fire");
            world.sum(&[1.0])
        })
        .unwrap_err()
    });
    assert_eq!(found[1].to_string(), "the disk is on fire");
    for rank in [0, 2] {
        let message = found[rank].to_string();
        assert!(found[rank].is::<LostRank>(), "{message}");
        assert!(
            message.starts_with(&format!("rank {rank}, after step 12: rank 1 has ended: the disk is on fire")),
            "{message}"
        );
    }
}

#[test]
fn what_all_processes_say_is_said_once() {
    let found = in_many(2, |place| {
        let failed: anyhow::Result<()> = in_world(Some(place), |_| bail!("no such recipe"));
        failed.unwrap_err()
    });
    assert!(!found[0].is::<SaidElsewhere>() && found[1].is::<SaidElsewhere>());
    assert!(format!("{:#}", found[1]).contains("no such recipe"));
}

#[test]
fn other_facts_are_refused_by_name() {
    let found = in_many(2, |place| {
        in_world(Some(place), |world| {
            let lr = if world.rank() == 1 { "0.1" } else { "0.2" };
            world.agree(&BTreeMap::from([("a".to_owned(), "1".to_owned())]))?;
            world.agree(&BTreeMap::from([("optim.lr".to_owned(), lr.to_owned())]))
        })
        .unwrap_err()
    });
    for error in found {
        let message = error.root_cause().to_string();
        assert!(message.starts_with("rank 1 differs from rank 0 in optim.lr: 0.1, rank 0 has 0.2"), "{message}");
    }
}

#[test]
fn tensors_that_differ_in_one_bit_are_noticed() {
    let found = in_many(2, |place| {
        in_world(Some(place), |world| {
            world.connect(Device::Cpu, Duration::from_secs(60))?;
            let same = Tensor::from_slice(&[1.0f32, -0.0, 3.0]);
            let value = if world.rank() == 1 { 1.0f32.next_up() } else { 1.0 };
            let equal = BTreeMap::from([("a".to_owned(), same.shallow_clone())]);
            let unequal = BTreeMap::from([("a".to_owned(), same), ("b".to_owned(), Tensor::from_slice(&[value, 2.0]))]);
            world.require_equal(&equal)?;
            Ok(world.require_equal(&unequal).unwrap_err().to_string())
        })
    });
    for message in found {
        assert!(message.unwrap().starts_with("b is not the same in all 2 processes"));
    }
}

#[test]
fn a_process_that_is_alone_asks_nobody() {
    let world = World::alone();
    assert!(world.is_main() && world.group().is_none());
    assert_eq!((world.rank(), world.size(), world.range(10)), (0, 1, 0..10));
    assert_eq!(world.gather(5).unwrap(), [5]);
    assert_eq!(world.lead(|| Ok(6)).unwrap(), 6);
    assert_eq!(world.sum(&[0.1]).unwrap(), [0.1]);
    world.agree(&BTreeMap::new()).unwrap();
    assert_eq!(in_world(None, |world| Ok(world.size())).unwrap(), 1);
}
