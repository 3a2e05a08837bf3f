//! Decodes the next batch of images while the current one is used.

use std::thread;

use crossbeam_channel::bounded;
use rayon::ThreadPool;
use rayon::prelude::*;

/// Decodes the images `0..len` with `decode` and passes them to `take`, in order and in batches of at most `batch_size`. `pool` decodes one
/// batch ahead; one more is asked for by `prefetch`, which begins to fetch an image where that takes a round trip.
///
/// # Errors
/// The first error of `take`; nothing more is decoded after it.
pub(crate) fn decode_ahead<T: Send>(
    len: usize,
    batch_size: usize,
    pool: &ThreadPool,
    prefetch: impl Fn(usize) + Send,
    decode: impl Fn(usize) -> T + Sync + Send,
    mut take: impl FnMut(Vec<T>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (batches_tx, batches_rx) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            (0..len.min(batch_size)).for_each(&prefetch);
            for start in (0..len).step_by(batch_size) {
                (len.min(start + batch_size)..len.min(start + 2 * batch_size)).for_each(&prefetch);
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
