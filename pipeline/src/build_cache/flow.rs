//! Gives out work, puts results back into the plan's order, cuts batches and passes rows to the writers.
//!
//! Everything that bytes could depend on is decided here, on one thread, from results in order: which rows form a batch, and in
//! which order a file gets them. Batches never cross a part's border, so a part is the same whichever parts a run builds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use program::signals;
use schemas::{Cache, Reject, TeacherIdentity};

use super::Build;
use super::decode::{Decoded, Job, Known, Row};
use super::infer::{Batch, EncodedRow};
use super::progress::Progress;
use super::reorder::Reorder;
use super::workers::{Event, Task};
use super::worklist::PartWork;
use super::write::{Message, PackedRow};

/// How often the flow looks up from waiting to see whether it is to stop.
const TICK: Duration = Duration::from_millis(100);

/// Samples that each worker may have decoded ahead of the batch that is being put together.
const DECODED_AHEAD: usize = 2;

/// Rows that may be in flight, from a job given out to rows handed to their writers: a batch for each of `lanes` and one that is
/// being put together, and a few images ahead. More would only cost memory; with at least a batch and a sample there is always
/// something that can finish.
pub(crate) fn window(build: &Build, lanes: usize) -> usize {
    let batch_rows = build.batch_size as usize * (lanes + 1);
    batch_rows + DECODED_AHEAD * build.config.threads * usize::from(build.identity.views.views)
}

/// The flow's ends of the channels. Dropping them ends the threads.
pub(crate) struct Ends<'a> {
    pub jobs: Sender<Job>,
    pub tasks: Sender<Task>,
    pub samples: Sender<Message<PackedRow>>,
    /// One per teacher of the build.
    pub features: Vec<Sender<Message<EncodedRow>>>,
    pub events: &'a Receiver<Event>,
}

/// How a flow ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything has been handed to the writers.
    Finished,
    /// A signal came.
    Interrupted,
}

/// A part whose samples have been given out.
struct OpenPart {
    work: PartWork,
    /// The teachers whose features it lacks, by position in the build's list.
    teachers: Vec<usize>,
    /// Sides of the squares that they are shown.
    sizes: Vec<u32>,
    begun: bool,
    /// Samples that have not come back.
    samples_left: usize,
    /// Rows of the batch that is being put together.
    pending: Vec<Row>,
    rejects: Vec<Reject>,
}

/// A message for a teacher's writer, at its place in that writer's order.
struct Delivery {
    message: Message<EncodedRow>,
    /// The batch whose rows it carries.
    batch: Option<u64>,
}

/// The state of a build in progress.
pub(crate) struct Flow<'a> {
    build: &'a Build,
    cache: &'a Cache,
    window: usize,
    /// Parts that have not been begun.
    work: VecDeque<PartWork>,
    /// Samples of begun parts that have not been given out.
    jobs: VecDeque<Job>,
    /// Begun parts; results belong to the first.
    open: VecDeque<OpenPart>,
    next_job: u64,
    decoded: Reorder<Decoded>,
    next_batch: u64,
    /// Rows of a batch, and the teachers that have not delivered it.
    batches: BTreeMap<u64, (usize, usize)>,
    /// Per teacher: places given out in its writer's order, and what waits for its turn.
    next_delivery: Vec<u64>,
    deliveries: Vec<Reorder<Delivery>>,
    rows_in_flight: usize,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(build: &'a Build, cache: &'a Cache, work: Vec<PartWork>, window: usize) -> Self {
        let teachers = build.teachers.len();
        Flow {
            build,
            cache,
            window,
            work: work.into(),
            jobs: VecDeque::new(),
            open: VecDeque::new(),
            next_job: 0,
            decoded: Reorder::default(),
            next_batch: 0,
            batches: BTreeMap::new(),
            next_delivery: vec![0; teachers],
            deliveries: (0..teachers).map(|_| Reorder::default()).collect(),
            rows_in_flight: 0,
        }
    }

    /// Passes all work through the threads at the other ends of the channels.
    pub(crate) fn run(mut self, ends: Ends<'_>, progress: &mut Progress) -> anyhow::Result<Ended> {
        loop {
            self.give_out(&ends, progress)?;
            self.take_in_order(&ends, progress)?;
            if self.work.is_empty() && self.open.is_empty() && self.batches.is_empty() {
                return Ok(Ended::Finished);
            }
            match ends.events.recv_timeout(TICK) {
                Ok(Event::Decoded { seq, decoded }) => self.decoded.put(seq, decoded),
                Ok(Event::Encoded { task, rows }) => {
                    let delivery = Delivery { message: Message::Rows(rows), batch: Some(task.batch.seq) };
                    self.deliver(task.teacher, task.seq, delivery, &ends, progress)?;
                }
                Ok(Event::Failed(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("all workers have ended before the work did, which is a bug")
                }
            }
            if signals::requested() {
                return Ok(Ended::Interrupted);
            }
        }
    }

    /// Gives out samples while the window has room.
    fn give_out(&mut self, ends: &Ends<'_>, progress: &mut Progress) -> anyhow::Result<()> {
        let rows = usize::from(self.build.identity.views.views);
        while self.rows_in_flight + rows <= self.window {
            match (self.jobs.pop_front(), self.work.pop_front()) {
                (Some(job), work) => {
                    work.into_iter().for_each(|work| self.work.push_front(work));
                    self.rows_in_flight += rows;
                    ends.jobs.send(job).map_err(|_| failure(ends))?;
                }
                (None, Some(work)) => self.begin(work, progress)?,
                (None, None) => break,
            }
        }
        Ok(())
    }

    /// Lists the samples of a part: all of its range, or, when its samples are committed, those that have rows.
    fn begin(&mut self, work: PartWork, progress: &mut Progress) -> anyhow::Result<()> {
        schemas::remove_stale(self.cache.dir(), work.part)?;
        let teachers: Vec<usize> = (0..self.build.teachers.len())
            .filter(|&t| work.missing.teachers.contains(&self.build.teachers[t].0.id))
            .collect();
        let sizes = sizes(teachers.iter().map(|&t| &self.build.teachers[t].0));

        let range = self.build.identity.plan.range(work.part);
        let mut samples: BTreeMap<u64, Option<Known>> = BTreeMap::new();
        if work.missing.samples {
            samples.extend(range.map(|id| (id, None)));
        } else {
            let part = Arc::new(self.cache.samples_part(work.part)?);
            for (first_row, row) in part.rows().iter().enumerate() {
                let known = samples.entry(row.sample_id).or_default();
                known.get_or_insert_with(|| Known { part: Arc::clone(&part), first_row, rows: 0 }).rows += 1;
            }
            progress.skip(range.end - range.start - samples.len() as u64);
        }
        let samples_left = samples.len();
        for (sample_id, known) in samples {
            self.jobs.push_back(Job { seq: self.next_job, sample_id, known, sizes: sizes.clone() });
            self.next_job += 1;
        }
        self.open.push_back(OpenPart {
            work,
            teachers,
            sizes,
            begun: false,
            samples_left,
            pending: Vec::new(),
            rejects: Vec::new(),
        });
        Ok(())
    }

    /// Takes decoded samples in order; completes batches and parts.
    fn take_in_order(&mut self, ends: &Ends<'_>, progress: &mut Progress) -> anyhow::Result<()> {
        // The part is taken out and put back, so that the methods below may use the rest of the flow.
        while let Some(mut part) = self.open.pop_front() {
            if !part.begun {
                part.begun = true;
                if part.work.missing.samples {
                    ends.samples.send(Message::Begin(part.work.part)).map_err(|_| failure(ends))?;
                }
                for &teacher in &part.teachers {
                    self.queue(teacher, Message::Begin(part.work.part), ends, progress)?;
                }
            }
            while part.samples_left > 0
                && let Some(decoded) = self.decoded.pop()
            {
                part.samples_left -= 1;
                self.take(&mut part, decoded, ends, progress)?;
            }
            if part.samples_left > 0 {
                self.open.push_front(part);
                break;
            }
            self.end(part, ends, progress)?;
        }
        Ok(())
    }

    /// One sample of the part, in order.
    fn take(
        &mut self,
        part: &mut OpenPart,
        decoded: Decoded,
        ends: &Ends<'_>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let (rows, mut packed) = match decoded {
            Decoded::Rejected(reject) => {
                self.rows_in_flight -= usize::from(self.build.identity.views.views);
                part.rejects.push(reject);
                progress.reject();
                return Ok(());
            }
            Decoded::Rows { rows, packed } => (rows, packed),
        };
        if part.work.missing.samples {
            // The image goes with the first row.
            let rows = rows.iter().map(|row| PackedRow { row: row.sample.clone(), image: packed.take() });
            let rows = rows.collect();
            ends.samples.send(Message::Rows(rows)).map_err(|_| failure(ends))?;
        }
        if part.teachers.is_empty() {
            self.rows_in_flight -= rows.len();
            progress.rows(rows.len());
            return Ok(());
        }
        for row in rows {
            part.pending.push(row);
            if part.pending.len() == self.build.batch_size as usize {
                self.dispatch(part, ends)?;
            }
        }
        Ok(())
    }

    /// Gives the pending rows to the part's teachers as one batch.
    fn dispatch(&mut self, part: &mut OpenPart, ends: &Ends<'_>) -> anyhow::Result<()> {
        let seq = self.next_batch;
        self.next_batch += 1;
        let rows = std::mem::take(&mut part.pending);
        self.batches.insert(seq, (rows.len(), part.teachers.len()));
        let batch = Arc::new(Batch::new(seq, rows, part.sizes.clone()));
        for &teacher in &part.teachers {
            let task = Task { seq: self.place(teacher), teacher, batch: Arc::clone(&batch) };
            ends.tasks.send(task).map_err(|_| failure(ends))?;
        }
        Ok(())
    }

    /// All samples of the part are here: the last, smaller batch, and the end of its files.
    fn end(&mut self, mut part: OpenPart, ends: &Ends<'_>, progress: &mut Progress) -> anyhow::Result<()> {
        if !part.pending.is_empty() {
            self.dispatch(&mut part, ends)?;
        }
        if part.work.missing.samples {
            ends.samples.send(Message::End(part.rejects)).map_err(|_| failure(ends))?;
        }
        for teacher in part.teachers {
            self.queue(teacher, Message::End(Vec::new()), ends, progress)?;
        }
        Ok(())
    }

    /// The next place in a teacher's order.
    fn place(&mut self, teacher: usize) -> u64 {
        let seq = self.next_delivery[teacher];
        self.next_delivery[teacher] += 1;
        seq
    }

    /// Puts a message that is ready at the end of a teacher's order.
    fn queue(
        &mut self,
        teacher: usize,
        message: Message<EncodedRow>,
        ends: &Ends<'_>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let seq = self.place(teacher);
        self.deliver(teacher, seq, Delivery { message, batch: None }, ends, progress)
    }

    /// Puts a message at its place in a teacher's order and hands its writer whatever is due.
    fn deliver(
        &mut self,
        teacher: usize,
        seq: u64,
        delivery: Delivery,
        ends: &Ends<'_>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        self.deliveries[teacher].put(seq, delivery);
        while let Some(Delivery { message, batch }) = self.deliveries[teacher].pop() {
            ends.features[teacher].send(message).map_err(|_| failure(ends))?;
            let Some(batch) = batch else { continue };
            let Some((rows, teachers_left)) = self.batches.get_mut(&batch) else {
                continue;
            };
            *teachers_left -= 1;
            if *teachers_left == 0 {
                self.rows_in_flight -= *rows;
                progress.rows(*rows);
                self.batches.remove(&batch);
            }
        }
        Ok(())
    }
}

/// The sides of the squares that some teachers are shown, each once.
pub(crate) fn sizes<'a>(teachers: impl Iterator<Item = &'a TeacherIdentity>) -> Vec<u32> {
    let mut sizes: Vec<u32> = teachers.map(|teacher| teacher.input_size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Why a thread has closed its end: it says so before it does.
fn failure(ends: &Ends<'_>) -> anyhow::Error {
    let said =
        ends.events.try_iter().find_map(|event| if let Event::Failed(error) = event { Some(error) } else { None });
    said.unwrap_or_else(|| anyhow!("a thread of the build ended early without saying why, which is a bug"))
}
