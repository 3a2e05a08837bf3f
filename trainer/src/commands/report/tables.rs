//! The report's tables.

use std::collections::{BTreeMap, BTreeSet};

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
    let mut header: Vec<String> = ["run", "state", "steps", "epochs"].map(String::from).into();
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
                run.state(),
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
    table(2, &header, &rows)
}

/// One table for each question that was asked (kind of evaluation, images, protocol), with the answers of all runs in it; files of other
/// shapes as they are.
pub(super) fn evaluations(runs: &[RunData]) -> String {
    let mut out = String::new();
    let of = |kind: &'static str| {
        runs.iter().flat_map(move |run| {
            let files = run.evaluations.iter();
            let files = files.filter(move |(name, _)| name.split('-').next() == Some(kind));
            files.map(move |(name, value)| (run, name, value))
        })
    };
    let mut knn = Questions::new();
    for (run, name, value) in of("knn") {
        let question =
            format!("{} nearest of {} vote on {}", text(&value["k"]), images(value, "train"), images(value, "test"));
        let rows = knn.entry(question + &classes(value)).or_default();
        for (kind, accuracy) in value["accuracy"].as_object().into_iter().flatten() {
            rows.push(vec![
                what(run, name, value),
                kind.clone(),
                percent(&accuracy["top1"]),
                percent(&accuracy["balanced"]),
            ]);
        }
    }
    out += &kind("k-NN", ["run", "features", "top-1", "balanced"], &knn);

    let mut probes = Questions::new();
    for (run, name, value) in of("linprobe") {
        let protocol = &value["protocol"];
        let question = format!(
            "{} epochs in batches of {}, {} views; {} to train on, {} to test",
            text(&protocol["epochs"]),
            text(&protocol["batch_size"]),
            text(&protocol["views"]),
            images(value, "train"),
            images(value, "test")
        );
        let rows = probes.entry(question + &classes(value)).or_default();
        for (kind, probe) in value["features"].as_object().into_iter().flatten() {
            rows.push(vec![
                what(run, name, value),
                kind.clone(),
                text(&probe["blr"]),
                percent(&probe["test"]["top1"]),
                percent(&probe["test"]["top5"]),
            ]);
        }
    }
    let header = ["run", "features", "base lr", "top-1", "top-5"];
    out += &kind("Linear probe", header, &probes);

    let mut tuned = Questions::new();
    for (run, name, value) in of("finetune") {
        let question = format!(
            "{} train and {} test images{}; the best was chosen by looking at the test images",
            text(&value["train_images"]),
            text(&value["last"]["images"]),
            classes(value)
        );
        let rows = tuned.entry(question).or_default();
        for which in ["last", "best"] {
            let found = &value[which];
            rows.push(vec![
                what(run, name, value),
                which.to_owned(),
                text(&found["epoch"]),
                percent(&found["top1"]),
                percent(&found["top5"]),
            ]);
        }
    }
    let header = ["run", "", "epoch", "top-1", "top-5"];
    out += &kind("Fine-tuning", header, &tuned);

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

/// Rows by the question that they answer: only answers to the same one may be compared.
type Questions = BTreeMap<String, Vec<Vec<String>>>;

/// How many images of a set there are, and which.
fn images(value: &Value, set: &str) -> String {
    let count = text(&value[format!("{set}_images")]);
    match value[set].as_str() {
        Some(source) => format!("{count} images of {source}"),
        None => format!("{count} {set} images"),
    }
}

fn classes(value: &Value) -> String {
    format!(", {} classes", text(&value["classes"]))
}

/// Which of a run's networks an evaluation is of, by its file's name: `knn`, `knn-untrained`, `knn-ema`, each also with a number for a
/// further question.
fn what(run: &RunData, file: &str, value: &Value) -> String {
    let named = file.split('-').skip(1);
    let which: Vec<&str> = named.filter(|part| part.parse::<u32>().is_err()).collect();
    match which.join("-").as_str() {
        // Results from before students of fusion were evaluated with it say nothing, and are without.
        "" if value["fusion"] == "fused" => format!("{}, fused", run.name),
        "" => run.name.clone(),
        "ema" => format!("{}, moving average", run.name),
        other => format!("{}, {other}", run.name),
    }
}

/// A title, and a table for each question; or nothing.
fn kind<const N: usize>(title: &str, header: [&str; N], questions: &Questions) -> String {
    let tables: String = questions
        .iter()
        .filter(|(_, rows)| !rows.is_empty())
        .map(|(question, rows)| {
            format!("<p class=\"note\">{}</p>\n{}\n", escape(question), table(2, &header.map(String::from), rows))
        })
        .collect();
    match tables.is_empty() {
        true => tables,
        false => format!("<h3>{title}</h3>\n{tables}"),
    }
}

/// What each run trains on, as its newest checkpoint has it.
pub(super) fn data(runs: &[RunData]) -> String {
    let facts: BTreeSet<&String> = runs.iter().flat_map(|run| run.data.keys()).collect();
    if facts.is_empty() {
        return String::new();
    }
    let mut header = vec!["fact".to_owned()];
    header.extend(runs.iter().map(|run| run.name.clone()));
    let row = |fact: &&String| {
        let mut row = vec![(*fact).clone()];
        row.extend(runs.iter().map(|run| match run.data.get(*fact) {
            Some(value) => value.clone(),
            None if run.data.is_empty() => "not recorded".to_owned(),
            None => "–".to_owned(),
        }));
        row
    };
    let rows: Vec<Vec<String>> = facts.iter().map(row).collect();
    format!("<div class=\"wrap\">{}</div>", table(usize::MAX, &header, &rows))
}

/// The settings that are not the same in all recipes.
pub(super) fn differences(runs: &[RunData]) -> String {
    let with_recipe: Vec<&RunData> = runs.iter().filter(|run| run.recipe.is_some()).collect();
    if with_recipe.len() < 2 {
        return String::new();
    }
    let names: BTreeSet<&String> = with_recipe.iter().flat_map(|run| run.settings.keys()).collect();
    let mut rows = Vec::new();
    for name in names {
        let values: Vec<Option<&String>> = with_recipe.iter().map(|run| run.settings.get(name)).collect();
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            let mut row = vec![name.clone()];
            row.extend(values.iter().map(|v| v.map_or("unset".to_owned(), |v| (*v).clone())));
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return "<p>Nothing.</p>".to_owned();
    }
    let mut header = vec!["setting".to_owned()];
    header.extend(with_recipe.iter().map(|run| run.name.clone()));
    table(usize::MAX, &header, &rows)
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
