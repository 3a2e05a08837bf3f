//! Curves as the data of the page's plots.

use serde::Serialize;

use super::run::RunData;

/// Colors of the style sheet, `c0` to `c6`.
const COLORS: usize = 7;
/// Its dashes, `d0` (none) to `d3`: with the colors, strokes for 28 runs.
const DASHES: usize = 4;
/// More points than this are averaged in groups.
const MAX_POINTS: usize = 2000;

/// Quantities in this order, then those of other names; within a group in the order of their names.
const ORDER: [&str; 13] = [
    "loss",
    "rec",
    "mimic.",
    "mimic_cls.",
    "mimic_kept.",
    "eval/",
    "grad_norm",
    "lr",
    "images_per_s",
    "mfu",
    "wait_share",
    "device_idle_share",
    "peak_memory_bytes",
];

/// One quantity over the step, of all runs that have it.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub(super) title: String,
    /// Those with a finite value.
    pub(super) curves: Vec<Curve>,
}

/// The values of one run.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    /// Its place among the runs.
    pub(super) run: usize,
    pub(super) x: Vec<f64>,
    pub(super) y: Vec<f32>,
}

/// The classes of a run's curves, by its place among the runs: its color and, beyond the seventh run, its dashes.
pub(super) fn stroke(place: usize) -> String {
    format!("c{} d{}", place % COLORS, place / COLORS % DASHES)
}

/// A chart for each quantity.
pub(super) fn charts(runs: &[RunData]) -> Vec<Chart> {
    let names = runs.iter().flat_map(|run| run.series.keys()).map(String::as_str);
    let mut names: Vec<&str> = names.filter(|name| !matches!(*name, "epoch" | "skipped")).collect();
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    names.into_iter().map(|name| chart(name, runs)).collect()
}

fn place(name: &str) -> usize {
    let is_of = |known: &&str| if known.ends_with(['.', '/']) { name.starts_with(*known) } else { name == *known };
    ORDER.iter().position(is_of).unwrap_or(ORDER.len())
}

fn chart(name: &str, runs: &[RunData]) -> Chart {
    let accuracy =
        name.strip_prefix("eval/").filter(|name| *name != "loss").map(|name| format!("evaluation: {name}, %"));
    let (title, scale) = match name {
        "eval/loss" => ("evaluation: loss", 1.0),
        _ if accuracy.is_some() => (accuracy.as_deref().unwrap_or_default(), 100.0),
        "images_per_s" => ("images per second", 1.0),
        "wait_share" => ("share of time waiting for data, %", 100.0),
        "device_idle_share" => ("share of time the device is idle, %", 100.0),
        "mfu" => ("model FLOP utilization, %", 100.0),
        "peak_memory_bytes" => ("peak memory, GB", 1e-9),
        "lr" => ("learning rate", 1.0),
        "grad_norm" => ("gradient norm", 1.0),
        name => (name, 1.0),
    };
    let series = runs.iter().enumerate().filter_map(|(run, data)| Some((run, data.series.get(name)?)));
    let curves = series.map(|(run, points)| {
        let (x, y) = thin(points, scale).into_iter().unzip();
        Curve { run, x, y }
    });
    Chart { title: title.to_owned(), curves: curves.filter(|curve| !curve.x.is_empty()).collect() }
}

/// The finite points with their values times `scale`, in groups where there are many.
fn thin(points: &[(f64, f64)], scale: f64) -> Vec<(f64, f32)> {
    let finite: Vec<(f64, f64)> =
        points.iter().map(|&(x, y)| (x, y * scale)).filter(|(x, y)| x.is_finite() && (*y as f32).is_finite()).collect();
    let group = finite.len().div_ceil(MAX_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        let sum = group.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, (sum.1 / n) as f32)
    };
    finite.chunks(group).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_points_become_few_and_what_is_not_finite_is_left_out() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[3].1 = f64::NAN;
        let thinned = thin(&points, 2.0);
        assert!(thinned.len() <= MAX_POINTS);
        assert!(thinned.iter().all(|&(_, y)| y == 2.0));
        let mut run = RunData::default();
        run.series.insert("loss".into(), vec![(1.0, f64::NAN)]);
        let [chart] = &charts(&[run])[..] else {
            panic!("one quantity");
        };
        assert!(chart.curves.is_empty());
    }
}
