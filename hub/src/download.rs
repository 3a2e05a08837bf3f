//! What is fetched of a model, and how a file comes here whole: resumed, retried, checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use schemas::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::{CONFIGS, Repo, disk};
use super::client::{Client, Failure, Meta};
use super::{Error, HubSettings, ModelId, OnProgress, Progress, Result};
use crate::weights::{preferred, read_index};

/// Attempts at a request that bring nothing new before giving up.
const ATTEMPTS: u32 = 5;

/// Attempts at one file altogether, for connections that bring a few bytes each.
const ATTEMPTS_PER_FILE: u32 = 1000;

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Configurations are a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The largest tower known here has 27 GB in f32.
const MAX_WEIGHTS_BYTES: u64 = 256 << 30;

/// Shards of one set.
const MAX_SHARDS: usize = 1000;

/// Bytes between two reports of progress.
const CHUNK: usize = 256 << 10;

/// Fetches what the cache lacks and returns the commit.
pub(super) fn fetch(
    repo: &Repo,
    id: &ModelId,
    known: Option<&str>,
    settings: &HubSettings,
    progress: &mut OnProgress<'_>,
) -> Result<String> {
    let client = Client::new(settings, id)?;
    let mut fetching = Fetching { repo, id, client, pause: settings.retry_pause, progress };
    let revision = known.unwrap_or(&id.revision);
    let (model, host) = (format!("{}@{revision}", id.name), fetching.client.host());
    fetching.say(Progress::Asking { model: &model, host: &host })?;
    let info = fetching.retried(|client| client.info(revision))?;
    let commit = info.commit.as_str();
    let has = |name: &str| info.files.iter().any(|file| file == name);

    // Small files first: a missing permission shows before the first gigabyte.
    for config in CONFIGS {
        match has(config) {
            true => fetching.file(commit, config, MAX_CONFIG_BYTES)?,
            false => repo.mark_absent(commit, config)?,
        }
    }
    let weights = preferred(info.files.iter().map(String::as_str)).map_err(|found| {
        let found = found.into_iter().map(str::to_owned).collect();
        Error::NoWeights { id: id.name.clone(), commit: commit.to_owned(), found }
    })?;
    if weights.ends_with(".json") {
        let etag = fetching.blob(commit, weights, MAX_CONFIG_BYTES)?;
        for shard in fetching.shards(weights, &etag)? {
            if !has(&shard) {
                let reason = format!("{weights} names shard {shard}, which the model lacks");
                return Err(fetching.bad_model(reason));
            }
            fetching.file(commit, &shard, MAX_WEIGHTS_BYTES)?;
        }
        // Last, for it declares the others.
        repo.link(commit, weights, &etag)?;
    } else {
        fetching.file(commit, weights, MAX_WEIGHTS_BYTES)?;
    }
    if id.revision != commit {
        repo.write_ref(&id.revision, commit)?;
    }
    Ok(commit.to_owned())
}

struct Fetching<'a, 'p> {
    repo: &'a Repo,
    id: &'a ModelId,
    client: Client<'a>,
    pause: Duration,
    progress: &'a mut OnProgress<'p>,
}

impl Fetching<'_, '_> {
    /// Brings a file of a commit into its snapshot, unless it is there.
    fn file(&mut self, commit: &str, file: &str, max_bytes: u64) -> Result<()> {
        if self.repo.snapshot(commit).join(file).is_file() {
            return Ok(());
        }
        let etag = self.blob(commit, file, max_bytes)?;
        self.repo.link(commit, file, &etag)
    }

    /// Brings the content of a file into the cache, unless it is there, and returns its name among the blobs.
    fn blob(&mut self, commit: &str, file: &str, max_bytes: u64) -> Result<String> {
        let meta = self.retried(|client| client.meta(commit, file))?;
        if meta.size > max_bytes {
            return Err(self.bad_answer(format!(
                "{file} a size of {} bytes, more than the {max_bytes} that such a file may have",
                meta.size
            )));
        }
        let blob = self.repo.blob(&meta.etag);
        let is_here = || blob.metadata().is_ok_and(|found| found.len() == meta.size);
        if is_here() {
            return Ok(meta.etag);
        }
        let (progress, id) = (&mut *self.progress, self.id);
        let _lock = self.repo.lock(&meta.etag, || match progress(Progress::Waiting { file }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(interrupted(id)),
        })?;
        // Whoever held the lock may have fetched it.
        if is_here() {
            return Ok(meta.etag);
        }
        let (mut growing, path) = self.repo.open_incomplete(&meta.etag)?;
        let found = growing.metadata().map_err(disk("read", &path))?.len();
        let resumed = (1..=meta.size).contains(&found);
        self.grow(&mut growing, commit, file, &meta)?;
        let mut hash = hash(&mut growing, &meta).map_err(disk("read", &path))?;
        if hash != meta.etag && resumed {
            // What an earlier run left was not a beginning of this file.
            growing.set_len(0).map_err(disk("write", &path))?;
            self.grow(&mut growing, commit, file, &meta)?;
            hash = self::hash(&mut growing, &meta).map_err(disk("read", &path))?;
        }
        if hash != meta.etag {
            fs::remove_file(&path).map_err(disk("remove", &path))?;
            return Err(Error::HashMismatch {
                id: self.id.name.clone(),
                file: file.to_owned(),
                host: self.client.host(),
                expected: meta.etag,
                found: hash,
            });
        }
        self.repo.publish_blob(&meta.etag, &growing)?;
        Ok(meta.etag)
    }

    /// Fetches until the file has its size, going on where it ends now.
    fn grow(&mut self, growing: &mut File, commit: &str, file: &str, meta: &Meta) -> Result<()> {
        let path = self.repo.incomplete(&meta.etag);
        let (mut fruitless, mut attempts) = (0, 0);
        loop {
            let mut have = growing.metadata().map_err(disk("read", &path))?.len();
            if have > meta.size {
                growing.set_len(0).map_err(disk("write", &path))?;
                have = 0;
            }
            self.say(Progress::Bytes { file, done: have, size: meta.size })?;
            if have == meta.size {
                return Ok(());
            }
            let Err(failure) = self.receive(growing, commit, file, meta, have) else {
                continue;
            };
            attempts += 1;
            let now = growing.metadata().map_err(disk("read", &path))?.len();
            fruitless = if now > have { 1 } else { fruitless + 1 };
            self.pause_after(failure, fruitless, attempts)?;
        }
    }

    /// One request and its bytes; the file is whole when it returns without an error.
    fn receive(&mut self, growing: &mut File, commit: &str, file: &str, meta: &Meta, have: u64) -> Result<(), Failure> {
        let path = self.repo.incomplete(&meta.etag);
        let write_error = || disk("write", &path);
        let Some((begins, mut stream)) = self.client.bytes(commit, file, have)? else {
            growing.set_len(0).map_err(write_error())?;
            return Err(Failure::Transient {
                host: self.client.host(),
                reason: format!("{file} cannot be resumed, and begins anew"),
            });
        };
        growing.set_len(begins).map_err(write_error())?;
        growing.seek(SeekFrom::Start(begins)).map_err(write_error())?;
        let mut done = begins;
        let mut said = done;
        let mut buffer = vec![0; CHUNK];
        while done < meta.size {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Err(stream.short());
            }
            // More than was announced is not read: the hash decides about what was.
            let room = usize::try_from(meta.size - done).unwrap_or(CHUNK);
            let read = read.min(room);
            growing.write_all(&buffer[..read]).map_err(write_error())?;
            done += read as u64;
            if done - said >= CHUNK as u64 && done < meta.size {
                said = done;
                self.say(Progress::Bytes { file, done, size: meta.size })?;
            }
        }
        Ok(())
    }

    /// The shards that an index names.
    fn shards(&self, index: &str, etag: &str) -> Result<BTreeSet<String>> {
        let map = read_index(&self.repo.blob(etag))
            .map_err(|error| self.bad_model(format!("{index} is damaged: {error}")))?;
        let shards: BTreeSet<String> = map.into_values().collect();
        match shards.len() {
            0..=MAX_SHARDS => Ok(shards),
            count => Err(self.bad_model(format!("{index} names {count} shards"))),
        }
    }

    fn retried<T>(&mut self, mut request: impl FnMut(&Client<'_>) -> Result<T, Failure>) -> Result<T> {
        let mut attempts = 0;
        loop {
            match request(&self.client) {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    attempts += 1;
                    self.pause_after(failure, attempts, attempts)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or gives up after `fruitless` ones in a row or `attempts` altogether.
    fn pause_after(&mut self, failure: Failure, fruitless: u32, attempts: u32) -> Result<()> {
        let (host, reason) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { host, reason } => (host, reason),
        };
        if fruitless >= ATTEMPTS || attempts >= ATTEMPTS_PER_FILE {
            let reason = format!("{reason}, after {attempts} attempts");
            return Err(Error::Unreachable { id: self.id.name.clone(), host, reason });
        }
        let pause = self.pause.saturating_mul(1 << (fruitless.max(1) - 1));
        let pause = pause.min(MAX_PAUSE);
        self.say(Progress::Retrying { reason: &format!("{host}: {reason}"), pause })?;
        thread::sleep(pause);
        Ok(())
    }

    fn say(&mut self, what: Progress<'_>) -> Result<()> {
        match (self.progress)(what) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(interrupted(self.id)),
        }
    }

    fn bad_answer(&self, reason: String) -> Error {
        Error::BadAnswer { id: self.id.name.clone(), host: self.client.host(), reason }
    }

    fn bad_model(&self, reason: String) -> Error {
        Error::BadModel { id: self.id.name.clone(), reason }
    }
}

fn interrupted(id: &ModelId) -> Error {
    Error::Interrupted { id: id.name.clone() }
}

/// The hash of a file in the form of its etag: SHA-256 of the content, or git's SHA-1, which has the length in front.
fn hash(file: &mut File, meta: &Meta) -> std::io::Result<String> {
    fn of(mut hasher: impl Digest, file: &mut File) -> std::io::Result<String> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex(&hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
    file.seek(SeekFrom::Start(0))?;
    match meta.etag.len() {
        64 => of(Sha256::new(), file),
        _ => of(Sha1::new().chain_update(format!("blob {}\0", meta.size)), file),
    }
}
