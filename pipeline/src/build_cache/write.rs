//! Writer threads: one for the samples, one per teacher. Each takes rows in order and commits part after part.
//!
//! A writer whose channel closes in the middle of a part (the build stops) drops the part, which removes its temporary file.

use std::path::Path;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use schemas::{CacheIdentity, Reject, SampleRow, SamplesWriter, TeacherIdentity, TeacherWriter};

use super::infer::EncodedRow;
use super::timing::{Stage, Timings};

/// Messages that may wait for a writer. One holds at most a batch of rows; a writer that falls behind stops the teachers here.
pub(crate) const QUEUE: usize = 4;

/// What a writer is told; for every part: begin, any number of rows, end.
#[derive(Debug)]
pub(crate) enum Message<Row> {
    /// A new part.
    Begin(u32),
    /// Its next rows.
    Rows(Vec<Row>),
    /// The part is complete; these of its images could not be used (for the samples' writer only).
    End(Vec<Reject>),
}

/// A samples row and the image to be packed with it.
#[derive(Debug)]
pub(crate) struct PackedRow {
    pub row: SampleRow,
    pub image: Option<Vec<u8>>,
}

/// A file of this run that is complete and declared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Committed {
    /// Its size.
    pub bytes: u64,
}

/// What all writers need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterContext<'a> {
    /// The cache folder.
    pub cache: &'a Path,
    /// Its identity.
    pub identity: &'a CacheIdentity,
    /// Where busy time is booked.
    pub timings: &'a Timings,
}

/// Writes parts of the samples until the channel closes; reports each commit.
pub(crate) fn write_samples(
    cx: WriterContext<'_>,
    messages: Receiver<Message<PackedRow>>,
    committed: &Sender<Committed>,
) -> anyhow::Result<()> {
    let mut open: Option<SamplesWriter> = None;
    for message in messages {
        let commit = cx.timings.time(Stage::WriteSamples, || -> anyhow::Result<Option<Committed>> {
            match message {
                Message::Begin(part) => open = Some(SamplesWriter::create(cx.cache, part, cx.identity)?),
                Message::Rows(rows) => {
                    let writer = open.as_mut().context("rows belong to a part that has begun")?;
                    rows.iter().try_for_each(|PackedRow { row, image }| writer.push_packed(row, image.as_deref()))?;
                }
                Message::End(rejects) => {
                    let writer = open.take().context("a part ends after it has begun")?;
                    let commit = writer.finish(&rejects)?;
                    return Ok(Some(Committed { bytes: commit.file.bytes + commit.rejects.bytes }));
                }
            }
            Ok(None)
        })?;
        if let Some(commit) = commit {
            // The build may have stopped listening; the part is committed all the same.
            let _ = committed.send(commit);
        }
    }
    Ok(())
}

/// Writes parts of one teacher's features until the channel closes; reports each commit.
pub(crate) fn write_features(
    cx: WriterContext<'_>,
    teacher: &TeacherIdentity,
    messages: Receiver<Message<EncodedRow>>,
    committed: &Sender<Committed>,
) -> anyhow::Result<()> {
    let mut open: Option<TeacherWriter> = None;
    for message in messages {
        let stage = Stage::WriteFeatures(teacher.id.clone());
        let commit = cx.timings.time(stage, || -> anyhow::Result<Option<Committed>> {
            match message {
                Message::Begin(part) => open = Some(TeacherWriter::create(cx.cache, part, cx.identity, teacher)?),
                Message::Rows(rows) => {
                    let writer = open.as_mut().context("rows belong to a part that has begun")?;
                    for EncodedRow { row, error } in &rows {
                        writer.push(row)?;
                        error.iter().for_each(|error| writer.add_codec_error(error));
                    }
                }
                Message::End(_) => {
                    let writer = open.take().context("a part ends after it has begun")?;
                    return Ok(Some(Committed { bytes: writer.finish()?.file.bytes }));
                }
            }
            Ok(None)
        })?;
        if let Some(commit) = commit {
            let _ = committed.send(commit);
        }
    }
    Ok(())
}
