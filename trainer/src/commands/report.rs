//! `trainer report`: runs side by side in one HTML file that needs no other file and no network.
//!
//! What is missing or damaged in a run is listed in the report, and the rest is shown. The page is `templates/report.html`, its plots are
//! drawn by uPlot.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use askama::Template;
use schemas::atomic;

use crate::cli::ReportArgs;

mod chart;
mod names;
mod run;
mod tables;
#[cfg(test)]
mod tests;

use chart::{Chart, charts};
use run::RunData;
use tables::{Evaluation, Table};

const CSS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/report.css"));
const JS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/report.js"));
/// The plotting library (npm package `uplot`, version 1.6.32), and its license, which travels with it.
const UPLOT_JS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/uplot/uPlot.iife.min.js"));
const UPLOT_CSS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/uplot/uPlot.min.css"));
const UPLOT_LICENSE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/templates/uplot/LICENSE"));

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    runs: &'a [RunData],
    names: Vec<&'a str>,
    overview: Table,
    evaluations: Vec<Evaluation>,
    other_evaluations: Vec<(String, String)>,
    charts: Vec<Chart>,
    data: Option<Table>,
    differences: Option<Table>,
}

pub(crate) fn report(args: &ReportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    refuse_twice(&args.runs)?;
    let mut runs: Vec<RunData> = args.runs.iter().map(|path| RunData::read(path)).collect();
    let paths: Vec<&Path> = args.runs.iter().map(|path| path.as_path()).collect();
    for (run, name) in runs.iter_mut().zip(names::name_apart(&paths)) {
        run.name = name;
    }
    // A mistyped path is an error, not a damaged run.
    let nothing: Vec<String> = runs.iter().filter(|run| run.is_empty()).map(|run| format!("{:?}", run.path)).collect();
    ensure!(
        nothing.is_empty(),
        "{}: nothing of a run was found; give folders that `trainer pretrain` or `trainer finetune` wrote",
        nothing.join(", ")
    );
    let folder = args.out.parent().filter(|path| !path.as_os_str().is_empty());
    ensure!(folder.is_none_or(Path::is_dir), "--out {:?}: there is no such folder; make it first", args.out);
    let extension = args.out.extension();
    ensure!(
        extension.is_some_and(|found| found.eq_ignore_ascii_case("html") || found.eq_ignore_ascii_case("htm")),
        "--out {:?}: the report is an HTML page and replaces an existing file; give a name that ends with .html",
        args.out
    );
    let html = render(&runs)?;
    atomic::remove_stale(&args.out)?;
    atomic::write(&args.out, html.as_bytes())?;
    writeln!(
        out,
        "{}: {}, {:.1} MB",
        args.out.display(),
        program::words::count(runs.len() as u64, "run"),
        html.len() as f64 / 1e6
    )?;
    for run in &runs {
        for problem in &run.problems {
            writeln!(out, "{}: {problem}", run.name)?;
        }
    }
    Ok(())
}

/// Refuses a folder that is given twice, also by two paths.
fn refuse_twice(runs: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for path in runs {
        // A path that leads nowhere is refused when it is read.
        let first = path.canonicalize().ok().and_then(|folder| seen.insert(folder, path));
        ensure!(
            first.is_none(),
            "{path:?}: this run is given twice, first as {:?}; give it once",
            first.unwrap_or(path)
        );
    }
    Ok(())
}

fn render(runs: &[RunData]) -> askama::Result<String> {
    let page = Page {
        runs,
        names: runs.iter().map(|run| run.name.as_str()).collect(),
        overview: tables::overview(runs),
        evaluations: tables::evaluations(runs),
        other_evaluations: tables::other_evaluations(runs),
        charts: charts(runs),
        data: tables::data(runs),
        differences: tables::differences(runs),
    };
    page.render()
}
