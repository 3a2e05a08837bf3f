//! A parallel map that keeps the order of its items and bounds what is in flight.
//!
//! Everything that the bytes of a cache could depend on is decided by the items and by `take`, which sees the results in order on one
//! thread. So a file holds the same bytes whatever the threads did, and however many there were.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, bail};
use crossbeam_channel::{RecvTimeoutError, unbounded};
use program::signals;
use torch_ext::OutOfMemory;

/// How often the map looks up from waiting to see whether it is to stop.
const TICK: Duration = Duration::from_millis(100);

/// Items in flight for each thread: one in work, and one that is finished and waits for an earlier one, or has not been begun.
const IN_FLIGHT: usize = 2;

/// How a map ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every result has been taken.
    Finished,
    /// A signal came; results before it have been taken.
    Interrupted,
}

/// A signal ended what was not finished. As an error it is not a failure: the program says so and exits as interrupted.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; run the same command to go on")]
pub(crate) struct Interrupted;

/// Tells the threads of a map that nobody waits for their results any more.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    /// An error once the map has ended. Work that takes seconds asks in between.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(anyhow!("the build has ended")) } else { Ok(()) }
    }
}

/// Calls `work` on every item, on one thread for each of `states`, and `take` on the results in the order of the items.
///
/// libtorch computes each operation of these threads on one thread, so that its bits do not depend on how many of them there are.
///
/// # Errors
/// The first error of the items, of `work` or of `take`. A panic of `work` is one too.
pub(crate) fn map_in_order<Item: Send, State: Send, Output: Send>(
    items: impl IntoIterator<Item = anyhow::Result<Item>>,
    states: Vec<State>,
    work: impl Fn(&mut State, Item, &Stop) -> anyhow::Result<Output> + Sync,
    take: impl FnMut(Output) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let window = IN_FLIGHT * states.len();
    let stop = Stop::default();
    // Unbounded channels, bounded contents: no thread waits to send, and at most `window` items are in them.
    let (jobs, queue) = unbounded::<(usize, Item)>();
    let (done, results) = unbounded();
    thread::scope(|scope| {
        for mut state in states {
            let (queue, done, work, stop) = (queue.clone(), done.clone(), &work, &stop);
            scope.spawn(move || {
                torch_ext::keep_freed_memory();
                let mut ready = torch_ext::set_num_threads(1).map_err(anyhow::Error::from);
                for (seq, item) in queue {
                    let began = std::mem::replace(&mut ready, Ok(()));
                    let result = began.and_then(|()| guarded(|| work(&mut state, item, stop)));
                    if stop.check().is_err() || done.send((seq, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let give = |seq, item| jobs.send((seq, item)).map_err(|_| anyhow!("all threads ended early, which is a bug"));
        let next = || match results.recv_timeout(TICK) {
            Ok((seq, result)) => Ok(Some((seq, result?))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("all threads ended before the work did, which is a bug"),
        };
        let ended = in_order(items.into_iter(), window, give, next, take);
        stop.0.store(true, Ordering::Relaxed);
        // What is still queued after a failure or an interruption is not to be worked off.
        queue.try_iter().for_each(drop);
        drop(jobs);
        ended
    })
}

/// Gives out items while fewer than `window` are in flight, and takes the results in their order.
fn in_order<Item, Output>(
    mut items: impl Iterator<Item = anyhow::Result<Item>>,
    window: usize,
    give: impl Fn(usize, Item) -> anyhow::Result<()>,
    next: impl Fn() -> anyhow::Result<Option<(usize, Output)>>,
    mut take: impl FnMut(Output) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let (mut given, mut taken) = (0, 0);
    let mut waiting = BTreeMap::new();
    loop {
        while given - taken < window
            && let Some(item) = items.next()
        {
            give(given, item?)?;
            given += 1;
        }
        if given == taken {
            return Ok(Ended::Finished);
        }
        waiting.extend(next()?);
        while let Some(output) = waiting.remove(&taken) {
            take(output)?;
            taken += 1;
        }
        if signals::requested() {
            return Ok(Ended::Interrupted);
        }
    }
}

/// Runs `work`; a panic becomes an error, so that nobody waits for a result that never comes.
pub(crate) fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        if let Some(OutOfMemory(message)) = torch_ext::out_of_memory(message) {
            bail!("out of memory: {message}. Take fewer --threads, each of which has a batch in work, or a smaller --batch-size");
        }
        // libtorch's messages carry a backtrace of dozens of lines; the first line says what it was.
        bail!("a thread of the build panicked, which is a bug: {}", message.lines().next().unwrap_or("no message"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn squares(threads: usize, items: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        let work = |_: &mut (), item: usize, _: &Stop| {
            // Later items are ready first.
            std::hint::black_box((0..(items - item) * 1000).fold(0, usize::wrapping_add));
            Ok(item * item)
        };
        let take = |output| {
            taken.push(output);
            Ok(())
        };
        assert_eq!(map_in_order((0..items).map(Ok), vec![(); threads], work, take).unwrap(), Ended::Finished);
        taken
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for (threads, items) in [(1, 0), (1, 7), (3, 2), (3, 100)] {
            assert_eq!(squares(threads, items), (0..items).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_in_flight_is_bounded() {
        let (given, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items = (0..100).map(|item| {
            let now = given.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            Ok(item)
        });
        let take = |_: usize| {
            given.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        map_in_order(items, vec![(); 3], |_, item, _| Ok(item), take).unwrap();
        assert!(most.load(Ordering::SeqCst) <= 3 * IN_FLIGHT, "{most:?}");
    }

    #[test]
    fn an_error_anywhere_ends_the_map_and_is_said() {
        let taken = AtomicUsize::new(0);
        let run = |bad_item: bool, bad_work: &(dyn Fn(usize) -> anyhow::Result<usize> + Sync), bad_take: bool| {
            let items = (0..50).map(|item| if bad_item && item == 20 { Err(anyhow!("item")) } else { Ok(item) });
            let take = |output: usize| {
                taken.fetch_add(1, Ordering::SeqCst);
                if bad_take && output == 20 { Err(anyhow!("take")) } else { Ok(()) }
            };
            map_in_order(items, vec![(); 2], |_, item, _| bad_work(item), take).unwrap_err().to_string()
        };
        assert_eq!(run(true, &Ok, false), "item");
        assert_eq!(run(false, &|item| if item == 20 { Err(anyhow!("work")) } else { Ok(item) }, false), "work");
        assert_eq!(run(false, &Ok, true), "take");
        let panicked = run(false, &|item| if item == 20 { panic!("of {item}\nat a line") } else { Ok(item) }, false);
        assert!(panicked.ends_with("which is a bug: of 20"), "{panicked}");
        assert!(taken.load(Ordering::SeqCst) < 4 * 50);
    }
}
