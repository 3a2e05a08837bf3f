//! Curves as SVG.

use std::fmt::Write as _;

use super::html::escape;

/// Colours of the style sheet, `c0` to `c6`.
const COLOURS: usize = 7;
/// Its dashes, `d0` (none) to `d3`: with the colours, strokes for 28 runs.
const DASHES: usize = 4;

/// The drawing's size in its own units.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 230.0;
/// Room for the labels of the axes.
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 8.0;
const RIGHT: f64 = 14.0;
/// More points than this are averaged in groups: more than the pixels of a wide screen.
const MOST_POINTS: usize = 800;
/// Digits after the point that a double can tell apart.
const MOST_DIGITS: f64 = 15.0;

/// One run's values of one quantity.
pub(super) struct Curve<'a> {
    /// Its place among the runs.
    pub(super) place: usize,
    /// What the pointer shows.
    pub(super) label: &'a str,
    /// (step, value), in order; values may not be finite.
    pub(super) points: &'a [(f64, f64)],
}

/// The classes of a run's curves, by its place among the runs: its colour and, beyond the seventh run, its dashes.
pub(super) fn stroke(place: usize) -> String {
    format!("c{} d{}", place % COLOURS, place / COLOURS % DASHES)
}

/// All curves of the quantity `title` over the step, their values times `scale`.
pub(super) fn plot(title: &str, curves: &[Curve], scale: f64) -> String {
    let thinned: Vec<Vec<(f64, f64)>> = curves.iter().map(|curve| thin(curve.points, scale)).collect();
    let mut values: Vec<f64> = thinned.iter().flatten().map(|&(_, y)| y).collect();
    values.sort_by(f64::total_cmp);
    let (Some(&low), Some(&top)) = (values.first(), values.last()) else {
        return "<p class=\"none\">no finite value</p>".to_owned();
    };
    // A curve that is flat has a range too.
    let margin = match top > low {
        true => 0.04 * (top - low),
        false if top == 0.0 => 1.0,
        false => 0.1 * top.abs(),
    };
    let y_ticks = ticks(low - margin, top + margin);
    let last = thinned.iter().flatten().map(|&(x, _)| x).fold(1.0, f64::max);
    let x_ticks = ticks(0.0, last);

    let (plot_w, plot_h) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x_of = |x: f64| LEFT + x / last * plot_w;
    let (y_low, y_high) = (low - margin, top + margin);
    let y_of = |y: f64| TOP + (1.0 - (y - y_low) / (y_high - y_low)) * plot_h;
    let labels: Vec<&str> = curves.iter().map(|curve| curve.label).collect();
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escape(&format!("{title} over the steps of {}", labels.join(", ")))
    );
    for &tick in y_ticks.iter().filter(|t| (y_low..=y_high).contains(*t)) {
        let y = y_of(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            label(tick, &y_ticks)
        );
    }
    for &tick in x_ticks.iter().filter(|t| (0.0..=last).contains(*t)) {
        let _ = writeln!(
            svg,
            "<text class=\"x\" x=\"{:.1}\" y=\"{}\">{}</text>",
            x_of(tick),
            HEIGHT - BOTTOM + 18.0,
            label(tick, &x_ticks)
        );
    }
    let _ = writeln!(svg, "<text class=\"x\" x=\"{:.1}\" y=\"{}\">step</text>", LEFT + plot_w / 2.0, HEIGHT - 5.0);
    for (curve, points) in curves.iter().zip(&thinned) {
        let mut path = String::new();
        for (i, &(x, y)) in points.iter().enumerate() {
            let y = y_of(y);
            let _ = write!(path, "{}{:.1} {y:.1}", if i == 0 { "M" } else { "L" }, x_of(x));
        }
        if points.len() == 1 {
            // A dot, where there is no line yet.
            path += "h0.01";
        }
        let _ = writeln!(
            svg,
            "<path class=\"curve {}\" d=\"{path}\"><title>{}</title></path>",
            stroke(curve.place),
            escape(curve.label)
        );
    }
    svg + "</svg>"
}

/// The finite points, in groups where there are many.
fn thin(points: &[(f64, f64)], scale: f64) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> =
        points.iter().filter(|(x, y)| x.is_finite() && (y * scale).is_finite()).map(|&(x, y)| (x, y * scale)).collect();
    let group = finite.len().div_ceil(MOST_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        let sum = group.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (sum.0 / n, sum.1 / n)
    };
    finite.chunks(group).map(mean).collect()
}

/// Round numbers from at most `low` to at least `high`, four to nine of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let range = (high - low).max(f64::MIN_POSITIVE);
    let rough = range / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| range / step <= 6.0)
        .unwrap_or(10.0 * power);
    let first = (low / step).floor();
    (0..12).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= high + step).collect()
}

fn step_of(ticks: &[f64]) -> f64 {
    match ticks {
        [a, b, ..] => b - a,
        _ => 1.0,
    }
}

/// A tick's text, with the digits that tell it from its neighbours, and in the form that all `ticks` of its axis have.
fn label(tick: f64, ticks: &[f64]) -> String {
    let step = step_of(ticks);
    let largest = ticks.iter().fold(0.0, |most: f64, tick| most.max(tick.abs()));
    let size = tick.abs().max(step);
    // No minus before a zero, and no power of ten after it.
    if tick.abs() < step / 2.0 {
        return "0".to_owned();
    }
    let (unit, suffix) = match size {
        size if size >= 1e6 => (1e6, "M"),
        size if size >= 1e4 => (1e3, "k"),
        _ if largest < 1e-2 && step < 1e-3 => return small(tick, step),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10().floor()).clamp(0.0, MOST_DIGITS) as usize;
    format!("{:.decimals$}{suffix}", tick / unit)
}

/// A small number, as a power of ten.
fn small(tick: f64, step: f64) -> String {
    let digits = (tick.abs().log10().floor() - step.log10().floor()).clamp(0.0, MOST_DIGITS);
    format!("{tick:.*e}", digits as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        for (low, high) in [(0.0, 1560.0), (0.53, 1.02), (-3.0, 4.5), (1e-6, 4e-3), (5.0, 5.0 + 1e-9)] {
            let ticks = ticks(low, high);
            assert!((2..=12).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks[0] <= low && *ticks.last().unwrap() >= high - 1e-12, "{low}..{high}: {ticks:?}");
        }
        let texts = |ticks: &[f64]| -> Vec<String> { ticks.iter().map(|&tick| label(tick, ticks)).collect() };
        assert_eq!(texts(&[0.2, 0.25, 0.3]), ["0.20", "0.25", "0.30"]);
        assert_eq!(texts(&[15e3, 20e3]), ["15k", "20k"]);
        assert_eq!(texts(&[-1e-17, 0.1]), ["0", "0.1"]);
        assert_eq!(texts(&[0.0, 5e-4, 1e-3]), ["0", "5e-4", "1.0e-3"]);
        assert_eq!(texts(&[2e-5, 2.5e-5]), ["2.0e-5", "2.5e-5"]);
    }

    #[test]
    fn neighbouring_ticks_have_different_texts() {
        for (low, high) in [
            (0.3, 0.3 + 1e-9),
            (0.999_999_9, 1.0),
            (-2e-6, -2e-6 + 1e-12),
            (12_345_678.0, 12_345_679.0),
            (10_000.1, 10_000.2),
            (1e-3, 1.001e-3),
            (-1.0, 1.0),
        ] {
            let ticks = ticks(low, high);
            let texts: Vec<String> = ticks.iter().map(|&t| label(t, &ticks)).collect();
            let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
            assert_eq!(distinct.len(), texts.len(), "{low}..{high}: {texts:?}");
        }
    }

    #[test]
    fn many_points_become_few_and_what_is_not_finite_is_left_out() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[3].1 = f64::NAN;
        let thinned = thin(&points, 2.0);
        assert!(thinned.len() <= MOST_POINTS);
        assert!(thinned.iter().all(|&(_, y)| y == 2.0));
        let nothing = [(1.0, f64::NAN)];
        let curve = Curve { place: 0, label: "a", points: &nothing };
        assert!(plot("loss", &[curve], 1.0).contains("no finite value"));
    }
}
