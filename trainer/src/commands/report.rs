//! `trainer report`: runs side by side in one HTML file that needs nothing else: no network, no script.
//!
//! Whatever of a run is missing or damaged is said in the report, and the rest is shown.

use std::io::Write;
use std::path::Path;

use anyhow::ensure;
use schemas::atomic;

use crate::cli::ReportArgs;

mod html;
mod names;
mod plot;
mod run;
mod tables;
#[cfg(test)]
mod tests;

use html::{escape, image};
use plot::{Curve, plot};
use run::RunData;

/// The look: system fonts, the reader's colour scheme, tables that scroll on a narrow screen.
const STYLE: &str = include_str!("report/style.css");

/// Series in this order, then those of other names; within a group in the order of their names.
const ORDER: [&str; 11] = [
    "loss",
    "rec",
    "mimic.",
    "mimic_cls.",
    "grad_norm",
    "lr",
    "images_per_s",
    "mfu",
    "wait_share",
    "device_idle_share",
    "peak_memory_bytes",
];

/// Writes the report.
pub(crate) fn report(args: &ReportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut runs: Vec<RunData> = args.runs.iter().map(|path| RunData::read(path)).collect();
    let paths: Vec<&Path> = args.runs.iter().map(|path| path.as_path()).collect();
    for (run, name) in runs.iter_mut().zip(names::name_apart(&paths)) {
        run.name = name;
    }
    // A typing error is no run with problems.
    let nothing: Vec<String> = runs.iter().filter(|run| run.is_empty()).map(|run| format!("{:?}", run.path)).collect();
    ensure!(
        nothing.is_empty(),
        "{}: nothing of a run is there; give folders that `trainer pretrain` or `trainer finetune` wrote",
        nothing.join(", ")
    );
    let folder = args.out.parent().filter(|path| !path.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "--out {:?}: there is no such folder; make it first", args.out);
    let is_html =
        (args.out.extension()).is_some_and(|of| of.eq_ignore_ascii_case("html") || of.eq_ignore_ascii_case("htm"));
    ensure!(
        is_html,
        "--out {:?}: a page is written, over whatever is there; give a name that ends with .html",
        args.out
    );
    let html = render(&runs);
    atomic::write(&args.out, html.as_bytes())?;
    writeln!(
        out,
        "{}: {} {}, {:.1} MB",
        args.out.display(),
        runs.len(),
        if runs.len() == 1 { "run" } else { "runs" },
        html.len() as f64 / 1e6
    )?;
    for run in &runs {
        for problem in &run.problems {
            writeln!(out, "{}: {problem}", run.name)?;
        }
    }
    Ok(())
}

fn render(runs: &[RunData]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{}</h1>\n",
        escape(&names.join(", ")),
        if runs.len() == 1 { escape(names[0]) } else { format!("{} runs", runs.len()) }
    );
    page += &legend(&names);
    page += &section("Overview", &tables::overview(runs));
    let problems: String = runs
        .iter()
        .flat_map(|run| run.problems.iter().map(|problem| (&run.name, problem)))
        .map(|(name, problem)| format!("<li><b>{}</b>: {}</li>", escape(name), escape(problem)))
        .collect();
    if !problems.is_empty() {
        page += &section("Problems", &format!("<ul class=\"problems\">{problems}</ul>"));
    }
    page += &section("Evaluation", &tables::evaluations(runs));
    page += &section("Curves", &curves(runs));
    page += &section("Pictures", &pictures(runs));
    page += &section("Data", &tables::data(runs));
    page += &section("What differs between the recipes", &tables::differences(runs));
    page += &section("Recipes", &tables::recipes(runs));
    page += "</main>\n</body>\n</html>\n";
    page
}

/// A part of the page; nothing where there is nothing to show.
fn section(title: &str, content: &str) -> String {
    match content.is_empty() {
        true => String::new(),
        false => format!("<section>\n<h2>{title}</h2>\n{content}\n</section>\n"),
    }
}

/// Which stroke is which run; said once, since it is the same in every plot.
fn legend(names: &[&str]) -> String {
    if names.len() < 2 {
        return String::new();
    }
    let entries: String = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            format!(
                "<li><svg class=\"key\" viewBox=\"0 0 34 8\" aria-hidden=\"true\"><path class=\"curve {}\" d=\"M2 4H32\"/></svg>{}</li>",
                plot::stroke(i),
                escape(name)
            )
        })
        .collect();
    format!("<ul class=\"legend\">{entries}</ul>\n")
}

/// One plot for each quantity, all runs in it.
fn curves(runs: &[RunData]) -> String {
    let mut names: Vec<&str> = runs
        .iter()
        .flat_map(|run| run.series.keys())
        .map(String::as_str)
        .filter(|name| !matches!(*name, "epoch" | "skipped"))
        .collect();
    let place = |name: &str| {
        let known = ORDER.iter().position(|known| match known.ends_with('.') {
            true => name.starts_with(known),
            false => name == *known,
        });
        known.unwrap_or(ORDER.len())
    };
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    let plots: String = names
        .into_iter()
        .map(|name| {
            let curves: Vec<Curve> = runs
                .iter()
                .enumerate()
                .filter_map(|(i, run)| {
                    let points = run.series.get(name)?;
                    Some(Curve { place: i, label: &run.name, points })
                })
                .collect();
            let (title, scale) = match name {
                "images_per_s" => ("images per second".to_owned(), 1.0),
                "wait_share" => ("share of time waiting for data, %".to_owned(), 100.0),
                "device_idle_share" => ("share of time the device is idle, %".to_owned(), 100.0),
                "mfu" => ("model FLOP utilisation, %".to_owned(), 100.0),
                "peak_memory_bytes" => ("peak memory, GB".to_owned(), 1e-9),
                "lr" => ("learning rate".to_owned(), 1.0),
                "grad_norm" => ("gradient norm".to_owned(), 1.0),
                name => (name.to_owned(), 1.0),
            };
            format!("<figure><figcaption>{}</figcaption>{}</figure>\n", escape(&title), plot(&title, &curves, scale))
        })
        .collect();
    match plots.is_empty() {
        true => plots,
        false => format!("<div class=\"plots\">\n{plots}</div>"),
    }
}

fn pictures(runs: &[RunData]) -> String {
    let sheets: String = runs
        .iter()
        .filter_map(|run| {
            let (name, png) = run.picture.as_ref()?;
            Some(format!(
                "<figure class=\"sheet\"><figcaption>{}: {}. Original, masked, reconstruction; then for each teacher how close the \
                 mimicking tokens come to it (dark 0, bright 1)</figcaption>{}</figure>\n",
                escape(&run.name),
                escape(name),
                image(png, &format!("reconstructions of {}", run.name))
            ))
        })
        .collect();
    match sheets.is_empty() {
        true => sheets,
        false => format!("<div class=\"sheets\">\n{sheets}</div>"),
    }
}
