//! The report's tables.

use std::collections::BTreeSet;

use serde_json::Value;

use super::html::{escape, table};
use super::run::RunData;

/// How far each run is and where its losses stand.
pub(super) fn overview(runs: &[RunData]) -> String {
    let terms: BTreeSet<&str> = runs
        .iter()
        .flat_map(|run| run.series.keys())
        .map(String::as_str)
        .filter(|name| *name == "rec" || *name == "loss" || name.starts_with("mimic"))
        .collect();
    let mut header: Vec<String> = ["run", "steps", "epochs"].map(String::from).into();
    header.extend(terms.iter().map(|term| (*term).to_owned()));
    header.extend(["img/s", "peak GB", "skipped"].map(String::from));
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let steps = run.series.values().filter_map(|s| s.last()).map(|p| p.0);
            let steps = steps.fold(0.0, f64::max);
            let epochs = run.last("epoch").unwrap_or(0.0);
            let of = run.settings.get("schedule.epochs");
            let mut row = vec![
                run.name.clone(),
                format!("{steps}"),
                match of {
                    Some(of) => format!("{epochs:.1} of {of}"),
                    None => format!("{epochs:.1}"),
                },
            ];
            row.extend(terms.iter().map(|term| number(run.last(term), 4)));
            row.push(number(median(run, "images_per_s"), 1));
            row.push(number(run.last("peak_memory_bytes").map(|b| b / 1e9), 2));
            row.push(run.skipped.to_string());
            row
        })
        .collect();
    table(&header, &rows)
}

/// One table for each kind of evaluation, all runs in it; files of other shapes as they are.
pub(super) fn evaluations(runs: &[RunData]) -> String {
    let mut out = String::new();
    let of = |kind: &'static str| {
        runs.iter().flat_map(move |run| {
            let files = run.evaluations.iter();
            let files = files.filter(move |(name, _)| name.split('-').next() == Some(kind));
            files.map(move |(name, value)| (run, name, value))
        })
    };
    let mut rows = Vec::new();
    let mut voters = BTreeSet::new();
    for (run, name, value) in of("knn") {
        let what = what(run, name);
        voters.insert(format!(
            "{} nearest of {} images vote on {} of {} classes",
            text(&value["k"]),
            text(&value["train_images"]),
            text(&value["test_images"]),
            text(&value["classes"])
        ));
        for (kind, accuracy) in value["accuracy"].as_object().into_iter().flatten() {
            rows.push(vec![
                what.clone(),
                kind.clone(),
                percent(&accuracy["top1"]),
                percent(&accuracy["balanced"]),
            ]);
        }
    }
    out += &kind(
        "k-NN",
        ["run", "features", "top-1", "balanced"],
        &rows,
        &voters,
    );

    let (mut rows, mut protocols) = (Vec::new(), BTreeSet::new());
    for (run, name, value) in of("linprobe") {
        protocols.insert(format!(
            "{} epochs, {} views, {} train and {} test images of {} classes",
            text(&value["protocol"]["epochs"]),
            text(&value["protocol"]["views"]),
            text(&value["train_images"]),
            text(&value["test_images"]),
            text(&value["classes"])
        ));
        for (kind, probe) in value["features"].as_object().into_iter().flatten() {
            rows.push(vec![
                what(run, name),
                kind.clone(),
                text(&probe["blr"]),
                percent(&probe["test"]["top1"]),
                percent(&probe["test"]["top5"]),
            ]);
        }
    }
    let header = ["run", "features", "base lr", "top-1", "top-5"];
    out += &kind("Linear probe", header, &rows, &protocols);

    let (mut rows, mut sets) = (Vec::new(), BTreeSet::new());
    for (run, name, value) in of("finetune") {
        sets.insert(format!(
            "{} train and {} test images of {} classes; the best was chosen by looking at the test images",
            text(&value["train_images"]),
            text(&value["last"]["images"]),
            text(&value["classes"])
        ));
        for which in ["last", "best"] {
            let found = &value[which];
            rows.push(vec![
                what(run, name),
                which.to_owned(),
                text(&found["epoch"]),
                percent(&found["top1"]),
                percent(&found["top5"]),
            ]);
        }
    }
    let header = ["run", "", "epoch", "top-1", "top-5"];
    out += &kind("Fine-tuning", header, &rows, &sets);

    for run in runs {
        for (name, value) in &run.evaluations {
            let known = ["knn", "linprobe", "finetune"];
            if !known.contains(&name.split('-').next().unwrap_or_default()) {
                let json = serde_json::to_string_pretty(value).unwrap_or_default();
                out += &format!(
                    "<details><summary>{}: eval/{}.json</summary><pre>{}</pre></details>\n",
                    escape(&run.name),
                    escape(name),
                    escape(&json)
                );
            }
        }
    }
    out
}

/// Which of a run's networks an evaluation is of, by its file's name: `knn`, `knn-untrained`, `knn-ema`.
fn what(run: &RunData, file: &str) -> String {
    match file.split_once('-') {
        None => run.name.clone(),
        Some((_, "untrained")) => format!("{}, untrained", run.name),
        Some((_, "ema")) => format!("{}, moving average", run.name),
        Some((_, other)) => format!("{}, {other}", run.name),
    }
}

/// A titled table, or nothing.
fn kind<const N: usize>(
    title: &str,
    header: [&str; N],
    rows: &[Vec<String>],
    notes: &BTreeSet<String>,
) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let notes: String = notes
        .iter()
        .map(|note| format!("<p class=\"note\">{}</p>\n", escape(note)))
        .collect();
    format!(
        "<h3>{title}</h3>\n{notes}{}\n",
        table(&header.map(String::from), rows)
    )
}

/// The settings that are not the same in all recipes.
pub(super) fn differences(runs: &[RunData]) -> String {
    let with_recipe: Vec<&RunData> = runs.iter().filter(|run| run.recipe.is_some()).collect();
    if with_recipe.len() < 2 {
        return String::new();
    }
    let names: BTreeSet<&String> = with_recipe
        .iter()
        .flat_map(|run| run.settings.keys())
        .collect();
    let mut rows = Vec::new();
    for name in names {
        let values: Vec<Option<&String>> = with_recipe
            .iter()
            .map(|run| run.settings.get(name))
            .collect();
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            let mut row = vec![name.clone()];
            row.extend(
                values
                    .iter()
                    .map(|v| v.map_or("unset".to_owned(), |v| (*v).clone())),
            );
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return "<p>Nothing.</p>".to_owned();
    }
    let mut header = vec!["setting".to_owned()];
    header.extend(with_recipe.iter().map(|run| run.name.clone()));
    table(&header, &rows)
}

/// Every recipe, folded.
pub(super) fn recipes(runs: &[RunData]) -> String {
    runs.iter()
        .filter_map(|run| {
            Some(format!(
                "<details><summary>{}</summary><pre>{}</pre></details>\n",
                escape(&run.name),
                escape(run.recipe.as_ref()?.trim())
            ))
        })
        .collect()
}

fn number(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.decimals$}"),
        Some(_) => "not finite".to_owned(),
        None => "–".to_owned(),
    }
}

fn percent(value: &Value) -> String {
    number(value.as_f64().map(|share| 100.0 * share), 2) + if value.is_number() { " %" } else { "" }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn median(run: &RunData, name: &str) -> Option<f64> {
    let mut values: Vec<f64> = run.series.get(name)?.iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
