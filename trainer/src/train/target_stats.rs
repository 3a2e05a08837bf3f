//! Statistics of a teacher's features over a cache, for the target normalizations that need them.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use images::rng::{Purpose, Rng};
use models::targets::{TargetNorm, TargetStats};
use schemas::{TeacherId, TeacherPart, TeacherRow};
use tch::{Kind, Tensor};
use tracing::info;

use crate::data::Problem;
use crate::data::joined::{Joined, JoinedCaches};

#[cfg(test)]
mod tests;

/// Number of views that a covariance is measured on: 100,352 tokens at a 14 x 14 grid, about a hundred times a large teacher's channels.
const COVARIANCE_VIEWS: usize = 512;

/// The statistics that `norm` needs of a cached teacher; `None` if it needs none.
///
/// Means and variances come from the sums in the commits of all complete parts: every token of the cache. A covariance is measured on
/// 512 views of the run, drawn by `seed`, or on all if there are fewer.
///
/// # Errors
/// If the teacher is not in the cache (it runs online), or a row cannot be read.
pub(crate) fn of_teacher(
    joined: &JoinedCaches,
    id: &TeacherId,
    norm: TargetNorm,
    seed: u64,
) -> anyhow::Result<Option<TargetStats>> {
    if !norm.needs_stats() {
        return Ok(None);
    }
    ensure!(
        joined.members()[0].cache.teachers().contains_key(id),
        "teacher {id}: target.norm = \"standardize\" and \"phi_s\" need statistics of its features, and it is not in {:?}. Add it with \
         pipeline add-teacher, or choose another norm",
        joined.members()[0].cache.dir()
    );
    Ok(Some(match norm {
        TargetNorm::PhiS => covariance(joined, id, seed)?,
        _ => channel_sums(joined, id)?,
    }))
}

fn channel_sums(joined: &JoinedCaches, id: &TeacherId) -> anyhow::Result<TargetStats> {
    let mut sums = schemas::ChannelSums::default();
    for Joined { cache, .. } in joined.members() {
        for state in cache.part_states().map_err(Problem::from)? {
            if let Some(commit) = state.teachers.get(id) {
                sums.add(&commit.channels);
            }
        }
    }
    ensure!(sums.count > 0, "teacher {id}: no part of {:?} has rows of it yet", joined.members()[0].cache.dir());
    Ok(TargetStats { mean: sums.mean(), variance: sums.variance(), covariance: None })
}

fn covariance(joined: &JoinedCaches, id: &TeacherId, seed: u64) -> anyhow::Result<TargetStats> {
    let identity = joined.members()[0].cache.teacher(id).map_err(Problem::from)?;
    let mut chosen: Vec<(usize, usize)> =
        (0..joined.len()).flat_map(|sample| (0..joined.views()).map(move |view| (sample, view))).collect();
    Rng::new(seed, Purpose::Select, &[COVARIANCE_VIEWS as u64]).shuffle(&mut chosen);
    chosen.truncate(COVARIANCE_VIEWS);
    // In the cache's order, which fixes the order of the sums.
    chosen.sort_unstable();
    info!("teacher {id}: covariance of its channels over {} views", chosen.len());

    let (tokens, width) = (identity.n_tokens() as i64, i64::from(identity.width));
    let options = (Kind::Double, tch::Device::Cpu);
    let mut sum = Tensor::zeros([width], options);
    let mut products = Tensor::zeros([width, width], options);
    let mut parts: BTreeMap<(usize, u32), TeacherPart> = BTreeMap::new();
    let (mut row, mut values) = (TeacherRow::default(), Vec::new());
    for &(sample, view) in &chosen {
        let (member, Joined { cache, samples, .. }, at) = joined.locate(sample);
        let (sample, row_view) = samples.get(at, view);
        let part = match parts.entry((member, sample.part)) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(cache.teacher_part(id, sample.part).map_err(Problem::from)?)
            }
        };
        let index = sample.row(view);
        part.read_row_into(index, &mut row).map_err(Problem::from)?;
        part.check_join(index, &row.key, &sample.row_key(&row_view)).map_err(Problem::from)?;
        identity.decode_tokens(&row.tokens, &mut values).map_err(Problem::from)?;
        let x = Tensor::from_slice(&values).to_kind(Kind::Double).reshape([tokens, width]);
        sum += x.sum_dim_intlist(0, false, Kind::Double);
        products += x.tr().matmul(&x);
    }
    let count = (chosen.len() as i64 * tokens) as f64;
    ensure!(count > 0.0, "teacher {id}: there is no row to measure");
    let mean = sum / count;
    let covariance = products / count - mean.outer(&mean);
    let vector = |t: &Tensor| Vec::<f64>::try_from(t.contiguous().flatten(0, -1));
    Ok(TargetStats {
        mean: vector(&mean).context("a tensor of doubles")?,
        variance: vector(&covariance.diag(0).clamp_min(0.0)).context("a tensor of doubles")?,
        covariance: Some(vector(&covariance).context("a tensor of doubles")?),
    })
}
