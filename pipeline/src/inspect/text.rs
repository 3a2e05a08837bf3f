//! The overview as text.

use std::collections::BTreeMap;
use std::io::Write;

use indicatif::DecimalBytes;
use program::table::{Left, Right, indented, table};
use program::words::count;
use schemas::{Generation, TeacherId, ViewPolicy};

use super::{FeatureView, Files, Overview, TeacherOverview};

pub(super) fn print(overview: &Overview<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    let Overview { identity, parts, samples, .. } = overview;
    writeln!(out, "{}: cache, format version {}", overview.cache, identity.format_version)?;
    let dataset = &identity.dataset;
    writeln!(
        out,
        "data set    {} ({}), digest {}",
        count(dataset.samples, "image"),
        dataset.kind,
        short(&dataset.digest)
    )?;
    for generation in &identity.generations {
        let Generation { generation, dataset, .. } = generation;
        let images = count(dataset.samples, "image");
        writeln!(out, "  added {generation:<4}{images} ({}), digest {}", dataset.kind, short(&dataset.digest))?;
    }
    writeln!(out, "labels      {}", identity.all_label_names().len())?;
    writeln!(out, "image code  {}", identity.image_code)?;
    if !identity.depth_window.is_high_byte() {
        writeln!(out, "depth       {}", identity.depth_window)?;
    }
    if identity.dedup {
        writeln!(out, "copies      each content is stored once")?;
    }
    let views = &identity.views;
    writeln!(
        out,
        "views       {} per image, {}, seed {}, {}",
        views.views,
        policy(&views.policy),
        views.seed,
        views.filter
    )?;
    writeln!(out, "plan        {} of {}", count((*parts).into(), "part"), count(identity.plan.part_samples, "image"))?;
    print_files("samples", samples, *parts, out)?;
    writeln!(out, "  rejected  {}", count(overview.rejected, "image"))?;
    for (id, TeacherOverview { identity: teacher, files, channels }) in &overview.teachers {
        print_files(&format!("teacher {id}"), files, *parts, out)?;
        writeln!(
            out,
            "  network   {}, {}, layer {}, from {}",
            teacher.arch, teacher.activation, teacher.layer, teacher.source
        )?;
        writeln!(out, "  weights   sha256 {}", short(&teacher.weights_sha256))?;
        writeln!(out, "  pixels    minus {:?}, by {:?}", teacher.mean, teacher.std)?;
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
            teacher.precision,
            teacher.batch_size,
            teacher.device_name.as_ref().unwrap_or(&teacher.device),
            teacher.runtime
        )?;
        if let Some(c) = channels {
            let range = |low: (f64, usize), high: (f64, usize)| {
                format!("{:.4} (channel {}) to {:.4} (channel {})", low.0, low.1, high.0, high.1)
            };
            writeln!(out, "  mean      {}", range(c.mean_min, c.mean_max))?;
            writeln!(out, "  std       {}", range(c.std_min, c.std_max))?;
        }
    }
    for (id, problem) in &overview.damaged {
        writeln!(out, "teacher {id}: damaged: {problem}")?;
    }
    for row in &overview.rows {
        let [x, y, w, h] = row.crop;
        let label =
            row.label_name.clone().or(row.label.map(|label| label.to_string())).unwrap_or_else(|| "none".into());
        writeln!(
            out,
            "sample {} view {}: {:?}, label {label}, content {}",
            row.sample_id, row.view, row.key, row.content_hash
        )?;
        let flip = if row.flip { ", flipped" } else { "" };
        writeln!(out, "  crop      {w} x {h} at ({x}, {y}) of {} x {}{flip}", row.width, row.height)?;
        write!(out, "{}", indented(&features(&row.teachers)))?;
    }
    Ok(())
}

/// A line for each teacher.
fn features(teachers: &BTreeMap<TeacherId, FeatureView>) -> String {
    let row = |(id, f): (&TeacherId, &FeatureView)| {
        let ([row, column], weight) = f.cls_attn_peak;
        [
            id.to_string(),
            format!("{} x {}", f.shape[0], f.shape[1]),
            format!("{:.4}", f.mean),
            format!("{:.4}", f.std),
            format!("{:.3}", f.min),
            format!("{:.3}", f.max),
            format!("{:.3}", f.cls_norm),
            format!("{weight:.4} at ({row}, {column})"),
        ]
    };
    let titles = ["teacher", "tokens", "mean", "std", "min", "max", "cls norm", "largest attention of CLS"];
    let align = [Left, Right, Right, Right, Right, Right, Right, Left];
    table(titles, align, teachers.iter().map(row).collect())
}

fn policy(policy: &ViewPolicy) -> String {
    match policy {
        ViewPolicy::Rrc { scale: [small, large], ratio: [tall, wide], flip } => {
            format!(
                "random resized crops of {small} to {large} of the area, {tall:.3} to {wide:.3} wide, flipped with probability {flip}"
            )
        }
        ViewPolicy::Center => "the central square".to_owned(),
        ViewPolicy::Full => "the whole image".to_owned(),
    }
}

fn print_files(name: &str, files: &Files, parts: u32, out: &mut dyn Write) -> std::io::Result<()> {
    let state = if files.parts_complete == parts { "complete" } else { "incomplete" };
    let Files { parts_complete, rows, bytes, bytes_per_row } = files;
    writeln!(
        out,
        "{name}: {parts_complete} of {} ({state}), {}, {}",
        count(parts.into(), "part"),
        count(*rows, "row"),
        DecimalBytes(*bytes)
    )?;
    let columns: Vec<_> = bytes_per_row.iter().map(|(column, bytes)| format!("{column} {bytes:.0}")).collect();
    writeln!(out, "  bytes/row {}", columns.join(", "))
}

fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}
