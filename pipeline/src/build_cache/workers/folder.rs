//! Leases in a folder, `CACHE/work`, that every worker sees: a local disk or a network file system.
//!
//! ```text
//! work/leases/part-00007      the worker that has the part; made by exclusive creation
//! work/workers/ID.json        the worker's pulse, renewed by it
//! work/workers/ID.lock        locked by the worker for as long as it lives
//! ```
//!
//! The lock shows at once that a worker of this machine has ended, however it ended. Across machines locks cannot be relied on, so there the
//! pulse decides.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use schemas::{atomic, layout};
use serde::{Deserialize, Serialize};

use super::{BEATS, Heart, LeaseStore, Pulse, WorkerId, new_id};

/// After this time the files of a worker of another machine are removed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// What a worker says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Counted up while it lives.
    beat: u64,
    /// For people: where it runs.
    host: String,
    /// For people: its process there.
    pid: u32,
    /// The running system, which alone its lock is good for.
    boot: String,
}

/// The leases of a cache in a folder.
#[derive(Debug)]
pub(crate) struct FolderLeases {
    work: PathBuf,
    boot: String,
    patience: Duration,
}

/// A worker as others see it. Dropping it says that it has ended; it is to hold no lease then.
#[derive(Debug)]
pub(crate) struct Worker {
    id: WorkerId,
    work: PathBuf,
    /// Locked.
    lock: File,
    heart: Option<Heart>,
}

impl FolderLeases {
    pub(super) fn new(cache: &Path, patience: Duration) -> FolderLeases {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        FolderLeases { work: layout::work_dir(cache), boot, patience }
    }

    /// Announces a worker, whose pulse beats from now on.
    pub(super) fn announce(&self) -> Result<Worker> {
        let id = new_id();
        let workers = self.workers();
        atomic::create_dir(&workers)?;
        atomic::create_dir(&self.leases())?;
        let lock_path = self.lock(&id);
        let lock = OpenOptions::new().write(true).create_new(true).open(&lock_path);
        let lock = lock.with_context(|| format!("cannot create {}", lock_path.display()))?;
        // On a file system without locks, other workers look at the pulse alone.
        let _ = lock.try_lock();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let mut record = Record { beat: 0, host, pid: std::process::id(), boot: self.boot.clone() };
        let path = self.record(&id);
        write(&path, &record)?;
        let heart = Heart::start(self.patience / BEATS, move || {
            record.beat += 1;
            write(&path, &record)
        })?;
        Ok(Worker { id, work: self.work.clone(), lock, heart: Some(heart) })
    }

    /// Removes what workers of this machine left that have ended, their leases too.
    pub(super) fn clear_ended(&self) -> Result<()> {
        let mut ended = BTreeSet::new();
        for name in names(&self.workers())? {
            // `ID.json`, `ID.lock`, or what is left of writing the first.
            let id: WorkerId = name.trim_start_matches('.').split('.').next().unwrap_or_default().to_owned();
            let has_ended = match self.read(&id)? {
                Some(_) => self.pulse(&id)? == Pulse::Ended || self.is_forgotten(&id),
                // It ended before it had said anything, unless it is about to.
                None => self.is_unlocked(&id) || !self.lock(&id).exists(),
            };
            if has_ended {
                ended.insert(id);
            }
        }
        // Of a worker that ended while it took a lease over; one that is doing so now does not miss the file.
        for name in names(&self.leases())?.iter().filter(|name| name.contains('.')) {
            remove(&self.leases().join(name))?;
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
        ended.iter().try_for_each(|id| forget(&self.work, id))
    }

    /// Removes the folder of the leases if nobody uses it any more.
    pub(super) fn remove_if_unused(&self) {
        remove_if_unused(&self.work);
    }

    /// The workers that live, as far as can be told now, other than `but`: host and process of each.
    pub(super) fn living(&self, but: Option<&WorkerId>) -> Result<Vec<String>> {
        let mut living = Vec::new();
        for name in names(&self.workers())? {
            let Some(id) = name.strip_suffix(".json").map(str::to_owned).filter(|id| Some(id) != but) else {
                continue;
            };
            if self.pulse(&id)? != Pulse::Ended
                && let Some(record) = self.read(&id)?
            {
                living.push(format!("process {} on {}", record.pid, record.host));
            }
        }
        Ok(living)
    }

    fn workers(&self) -> PathBuf {
        self.work.join("workers")
    }

    fn leases(&self) -> PathBuf {
        self.work.join("leases")
    }

    fn lease(&self, part: u32) -> PathBuf {
        self.leases().join(format!("part-{part:05}"))
    }

    /// Whether the record of a worker has not been renewed for so long that nobody waits for it, whatever the clocks say.
    fn is_forgotten(&self, id: &str) -> bool {
        let written = fs::metadata(self.record(id)).and_then(|record| record.modified());
        let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        age.is_some_and(|age| age > FORGOTTEN_AFTER)
    }

    fn lock(&self, id: &str) -> PathBuf {
        self.workers().join(format!("{id}.lock"))
    }

    fn record(&self, id: &str) -> PathBuf {
        self.workers().join(format!("{id}.json"))
    }

    /// Whether nobody holds a worker's lock. Only on its own machine does that mean that it has ended.
    fn is_unlocked(&self, id: &str) -> bool {
        let lock = File::open(self.lock(id));
        matches!(lock.map(|lock| lock.try_lock()), Ok(Ok(())))
    }

    fn read(&self, id: &str) -> Result<Option<Record>> {
        let path = self.record(id);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        // A damaged record counts as missing: a living worker writes it again with its next beat.
        Ok(serde_json::from_slice(&bytes).ok())
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
        let _ = self.lock.unlock();
        if let Err(error) = forget(&self.work, &self.id) {
            tracing::debug!("{error:#}");
        }
        remove_if_unused(&self.work);
    }
}

impl LeaseStore for FolderLeases {
    fn take(&self, part: u32, worker: &WorkerId) -> Result<bool> {
        let path = self.lease(part);
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match create() {
            // Another worker has ended and removed the empty folder.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                atomic::create_dir(&self.leases())?;
                create()
            }
            file => file,
        };
        match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            file => {
                let written = file.and_then(|mut file| file.write_all(worker.as_bytes()));
                written.with_context(|| format!("cannot create {}", path.display()))?;
                Ok(true)
            }
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "nothing is published: of several that move the file away one succeeds"
    )]
    fn take_over(&self, part: u32, from: &WorkerId, worker: &WorkerId) -> Result<bool> {
        let path = self.lease(part);
        if self.holder(part)?.as_ref() != Some(from) {
            return Ok(false);
        }
        let away = path.with_extension(worker);
        match fs::rename(&path, &away) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            moved => moved.with_context(|| format!("cannot move {}", path.display()))?,
        }
        remove(&away)?;
        self.take(part, worker)
    }

    fn give_back(&self, part: u32, worker: &WorkerId) -> Result<()> {
        if self.holder(part)?.as_ref() == Some(worker) { remove(&self.lease(part)) } else { Ok(()) }
    }

    fn holder(&self, part: u32) -> Result<Option<WorkerId>> {
        let bytes = read(&self.lease(part))?;
        // Empty for a moment after its creation; and for ever if that was the worker's last moment, which a pulse that nobody has tells.
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn leased(&self) -> Result<BTreeSet<u32>> {
        let part = |name: String| name.strip_prefix("part-").and_then(|number| number.parse().ok());
        Ok(names(&self.leases())?.into_iter().filter_map(part).collect())
    }

    fn pulse(&self, worker: &WorkerId) -> Result<Pulse> {
        if worker.is_empty() {
            return Ok(Pulse::Beat(0));
        }
        let Some(record) = self.read(worker)? else {
            return Ok(Pulse::Ended);
        };
        let of_this_machine = record.boot == self.boot && !self.boot.is_empty();
        if of_this_machine && self.is_unlocked(worker) { Ok(Pulse::Ended) } else { Ok(Pulse::Beat(record.beat)) }
    }
}

/// Removes the folder `work` if nothing is in it.
fn remove_if_unused(work: &Path) {
    for folder in [work.join("leases"), work.join("workers"), work.join("batches"), work.to_path_buf()] {
        // Fails if something is in it.
        let _ = fs::remove_dir(folder);
    }
}

/// Removes a worker's files.
fn forget(work: &Path, id: &str) -> Result<()> {
    let file = |ending: &str| work.join("workers").join(format!("{id}.{ending}"));
    remove(&file("json"))?;
    remove(&file("lock"))?;
    Ok(atomic::remove_stale(&file("json")).map(drop)?)
}

fn write(path: &Path, record: &Record) -> Result<()> {
    Ok(atomic::write(path, &serde_json::to_vec(record)?)?)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// The names in a folder; none if it is not there.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let names = entries.map(name).collect::<std::io::Result<_>>();
    names.with_context(|| format!("cannot list {}", folder.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    #[test]
    fn a_worker_that_lives_keeps_its_leases_and_one_that_has_ended_loses_them() {
        let dir = tempfile::tempdir().unwrap();
        let leases = FolderLeases::new(dir.path(), PATIENCE);
        let worker = leases.announce().unwrap();
        assert!(leases.take(7, worker.id()).unwrap() && !leases.take(7, &"other".to_owned()).unwrap());
        assert_eq!(leases.holder(7).unwrap().as_ref(), Some(worker.id()));
        leases.clear_ended().unwrap();
        assert_eq!(leases.leased().unwrap(), BTreeSet::from([7]));
        assert_eq!(leases.living(None).unwrap().len(), 1);
        // As a kill leaves it: the files are there, and nobody holds the lock.
        let id = worker.id().clone();
        let _ = worker.lock.unlock();
        assert_eq!(leases.pulse(&id).unwrap(), Pulse::Ended);
        leases.clear_ended().unwrap();
        assert!(leases.leased().unwrap().is_empty() && leases.living(None).unwrap().is_empty());
        drop(worker);
        leases.remove_if_unused();
        assert!(!layout::work_dir(dir.path()).exists());
    }

    /// What a kill leaves of a worker's files, and of a lease that was being taken over, is cleared away.
    #[test]
    fn what_kills_leave_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let leases = FolderLeases::new(dir.path(), PATIENCE);
        let work = layout::work_dir(dir.path());
        drop(leases.announce().unwrap());
        fs::create_dir_all(work.join("workers")).unwrap();
        fs::create_dir_all(work.join("leases")).unwrap();
        for name in [
            "workers/0123456789abcdef.lock",
            "workers/.fedcba9876543210.json.0123456789abcdef.tmp",
            "leases/part-00003.0123",
        ] {
            fs::write(work.join(name), "").unwrap();
        }
        leases.clear_ended().unwrap();
        leases.remove_if_unused();
        assert!(!work.exists(), "{:?}", names(&work.join("workers")));
    }

    #[test]
    fn a_lease_is_taken_over_by_one_and_given_back_by_its_holder_alone() {
        let dir = tempfile::tempdir().unwrap();
        let leases = FolderLeases::new(dir.path(), PATIENCE);
        let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
        assert!(leases.take(1, &a).unwrap());
        assert!(leases.take_over(1, &a, &b).unwrap());
        assert!(!leases.take_over(1, &a, &c).unwrap());
        leases.give_back(1, &a).unwrap();
        assert_eq!(leases.holder(1).unwrap(), Some(b.clone()));
        leases.give_back(1, &b).unwrap();
        assert_eq!(leases.holder(1).unwrap(), None);
    }
}
