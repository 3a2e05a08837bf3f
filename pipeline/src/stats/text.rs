//! The statistics as text.

use std::io::Write;

use indicatif::DecimalBytes;
use program::table::{Left, Right, percent, table};
use program::words::{count, grouped};

use super::bytes::ColumnBytes;
use super::map::map;
use super::sketch::Distribution;
use super::{Features, OUTLIER, Report, TeacherStats};

/// Channels that the text lists.
const LISTED: usize = 8;

pub(super) fn print(report: &Report<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}", report.cache)?;
    for (id, stats) in &report.teachers {
        let TeacherStats { grid, width, .. } = stats;
        writeln!(
            out,
            "\nteacher {id}: {grid} x {grid} tokens of {width} channels, {}; {} of {} rows read, {} of {} complete",
            stats.codec,
            grouped(stats.rows_read),
            grouped(stats.rows),
            stats.parts_complete,
            count(stats.parts.into(), "part")
        )?;
        match &stats.features {
            Some(features) => print_features(features, *grid as usize, out)?,
            None => writeln!(out, "  nothing is built yet")?,
        }
        print_bytes(stats, out)?;
    }
    Ok(())
}

fn print_features(features: &Features, grid: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let bad = &features.non_finite;
    writeln!(
        out,
        "  not finite      {} values of tokens, {} of cls, {} of cls_attn",
        grouped(bad.tokens),
        grouped(bad.cls),
        grouped(bad.cls_attn)
    )?;
    let top = &features.top_channels;
    writeln!(
        out,
        "  squared norm    {} in the top channel, {} in 4, {} in 16",
        percent(top.top_1),
        percent(top.top_4),
        percent(top.top_16)
    )?;
    print_channels(features, out)?;
    writeln!(out)?;
    print_distributions(features, out)?;
    let outliers = &features.outliers;
    writeln!(
        out,
        "\n  outlier tokens  {} of {} ({}): norm above {OUTLIER} x the median of their row",
        grouped(outliers.tokens),
        grouped(features.tokens),
        percent(outliers.share)
    )?;
    let attention = &features.attention;
    writeln!(
        out,
        "  CLS attention   entropy {:.2} of {:.2} bits, peak {:.4}, {} on patches (means over rows)",
        attention.entropy_bits.mean,
        attention.entropy_most,
        attention.peak.mean,
        percent(attention.sum.mean)
    )?;
    if attention.rows_without > 0 {
        writeln!(out, "                  {} rows without any are left out", grouped(attention.rows_without))?;
    }
    let counts: Vec<f64> = outliers.per_patch.iter().map(|&n| n as f64).collect();
    let most = outliers.per_patch.iter().max().copied().unwrap_or(0);
    let highest = attention.mean.iter().copied().fold(0.0, f64::max);
    let mean = map(&attention.mean, grid);
    let (title, outliers) = if most > 0 {
        (format!("outliers, @ = {}", grouped(most)), map(&counts, grid))
    } else {
        (String::new(), vec![String::new(); mean.len()])
    };
    let titles = [&format!("mean attention, @ = {highest:.4}"), &title[..]];
    let rows = mean.into_iter().zip(outliers).map(|(mean, outliers)| [mean, outliers]).collect();
    write_indented(&table(titles, [Left; 2], rows), out)
}

fn print_channels(features: &Features, out: &mut dyn Write) -> std::io::Result<()> {
    let channels = &features.channels;
    let mut order: Vec<usize> = (0..channels.share.len()).collect();
    order.sort_by(|&a, &b| channels.share[b].total_cmp(&channels.share[a]).then(a.cmp(&b)));
    let listed = order.iter().take(LISTED).map(|&c| {
        [
            c.to_string(),
            number(channels.mean[c]),
            number(channels.std[c]),
            number(channels.min[c].into()),
            number(channels.max[c].into()),
            percent(channels.share[c]),
        ]
    });
    let mut rows: Vec<[String; 6]> = listed.collect();
    if order.len() > LISTED {
        rows.push([
            "median".to_owned(),
            number(median(&channels.mean)),
            number(median(&channels.std)),
            number(median(&channels.min)),
            number(median(&channels.max)),
            percent(median(&channels.share)),
        ]);
    }
    write_indented(&table(["channel", "mean", "std", "min", "max", "squared norm"], [Right; 6], rows), out)
}

fn print_distributions(features: &Features, out: &mut dyn Write) -> std::io::Result<()> {
    let attention = &features.attention;
    let distributions = [
        ("token norm", &features.token_norm),
        ("cls norm", &features.cls_norm),
        ("entropy, bits", &attention.entropy_bits),
        ("peak attention", &attention.peak),
    ];
    let rows = distributions.map(|(name, d)| {
        let Distribution { mean, std, min, p1, p25, p50, p75, p99, max, .. } = *d;
        let [mean, std, min, p1, p25, p50, p75, p99, max] = [mean, std, min, p1, p25, p50, p75, p99, max].map(number);
        [name.to_owned(), mean, std, min, p1, p25, p50, p75, p99, max]
    });
    let titles = ["", "mean", "std", "min", "1 %", "25 %", "50 %", "75 %", "99 %", "max"];
    let mut align = [Right; 10];
    align[0] = Left;
    write_indented(&table(titles, align, rows.into()), out)
}

fn print_bytes(stats: &TeacherStats, out: &mut dyn Write) -> std::io::Result<()> {
    let bytes = &stats.bytes;
    if stats.rows > 0 {
        writeln!(
            out,
            "  bytes per image {}, {:.2} x smaller than f32",
            DecimalBytes(bytes.per_image.round() as u64),
            bytes.f32_per_image / bytes.per_image
        )?;
        let whole = |value: f64| grouped(value.round() as u64);
        let optional = |value: Option<f64>| value.map_or_else(String::new, whole);
        let row = |(name, column): (&String, &ColumnBytes)| {
            let ratio = column.f32_per_image.map(|raw| format!("{:.2}", raw / column.per_image));
            [
                name.clone(),
                whole(column.per_image),
                optional(column.encoded_per_image),
                optional(column.f32_per_image),
                ratio.unwrap_or_default(),
            ]
        };
        let titles = ["column", "stored", "encoded", "as f32", "f32 / stored"];
        let align = [Left, Right, Right, Right, Right];
        write_indented(&table(titles, align, bytes.columns.iter().map(row).collect()), out)?;
    }
    writeln!(out, "  codec error     {}", stats.codec_error.text())
}

fn write_indented(lines: &str, out: &mut dyn Write) -> std::io::Result<()> {
    lines.lines().try_for_each(|line| writeln!(out, "  {line}"))
}

/// The lower of the two middle values, where there are two.
fn median<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    let mut values: Vec<f64> = values.iter().map(|&v| v.into()).collect();
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// About four significant digits, with an exponent only for very large and very small values.
fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "-".to_owned()
    } else if size >= 1e6 || (size > 0.0 && size < 1e-4) {
        format!("{value:.2e}")
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}
