//! The statistics in words.

use std::io::Write;

use indicatif::DecimalBytes;
use program::words::count;

use super::sketch::Distribution;
use super::{Features, OUTLIER, Report, TeacherStats};
use crate::table::{Align, Table, grouped, map};

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
    let maps = [
        (format!("mean attention, @ = {highest:.4}"), map(&attention.mean, grid)),
        (format!("outliers, @ = {}", grouped(most)), map(&counts, grid)),
    ];
    // A map of nothing tells nothing.
    print_maps(&maps[..if most > 0 { 2 } else { 1 }], out)
}

fn print_channels(features: &Features, out: &mut dyn Write) -> std::io::Result<()> {
    let channels = &features.channels;
    let mut order: Vec<usize> = (0..channels.share.len()).collect();
    order.sort_by(|&a, &b| channels.share[b].total_cmp(&channels.share[a]).then(a.cmp(&b)));
    let mut table = Table::new([Align::Right; 6], ["channel", "mean", "std", "min", "max", "squared norm"]);
    for &c in order.iter().take(LISTED) {
        table.push([
            c.to_string(),
            number(channels.mean[c]),
            number(channels.std[c]),
            number(f64::from(channels.min[c])),
            number(f64::from(channels.max[c])),
            percent(channels.share[c]),
        ]);
    }
    if order.len() > LISTED {
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[(values.len() - 1) / 2]
        };
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        table.push([
            "median".to_owned(),
            number(median(&mut channels.mean.clone())),
            number(median(&mut channels.std.clone())),
            number(median(&mut wide(&channels.min))),
            number(median(&mut wide(&channels.max))),
            percent(median(&mut channels.share.clone())),
        ]);
    }
    table.write("  ", out)
}

fn print_distributions(features: &Features, out: &mut dyn Write) -> std::io::Result<()> {
    let mut table = Table::new(
        [
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
        ],
        ["", "mean", "std", "min", "1 %", "25 %", "50 %", "75 %", "99 %", "max"],
    );
    let attention = &features.attention;
    for (name, d) in [
        ("token norm", &features.token_norm),
        ("cls norm", &features.cls_norm),
        ("entropy, bits", &attention.entropy_bits),
        ("peak attention", &attention.peak),
    ] {
        let Distribution { mean, std, min, p1, p25, p50, p75, p99, max, .. } = *d;
        let numbers = [mean, std, min, p1, p25, p50, p75, p99, max].map(number);
        let [a, b, c, d, e, f, g, h, i] = numbers;
        table.push([name.to_owned(), a, b, c, d, e, f, g, h, i]);
    }
    table.write("  ", out)
}

/// Maps beside each other.
fn print_maps(maps: &[(String, Vec<String>)], out: &mut dyn Write) -> std::io::Result<()> {
    let width = |(title, lines): &(String, Vec<String>)| {
        let line = lines.first().map_or(0, |line| line.chars().count());
        title.chars().count().max(line + 2)
    };
    let mut line = String::new();
    for map in maps {
        line += &format!("  {:<1$}", map.0, width(map) + 2);
    }
    writeln!(out, "{}", line.trim_end())?;
    for row in 0..maps.first().map_or(0, |(_, lines)| lines.len()) {
        let mut line = String::new();
        for map in maps {
            line += &format!("  {:<1$}", format!("|{}|", map.1[row]), width(map) + 2);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
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
        let mut table = Table::new(
            [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right],
            ["column", "stored", "encoded", "as f32", "f32 / stored"],
        );
        let whole = |value: f64| grouped(value.round() as u64);
        let optional = |value: Option<f64>| value.map_or_else(String::new, whole);
        for (name, column) in &bytes.columns {
            let ratio = column.f32_per_image.map(|raw| format!("{:.2}", raw / column.per_image));
            table.push([
                name.clone(),
                whole(column.per_image),
                optional(column.encoded_per_image),
                optional(column.f32_per_image),
                ratio.unwrap_or_default(),
            ]);
        }
        table.write("  ", out)?;
    }
    writeln!(out, "  codec error     {}", stats.codec_error.text())
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Four significant digits or so, without an exponent where it can be helped.
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
