//! What a run shows of itself, read by the programs that people look with: TensorBoard's own reader and a headless Chromium.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use tests::{python, root, skipped, write_bmp_folders};

/// A run of a few steps, with a cache made for it.
fn run_folder(dir: &Path) -> PathBuf {
    trainer_run(&prepare(dir));
    dir.join("run")
}

/// Makes the cache of such a run; the command that trains.
fn prepare(dir: &Path) -> Vec<String> {
    let text = |path: PathBuf| path.display().to_string();
    write_bmp_folders(&dir.join("images"), 12);
    let teacher = root().join("assets/teachers/clip-tiny");
    let build = ["pipeline", "build-cache", "--device", "cpu", "--grid", "8"].map(str::to_owned);
    let rest = [
        "--images".to_owned(),
        text(dir.join("images")),
        "--out".to_owned(),
        text(dir.join("cache")),
        "--teacher".to_owned(),
        format!("clip={}", text(teacher)),
    ];
    let cli = pipeline::cli::Cli::try_parse_from(build.iter().chain(&rest)).expect("a command line");
    pipeline::run(&cli, &pipeline::Environment::default(), &mut Vec::new()).expect("a cache");
    let recipe = text(root().join("trainer/recipes/tiny.toml"));
    let mut train = vec!["trainer".to_owned(), "pretrain".into(), "--device".into(), "cpu".into()];
    train.extend(["--cache".into(), text(dir.join("cache")), "--images".into(), text(dir.join("images"))]);
    train.extend(["--recipe".into(), recipe, "--out".into(), text(dir.join("run"))]);
    for setting in [
        "optim.batch_size=6",
        "schedule.epochs=3",
        "run.log_every=1",
        "run.checkpoint_every=2",
        "run.keep_checkpoints=4",
    ] {
        train.extend(["--set".into(), setting.into()]);
    }
    train
}

fn trainer_run(args: &[String]) {
    let cli = trainer::cli::Cli::try_parse_from(args).expect("a command line");
    let hub = hub::HubSettings::default();
    trainer::run(&cli, &hub, None, &mut Vec::new()).expect("a run");
}

/// Holds what it read open, as a running TensorBoard does: it loads at each line on its input, and compares at the last.
const READER: &str = r#"
import json, sys
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.util import tensor_util

class Live(plugin_event_accumulator.EventAccumulator):
    def Scalars(self, tag):
        number = lambda event: float(tensor_util.make_ndarray(event.tensor_proto))
        return [event_accumulator.ScalarEvent(e.wall_time, e.step, number(e)) for e in self.Tensors(tag)]

def new():
    old = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0})
    live = Live(sys.argv[1], tensor_size_guidance={"scalars": 0, "images": 0})
    return [old, live]

readers = new()
for line in sys.stdin:
    for reader in readers:
        reader.Reload()
    print("loaded", flush=True)

fresh = new()
for reader in fresh:
    reader.Reload()
lines = [json.loads(line) for line in open(sys.argv[2])]
assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
for reader in readers + fresh:
    for name in lines[0]:
        if name == "step":
            continue
        found = [(event.step, event.value) for event in reader.Scalars(name)]
        expected = [(line["step"], line[name]) for line in lines]
        assert [step for step, _ in found] == [step for step, _ in expected], (reader, name, found)
        for (_, a), (_, b) in zip(found, expected):
            assert abs(a - b) <= 1e-6 * max(abs(b), 1e-30), (reader, name, a, b)
for reader in (readers[0], fresh[0]):
    images = reader.Images("reconstruction")
    assert [image.step for image in images] == [2, 4, 6], images
    for image in images:
        assert image.encoded_image_string.startswith(b"\x89PNG") and image.width == image.height > 112
for reader in (readers[1], fresh[1]):
    assert [image.step for image in reader.Tensors("reconstruction")] == [2, 4, 6]
"#;

/// The run is killed after it has written events beyond its checkpoint, and goes on while TensorBoard is open: every step is there once,
/// with the values of the session that the run kept. Images per second tell the sessions apart.
#[test]
fn tensorboard_reads_what_a_run_writes_and_follows_a_resume() {
    let Some(python) = python() else {
        skipped("TensorBoard", "scripts/python-env has not been run");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let train = prepare(dir.path());
    let run = dir.path().join("run");
    trainer_run(&train);
    let mut reader = Command::new(python)
        .args(["-c", READER])
        .args([run.join("tb"), run.join("metrics.jsonl")])
        .env("TF_CPP_MIN_LOG_LEVEL", "3")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut input = reader.stdin.take().expect("a pipe");
    let mut output = BufReader::new(reader.stdout.take().expect("a pipe"));
    let mut load = || {
        writeln!(input, "load").expect("the reader listens");
        let mut line = String::new();
        output.read_line(&mut line).expect("the reader answers");
        assert_eq!(line, "loaded\n");
    };
    load();
    for checkpoint in ["step-00000004", "step-00000002"] {
        // As a kill before the later checkpoints leaves it.
        schemas::atomic::write(&run.join("LAST"), checkpoint.as_bytes()).expect("a file is written");
        trainer_run(&train);
        load();
    }
    drop(input);
    assert!(reader.wait().expect("the reader ends").success());
    let sessions = std::fs::read_dir(run.join("tb")).expect("a folder").count();
    assert_eq!(sessions, 3);
}

/// A browser that is installed, if any.
fn chromium() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

#[test]
fn a_browser_shows_the_report() {
    let Some(chromium) = chromium() else {
        skipped("the report in a browser", "no Chromium is installed");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let run = run_folder(dir.path());
    let page = dir.path().join("report.html");
    trainer_run(&[
        "trainer".to_owned(),
        "report".to_owned(),
        run.display().to_string(),
        "--out".to_owned(),
        page.display().to_string(),
    ]);
    let browse = |what: &[String]| {
        let output = Command::new(chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"])
            .arg(format!("--user-data-dir={}", dir.path().join("browser").display()))
            .args(what)
            .arg(format!("file://{}", page.display()))
            .output()
            .expect("the browser starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let dom = browse(&["--dump-dom".to_owned()]);
    for words in ["<h2>Overview</h2>", "<h2>Curves</h2>", "<h2>Pictures</h2>", "mimic.clip", "<canvas"] {
        assert!(dom.contains(words), "the page lacks {words}");
    }
    let picture = dir.path().join("page.png");
    browse(&[format!("--screenshot={}", picture.display())]);
    let shown = images::decode(&std::fs::read(&picture).expect("a screenshot")).expect("a PNG");
    // The first run's color is drawn: that of the light scheme, for which a headless browser asks.
    let blue = |p: &[u8]| p[0] < 40 && (90..140).contains(&p[1]) && (150..200).contains(&p[2]);
    let drawn = shown.data.chunks_exact(3).filter(|p| blue(p)).count();
    assert!(drawn > 200, "{drawn} pixels of the curves' blue");
}
