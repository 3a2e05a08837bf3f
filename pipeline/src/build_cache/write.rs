//! Writer threads: one for the samples, one for each teacher. Each takes rows in order and commits part after part.
//!
//! Rows come encoded, hashed and compressed, so that a writer only appends. One whose channel closes in the middle of a part (the build
//! stops) drops the part, which removes its temporary file.

use std::path::Path;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use schemas::{CacheIdentity, EncodedRow, Reject, SampleRow, SamplesWriter, TeacherIdentity, TeacherWriter};

use super::batch::{Batch, OpenPart};
use super::network::BuildTeacher;
use super::parallel::guarded;
use super::timing::{Stage, Timings};

/// Messages that may wait for a writer. One holds at most a batch of rows; a writer that falls behind stops the build's threads here.
const QUEUE: usize = 4;

/// A batch whose rows are ready to be written.
#[derive(Debug)]
pub(crate) struct FinishedBatch {
    pub batch: Batch,
    /// The samples' rows, for a part whose samples are not committed yet.
    pub samples: Vec<PackedRow>,
    pub rejects: Vec<Reject>,
    /// Rows of each of the part's teachers.
    pub features: Vec<Vec<EncodedRow>>,
    /// Rows of each file.
    pub rows: usize,
}

/// A samples row and the image to be packed with it.
#[derive(Debug)]
pub(crate) struct PackedRow {
    pub row: SampleRow,
    pub image: Option<Vec<u8>>,
}

/// A file of this run that is complete and declared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommittedFile {
    pub bytes: u64,
}

/// What all writers need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterContext<'a> {
    pub cache: &'a Path,
    pub identity: &'a CacheIdentity,
    /// Where busy time is booked.
    pub timings: &'a Timings,
    /// Told the part of each file that is committed.
    pub committed: &'a Sender<u32>,
}

impl WriterContext<'_> {
    fn tell_committed(&self, part: u32) {
        // A build that has ended does not ask any more.
        let _ = self.committed.send(part);
    }
}

/// What a writer is told; for every part: begin, any number of rows, end.
#[derive(Debug)]
enum Message<Row> {
    Begin(u32),
    Rows(Vec<Row>),
    /// The part is complete; these of its images could not be used (for the samples' writer only).
    End(Vec<Reject>),
}

/// The writers of a build.
pub(crate) struct Writers<'scope> {
    samples: Writer<'scope, PackedRow>,
    /// One for each teacher of the build.
    features: Vec<Writer<'scope, EncodedRow>>,
    /// Images of the part that is being written that could not be used.
    rejects: Vec<Reject>,
}

/// A writer's thread, and where it is told what to write.
struct Writer<'scope, Row> {
    messages: Sender<Message<Row>>,
    thread: ScopedJoinHandle<'scope, anyhow::Result<Vec<CommittedFile>>>,
}

impl<'scope> Writers<'scope> {
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        cx: WriterContext<'scope>,
        teachers: &'scope [BuildTeacher],
    ) -> Writers<'scope> {
        let features = teachers.iter().map(|teacher| {
            let identity = &teacher.identity;
            Writer::start(scope, move |messages| write_features(cx, identity, messages))
        });
        Writers {
            samples: Writer::start(scope, move |messages| write_samples(cx, messages)),
            features: features.collect(),
            rejects: Vec::new(),
        }
    }

    /// Hands the next batch to the writers of its part's files.
    ///
    /// # Errors
    /// If a writer has failed; [`Self::finish`] says why.
    pub(crate) fn write(&mut self, finished: FinishedBatch) -> anyhow::Result<()> {
        let FinishedBatch { batch, samples, rejects, features, .. } = finished;
        let OpenPart { number, committed, teachers, .. } = &*batch.part;
        self.rejects.extend(rejects);
        if committed.is_none() {
            self.samples.send_batch(&batch, *number, samples, || std::mem::take(&mut self.rejects))?;
        }
        for (&teacher, rows) in teachers.iter().zip(features) {
            self.features[teacher].send_batch(&batch, *number, rows, Vec::new)?;
        }
        Ok(())
    }

    /// Waits for the writers' last commits and returns all of this run.
    ///
    /// # Errors
    /// What stopped a writer.
    pub(crate) fn finish(self) -> anyhow::Result<Vec<CommittedFile>> {
        let mut committed = self.samples.finish()?;
        for writer in self.features {
            committed.extend(writer.finish()?);
        }
        Ok(committed)
    }
}

impl<'scope, Row: Send + 'scope> Writer<'scope, Row> {
    fn start(
        scope: &'scope Scope<'scope, '_>,
        write: impl FnOnce(Receiver<Message<Row>>) -> anyhow::Result<Vec<CommittedFile>> + Send + 'scope,
    ) -> Writer<'scope, Row> {
        let (messages, received) = bounded(QUEUE);
        Writer { messages, thread: scope.spawn(|| guarded(|| write(received))) }
    }

    fn send_batch(
        &self,
        batch: &Batch,
        part: u32,
        rows: Vec<Row>,
        rejects: impl FnOnce() -> Vec<Reject>,
    ) -> anyhow::Result<()> {
        let begin = batch.is_first().then_some(Message::Begin(part));
        let end = batch.is_last().then(|| Message::End(rejects()));
        for message in begin.into_iter().chain([Message::Rows(rows)]).chain(end) {
            self.messages.send(message).map_err(|_| anyhow!("a writer has ended"))?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Vec<CommittedFile>> {
        drop(self.messages);
        self.thread.join().unwrap_or_else(|_| Err(anyhow!("a writer panicked, which is a bug")))
    }
}

/// Writes parts of the samples until the channel closes.
fn write_samples(cx: WriterContext<'_>, messages: Receiver<Message<PackedRow>>) -> anyhow::Result<Vec<CommittedFile>> {
    let mut open: Option<(u32, SamplesWriter)> = None;
    let mut committed = Vec::new();
    for message in messages {
        cx.timings.time(Stage::WriteSamples, || -> anyhow::Result<()> {
            match message {
                Message::Begin(part) => open = Some((part, SamplesWriter::create(cx.cache, part, cx.identity)?)),
                Message::Rows(rows) => {
                    let (_, writer) = open.as_mut().context("rows belong to a part that has begun")?;
                    rows.iter().try_for_each(|PackedRow { row, image }| writer.push_packed(row, image.as_deref()))?;
                }
                Message::End(rejects) => {
                    let (part, writer) = open.take().context("a part ends after it has begun")?;
                    let commit = writer.finish(&rejects)?;
                    cx.tell_committed(part);
                    committed.push(CommittedFile { bytes: commit.file.bytes + commit.rejects.bytes });
                }
            }
            Ok(())
        })?;
    }
    Ok(committed)
}

/// Writes parts of one teacher's features until the channel closes.
fn write_features(
    cx: WriterContext<'_>,
    teacher: &TeacherIdentity,
    messages: Receiver<Message<EncodedRow>>,
) -> anyhow::Result<Vec<CommittedFile>> {
    let mut open: Option<(u32, TeacherWriter)> = None;
    let mut committed = Vec::new();
    for message in messages {
        let stage = Stage::WriteFeatures(teacher.id.clone());
        cx.timings.time(stage, || -> anyhow::Result<()> {
            match message {
                Message::Begin(part) => {
                    open = Some((part, TeacherWriter::create(cx.cache, part, cx.identity, teacher)?))
                }
                Message::Rows(rows) => {
                    let (_, writer) = open.as_mut().context("rows belong to a part that has begun")?;
                    rows.into_iter().try_for_each(|row| writer.push(row))?;
                }
                Message::End(_) => {
                    let (part, writer) = open.take().context("a part ends after it has begun")?;
                    committed.push(CommittedFile { bytes: writer.finish()?.file.bytes });
                    cx.tell_committed(part);
                }
            }
            Ok(())
        })?;
    }
    Ok(committed)
}
