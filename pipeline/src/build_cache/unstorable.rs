//! Rows whose features no codec holds: not finite, or too large for it.

use std::collections::BTreeMap;

use anyhow::Context;
use schemas::{EncodedRow, Reject, SampleRow, TeacherIdentity};

/// Images without features, by sample: the key, the content and the reason of each.
#[derive(Debug, Default)]
pub(crate) struct Unstorable(BTreeMap<u64, Reject>);

impl Unstorable {
    /// The rows of a teacher that can be stored; the images of the others are noted. `committed` says that the rows are in the cache already,
    /// where nothing can be rejected any more.
    ///
    /// # Errors
    /// Any other problem of a row; with `committed`, this one too.
    pub(crate) fn sort_out(
        &mut self,
        teacher: &TeacherIdentity,
        rows: &[SampleRow],
        encoded: Vec<schemas::Result<EncodedRow>>,
        committed: bool,
    ) -> anyhow::Result<Vec<EncodedRow>> {
        let mut storable = Vec::with_capacity(rows.len());
        for (row, encoded) in rows.iter().zip(encoded) {
            let SampleRow { key, sample_id, view, content_hash, .. } = row;
            match encoded {
                Ok(encoded) => storable.push(encoded),
                Err(error) if error.is_unstorable() && !committed => {
                    let error = anyhow::Error::from(error);
                    let (id, layer) = (&teacher.id, &teacher.layer);
                    let reason = format!("non-finite: teacher {id}, layer {layer}, view {}: {error:#}", view.index);
                    tracing::warn!(key, reason, "rejected");
                    let (key, content_hash) = (key.clone(), Some(*content_hash));
                    self.0.entry(*sample_id).or_insert(Reject { sample_id: *sample_id, key, reason, content_hash });
                }
                Err(error) => {
                    let view = view.index;
                    return Err(error).with_context(|| {
                        format!("teacher {}, image {key:?} (sample {sample_id}, view {view})", teacher.id)
                    });
                }
            }
        }
        Ok(storable)
    }

    /// Whether the rows of a sample are kept.
    pub(crate) fn keeps(&self, sample_id: u64) -> bool {
        !self.0.contains_key(&sample_id)
    }

    /// The images that have no rows.
    pub(crate) fn into_rejects(self) -> impl Iterator<Item = Reject> {
        self.0.into_values()
    }
}
