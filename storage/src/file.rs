//! A file that is read by position, from any number of threads.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use object_store::{Error, ObjectStoreExt};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::blocks::{BLOCK, Blocks};
use crate::error::explain;
use crate::place::{Place, Remote};
use crate::retry::{repeated, runtime};
use crate::stores::stores;

/// Requests for ranges that were asked for ahead, on their way at once.
const SLOTS: usize = 256;

/// Ranges of a file that are kept for a reader. One that asks for more does not read what it asks for.
const MOST_AHEAD: usize = 8192;

pub(crate) static SLOT: Semaphore = Semaphore::const_new(SLOTS);

/// An open file.
#[derive(Debug)]
pub struct File(Inner);

#[derive(Debug)]
enum Inner {
    Local(std::fs::File),
    Remote(Arc<RemoteFile>),
}

/// An object whose length is known.
struct RemoteFile {
    place: Remote,
    len: u64,
    blocks: Option<Blocks>,
    /// Ranges that were asked for ahead and not read yet.
    ahead: Mutex<HashMap<Range<u64>, JoinHandle<Option<Bytes>>>>,
}

impl fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFile").field("url", &self.place.url).field("len", &self.len).finish_non_exhaustive()
    }
}

impl File {
    pub(crate) fn open(path: &Path) -> io::Result<File> {
        match Place::of(path)? {
            Place::Local(path) => Ok(File(Inner::Local(std::fs::File::open(path)?))),
            Place::Remote(place) => {
                let meta = place.head()?;
                // A store without tags tells versions apart by their time.
                let tag = meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339());
                let blocks = stores().cache.as_ref().and_then(|cache| cache.object(&place.url, meta.size, &tag));
                let file = RemoteFile { place, len: meta.size, blocks, ahead: Mutex::default() };
                Ok(File(Inner::Remote(Arc::new(file))))
            }
        }
    }

    /// Whether it lies in a store, so that each read takes a round trip.
    pub fn is_remote(&self) -> bool {
        matches!(self.0, Inner::Remote(_))
    }

    /// Bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn len(&self) -> io::Result<u64> {
        match &self.0 {
            Inner::Local(file) => Ok(file.metadata()?.len()),
            Inner::Remote(file) => Ok(file.len),
        }
    }

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// As [`Self::len`].
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether it is a folder, which a local disk lets a program open.
    pub fn is_dir(&self) -> bool {
        matches!(&self.0, Inner::Local(file) if file.metadata().is_ok_and(|found| found.is_dir()))
    }

    /// Fills `out` from a place in the file.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] if the file ends before.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.0 {
            Inner::Local(file) => file.read_exact_at(out, offset),
            Inner::Remote(file) => {
                let range = file.range(offset, out.len())?;
                if let Some(bytes) = file.take_ahead(&range) {
                    out.copy_from_slice(&bytes);
                    return Ok(());
                }
                let bytes = runtime().block_on(file.fetch(range)).map_err(explain)?;
                out.copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    /// Fills the beginning of `out` from a place in the file, and returns how much of it: 0 at the end alone.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.0 {
            Inner::Local(file) => file.read_at(out, offset),
            Inner::Remote(file) => {
                let left = usize::try_from(file.len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let count = out.len().min(left);
                if count > 0 {
                    self.read_exact_at(&mut out[..count], offset)?;
                }
                Ok(count)
            }
        }
    }

    /// Fills `out` again, with another copy from the store: what was read turned out to be damaged, which a network or a cache folder may have
    /// done. False for a local file, which has no other copy.
    ///
    /// # Errors
    /// As [`Self::read_exact_at`].
    pub fn read_again_at(&self, out: &mut [u8], offset: u64) -> io::Result<bool> {
        let Inner::Remote(file) = &self.0 else {
            return Ok(false);
        };
        let range = file.range(offset, out.len())?;
        self.forget(offset, out.len() as u64);
        tracing::debug!("{}: bytes {range:?} are damaged; fetching them again", file.place.url.display());
        let bytes = runtime().block_on(file.fetch(range)).map_err(explain)?;
        out.copy_from_slice(&bytes);
        Ok(true)
    }

    /// Drops the copies of a range that are kept here, so that it is fetched again; false for a local file, which has no other copy.
    pub fn forget(&self, offset: u64, len: u64) -> bool {
        let Inner::Remote(file) = &self.0 else {
            return false;
        };
        let range = offset..offset.saturating_add(len).min(file.len);
        if let Some(blocks) = &file.blocks {
            blocks.forget(&range);
        }
        let mut ahead = file.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.retain(|other, _| other.end <= range.start || range.end <= other.start);
        true
    }

    /// Begins to read ranges (offset and length) that [`Self::read_exact_at`] will be asked for, in exactly these pieces. What is read stays in memory until
    /// it is asked for, unless the cache folder has it. Nothing is done for a local file.
    pub fn prefetch(&self, ranges: impl IntoIterator<Item = (u64, usize)>) {
        let Inner::Remote(file) = &self.0 else {
            return;
        };
        for (offset, len) in ranges {
            // What lies outside fails when it is read.
            if let Ok(range) = file.range(offset, len)
                && !range.is_empty()
                && !file.blocks.as_ref().is_some_and(|blocks| blocks.has(&range))
            {
                let mut ahead = file.ahead.lock().unwrap_or_else(PoisonError::into_inner);
                if ahead.len() >= MOST_AHEAD {
                    // Nobody came for them.
                    ahead.clear();
                }
                ahead.entry(range.clone()).or_insert_with(|| {
                    let file = Arc::clone(file);
                    runtime().spawn(async move {
                        let _slot = SLOT.acquire().await.ok()?;
                        file.fetch(range).await.ok()
                    })
                });
            }
        }
    }
}

impl RemoteFile {
    fn range(&self, offset: u64, len: usize) -> io::Result<Range<u64>> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.len);
        end.map(|end| offset..end).ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "the object ends before"))
    }

    /// A range that was asked for ahead, once it has come. One that failed is read again by the caller.
    fn take_ahead(&self, range: &Range<u64>) -> Option<Bytes> {
        let task = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).remove(range)?;
        runtime().block_on(task).ok().flatten()
    }

    async fn fetch(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let Some(blocks) = &self.blocks else {
            return self.get(range).await;
        };
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let span = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let start = span.start * BLOCK;
        let mut bytes = BytesMut::zeroed(((span.end * BLOCK).min(self.len) - start) as usize);
        let place =
            |block: u64| (block * BLOCK - start) as usize..((block * BLOCK + BLOCK).min(self.len) - start) as usize;
        let mut missing: Vec<Range<u64>> = Vec::new();
        for block in span {
            if blocks.get(block, &mut bytes[place(block)]) {
                continue;
            }
            match missing.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => missing.push(block..block + 1),
            }
        }
        for run in missing {
            let fetched = self.get(run.start * BLOCK..(run.end * BLOCK).min(self.len)).await?;
            bytes[place(run.start).start..][..fetched.len()].copy_from_slice(&fetched);
            for block in run {
                blocks.put(block, &bytes[place(block)]);
            }
        }
        let bytes = bytes.freeze();
        Ok(bytes.slice((range.start - start) as usize..(range.end - start) as usize))
    }

    /// A range from the store. One that is shorter or longer than it has to be is a failure that may pass.
    async fn get(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let expected = range.end - range.start;
        repeated(|| async {
            let bytes = self.place.store.get_range(&self.place.key, range.clone()).await?;
            if bytes.len() as u64 == expected {
                return Ok(bytes);
            }
            let problem = format!("{} bytes came instead of {expected}", bytes.len());
            let cause = io::Error::new(ErrorKind::UnexpectedEof, problem);
            let cause = object_store::client::HttpError::new(object_store::client::HttpErrorKind::Interrupted, cause);
            Err(Error::Generic { store: "range", source: Box::new(cause) })
        })
        .await
    }
}
