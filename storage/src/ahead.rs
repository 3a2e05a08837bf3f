//! Many files opened at once: over a network each takes a round trip.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::File;
use crate::place::is_url;

/// Files that are opened at once.
const THREADS: usize = 32;

/// Opens files, those of stores many at a time.
pub fn open_all(paths: &[PathBuf]) -> Vec<io::Result<File>> {
    in_parallel(paths, |path| File::open(path), paths.iter().any(|path| is_url(path)))
}

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
