//! Many files at once, and before they are needed: over a network each takes a round trip.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectStoreExt;
use tokio::task::JoinHandle;

use crate::file::SLOT;
use crate::place::{Place, is_url};
use crate::retry::{repeated, runtime};

/// Calls that wait for the network at once.
const THREADS: usize = 32;

/// Calls `ask` for every item, and gives the results in order. On many threads if `is_slow`, because each call waits for a network; else on
/// this one.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], ask: impl Fn(&T) -> R + Sync, is_slow: bool) -> Vec<R> {
    if !is_slow {
        return items.iter().map(ask).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return done;
            };
            done.push((at, ask(item)));
        }
    };
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(items.len())).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.sort_unstable_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Objects that were asked for ahead as a whole, and not read yet.
static WHOLE: Mutex<BTreeMap<PathBuf, JoinHandle<Option<Bytes>>>> = Mutex::new(BTreeMap::new());

/// More of them are not kept: nobody came for them.
const MOST_WHOLE: usize = 8192;

/// Begins to read a whole object that [`read`](crate::read) will be asked for. It stays in memory until then. Nothing is done for a local file.
pub fn prefetch(path: &Path) {
    if !is_url(path) {
        return;
    }
    // What cannot be read shows when it is.
    if let Ok(Place::Remote(place)) = Place::of(path) {
        let mut whole = WHOLE.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.len() >= MOST_WHOLE {
            whole.clear();
        }
        whole.entry(path.to_path_buf()).or_insert_with(|| {
            runtime().spawn(async move {
                let _slot = SLOT.acquire().await.ok()?;
                repeated(|| async { place.store.get(&place.key).await?.bytes().await }).await.ok()
            })
        });
    }
}

/// An object that was asked for ahead, once it has come. One that failed is read again by the caller.
pub(crate) fn take_whole(path: &Path) -> Option<Bytes> {
    let task = WHOLE.lock().unwrap_or_else(PoisonError::into_inner).remove(path)?;
    runtime().block_on(task).ok().flatten()
}
