//! The report's tables.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::run::RunData;

/// Rows of cells. The first `words` columns are text, to be read from the left; the others are numbers, to be compared down their right
/// edge.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) words: usize,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

/// The results of one kind of evaluation: a table for each question (images, protocol), with the answers of all runs in it. Only answers
/// to the same question may be compared.
#[derive(Debug)]
pub(super) struct Evaluation {
    pub(super) title: &'static str,
    pub(super) questions: Vec<(String, Table)>,
}

/// How far each run is, and its losses.
pub(super) fn overview(runs: &[RunData]) -> Table {
    let names = runs.iter().flat_map(|run| run.series.keys()).map(String::as_str);
    let is_loss = |name: &&str| {
        *name == "rec" || *name == "loss" || ["mimic.", "mimic_cls."].iter().any(|term| name.starts_with(term))
    };
    let terms: BTreeSet<&str> = names.filter(is_loss).collect();
    let mut header = words(["run", "state", "steps", "epochs"]);
    header.extend(terms.iter().map(|term| (*term).to_owned()));
    header.extend(words(["img/s", "peak GB", "skipped"]));
    let row = |run: &RunData| {
        let steps = run.series.values().filter_map(|series| series.last()).map(|point| point.0);
        let epochs = run.last("epoch").unwrap_or(0.0);
        let all = run.settings.get("schedule.epochs").map(|all| format!(" of {all}"));
        let mut row = vec![
            run.name.clone(),
            run.state(),
            steps.fold(0.0, f64::max).to_string(),
            format!("{epochs:.1}{}", all.unwrap_or_default()),
        ];
        row.extend(terms.iter().map(|term| number(run.last(term), 4)));
        row.push(number(median(run, "images_per_s"), 1));
        row.push(number(run.last("peak_memory_bytes").map(|bytes| bytes / 1e9), 2));
        row.push(run.skipped.to_string());
        row
    };
    Table { words: 2, header, rows: runs.iter().map(row).collect() }
}

/// The evaluations whose files are understood.
pub(super) fn evaluations(runs: &[RunData]) -> Vec<Evaluation> {
    let mut found = vec![
        evaluation(runs, "knn", "k-NN", ["run", "features", "top-1", "balanced"], knn),
        evaluation(runs, "linprobe", "Linear probe", ["run", "features", "base lr", "top-1", "top-5"], linprobe),
        evaluation(runs, "segment", "Segmentation of patches", ["run", "base lr", "mIoU", "pixel accuracy"], segment),
        evaluation(runs, "finetune", "Fine-tuning", ["run", "", "epoch", "top-1", "top-5"], finetune),
    ];
    found.retain(|evaluation| !evaluation.questions.is_empty());
    found
}

/// The files of other kinds, with the name of their run.
pub(super) fn other_evaluations(runs: &[RunData]) -> Vec<(String, String)> {
    let files = runs.iter().flat_map(|run| run.evaluations.iter().map(move |(name, value)| (run, name, value)));
    let others = files.filter(|(_, name, _)| !["knn", "linprobe", "segment", "finetune"].contains(&kind(name)));
    others
        .map(|(run, name, value)| {
            (format!("{}: eval/{name}.json", run.name), serde_json::to_string_pretty(value).unwrap_or_default())
        })
        .collect()
}

/// `read` gives a file's question and its answers, without the run.
fn evaluation<const N: usize>(
    runs: &[RunData],
    prefix: &str,
    title: &'static str,
    header: [&str; N],
    read: fn(&Value) -> (String, Vec<Vec<String>>),
) -> Evaluation {
    let mut questions: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for run in runs {
        for (name, value) in run.evaluations.iter().filter(|(name, _)| kind(name) == prefix) {
            let (question, answers) = read(value);
            let network = network(run, name, value);
            let rows = answers.into_iter().map(|answer| [vec![network.clone()], answer].concat());
            questions.entry(question).or_default().extend(rows);
        }
    }
    questions.retain(|_, rows| !rows.is_empty());
    let table = |rows| Table { words: 2, header: words(header), rows };
    Evaluation { title, questions: questions.into_iter().map(|(question, rows)| (question, table(rows))).collect() }
}

fn knn(value: &Value) -> (String, Vec<Vec<String>>) {
    let question = format!(
        "{} nearest of {} vote on {}{}",
        text(&value["k"]),
        images(value, "train"),
        images(value, "test"),
        classes(value)
    );
    let answer = |(features, accuracy): (&String, &Value)| {
        vec![features.clone(), percent(&accuracy["top1"]), percent(&accuracy["balanced"])]
    };
    (question, value["accuracy"].as_object().into_iter().flatten().map(answer).collect())
}

fn linprobe(value: &Value) -> (String, Vec<Vec<String>>) {
    let protocol = &value["protocol"];
    let question = format!(
        "{} epochs in batches of {}, {} views; {} to train on, {} to test{}",
        text(&protocol["epochs"]),
        text(&protocol["batch_size"]),
        text(&protocol["views"]),
        images(value, "train"),
        images(value, "test"),
        classes(value)
    );
    let answer = |(features, probe): (&String, &Value)| {
        let test = &probe["test"];
        vec![features.clone(), text(&probe["blr"]), percent(&test["top1"]), percent(&test["top5"])]
    };
    (question, value["features"].as_object().into_iter().flatten().map(answer).collect())
}

fn segment(value: &Value) -> (String, Vec<Vec<String>>) {
    let protocol = &value["protocol"];
    let method = match protocol["method"].as_str() {
        Some("knn") => format!("{} nearest patches vote", text(&protocol["k"])),
        _ => format!(
            "linear layer, {} epochs in batches of {} patches",
            text(&protocol["epochs"]),
            text(&protocol["batch_size"])
        ),
    };
    let question = format!(
        "{method}, at most {}; {} to train on, {} to test",
        text(&protocol["max_patches"]),
        images(value, "train"),
        images(value, "test")
    );
    let found = &value["test_pixels"];
    let blr = match &value["choice"]["blr"] {
        Value::Null => "–".to_owned(),
        blr => text(blr),
    };
    (question, vec![vec![blr, percent(&found["miou"]), percent(&found["pixel_accuracy"])]])
}

fn finetune(value: &Value) -> (String, Vec<Vec<String>>) {
    let question = format!(
        "{} train and {} test images{}; the best was chosen by looking at the test images",
        text(&value["train_images"]),
        text(&value["last"]["images"]),
        classes(value)
    );
    let answer = |which: &str| {
        let found = &value[which];
        vec![which.to_owned(), text(&found["epoch"]), percent(&found["top1"]), percent(&found["top5"])]
    };
    (question, ["last", "best"].map(answer).into())
}

/// The first word of an evaluation's file name.
fn kind(file: &str) -> &str {
    file.split('-').next().unwrap_or_default()
}

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

/// Which of a run's networks a file evaluates, by the file's name: `knn`, `knn-untrained`, `knn-ema`, each also with a number for a further
/// question.
fn network(run: &RunData, file: &str, value: &Value) -> String {
    let named = file.split('-').skip(1);
    let which: Vec<&str> = named.filter(|part| part.parse::<u32>().is_err()).collect();
    match which.join("-").as_str() {
        // Older results of students with fusion do not have the field; they were evaluated without it.
        "" if value["fusion"] == "fused" => format!("{}, fused", run.name),
        "" => run.name.clone(),
        "ema" => format!("{}, moving average", run.name),
        other => format!("{}, {other}", run.name),
    }
}

/// What each run trains on, as recorded in its newest checkpoint.
pub(super) fn data(runs: &[RunData]) -> Option<Table> {
    let facts: BTreeSet<&String> = runs.iter().flat_map(|run| run.data.keys()).collect();
    let cell = |run: &RunData, fact: &String| match run.data.get(fact) {
        Some(value) => value.clone(),
        None if run.data.is_empty() => "not recorded".to_owned(),
        None => "–".to_owned(),
    };
    let all: Vec<&RunData> = runs.iter().collect();
    (!facts.is_empty()).then(|| by_run("fact", &all, facts, cell))
}

/// The settings that are not the same in all recipes; `None` with fewer than two recipes.
pub(super) fn differences(runs: &[RunData]) -> Option<Table> {
    let runs: Vec<&RunData> = runs.iter().filter(|run| run.recipe.is_some()).collect();
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let differs =
        |name: &&String| runs.windows(2).any(|pair| pair[0].settings.get(*name) != pair[1].settings.get(*name));
    let differing = names.into_iter().filter(differs).collect();
    let cell = |run: &RunData, name: &String| run.settings.get(name).map_or("unset".to_owned(), String::clone);
    (runs.len() >= 2).then(|| by_run("setting", &runs, differing, cell))
}

/// A row for each name, a column for each run.
fn by_run(
    title: &str,
    runs: &[&RunData],
    names: BTreeSet<&String>,
    cell: impl Fn(&RunData, &String) -> String,
) -> Table {
    let header = [title.to_owned()].into_iter().chain(runs.iter().map(|run| run.name.clone())).collect();
    let row = |name: &String| [name.clone()].into_iter().chain(runs.iter().map(|run| cell(run, name))).collect();
    Table { words: usize::MAX, header, rows: names.into_iter().map(row).collect() }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).into()
}

fn number(value: Option<f64>, decimals: usize) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.decimals$}"),
        Some(_) => "not finite".to_owned(),
        None => "–".to_owned(),
    }
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or("–".to_owned(), |share| format!("{:.2} %", 100.0 * share))
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
