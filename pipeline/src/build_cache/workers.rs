//! Several processes that build one cache: which of them builds which part.
//!
//! No process coordinates the others. Workers divide the parts of a cache in one of two ways (see [`Division`](crate::division::Division)):
//!
//! - **Leases**: a worker takes the lease of a part before it begins, and gives it back when the part is committed. While it lives, its pulse goes
//!   on; a worker whose pulse has stopped has lost its leases, and others take them over. So the workers that are left finish the cache.
//! - **Shares**: worker i of n builds the i-th n-th of the parts and asks nobody.
//!
//! Leases save work and are not needed for correctness. A part that two workers build gets the same bytes from both, and its files
//! become visible whole ([`schemas::atomic`]). So a worker that was only suspended may go on after others have taken it for dead.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use folder::FolderLeases;
use objects::ObjectLeases;
use pulse::Heart;

mod folder;
mod objects;
mod pulse;
#[cfg(test)]
mod tests;

/// Name of a worker, unlike that of any other: 16 hexadecimal digits.
pub(crate) type WorkerId = String;

/// The sign of life of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// It was alive when it counted up to this.
    Beat(u64),
    /// It has ended.
    Ended,
}

/// Where leases are kept. Every function may be called by any number of workers at once.
pub(crate) trait LeaseStore: Sync {
    /// Takes the lease of a part; false if somebody has it.
    fn take(&self, part: u32, worker: &WorkerId) -> Result<bool>;

    /// Takes the lease of a part from a worker that has ended; false if somebody else was quicker.
    fn take_over(&self, part: u32, from: &WorkerId, worker: &WorkerId) -> Result<bool>;

    /// Gives the lease of a part back, if the worker still has it.
    fn give_back(&self, part: u32, worker: &WorkerId) -> Result<()>;

    /// Who has the lease of a part.
    fn holder(&self, part: u32) -> Result<Option<WorkerId>>;

    /// The parts that are leased.
    fn leased(&self) -> Result<BTreeSet<u32>>;

    /// The pulse of a worker.
    fn pulse(&self, worker: &WorkerId) -> Result<Pulse>;
}

/// Beats of the pulse in the time after which a worker counts as ended.
const BEATS: u32 = 4;

/// The leases of a cache, wherever it lies.
#[derive(Debug)]
pub(crate) enum Leases {
    /// On a disk.
    Folder(FolderLeases),
    /// In an object store.
    Objects(ObjectLeases),
}

/// This process as the other workers see it. Dropping it says that it has ended; it is to hold no lease then.
#[derive(Debug)]
pub(crate) enum Worker {
    Folder(folder::Worker),
    Objects(objects::Worker),
}

impl Worker {
    pub(crate) fn id(&self) -> &WorkerId {
        match self {
            Worker::Folder(worker) => worker.id(),
            Worker::Objects(worker) => worker.id(),
        }
    }
}

impl Leases {
    /// The leases of the cache `cache`, where a worker without a sign of life for `patience` counts as ended.
    pub(crate) fn new(cache: &Path, patience: Duration) -> Leases {
        match storage::is_url(cache) {
            true => Leases::Objects(ObjectLeases::new(cache, patience)),
            false => Leases::Folder(FolderLeases::new(cache, patience)),
        }
    }

    /// Announces a worker, whose pulse beats from now on.
    pub(crate) fn announce(&self) -> Result<Worker> {
        Ok(match self {
            Leases::Folder(leases) => Worker::Folder(leases.announce()?),
            Leases::Objects(leases) => Worker::Objects(leases.announce()?),
        })
    }

    /// Removes what workers left that have ended, their leases too.
    pub(crate) fn clear_ended(&self) -> Result<()> {
        match self {
            Leases::Folder(leases) => leases.clear_ended(),
            Leases::Objects(leases) => leases.clear_ended(),
        }
    }

    /// Removes the folder of the leases if nobody uses it any more.
    pub(crate) fn remove_if_unused(&self) {
        if let Leases::Folder(leases) = self {
            leases.remove_if_unused();
        }
    }

    /// The workers that live, as far as can be told now, other than `but`: host and process of each.
    pub(crate) fn living(&self, but: Option<&WorkerId>) -> Result<Vec<String>> {
        match self {
            Leases::Folder(leases) => leases.living(but),
            Leases::Objects(leases) => leases.living(but),
        }
    }

    fn store(&self) -> &dyn LeaseStore {
        match self {
            Leases::Folder(leases) => leases,
            Leases::Objects(leases) => leases,
        }
    }
}

impl LeaseStore for Leases {
    fn take(&self, part: u32, worker: &WorkerId) -> Result<bool> {
        self.store().take(part, worker)
    }

    fn take_over(&self, part: u32, from: &WorkerId, worker: &WorkerId) -> Result<bool> {
        self.store().take_over(part, from, worker)
    }

    fn give_back(&self, part: u32, worker: &WorkerId) -> Result<()> {
        self.store().give_back(part, worker)
    }

    fn holder(&self, part: u32) -> Result<Option<WorkerId>> {
        self.store().holder(part)
    }

    fn leased(&self) -> Result<BTreeSet<u32>> {
        self.store().leased()
    }

    fn pulse(&self, worker: &WorkerId) -> Result<Pulse> {
        self.store().pulse(worker)
    }
}

/// The parts of a cache as a worker sees them.
pub(crate) trait Parts {
    /// What is to be done for a part.
    type Work;

    /// The parts that lack something now; a quick look, which may be a little late.
    fn open(&self) -> Result<BTreeSet<u32>>;

    /// What a part lacks now; `None` if it is finished.
    fn work(&self, part: u32) -> Result<Option<Self::Work>>;
}

/// Leases of others that are looked at each time to see whether their workers have ended.
const LOOKED_AT: usize = 8;

/// The parts that a worker takes, one after the other, until there is none left that nobody does.
pub(crate) struct Claims<'a, S, P> {
    store: &'a S,
    parts: &'a P,
    worker: WorkerId,
    /// After this time without a beat a worker counts as ended.
    patience: Duration,
    /// The last beat of each worker that holds a lease, and when it was first seen.
    beats: BTreeMap<WorkerId, (Pulse, Instant)>,
    /// Parts to do that this worker does not have, as far as it knows.
    open: BTreeSet<u32>,
    /// The open parts that others hold.
    busy: BTreeSet<u32>,
    /// Where the search for the next part begins.
    next: u32,
    /// Whether others are at work where it searches.
    met_others: bool,
    held: BTreeSet<u32>,
}

impl<'a, S: LeaseStore, P: Parts> Claims<'a, S, P> {
    /// Claims of `worker`. A worker without a beat for `patience` counts as ended.
    pub(crate) fn new(store: &'a S, parts: &'a P, worker: WorkerId, patience: Duration) -> Claims<'a, S, P> {
        let (beats, open, busy, held) = Default::default();
        Claims { store, parts, worker, patience, beats, open, busy, next: 0, met_others: false, held }
    }

    /// Looks again what there is to do, and returns how many parts that this worker does not have lack something. If others are at work, it goes on
    /// in the middle of a gap that they leave, a long one more likely than a short one: the worker that comes from the front of the gap has half of it to itself.
    pub(crate) fn look(&mut self) -> Result<usize> {
        self.open = self.parts.open()?;
        self.open.retain(|part| !self.held.contains(part));
        self.busy = self.store.leased()?;
        self.busy.retain(|part| self.open.contains(part));
        self.met_others = false;
        if !self.busy.is_empty() {
            let free: Vec<u32> = self.open.difference(&self.busy).copied().collect();
            self.next = middle_of_a_gap(&free).unwrap_or_default();
        }
        Ok(self.open.len())
    }

    /// Takes a part that nobody does; `None` if every other part is finished or in work.
    pub(crate) fn claim(&mut self) -> Result<Option<P::Work>> {
        loop {
            if self.met_others {
                self.look()?;
            }
            let free = |part: &&u32| !self.busy.contains(part);
            let found = self.open.range(self.next..).find(free).or_else(|| self.open.iter().find(free)).copied();
            let Some(part) = found else {
                return self.claim_of_the_ended();
            };
            self.next = part.saturating_add(1);
            if !self.store.take(part, &self.worker)? {
                self.busy.insert(part);
            } else if let Some(work) = self.begin(part)? {
                return Ok(Some(work));
            }
            self.met_others = true;
        }
    }

    /// What a part lacks whose lease has just been taken: another worker may have finished it before.
    fn begin(&mut self, part: u32) -> Result<Option<P::Work>> {
        self.open.remove(&part);
        self.busy.remove(&part);
        self.held.insert(part);
        let work = self.parts.work(part)?;
        if work.is_none() {
            self.done(part)?;
        }
        Ok(work)
    }

    /// Takes the part of a worker that has ended.
    fn claim_of_the_ended(&mut self) -> Result<Option<P::Work>> {
        let busy: Vec<u32> = self.busy.iter().copied().collect();
        let from = random_below(busy.len().max(1));
        let (before, behind) = busy.split_at(from);
        for &part in behind.iter().chain(before).take(LOOKED_AT) {
            let taken = match self.store.holder(part)? {
                Some(holder) if self.has_ended(&holder)? => self.store.take_over(part, &holder, &self.worker)?,
                Some(_) => false,
                // Given back since the last look.
                None => self.store.take(part, &self.worker)?,
            };
            if taken && let Some(work) = self.begin(part)? {
                return Ok(Some(work));
            }
        }
        Ok(None)
    }

    /// Whether a worker has ended, or has not moved for so long that it counts as such. The time is this worker's own: clocks of other machines
    /// may differ.
    fn has_ended(&mut self, worker: &WorkerId) -> Result<bool> {
        let pulse = self.store.pulse(worker)?;
        if pulse == Pulse::Ended {
            return Ok(true);
        }
        let now = Instant::now();
        let (last, seen) = self.beats.entry(worker.clone()).or_insert_with(|| (pulse.clone(), now));
        if *last != pulse {
            (*last, *seen) = (pulse, now);
        }
        Ok(now.duration_since(*seen) >= self.patience)
    }

    /// A part is finished.
    pub(crate) fn done(&mut self, part: u32) -> Result<()> {
        self.held.remove(&part);
        self.store.give_back(part, &self.worker)
    }

    /// Gives back what is held.
    pub(crate) fn give_up(&mut self) -> Result<()> {
        while let Some(part) = self.held.pop_first() {
            self.store.give_back(part, &self.worker)?;
        }
        Ok(())
    }
}

/// The part in the middle of a run of consecutive parts of `free`, ascending; each run with a probability as its length.
fn middle_of_a_gap(free: &[u32]) -> Option<u32> {
    if free.is_empty() {
        return None;
    }
    let any = random_below(free.len());
    let is_gap = |pair: &[u32]| pair[0] + 1 == pair[1];
    let before = free[..=any].windows(2).rev().take_while(|pair| is_gap(pair)).count();
    let behind = free[any..].windows(2).take_while(|pair| is_gap(pair)).count();
    Some(free[(any - before + any + behind).div_ceil(2)])
}

/// A name that no other worker has.
fn new_id() -> WorkerId {
    format!("{:016x}", RandomState::new().build_hasher().finish() ^ u64::from(std::process::id()))
}

/// A number below `n`, at least 1, other in every call: it spreads workers, and no byte depends on it.
fn random_below(n: usize) -> usize {
    RandomState::new().build_hasher().finish() as usize % n
}
