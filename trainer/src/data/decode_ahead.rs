//! Images in batches, the next of which is decoded while the last is used.

use std::thread;

use crossbeam_channel::bounded;
use rayon::ThreadPool;
use rayon::prelude::*;

/// Calls `take` with what `decode` makes of the images `0..len`, a batch of at most `batch_size` at a time and in order. `pool` decodes one
/// batch ahead.
///
/// # Errors
/// That of `take`, after which nothing more is decoded.
pub(crate) fn decode_ahead<T: Send>(
    len: usize,
    batch_size: usize,
    pool: &ThreadPool,
    decode: impl Fn(usize) -> T + Sync + Send,
    mut take: impl FnMut(Vec<T>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (batches_tx, batches_rx) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            for start in (0..len).step_by(batch_size) {
                let idxs = start..len.min(start + batch_size);
                let decoded: Vec<T> = pool.install(|| idxs.into_par_iter().map(&decode).collect());
                if batches_tx.send(decoded).is_err() {
                    return; // `take` has failed and says why.
                }
            }
        });
        // By value: when `take` fails, the channel closes and the decoder stops.
        batches_rx.into_iter().try_for_each(&mut take)
    })
}
