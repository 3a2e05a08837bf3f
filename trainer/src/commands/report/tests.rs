#![allow(clippy::disallowed_methods, reason = "files are damaged")]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::run::RunData;
use crate::testing::World;
use crate::train::checkpoint;

fn run(args: &[String]) -> anyhow::Result<String> {
    use clap::Parser;
    let cli = crate::cli::Cli::try_parse_from(args).unwrap();
    let mut out = Vec::new();
    crate::run(&cli, &hub::HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// Two runs with an evaluation, and the page about them.
fn page(world: &World, more: &[PathBuf]) -> (String, String) {
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mut args = vec!["trainer".to_owned(), "report".to_owned()];
    args.extend([text(world.path("a")), text(world.path("b"))]);
    args.extend(more.iter().cloned().map(text));
    args.extend(["--out".to_owned(), text(world.path("report.html"))]);
    let said = run(&args).unwrap();
    (fs::read_to_string(world.path("report.html")).unwrap(), said)
}

fn world() -> World {
    let world = World::with_cache(8);
    run(&world.pretrain_args("a", &[])).unwrap();
    run(&world.pretrain_args("b", &["--set", "mimic.teachers=[]", "--set", "loss.w_rec=1.0"])).unwrap();
    fs::create_dir_all(world.path("a").join("eval")).unwrap();
    let knn = r#"{"model":"m","train":"pets/train","test":"pets/test","train_images":8,"test_images":4,"classes":2,"k":3,"accuracy":{"cls":{"top1":0.75,"balanced":0.5}}}"#;
    fs::write(world.path("a").join("eval/knn.json"), knn).unwrap();
    fs::write(world.path("a").join("eval/knn-untrained.json"), knn.replace("0.75", "0.25")).unwrap();
    fs::write(world.path("a").join("eval/other.json"), r#"{"<b>": 1}"#).unwrap();
    world
}

#[test]
fn runs_stand_side_by_side_in_one_file() {
    let world = world();
    let (page, said) = page(&world, &[]);
    assert!(said.contains("2 runs"), "{said}");
    for words in [
        "<h1>2 runs</h1>",
        "Overview",
        "<td class=\"text\">a</td><td class=\"text\">cls</td><td>75.00 %</td><td>50.00 %</td>",
        "<td class=\"text\">a, untrained</td><td class=\"text\">cls</td><td>25.00 %</td>",
        "3 nearest of 8 images of pets/train vote on 4 images of pets/test, 2 classes",
        "<td class=\"text\">finished</td>",
        "<h2>Data</h2>",
        "teacher.clip.weights_sha256",
        "aria-label=\"rec over the steps of a, b\"",
        "mimic.teachers",
        "data:image/png;base64,iVBORw0KGgo",
        "images per second",
        "mimic.clip",
        "eval/other.json",
        "&#60;b&#62;",
    ] {
        assert!(page.contains(words), "the page lacks {words:?}");
    }
    // One plot of `rec` with both runs in it, one of `mimic.clip` with one.
    let charts = page.split("id=\"charts\">").nth(1).and_then(|rest| rest.split("</script>").next()).unwrap();
    let charts: Vec<Value> = serde_json::from_str(charts).unwrap();
    let curves = |title: &str| {
        assert!(page.contains(&format!("<figcaption>{title}</figcaption>")));
        let chart = charts.iter().find(|chart| chart["title"] == title).unwrap();
        chart["curves"].as_array().unwrap().len()
    };
    assert_eq!((curves("rec"), curves("mimic.clip")), (2, 1));
    // The plotting library names its home in a comment and loads nothing.
    for word in ["fetch(", "XMLHttpRequest", "import(", "import "] {
        assert!(!super::UPLOT_JS.contains(word), "{word}");
    }
    let ours = page.replace(super::UPLOT_JS, "");
    for foreign in ["http://", "https://", "<script src", "<link", "url("] {
        assert!(!ours.contains(foreign), "{foreign}");
    }
    assert!(!page.contains("Problems"));
}

#[test]
fn what_is_damaged_is_said_and_the_rest_is_shown() {
    let world = world();
    let metrics = world.path("a").join("metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{whole}not json\n{{\"loss\": 1}}\n")).unwrap();
    fs::write(world.path("a").join("eval/knn.json"), "{").unwrap();
    fs::write(world.path("b").join("recipe.toml"), "= nothing").unwrap();
    let sheets = crate::train::image_grid::pictures(&world.path("b")).unwrap();
    let newest = sheets.last().unwrap();
    let png = fs::read(newest).unwrap();
    fs::write(newest, &png[..png.len() / 2]).unwrap();
    let (page, said) = page(&world, &[]);
    for words in ["2 lines are damaged", "eval/knn.json", "recipe.toml", newest.file_name().unwrap().to_str().unwrap()]
    {
        assert!(page.contains(words) && said.contains(words), "{words}: {said}");
    }
    assert!(page.contains("<figcaption>rec</figcaption>"));
    // The other run's picture alone.
    assert_eq!(page.matches("data:image/png").count(), 1);

    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let refused = |runs: &[&str], out: PathBuf| {
        let mut args = ["trainer", "report"].map(String::from).to_vec();
        args.extend(runs.iter().map(|name| text(world.path(name))));
        args.extend(["--out".to_owned(), text(out)]);
        run(&args).unwrap_err().to_string()
    };
    let error = refused(&["a"], world.path("notes.py"));
    assert!(error.contains("ends with .html"), "{error}");
    assert!(!world.path("notes.py").exists());
    for again in ["a", "b/../a"] {
        let error = refused(&["a", again], world.path("x.html"));
        assert!(error.contains("given twice") && error.contains("give it once"), "{error}");
    }
    let error = refused(&["a", "nowhere"], world.path("x.html"));
    assert!(error.contains("nowhere") && error.contains("nothing of a run"), "{error}");
    assert!(!world.path("x.html").exists());
    let error = refused(&["a"], world.path("none").join("x.html"));
    assert!(error.contains("no such folder"), "{error}");
    assert!(!world.path("none").exists());
}

/// A run whose last checkpoint is damaged stands where a resume would find it.
#[test]
fn a_damaged_checkpoint_finishes_no_run() {
    let world = world();
    let (whole, _) = page(&world, &[]);
    assert_eq!(whole.matches("<td class=\"text\">finished</td>").count(), 2);
    let newest = checkpoint::newest(&world.path("a")).unwrap().unwrap();
    for (name, bytes) in ["optimizer.safetensors", "model.safetensors", "state.json"].map(|name| {
        let bytes = fs::read(newest.join(name)).unwrap();
        (name, bytes)
    }) {
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&bytes[..bytes.len() / 2], &flipped] {
            fs::write(newest.join(name), damaged).unwrap();
            let (page, said) = page(&world, &[]);
            for words in [name, "damaged", "falling back to the checkpoint before it"] {
                assert!(page.contains(words) && said.contains(words), "{name}, {words}: {said}");
            }
            assert_eq!(page.matches("<td class=\"text\">finished</td>").count(), 1, "{name}");
            assert!(page.contains("<td class=\"text\">stopped at "), "{name}");
        }
        fs::write(newest.join(name), bytes).unwrap();
    }
    for step in fs::read_dir(newest.parent().unwrap()).unwrap() {
        fs::write(step.unwrap().path().join("model.safetensors"), "").unwrap();
    }
    let (page, said) = page(&world, &[]);
    assert!(
        said.contains("no checkpoint is whole. Copy a good one back, or train again into another folder"),
        "{said}"
    );
    assert!(page.contains("<td class=\"text\">no checkpoint</td>"), "{said}");
}

/// Answers to different questions stand apart, and runs of one name are told apart.
#[test]
fn what_may_not_be_compared_does_not_stand_in_one_table() {
    let world = world();
    let eval = world.path("a").join("eval");
    let knn = fs::read_to_string(eval.join("knn.json")).unwrap();
    fs::write(eval.join("knn-2.json"), knn.replace("pets/test", "birds").replace("0.75", "0.125")).unwrap();
    let other = world.path("deeper").join("a");
    fs::create_dir_all(&other).unwrap();
    fs::copy(world.path("a").join("recipe.toml"), other.join("recipe.toml")).unwrap();
    let (page, said) = page(&world, std::slice::from_ref(&other));
    let tables = page.split("<table>").filter(|table| table.contains("%</td>"));
    let of: Vec<bool> = tables.map(|table| table.contains("12.50 %")).collect();
    assert_eq!(of, [true, false], "birds before pets");
    assert!(page.contains("vote on 4 images of birds"));
    assert!(page.contains("deeper/a") && page.contains("<td class=\"text\">no checkpoint</td>"), "{said}");
    assert!(page.contains("not recorded"));
}

/// No two of many runs look alike.
#[test]
fn every_run_has_a_stroke_of_its_own() {
    let strokes: std::collections::BTreeSet<String> = (0..28).map(super::chart::stroke).collect();
    assert_eq!(strokes.len(), 28);
    let runs: Vec<RunData> = (0..9).map(|i| RunData { name: format!("run {i}"), ..RunData::default() }).collect();
    let page = super::render(&runs).unwrap();
    for stroke in [super::chart::stroke(1), super::chart::stroke(8)] {
        assert!(page.contains(&format!("class=\"curve {stroke}\"")));
    }
}

#[test]
fn names_of_runs_cannot_become_markup() {
    let name = "<script>\"&'</script>";
    let mut run = RunData { name: name.to_owned(), ..RunData::default() };
    run.series.insert(name.to_owned(), vec![(1.0, 2.0)]);
    let page = super::render(&[run]).unwrap();
    assert!(page.contains("&#60;script&#62;&#34;&#38;&#39;") && !page.contains(name), "{page}");
    assert_eq!(page.matches("</script>").count(), 3, "{page}");
}
