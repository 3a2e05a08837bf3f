//! Claims over a store in memory: what many workers do, without images.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;

/// Leases in memory, which count what is asked of them.
#[derive(Default)]
struct MemoryLeases {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    leases: BTreeMap<u32, WorkerId>,
    ended: BTreeSet<WorkerId>,
    beats: BTreeMap<WorkerId, u64>,
    /// Calls by name.
    calls: BTreeMap<&'static str, u64>,
}

impl MemoryLeases {
    fn with<T>(&self, call: &'static str, f: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.lock().unwrap();
        *state.calls.entry(call).or_default() += 1;
        Ok(f(&mut state))
    }
}

impl LeaseStore for MemoryLeases {
    fn take(&self, part: u32, worker: &WorkerId) -> Result<bool> {
        self.with("take", |state| match state.leases.contains_key(&part) {
            true => false,
            false => state.leases.insert(part, worker.clone()).is_none(),
        })
    }

    fn take_over(&self, part: u32, from: &WorkerId, worker: &WorkerId) -> Result<bool> {
        self.with("take over", |state| {
            let is_theirs = state.leases.get(&part) == Some(from);
            if is_theirs {
                state.leases.insert(part, worker.clone());
            }
            is_theirs
        })
    }

    fn give_back(&self, part: u32, worker: &WorkerId) -> Result<()> {
        self.with("give back", |state| {
            if state.leases.get(&part) == Some(worker) {
                state.leases.remove(&part);
            }
        })
    }

    fn holder(&self, part: u32) -> Result<Option<WorkerId>> {
        self.with("holder", |state| state.leases.get(&part).cloned())
    }

    fn leased(&self) -> Result<BTreeSet<u32>> {
        self.with("list leases", |state| state.leases.keys().copied().collect())
    }

    fn pulse(&self, worker: &WorkerId) -> Result<Pulse> {
        self.with("pulse", |state| match state.ended.contains(worker) {
            true => Pulse::Ended,
            false => Pulse::Beat(state.beats.get(worker).copied().unwrap_or_default()),
        })
    }
}

/// Parts in memory; how often each was finished, and how often it was asked for.
struct MemoryParts {
    done: Mutex<Vec<u32>>,
    looks: Mutex<u64>,
}

impl MemoryParts {
    fn new(parts: usize) -> MemoryParts {
        MemoryParts { done: Mutex::new(vec![0; parts]), looks: Mutex::new(0) }
    }

    fn finish(&self, part: u32) {
        self.done.lock().unwrap()[part as usize] += 1;
    }
}

impl Parts for MemoryParts {
    type Work = u32;

    fn open(&self) -> Result<BTreeSet<u32>> {
        *self.looks.lock().unwrap() += 1;
        Ok((0..).zip(&*self.done.lock().unwrap()).filter(|(_, done)| **done == 0).map(|(part, _)| part).collect())
    }

    fn work(&self, part: u32) -> Result<Option<u32>> {
        Ok((self.done.lock().unwrap()[part as usize] == 0).then_some(part))
    }
}

const PATIENCE: Duration = Duration::from_secs(3600);

fn claims<'a>(store: &'a MemoryLeases, parts: &'a MemoryParts, worker: &str) -> Claims<'a, MemoryLeases, MemoryParts> {
    let mut claims = Claims::new(store, parts, worker.to_owned(), PATIENCE);
    claims.look().unwrap();
    claims
}

#[test]
fn one_worker_takes_all_parts_in_order_and_gives_all_back() {
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(5));
    let mut claims = claims(&store, &parts, "a");
    let mut taken = Vec::new();
    while let Some(part) = claims.claim().unwrap() {
        parts.finish(part);
        claims.done(part).unwrap();
        taken.push(part);
    }
    assert_eq!(taken, [0, 1, 2, 3, 4]);
    assert_eq!(claims.look().unwrap(), 0);
    assert!(store.leased().unwrap().is_empty());
}

#[test]
fn two_workers_never_have_one_part_and_leave_none() {
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(7));
    let (mut a, mut b) = (claims(&store, &parts, "a"), claims(&store, &parts, "b"));
    let (first, second) = (a.claim().unwrap().unwrap(), b.claim().unwrap().unwrap());
    assert_ne!(first, second);
    // While one is busy, the other does all the rest.
    while let Some(part) = b.claim().unwrap() {
        assert_ne!(part, first);
        parts.finish(part);
        b.done(part).unwrap();
    }
    parts.finish(second);
    b.done(second).unwrap();
    assert_eq!((b.claim().unwrap(), b.look().unwrap()), (None, 1));
    parts.finish(first);
    a.done(first).unwrap();
    assert_eq!((a.claim().unwrap(), b.look().unwrap()), (None, 0));
    assert!(parts.done.lock().unwrap().iter().all(|done| *done == 1));
}

#[test]
fn a_part_that_was_finished_since_the_last_look_is_not_begun() {
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(2));
    let mut late = claims(&store, &parts, "late");
    parts.finish(0);
    assert_eq!(late.claim().unwrap(), Some(1));
    assert_eq!(store.leased().unwrap(), BTreeSet::from([1]));
}

#[test]
fn the_parts_of_a_worker_that_has_ended_are_taken_over_and_those_of_a_living_one_are_not() {
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(2));
    let mut dead = claims(&store, &parts, "dead");
    let part = dead.claim().unwrap().unwrap();
    let mut heir = claims(&store, &parts, "heir");
    let other = heir.claim().unwrap().unwrap();
    assert_eq!(heir.claim().unwrap(), None);
    store.state.lock().unwrap().ended.insert("dead".to_owned());
    assert_eq!(heir.claim().unwrap(), Some(part));
    assert_eq!(store.leased().unwrap(), BTreeSet::from([part, other]));
    // One that was only suspended may finish what it has, and takes nothing away from the other.
    parts.finish(part);
    dead.done(part).unwrap();
    assert_eq!(store.holder(part).unwrap().as_deref(), Some("heir"));
}

#[test]
fn a_pulse_that_stands_still_for_too_long_counts_as_ended() {
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(1));
    let part = claims(&store, &parts, "still").claim().unwrap();
    let mut heir = Claims::new(&store, &parts, "heir".to_owned(), Duration::ZERO);
    heir.look().unwrap();
    // Seen for the first time, and no time at all has to pass.
    assert_eq!(heir.claim().unwrap(), part);
    let mut patient = claims(&store, &parts, "patient");
    store.state.lock().unwrap().beats.insert("heir".to_owned(), 7);
    assert_eq!(patient.claim().unwrap(), None);
}

/// The events of many workers in the order of a simulated clock: no part is done twice, and what it costs in calls.
#[test]
fn a_thousand_workers_share_a_hundred_thousand_parts() {
    use images::rng::{Purpose, Rng};
    const WORKERS: usize = 1000;
    const PARTS: usize = 100_000;
    let (store, parts) = (MemoryLeases::default(), MemoryParts::new(PARTS));
    let names: Vec<String> = (0..WORKERS).map(|i| format!("{i:04}")).collect();
    let mut workers: Vec<_> = names.iter().map(|name| Claims::new(&store, &parts, name.clone(), PATIENCE)).collect();
    // (time, worker, the part that it finishes then)
    let mut events: BTreeSet<(u64, usize, Option<u32>)> = (0..WORKERS).map(|i| (i as u64, i, None)).collect();
    let mut rng = Rng::new(1, Purpose::Select, &[]);
    let (mut end, mut begun) = (0, 0u64);
    while let Some((time, worker, finished)) = events.pop_first() {
        let claims = &mut workers[worker];
        match finished {
            Some(part) => {
                parts.finish(part);
                claims.done(part).unwrap();
            }
            None => drop(claims.look().unwrap()),
        }
        if let Some(part) = claims.claim().unwrap() {
            begun += 1;
            // From 50 to 150 seconds, in milliseconds.
            events.insert((time + 50_000 + rng.range(100_000), worker, Some(part)));
        }
        end = time;
    }
    let done = parts.done.lock().unwrap();
    assert!(done.iter().all(|done| *done == 1) && begun == PARTS as u64);
    // 100 parts a worker of 100 s each, and a tail of one part.
    let ideal = 100.0 * 100_000.0;
    assert!((end as f64) < 1.03 * ideal, "{end} ms");
    let calls = store.state.lock().unwrap().calls.clone();
    let per_part = |call: &str| calls.get(call).copied().unwrap_or_default() as f64 / PARTS as f64;
    let looks = *parts.looks.lock().unwrap() as f64 / WORKERS as f64;
    println!("{} ms of {ideal}; {looks} looks of each worker; calls {calls:?}", end);
    assert!(per_part("take") < 1.2 && per_part("give back") < 1.2, "{calls:?}");
    assert!(looks < 15.0, "{looks} looks");
    assert!(store.leased().unwrap().is_empty());
}

#[test]
fn a_late_worker_begins_in_the_middle_of_a_gap() {
    assert_eq!(middle_of_a_gap(&[]), None);
    assert_eq!(middle_of_a_gap(&[5]), Some(5));
    assert_eq!(middle_of_a_gap(&[5, 6]), Some(6));
    assert_eq!(middle_of_a_gap(&[10, 11, 12, 13, 14]), Some(12));
    for _ in 0..100 {
        assert!([1, 8].contains(&middle_of_a_gap(&[0, 1, 7, 8, 9]).unwrap()));
    }
}
