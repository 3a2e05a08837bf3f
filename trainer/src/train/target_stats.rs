//! Statistics of a teacher's features over a cache, for the target normalizations and losses that need them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Context, ensure};
use images::rng::{Purpose, Rng};
use models::cls_target::ClsStats;
use models::losses::ClsLoss;
use models::targets::{TargetNorm, TargetStats};
use schemas::{FeatureCodec, TeacherId, TeacherPart, TeacherRow};
use tch::{Kind, Tensor};
use tracing::info;

use crate::data::Problem;
use crate::data::joined::{Joined, JoinedCaches};

#[cfg(test)]
mod tests;

/// Number of views that a covariance is measured on: 100,352 tokens at a 14 x 14 grid, about a hundred times a large teacher's channels.
const COVARIANCE_VIEWS: usize = 512;
/// Number of views whose CLS tokens are measured: a channel's standard deviation is then known to 1.6 %.
const CLS_VIEWS: usize = 2048;
/// Rows whose bytes are under way before they are read, where they come over a network.
const AHEAD: usize = 32;

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
    require_cached(joined, id, "target.norm = \"standardize\" and \"phi_s\"")?;
    Ok(Some(match norm {
        TargetNorm::PhiS => covariance(joined, id, seed)?,
        _ => channel_sums(joined, id)?,
    }))
}

/// The statistics of a cached teacher's CLS tokens that their normalization and loss need; `None` if they need none. They are measured on
/// 2048 views of the run, drawn by `seed`, or on all if there are fewer.
///
/// # Errors
/// If the teacher is not in the cache (it runs online), a row cannot be read, or the tokens do not vary.
pub(crate) fn of_cls(
    joined: &JoinedCaches,
    id: &TeacherId,
    (norm, loss): (TargetNorm, ClsLoss),
    seed: u64,
) -> anyhow::Result<Option<ClsStats>> {
    if !norm.needs_stats() && loss != ClsLoss::Angle {
        return Ok(None);
    }
    require_cached(joined, id, "target.cls_norm = \"standardize\" and mimic.cls_loss = \"angle\"")?;
    let identity = joined.members()[0].cache.teacher(id).map_err(Problem::from)?;
    let chosen = draw_views(joined, seed, CLS_VIEWS);
    info!("teacher {id}: statistics of its CLS tokens over {} views", chosen.len());
    let (codec, width) = (identity.codec.cls(), identity.width as usize);
    let mut values = vec![0f32; chosen.len() * width];
    let mut slots = values.chunks_exact_mut(width);
    read_rows(joined, id, &chosen, &mut |row| {
        let slot = slots.next().context("a slot for each chosen view")?;
        Ok(codec.decode_into(&row.cls, width, slot).map_err(Problem::from)?)
    })?;
    let tokens = Tensor::from_slice(&values).reshape([-1, width as i64]);
    Ok(Some(ClsStats::measure(id.as_str(), &tokens, norm)?))
}

fn require_cached(joined: &JoinedCaches, id: &TeacherId, what: &str) -> anyhow::Result<()> {
    ensure!(
        joined.members()[0].cache.teachers().contains_key(id),
        "teacher {id}: {what} need statistics of its features, and it is not in {:?}. Add it with pipeline add-teacher, or choose others",
        joined.members()[0].cache.dir()
    );
    Ok(())
}

/// `n` views of the run as (sample, view), or all if there are fewer, drawn by `seed`, in the cache's order, which fixes the order of sums.
fn draw_views(joined: &JoinedCaches, seed: u64, n: usize) -> Vec<(usize, usize)> {
    let mut chosen: Vec<(usize, usize)> =
        (0..joined.len()).flat_map(|sample| (0..joined.views()).map(move |view| (sample, view))).collect();
    Rng::new(seed, Purpose::Select, &[n as u64]).shuffle(&mut chosen);
    chosen.truncate(n);
    chosen.sort_unstable();
    chosen
}

/// Calls `each` with the row of teacher `id` of every view in `chosen`, in this order.
fn read_rows(
    joined: &JoinedCaches,
    id: &TeacherId,
    chosen: &[(usize, usize)],
    each: &mut dyn FnMut(&TeacherRow) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut rows = Rows { joined, id, parts: BTreeMap::new() };
    for &view in chosen.iter().take(AHEAD) {
        rows.prefetch(view)?;
    }
    let mut row = TeacherRow::default();
    for (i, &view) in chosen.iter().enumerate() {
        if let Some(&later) = chosen.get(i + AHEAD) {
            rows.prefetch(later)?;
        }
        rows.read(view, &mut row)?;
        each(&row)?;
    }
    Ok(())
}

/// One teacher's rows by (sample, view) of a run. Parts are opened when first used.
struct Rows<'a> {
    joined: &'a JoinedCaches,
    id: &'a TeacherId,
    parts: BTreeMap<(usize, u32), TeacherPart>,
}

impl Rows<'_> {
    fn prefetch(&mut self, (sample, view): (usize, usize)) -> anyhow::Result<()> {
        let (member, Joined { samples, .. }, at) = self.joined.locate(sample);
        let (sample, _) = samples.get(at, view);
        self.part(member, sample.part)?.prefetch_row(sample.row(view));
        Ok(())
    }

    /// Reads a row and checks that it belongs to this sample and view.
    fn read(&mut self, (sample, view): (usize, usize), row: &mut TeacherRow) -> anyhow::Result<()> {
        let (member, Joined { samples, .. }, at) = self.joined.locate(sample);
        let (sample, row_view) = samples.get(at, view);
        let (part, index) = (self.part(member, sample.part)?, sample.row(view));
        part.read_row_into(index, row).map_err(Problem::from)?;
        Ok(part.check_join(index, &row.key, &sample.row_key(&row_view)).map_err(Problem::from)?)
    }

    fn part(&mut self, member: usize, part: u32) -> anyhow::Result<&TeacherPart> {
        let cache = &self.joined.members()[member].cache;
        Ok(match self.parts.entry((member, part)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(slot) => slot.insert(cache.teacher_part(self.id, part).map_err(Problem::from)?),
        })
    }
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
    let chosen = draw_views(joined, seed, COVARIANCE_VIEWS);
    info!("teacher {id}: covariance of its channels over {} views", chosen.len());

    let (tokens, width) = (identity.n_tokens() as i64, i64::from(identity.width));
    let options = (Kind::Double, tch::Device::Cpu);
    let mut sum = Tensor::zeros([width], options);
    let mut products = Tensor::zeros([width, width], options);
    let mut values = Vec::new();
    read_rows(joined, id, &chosen, &mut |row| {
        identity.decode_tokens(&row.tokens, &mut values).map_err(Problem::from)?;
        let x = Tensor::from_slice(&values).to_kind(Kind::Double).reshape([tokens, width]);
        sum += x.sum_dim_intlist(0, false, Kind::Double);
        products += x.tr().matmul(&x);
        Ok(())
    })?;
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
