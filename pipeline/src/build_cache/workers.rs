//! The worker threads: each does whatever is closest to being finished.
//!
//! On a CPU every worker can do everything: it runs a teacher on one thread when a batch is ready, and decodes when none is. So N
//! threads are N busy cores whatever the balance of the work, no core waits for another inside a layer, and what a worker computes
//! does not depend on how many there are. On a GPU one thread of its own, the lane, runs the teachers; workers encode and decode.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::anyhow;
use crossbeam_channel::{Receiver, Sender, never, select_biased};
use models::precision::Precision;
use schemas::Codec;
use torch_ext::OutOfMemory;

use super::decode::{Decoded, Decoder, Job};
use super::infer::{Batch, BuildTeacher, EncodedRow, Features, encode, infer, infer_within_memory};
use super::timing::{Stage, Timings};

/// One teacher's share of a batch.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its position in the order of this teacher's work.
    pub seq: u64,
    /// The teacher, by position in the build's list.
    pub teacher: usize,
    /// The rows; shared with the other teachers' tasks.
    pub batch: Arc<Batch>,
}

/// Something that a thread has finished, or that ends the build.
#[derive(Debug)]
pub(crate) enum Event {
    /// A sample has been decoded, or rejected.
    Decoded { seq: u64, decoded: Decoded },
    /// A teacher's rows of a batch are ready to be written.
    Encoded { task: Task, rows: Vec<EncodedRow> },
    /// A thread could not go on.
    Failed(anyhow::Error),
}

/// The ends of the channels that workers hold. The build closes the others to end them.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    /// Features from the GPU lane, to be encoded; nothing ever comes here on a CPU.
    pub features: Receiver<(Task, Features)>,
    /// Batches for the teachers.
    pub tasks: Receiver<Task>,
    /// Samples to decode.
    pub jobs: Receiver<Job>,
    /// Where results go. Unbounded, so that no worker ever waits here: the build bounds what is in flight.
    pub events: Sender<Event>,
}

/// A worker. With `teachers` (its own handles on them) it also runs them; without, the GPU lane does.
pub(crate) fn work(queues: Queues, decoder: &Decoder<'_>, teachers: Option<Vec<BuildTeacher>>, settings: Settings<'_>) {
    let Queues { features, tasks, jobs, events } = queues;
    let tasks = if teachers.is_some() { tasks } else { never() };
    let teachers = teachers.unwrap_or_default();
    // One thread per operation is what makes the bytes independent of the number of workers.
    torch_ext::keep_freed_memory();
    if let Err(error) = torch_ext::set_num_threads(1) {
        let _ = events.send(Event::Failed(error.into()));
        return;
    }
    loop {
        // A closed channel means that the build has ended.
        let outcome = select_biased! {
            recv(features) -> message => {
                let Ok((task, features)) = message else { return };
                guarded(|| settings.encode(task, &features))
            }
            recv(tasks) -> message => {
                let Ok(task) = message else { return };
                guarded(|| {
                    let features = settings.infer(&task, &teachers)?;
                    settings.encode(task, &features)
                })
            }
            recv(jobs) -> message => {
                let Ok(job) = message else { return };
                guarded(|| Ok(Event::Decoded { seq: job.seq, decoded: decoder.run(job)? }))
            }
        };
        if events.send(outcome.unwrap_or_else(Event::Failed)).is_err() {
            return;
        }
    }
}

/// The GPU lane: runs the teachers one batch after the other and hands their features to the workers.
pub(crate) fn lane(
    tasks: Receiver<Task>,
    features: Sender<(Task, Features)>,
    events: Sender<Event>,
    teachers: Vec<BuildTeacher>,
    settings: Settings<'_>,
) {
    // Of each teacher, how many rows fit into memory at a time, as far as is known.
    let mut at_once = vec![usize::MAX; teachers.len()];
    for task in tasks {
        let inferred = guarded(|| {
            infer_within_memory(
                &task.batch,
                &teachers[task.teacher],
                settings.precision,
                settings.timings,
                &mut at_once[task.teacher],
            )
        });
        let sent = match inferred {
            Ok(result) => features.send((task, result)).is_ok(),
            Err(error) => events.send(Event::Failed(error)).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

/// What all threads compute with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub precision: Precision,
    /// Of each teacher of the build.
    pub codecs: &'a [Codec],
    pub timings: &'a Timings,
}

impl Settings<'_> {
    fn infer(&self, task: &Task, teachers: &[BuildTeacher]) -> anyhow::Result<Features> {
        infer(&task.batch, &teachers[task.teacher], self.precision, self.timings)
    }

    fn encode(&self, task: Task, features: &Features) -> anyhow::Result<Event> {
        let rows = self.timings.time(Stage::Encode, || encode(&task.batch, features, &self.codecs[task.teacher]))?;
        Ok(Event::Encoded { task, rows })
    }
}

/// A panic in a thread must end the build with a message, not leave it waiting for a result that never comes.
fn guarded<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        // libtorch's messages carry a backtrace of dozens of lines; the first line says what it was.
        let said = said.unwrap_or_default();
        if let Some(OutOfMemory(message)) = torch_ext::out_of_memory(&said) {
            return Err(anyhow!(
                "memory does not suffice: {message}. Take fewer --threads, each of which has a batch in work, or a smaller --batch-size"
            ));
        }
        Err(anyhow!(
            "a worker panicked, which is a bug: {}",
            said.lines().next().unwrap_or("no message")
        ))
    })
}

/// Runs a writer to its end and passes on what stopped it.
pub(crate) fn report_failure(failed: &Sender<Event>, work: impl FnOnce() -> anyhow::Result<()>) {
    if let Err(error) = guarded(work) {
        // Nobody listens any more when the build has already failed for another reason.
        let _ = failed.send(Event::Failed(error));
    }
}
