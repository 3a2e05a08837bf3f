//! `pipeline inspect`: a cache's identity, progress, size and features.

mod output;
mod pca;
mod picture;
mod pixels;
mod rows;
mod text;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, ensure};
use program::ExitStatus;
use schemas::{Cache, CacheIdentity, ChannelSums, SampleRow, TeacherId, TeacherIdentity, TeacherRow};
use serde::Serialize;

use crate::cli::InspectArgs;
use picture::Picture;
use rows::Chosen;

/// The JSON output, which the text summarizes.
#[derive(Debug, Serialize)]
struct Overview<'a> {
    cache: String,
    identity: &'a CacheIdentity,
    parts: u32,
    samples: Files,
    rejected: u64,
    teachers: BTreeMap<&'a TeacherId, TeacherOverview<'a>>,
    /// Teachers whose `teacher.json` is damaged, with the problem.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    damaged: BTreeMap<TeacherId, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<RowView>,
    /// The picture of `--png`.
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<Picture>,
}

/// The committed files of the samples or of a teacher.
#[derive(Debug, Default, Serialize)]
struct Files {
    parts_complete: u32,
    rows: u64,
    bytes: u64,
    /// Compressed bytes per row of each column.
    bytes_per_row: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
struct TeacherOverview<'a> {
    identity: &'a TeacherIdentity,
    files: Files,
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<Channels>,
}

/// Smallest and largest mean and std of the tokens over the channels, with the channel.
#[derive(Debug, Serialize)]
struct Channels {
    tokens: u64,
    mean_min: (f64, usize),
    mean_max: (f64, usize),
    std_min: (f64, usize),
    std_max: (f64, usize),
}

/// One requested (sample, view) with a summary of each teacher's features.
#[derive(Debug, Serialize)]
struct RowView {
    sample_id: u64,
    view: u16,
    key: String,
    content_hash: String,
    label: Option<i32>,
    label_name: Option<String>,
    width: u32,
    height: u32,
    /// x, y, w, h in pixels of the decoded image.
    crop: [u32; 4],
    flip: bool,
    teachers: BTreeMap<TeacherId, FeatureView>,
}

/// Summary of a teacher's features of one view.
#[derive(Debug, Serialize)]
struct FeatureView {
    /// `[L, D]`
    shape: [usize; 2],
    /// Mean over all values of all tokens.
    mean: f64,
    std: f64,
    min: f32,
    max: f32,
    /// 2-norm of the CLS token.
    cls_norm: f64,
    /// The patch with the largest attention of CLS, as (row, column) of the grid, and its weight.
    cls_attn_peak: ([usize; 2], f32),
}

/// Prints an overview of the cache; with `--row`, also rows of samples, read through the page index and checked; with `--png`, draws rows
/// and prints only a summary of the picture. A teacher with a damaged record is reported and left out.
pub fn inspect(args: &InspectArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    ensure!(
        args.view.is_none() || args.png.is_some() || !args.row.is_empty(),
        "--view needs samples from --row, or a picture from --png"
    );
    let (cache, unreadable) = Cache::open_readable(&args.cache)?;
    let status = if unreadable.is_empty() { ExitStatus::Fine } else { ExitStatus::Problems };
    for (id, error) in &unreadable {
        tracing::warn!("teacher {id} is left out: {error}");
    }
    let png = args.png.as_deref().map(|path| output::place(path, cache.dir())).transpose()?;
    let mut chosen = rows::choose(&cache, &args.row, args.view)?;
    let picture = match &png {
        Some(path) => {
            if args.row.is_empty() {
                chosen = rows::first_middle_last(&cache, args.view)?;
            }
            let source = args.images.as_deref();
            Some(picture::draw(&cache, &chosen, source, args.panel, path)?)
        }
        None => None,
    };
    if let (Some(picture), false) = (&picture, args.json) {
        writeln!(out, "{}", picture.summary())?;
        return Ok(status);
    }
    let mut overview = overview(&cache)?;
    let damaged = unreadable.iter();
    overview.damaged = damaged.map(|(id, error)| (id.clone(), error.to_string())).collect();
    overview.rows = row_views(&cache, chosen)?;
    overview.picture = picture;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&overview)?)?;
    } else {
        text::print(&overview, out)?;
    }
    Ok(status)
}

fn overview(cache: &Cache) -> anyhow::Result<Overview<'_>> {
    let mut samples = Files::default();
    let mut rejected = 0;
    let mut teachers: BTreeMap<_, _> =
        cache.teachers().iter().map(|(id, t)| (id, (t, Files::default(), ChannelSums::default()))).collect();
    for part in 0..cache.identity().parts() {
        let state = cache.part_state(part)?;
        if let Some(commit) = state.samples {
            rejected += commit.rejects.rows;
            samples.add(commit.file.rows, commit.file.bytes, cache.samples_column_bytes(part)?);
        }
        for (id, commit) in state.teachers {
            let (_, files, sums) = teachers.get_mut(&id).context("a committed teacher is one of the cache's")?;
            files.add(commit.file.rows, commit.file.bytes, cache.teacher_part(&id, part)?.column_bytes());
            merge(sums, &commit.channels);
        }
    }
    samples.per_row();
    let teachers = teachers.into_iter().map(|(id, (identity, mut files, sums))| {
        files.per_row();
        (id, TeacherOverview { identity, files, channels: channels(&sums) })
    });
    Ok(Overview {
        cache: cache.dir().display().to_string(),
        identity: cache.identity(),
        parts: cache.identity().parts(),
        samples,
        rejected,
        teachers: teachers.collect(),
        damaged: BTreeMap::new(),
        rows: Vec::new(),
        picture: None,
    })
}

impl Files {
    fn add(&mut self, rows: u64, bytes: u64, columns: BTreeMap<String, u64>) {
        self.parts_complete += 1;
        self.rows += rows;
        self.bytes += bytes;
        for (column, bytes) in columns {
            *self.bytes_per_row.entry(column).or_default() += bytes as f64;
        }
    }

    /// Turns the sums over columns into averages.
    fn per_row(&mut self) {
        let rows = self.rows.max(1) as f64;
        self.bytes_per_row.values_mut().for_each(|bytes| *bytes /= rows);
    }
}

fn merge(sums: &mut ChannelSums, part: &ChannelSums) {
    sums.count += part.count;
    for (total, add) in [(&mut sums.sum, &part.sum), (&mut sums.sum_sq, &part.sum_sq)] {
        total.resize(total.len().max(add.len()), 0.0);
        total.iter_mut().zip(add).for_each(|(total, add)| *total += add);
    }
}

fn channels(sums: &ChannelSums) -> Option<Channels> {
    let n = sums.count as f64;
    let mean: Vec<f64> = sums.sum.iter().map(|sum| sum / n).collect();
    // Rounding can take a constant channel's variance a hair below zero.
    let std: Vec<f64> =
        sums.sum_sq.iter().zip(&mean).map(|(sq, mean)| (sq / n - mean * mean).max(0.0).sqrt()).collect();
    let by_value = |values: &[f64], largest: bool| {
        let indexed = values.iter().copied().enumerate().map(|(channel, value)| (value, channel));
        if largest { indexed.max_by(|a, b| a.0.total_cmp(&b.0)) } else { indexed.min_by(|a, b| a.0.total_cmp(&b.0)) }
    };
    Some(Channels {
        tokens: (sums.count > 0).then_some(sums.count)?,
        mean_min: by_value(&mean, false)?,
        mean_max: by_value(&mean, true)?,
        std_min: by_value(&std, false)?,
        std_max: by_value(&std, true)?,
    })
}

/// The chosen rows with a summary of each teacher's features.
fn row_views(cache: &Cache, chosen: Vec<Chosen>) -> anyhow::Result<Vec<RowView>> {
    let mut teachers: Vec<BTreeMap<_, _>> = chosen.iter().map(|_| BTreeMap::new()).collect();
    rows::for_each_feature(cache, &chosen, |position, teacher, row| {
        teachers[position].insert(teacher.id.clone(), feature_view(teacher, row)?);
        Ok(())
    })?;
    let views = chosen.into_iter().zip(teachers);
    Ok(views.map(|(chosen, teachers)| row_view(cache.identity(), chosen.sample, teachers)).collect())
}

fn row_view(identity: &CacheIdentity, row: SampleRow, teachers: BTreeMap<TeacherId, FeatureView>) -> RowView {
    let label_name = row.label.and_then(|label| identity.all_label_names().get(usize::try_from(label).ok()?).cloned());
    RowView {
        sample_id: row.sample_id,
        view: row.view.index,
        key: row.key,
        content_hash: row.content_hash.to_string(),
        label: row.label,
        label_name,
        width: row.width,
        height: row.height,
        crop: [row.view.crop.x, row.view.crop.y, row.view.crop.w, row.view.crop.h],
        flip: row.view.flip,
        teachers,
    }
}

fn feature_view(teacher: &TeacherIdentity, row: &TeacherRow) -> anyhow::Result<FeatureView> {
    let (mut tokens, mut cls, mut cls_attn) = (Vec::new(), Vec::new(), Vec::new());
    teacher.decode_tokens(&row.tokens, &mut tokens)?;
    teacher.decode_cls_attn(&row.cls_attn, &mut cls_attn)?;
    teacher.decode_cls(&row.cls, &mut cls)?;
    let n = tokens.len() as f64;
    let mean = tokens.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let var = tokens.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let (peak, weight) =
        cls_attn.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).context("a grid has patches")?;
    let grid = teacher.grid as usize;
    Ok(FeatureView {
        shape: [grid * grid, teacher.width as usize],
        mean,
        std: var.sqrt(),
        min: tokens.iter().copied().fold(f32::INFINITY, f32::min),
        max: tokens.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        cls_norm: cls.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt(),
        cls_attn_peak: ([peak / grid, peak % grid], weight),
    })
}
