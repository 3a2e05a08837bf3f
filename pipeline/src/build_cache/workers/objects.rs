//! Leases in an object store: what a folder has exclusive creation, locks and renaming for, a bucket has conditional writes for.
//!
//! ```text
//! work/leases/part-00007      the worker that has the part; written if there is none, or in place of the worker that has ended
//! work/workers/ID.json        the worker's pulse, renewed by it
//! ```
//!
//! No clock is shared. A worker that waits measures by its own how long another's pulse stands still; and how old a record is beside
//! others says the one clock that all records have, that of the store.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use schemas::layout;
use serde::{Deserialize, Serialize};

use super::{BEATS, Heart, LeaseStore, Pulse, WorkerId, new_id};

/// What a worker says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Counted up while it lives.
    beat: u64,
    /// For people: where it runs.
    host: String,
    /// Its process there.
    pid: u32,
    /// When the process started, in ticks of its machine: process numbers come again.
    started: u64,
    /// The running system and its space of process numbers, in which alone the two mean anything.
    machine: String,
}

/// The leases of a cache in a bucket.
#[derive(Debug)]
pub(crate) struct ObjectLeases {
    work: PathBuf,
    patience: Duration,
    machine: String,
    /// The workers that this process has announced.
    mine: Mutex<BTreeSet<WorkerId>>,
}

/// A worker as others see it. Dropping it says that it has ended; it is to hold no lease then.
#[derive(Debug)]
pub(crate) struct Worker {
    id: WorkerId,
    record: PathBuf,
    heart: Option<Heart>,
}

impl ObjectLeases {
    pub(super) fn new(cache: &Path, patience: Duration) -> ObjectLeases {
        ObjectLeases { work: layout::work_dir(cache), patience, machine: machine(), mine: Mutex::default() }
    }

    /// Announces a worker, whose pulse beats from now on.
    pub(super) fn announce(&self) -> Result<Worker> {
        let id = new_id();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let pid = std::process::id();
        let started = started(pid).unwrap_or_default();
        let mut record = Record { beat: 0, host, pid, started, machine: self.machine.clone() };
        let url = self.record(&id);
        write(&url, &record)?;
        self.mine.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        let path = url.clone();
        let heart = Heart::start(self.patience / BEATS, move || {
            record.beat += 1;
            write(&path, &record)
        })?;
        Ok(Worker { id, record: url, heart: Some(heart) })
    }

    /// Removes what workers left that have ended, their leases too.
    pub(super) fn clear_ended(&self) -> Result<()> {
        let mut ended = BTreeSet::new();
        for (id, is_old) in self.workers()? {
            if is_old || self.pulse(&id)? == Pulse::Ended {
                ended.insert(id);
            }
        }
        if ended.is_empty() {
            return Ok(());
        }
        for part in self.leased()? {
            if let Some(holder) = self.holder(part)?
                && ended.contains(&holder)
            {
                self.give_back(part, &holder)?;
            }
        }
        ended.iter().try_for_each(|id| remove(&self.record(id)))
    }

    /// The workers that live, as far as can be told now, other than `but` and those of this process: host and process of each.
    pub(super) fn living(&self, but: Option<&WorkerId>) -> Result<Vec<String>> {
        let mut living = Vec::new();
        for (id, is_old) in self.workers()? {
            if !is_old
                && Some(&id) != but
                && !self.is_mine(&id)
                && let Some(record) = self.read(&id)?
                && !self.has_ended(&record)
            {
                living.push(format!("process {} on {}", record.pid, record.host));
            }
        }
        Ok(living)
    }

    /// The workers that have a record, each with whether it was renewed so long before the latest of them that it counts as ended.
    fn workers(&self) -> Result<Vec<(WorkerId, bool)>> {
        let folder = self.work.join("workers");
        let listed = storage::walk(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let latest = listed.iter().map(|listed| listed.modified).max().unwrap_or(SystemTime::UNIX_EPOCH);
        let is_old = |modified| latest.duration_since(modified).is_ok_and(|age| age > 2 * self.patience);
        let worker =
            |listed: &storage::Listed| Some((listed.key.strip_suffix(".json")?.to_owned(), is_old(listed.modified)));
        Ok(listed.iter().filter_map(worker).collect())
    }

    fn is_mine(&self, id: &WorkerId) -> bool {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Whether a worker of this machine has ended: its process is gone.
    fn has_ended(&self, record: &Record) -> bool {
        let is_here = record.machine == self.machine && !self.machine.is_empty();
        is_here && started(record.pid) != Some(record.started)
    }

    fn lease(&self, part: u32) -> PathBuf {
        self.work.join("leases").join(format!("part-{part:05}"))
    }

    fn record(&self, id: &str) -> PathBuf {
        self.work.join("workers").join(format!("{id}.json"))
    }

    fn read(&self, id: &str) -> Result<Option<Record>> {
        let url = self.record(id);
        let read = storage::read_versioned(&url).with_context(|| format!("cannot read {}", url.display()))?;
        // A damaged record counts as missing: a living worker writes it again with its next beat.
        Ok(read.and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok()))
    }
}

impl LeaseStore for ObjectLeases {
    fn take(&self, part: u32, worker: &WorkerId) -> Result<bool> {
        let url = self.lease(part);
        storage::put_new(&url, worker.as_bytes()).with_context(|| format!("cannot write {}", url.display()))
    }

    fn take_over(&self, part: u32, from: &WorkerId, worker: &WorkerId) -> Result<bool> {
        let url = self.lease(part);
        let held = storage::read_versioned(&url).with_context(|| format!("cannot read {}", url.display()))?;
        match held {
            Some((holder, version)) if holder == from.as_bytes() => {
                let replaced = storage::replace(&url, worker.as_bytes(), &version);
                replaced.with_context(|| format!("cannot write {}", url.display()))
            }
            _ => Ok(false),
        }
    }

    fn give_back(&self, part: u32, worker: &WorkerId) -> Result<()> {
        if self.holder(part)?.as_ref() == Some(worker) { remove(&self.lease(part)) } else { Ok(()) }
    }

    fn holder(&self, part: u32) -> Result<Option<WorkerId>> {
        let url = self.lease(part);
        let held = storage::read_versioned(&url).with_context(|| format!("cannot read {}", url.display()))?;
        Ok(held.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn leased(&self) -> Result<BTreeSet<u32>> {
        let folder = self.work.join("leases");
        let listed = storage::walk(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let part = |listed: storage::Listed| listed.key.strip_prefix("part-").and_then(|number| number.parse().ok());
        Ok(listed.into_iter().filter_map(part).collect())
    }

    fn pulse(&self, worker: &WorkerId) -> Result<Pulse> {
        Ok(match self.read(worker)? {
            Some(record) if !self.has_ended(&record) => Pulse::Beat(record.beat),
            _ => Pulse::Ended,
        })
    }
}

impl Worker {
    pub(super) fn id(&self) -> &WorkerId {
        &self.id
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.heart = None;
        if let Err(error) = remove(&self.record) {
            tracing::debug!("{error:#}");
        }
    }
}

/// The running system and its space of process numbers; empty where that cannot be told.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match (boot.trim(), fs::read_link("/proc/self/ns/pid")) {
        ("", _) | (_, Err(_)) => String::new(),
        (boot, Ok(space)) => format!("{boot} {}", space.display()),
    }
}

/// When a process of this machine started; `None` if there is none of this number, or it has ended and waits to be noticed by its parent.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // The third field is the state, the twenty-second the time.
    fields.nth(18)?.parse().ok().filter(|_| !matches!(state, "Z" | "X"))
}

fn write(url: &Path, record: &Record) -> Result<()> {
    storage::put(url, &serde_json::to_vec(record)?).with_context(|| format!("cannot write {}", url.display()))
}

fn remove(url: &Path) -> Result<()> {
    storage::remove(url).with_context(|| format!("cannot remove {}", url.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn leases() -> ObjectLeases {
        ObjectLeases::new(Path::new(&storage::new_bucket()), PATIENCE)
    }

    #[test]
    fn a_lease_is_taken_and_taken_over_by_one_and_given_back_by_its_holder_alone() {
        let leases = leases();
        let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
        assert!(leases.take(1, &a).unwrap() && !leases.take(1, &b).unwrap());
        // As if the answer to the first attempt had been lost.
        assert!(leases.take(1, &a).unwrap());
        assert!(leases.take_over(1, &a, &b).unwrap());
        assert!(!leases.take_over(1, &a, &c).unwrap());
        leases.give_back(1, &a).unwrap();
        assert_eq!((leases.holder(1).unwrap(), leases.leased().unwrap()), (Some(b.clone()), BTreeSet::from([1])));
        leases.give_back(1, &b).unwrap();
        assert_eq!((leases.holder(1).unwrap(), leases.leased().unwrap()), (None, BTreeSet::new()));
    }

    /// One of many that take a lease over at once gets it.
    #[test]
    fn a_lease_is_taken_over_by_one_of_many() {
        let leases = leases();
        let from = "ended".to_owned();
        assert!(leases.take(3, &from).unwrap());
        let taken: Vec<bool> = std::thread::scope(|scope| {
            let (leases, from) = (&leases, &from);
            let take = |i: u32| scope.spawn(move || leases.take_over(3, from, &format!("worker {i}")).unwrap());
            let threads: Vec<_> = (0..8).map(take).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
    }

    #[test]
    fn a_worker_whose_process_is_gone_has_ended() {
        let leases = leases();
        let worker = leases.announce().unwrap();
        assert!(matches!(leases.pulse(worker.id()).unwrap(), Pulse::Beat(_)));
        // Its own workers are not others.
        assert!(leases.living(None).unwrap().is_empty());
        leases.clear_ended().unwrap();
        assert!(leases.take(7, worker.id()).unwrap());

        let pid = std::process::id();
        let other = |id: &str, record: Record| {
            write(&leases.record(id), &record).unwrap();
            assert!(leases.take(id.len() as u32, &id.to_owned()).unwrap());
        };
        let record = |started: u64, machine: &str| Record {
            beat: 0,
            host: "h".to_owned(),
            pid,
            started,
            machine: machine.to_owned(),
        };
        let here = leases.machine.clone();
        let since = started(pid).unwrap();
        other("living", record(since, &here));
        other("ended-process", record(since + 1, &here));
        other("another-machine!!", record(since + 1, "elsewhere"));
        assert_eq!(leases.living(None).unwrap().len(), 2);
        leases.clear_ended().unwrap();
        assert_eq!(leases.leased().unwrap(), BTreeSet::from([6, 7, 17]));
        drop(worker);
        assert_eq!(leases.living(None).unwrap().len(), 2);
    }
}
