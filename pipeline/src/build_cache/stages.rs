//! What a batch passes through on its way to the writers.

use std::collections::BTreeSet;
use std::time::Instant;

use schemas::{EncodedRow, SampleRow, TeacherIdentity};

use super::batch::{Batch, OpenPart};
use super::decode::{CommittedRows, DecodedSamples, Decoder};
use super::infer::Inference;
use super::network::{Pixels, sizes};
use super::parallel::Stop;
use super::reuse::Reuse;
use super::saved::SavedBatches;
use super::timing::Stage;
use super::unstorable::Unstorable;
use super::write::{FinishedBatch, PackedRow};

/// What a batch passes through, from its samples to rows that are ready to be written: on one thread.
pub(super) struct Stages<'a> {
    pub decoder: Decoder<'a>,
    /// In the order of the build's list.
    pub teachers: Vec<&'a TeacherIdentity>,
    pub saved: &'a SavedBatches,
    /// Where features are taken over from.
    pub reuse: Option<&'a Reuse>,
}

impl Stages<'_> {
    pub(super) fn run(&self, batch: Batch, inference: &Inference<'_>, stop: &Stop) -> anyhow::Result<FinishedBatch> {
        // ---- read, hash, decode, draw views, render ----
        let part = &batch.part;
        let samples = batch.samples.clone().filter_map(|id| match &part.committed {
            None => Some((id, None)),
            // A sample without rows was rejected when the part's samples were built.
            Some(samples) => CommittedRows::of_sample(samples, id).map(|rows| (id, Some(rows))),
        });
        let sizes = sizes(part.teachers.iter().map(|&teacher| self.teachers[teacher]));
        let teachers: Vec<_> = part.teachers.iter().map(|&teacher| self.teachers[teacher]).collect();
        let decoder = Decoder { reuse: self.reuse.map(|reuse| (reuse, &teachers[..])), ..self.decoder };
        let DecodedSamples { rows, packed, pixels, rendered, mut rejects } =
            decoder.samples(samples, self.decoder.views.views, &sizes, stop)?;

        // ---- every teacher that the part lacks; encode, sum, hash, compress ----
        let mut encoded = vec![Vec::new(); teachers.len()];
        let mut unstorable = Unstorable::default();
        if !rows.is_empty() {
            let keys: Vec<_> = rows.iter().map(SampleRow::row_key).collect();
            encoded = match self.saved.load(&batch, &teachers, &keys)? {
                Some(saved) => saved,
                None => {
                    let began = Instant::now();
                    let stored = self.features(part, &rows, (pixels, &rendered), inference, stop)?;
                    for ((teacher, stored), encoded) in teachers.iter().zip(stored).zip(&mut encoded) {
                        *encoded = unstorable.sort_out(teacher, &rows, stored, part.committed.is_some())?;
                    }
                    // Rows that one teacher has no features for are dropped for all.
                    encoded.iter_mut().for_each(|rows| rows.retain(|row| unstorable.keeps(row.key().sample_id)));
                    // Behind a GPU the time is that of waiting for other batches.
                    if let Inference::Here { .. } = inference {
                        self.saved.save(&batch, &teachers, &encoded, began.elapsed())?;
                    }
                    encoded
                }
            };
        }
        let kept = rows.into_iter().zip(packed).filter(|(row, _)| unstorable.keeps(row.sample_id));
        let samples: Vec<_> = kept.map(|(row, image)| PackedRow { row, image }).collect();
        rejects.extend(unstorable.into_rejects());
        rejects.sort_unstable_by_key(|reject| reject.sample_id);
        let row_count = samples.len();
        Ok(FinishedBatch { batch, samples, rejects, features: encoded, rows: row_count })
    }

    /// The encoded features of some rows, of each teacher that the part lacks: computed, or taken over from another cache. `rendered` are the rows
    /// that have pixels.
    fn features(
        &self,
        part: &OpenPart,
        rows: &[SampleRow],
        (mut pixels, rendered): (Pixels, &[usize]),
        inference: &Inference<'_>,
        stop: &Stop,
    ) -> anyhow::Result<Vec<Vec<schemas::Result<EncodedRow>>>> {
        let mut features: Vec<Vec<Option<_>>> = Vec::new();
        for &teacher in &part.teachers {
            let known = |row| self.reuse.map_or(Ok(None), |reuse| reuse.row(self.teachers[teacher], row));
            features.push(rows.iter().map(|row| Ok(known(row)?.map(Ok))).collect::<anyhow::Result<_>>()?);
        }
        // What one teacher lacks is computed for every teacher that lacks anything: they share the pixels.
        let lacking: Vec<usize> =
            (0..rows.len()).filter(|&row| features.iter().any(|known| known[row].is_none())).collect();
        let (slots, teachers): (Vec<usize>, Vec<usize>) =
            part.teachers.iter().enumerate().filter(|(slot, _)| features[*slot].iter().any(Option::is_none)).unzip();
        if !lacking.is_empty() {
            if lacking.len() < rendered.len() {
                let wanted: BTreeSet<usize> = lacking.iter().copied().collect();
                for images in pixels.values_mut() {
                    let mut row = rendered.iter();
                    images.retain(|_| row.next().is_some_and(|row| wanted.contains(row)));
                }
            }
            let of_rows: Vec<SampleRow> = lacking.iter().map(|&row| rows[row].clone()).collect();
            let computed = inference.run(&teachers, &pixels, lacking.len(), stop)?;
            for ((slot, teacher), computed) in slots.into_iter().zip(teachers).zip(computed) {
                stop.check()?;
                let encode = || computed.encode(self.teachers[teacher], &of_rows);
                let stored = self.decoder.timings.time(Stage::Encode, encode)?;
                for (&row, stored) in lacking.iter().zip(stored) {
                    features[slot][row].get_or_insert(stored);
                }
            }
        }
        Ok(features.into_iter().map(|of_teacher| of_teacher.into_iter().flatten().collect()).collect())
    }
}
