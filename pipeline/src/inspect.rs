//! `pipeline inspect`: what a cache is, how far it is built, what it costs, what its features look like.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, ensure};
use indicatif::DecimalBytes;
use schemas::{
    Cache, CacheIdentity, ChannelSums, SampleRow, TeacherId, TeacherIdentity, TeacherRow,
    ViewPolicy,
};
use serde::Serialize;

use crate::ExitStatus;
use crate::cli::InspectArgs;

/// Everything that is shown; the JSON output is this.
#[derive(Debug, Serialize)]
struct Overview<'a> {
    cache: String,
    identity: &'a CacheIdentity,
    parts: u32,
    samples: Files,
    rejected: u64,
    teachers: BTreeMap<&'a TeacherId, TeacherOverview<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<RowView>,
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

/// Range over the channels of the mean and deviation of the tokens, with the channels where they lie.
#[derive(Debug, Serialize)]
struct Channels {
    tokens: u64,
    mean_min: (f64, usize),
    mean_max: (f64, usize),
    std_min: (f64, usize),
    std_max: (f64, usize),
}

/// One view of the sample asked for, with each teacher's feature in brief.
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

/// A teacher's feature of one view.
#[derive(Debug, Serialize)]
struct FeatureView {
    /// `[L, D]`
    shape: [usize; 2],
    /// Over all values of all tokens.
    mean: f64,
    std: f64,
    min: f32,
    max: f32,
    /// 2-norm of the CLS token.
    cls_norm: f64,
    /// The patch that CLS attends to most, as (row, column) of the grid, and how much.
    cls_attn_peak: ([usize; 2], f32),
}

/// Shows the cache; with `--row`, also the rows of one sample, read through the page index and checked.
pub fn inspect(args: &InspectArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let cache = Cache::open(&args.cache)?;
    let mut overview = overview(&cache)?;
    if let Some(sample_id) = args.row {
        overview.rows = sample_rows(&cache, sample_id)?;
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &overview)?;
        writeln!(out)?;
    } else {
        print(&overview, out)?;
    }
    Ok(ExitStatus::Fine)
}

fn overview(cache: &Cache) -> anyhow::Result<Overview<'_>> {
    let mut samples = Files::default();
    let mut rejected = 0;
    let mut teachers: BTreeMap<_, _> = cache
        .teachers()
        .iter()
        .map(|(id, t)| (id, (t, Files::default(), ChannelSums::default())))
        .collect();
    for part in 0..cache.identity().plan.parts() {
        let state = cache.part_state(part)?;
        if let Some(commit) = state.samples {
            rejected += commit.rejects.rows;
            samples.add(
                commit.file.rows,
                commit.file.bytes,
                cache.samples_column_bytes(part)?,
            );
        }
        for (id, commit) in state.teachers {
            let (_, files, sums) = teachers
                .get_mut(&id)
                .context("a committed teacher is one of the cache's")?;
            files.add(
                commit.file.rows,
                commit.file.bytes,
                cache.teacher_part(&id, part)?.column_bytes(),
            );
            merge(sums, &commit.channels);
        }
    }
    samples.per_row();
    let teachers = teachers
        .into_iter()
        .map(|(id, (identity, mut files, sums))| {
            files.per_row();
            (
                id,
                TeacherOverview {
                    identity,
                    files,
                    channels: channels(&sums),
                },
            )
        });
    Ok(Overview {
        cache: cache.dir().display().to_string(),
        identity: cache.identity(),
        parts: cache.identity().plan.parts(),
        samples,
        rejected,
        teachers: teachers.collect(),
        rows: Vec::new(),
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
        self.bytes_per_row
            .values_mut()
            .for_each(|bytes| *bytes /= rows);
    }
}

fn merge(sums: &mut ChannelSums, part: &ChannelSums) {
    sums.count += part.count;
    for (total, add) in [(&mut sums.sum, &part.sum), (&mut sums.sum_sq, &part.sum_sq)] {
        total.resize(total.len().max(add.len()), 0.0);
        total
            .iter_mut()
            .zip(add)
            .for_each(|(total, add)| *total += add);
    }
}

fn channels(sums: &ChannelSums) -> Option<Channels> {
    let n = sums.count as f64;
    let mean: Vec<f64> = sums.sum.iter().map(|sum| sum / n).collect();
    // Rounding can take a constant channel's variance a hair below zero.
    let std: Vec<f64> = sums
        .sum_sq
        .iter()
        .zip(&mean)
        .map(|(sq, mean)| (sq / n - mean * mean).max(0.0).sqrt())
        .collect();
    let by_value = |values: &[f64], largest: bool| {
        let indexed = values
            .iter()
            .copied()
            .enumerate()
            .map(|(channel, value)| (value, channel));
        if largest {
            indexed.max_by(|a, b| a.0.total_cmp(&b.0))
        } else {
            indexed.min_by(|a, b| a.0.total_cmp(&b.0))
        }
    };
    Some(Channels {
        tokens: (sums.count > 0).then_some(sums.count)?,
        mean_min: by_value(&mean, false)?,
        mean_max: by_value(&mean, true)?,
        std_min: by_value(&std, false)?,
        std_max: by_value(&std, true)?,
    })
}

fn sample_rows(cache: &Cache, sample_id: u64) -> anyhow::Result<Vec<RowView>> {
    let plan = cache.identity().plan;
    ensure!(
        sample_id < plan.samples,
        "there is no sample {sample_id}: the data set has {}, numbered from 0",
        plan.samples
    );
    let part = u32::try_from(sample_id / plan.part_samples)?;
    let samples = cache.samples(part)?;
    if let Some(reject) = cache
        .rejects(part)?
        .into_iter()
        .find(|reject| reject.sample_id == sample_id)
    {
        anyhow::bail!(
            "sample {sample_id} ({:?}) has no rows, it was rejected: {}",
            reject.key,
            reject.reason
        );
    }
    let state = cache.part_state(part)?;
    let mut views = Vec::new();
    for (row, sample) in samples
        .into_iter()
        .enumerate()
        .filter(|(_, sample)| sample.sample_id == sample_id)
    {
        let mut teachers = BTreeMap::new();
        for (id, teacher) in cache
            .teachers()
            .iter()
            .filter(|(id, _)| state.teachers.contains_key(*id))
        {
            let feature = cache.teacher_part(id, part)?.read_row(row)?;
            ensure!(
                (feature.sample_id, feature.view, feature.content_hash)
                    == (sample_id, sample.view.index, sample.content_hash),
                "row {row} of teacher {id}, part {part}, belongs to another view: run `pipeline verify`"
            );
            teachers.insert(id.clone(), feature_view(teacher, &feature)?);
        }
        views.push(row_view(cache.identity(), sample, teachers));
    }
    Ok(views)
}

fn row_view(
    identity: &CacheIdentity,
    row: SampleRow,
    teachers: BTreeMap<TeacherId, FeatureView>,
) -> RowView {
    let label_name = row.label.and_then(|label| {
        identity
            .label_names
            .get(usize::try_from(label).ok()?)
            .cloned()
    });
    RowView {
        sample_id: row.sample_id,
        view: row.view.index,
        key: row.key,
        content_hash: row.content_hash.to_string(),
        label: row.label,
        label_name,
        width: row.width,
        height: row.height,
        crop: [
            row.view.crop.x,
            row.view.crop.y,
            row.view.crop.w,
            row.view.crop.h,
        ],
        flip: row.view.flip,
        teachers,
    }
}

fn feature_view(teacher: &TeacherIdentity, row: &TeacherRow) -> anyhow::Result<FeatureView> {
    let (mut tokens, mut cls, mut cls_attn) = (Vec::new(), Vec::new(), Vec::new());
    teacher.decode_tokens(&row.tokens, &mut tokens)?;
    teacher.decode_cls(&row.cls, &mut cls)?;
    teacher.decode_cls_attn(&row.cls_attn, &mut cls_attn)?;
    let n = tokens.len() as f64;
    let mean = tokens.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let var = tokens
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n;
    let (peak, weight) = cls_attn
        .iter()
        .copied()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .context("a grid has patches")?;
    let grid = teacher.grid as usize;
    Ok(FeatureView {
        shape: [grid * grid, teacher.width as usize],
        mean,
        std: var.sqrt(),
        min: tokens.iter().copied().fold(f32::INFINITY, f32::min),
        max: tokens.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        cls_norm: cls
            .iter()
            .map(|&v| f64::from(v).powi(2))
            .sum::<f64>()
            .sqrt(),
        cls_attn_peak: ([peak / grid, peak % grid], weight),
    })
}

fn print(overview: &Overview<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    let Overview {
        identity,
        parts,
        samples,
        ..
    } = overview;
    writeln!(
        out,
        "{}: cache, format version {}",
        overview.cache, identity.format_version
    )?;
    let dataset = &identity.dataset;
    writeln!(
        out,
        "data set    {} images ({}), digest {}",
        dataset.samples,
        dataset.kind,
        short(&dataset.digest)
    )?;
    writeln!(out, "labels      {}", identity.label_names.len())?;
    writeln!(out, "image code  {}", identity.image_code)?;
    let views = &identity.views;
    writeln!(
        out,
        "views       {} per image, {}, seed {}, {}",
        views.views,
        policy(&views.policy),
        views.seed,
        views.filter
    )?;
    writeln!(
        out,
        "plan        {parts} parts of {} images",
        identity.plan.part_samples
    )?;
    print_files("samples", samples, *parts, out)?;
    writeln!(out, "  rejected  {} images", overview.rejected)?;
    for (
        id,
        TeacherOverview {
            identity: teacher,
            files,
            channels,
        },
    ) in &overview.teachers
    {
        print_files(&format!("teacher {id}"), files, *parts, out)?;
        writeln!(
            out,
            "  network   {}, {}, layer {}, from {}",
            teacher.arch, teacher.activation, teacher.layer, teacher.source
        )?;
        writeln!(out, "  weights   sha256 {}", short(&teacher.weights_sha256))?;
        let (grid, width, size) = (teacher.grid, teacher.width, teacher.input_size);
        writeln!(
            out,
            "  features  [{}, {width}] ({grid} x {grid} patches of {} px of {size} px), {}",
            grid * grid,
            teacher.patch_size,
            teacher.codec
        )?;
        writeln!(
            out,
            "  computed  {}, batches of {}, {}, {}",
            teacher.precision, teacher.batch_size, teacher.device, teacher.runtime
        )?;
        if let Some(c) = channels {
            let range = |low: (f64, usize), high: (f64, usize)| {
                format!(
                    "{:.4} (channel {}) to {:.4} (channel {})",
                    low.0, low.1, high.0, high.1
                )
            };
            writeln!(out, "  mean      {}", range(c.mean_min, c.mean_max))?;
            writeln!(out, "  std       {}", range(c.std_min, c.std_max))?;
        }
    }
    for row in &overview.rows {
        let [x, y, w, h] = row.crop;
        let label = row
            .label_name
            .clone()
            .or(row.label.map(|label| label.to_string()))
            .unwrap_or_else(|| "none".into());
        writeln!(
            out,
            "sample {} view {}: {:?}, label {label}, content {}",
            row.sample_id, row.view, row.key, row.content_hash
        )?;
        let flip = if row.flip { ", flipped" } else { "" };
        writeln!(
            out,
            "  crop      {w} x {h} at ({x}, {y}) of {} x {}{flip}",
            row.width, row.height
        )?;
        for (id, f) in &row.teachers {
            let ([peak_row, peak_column], weight) = f.cls_attn_peak;
            writeln!(
                out,
                "  {id:<9} [{}, {}] mean {:.4} std {:.4} min {:.3} max {:.3}; cls norm {:.3}; attends most to patch ({peak_row}, {peak_column}): {weight:.4}",
                f.shape[0], f.shape[1], f.mean, f.std, f.min, f.max, f.cls_norm
            )?;
        }
    }
    Ok(())
}

fn policy(policy: &ViewPolicy) -> String {
    match policy {
        ViewPolicy::Rrc {
            scale: [small, large],
            ratio: [tall, wide],
            flip,
        } => {
            format!(
                "random resized crops of {small} to {large} of the area, {tall:.3} to {wide:.3} wide, flipped with probability {flip}"
            )
        }
        ViewPolicy::Center => "the central square".to_owned(),
        ViewPolicy::Full => "the whole image".to_owned(),
    }
}

fn print_files(name: &str, files: &Files, parts: u32, out: &mut dyn Write) -> std::io::Result<()> {
    let state = if files.parts_complete == parts {
        "complete"
    } else {
        "incomplete"
    };
    let Files {
        parts_complete,
        rows,
        bytes,
        bytes_per_row,
    } = files;
    writeln!(
        out,
        "{name}: {parts_complete} of {parts} parts ({state}), {rows} rows, {}",
        DecimalBytes(*bytes)
    )?;
    let columns: Vec<_> = bytes_per_row
        .iter()
        .map(|(column, bytes)| format!("{column} {bytes:.0}"))
        .collect();
    writeln!(out, "  bytes/row {}", columns.join(", "))
}

fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}
