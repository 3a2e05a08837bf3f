#![allow(clippy::disallowed_methods, reason = "files are damaged")]

use std::fs;
use std::path::PathBuf;

use crate::testing::World;

fn run(args: &[String]) -> anyhow::Result<String> {
    use clap::Parser;
    let cli = crate::cli::Cli::try_parse_from(args).unwrap();
    let mut out = Vec::new();
    crate::run(&cli, &models::hub::HubSettings::default(), &mut out)?;
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
    run(&world.pretrain_args(
        "b",
        &["--set", "mimic.teachers=[]", "--set", "loss.w_rec=1.0"],
    ))
    .unwrap();
    fs::create_dir_all(world.path("a").join("eval")).unwrap();
    let knn = r#"{"model":"m","train_images":8,"test_images":4,"classes":2,"k":3,"accuracy":{"cls":{"top1":0.75,"balanced":0.5}}}"#;
    fs::write(world.path("a").join("eval/knn.json"), knn).unwrap();
    fs::write(
        world.path("a").join("eval/knn-untrained.json"),
        knn.replace("0.75", "0.25"),
    )
    .unwrap();
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
        "<td>a</td><td>cls</td><td>75.00 %</td><td>50.00 %</td>",
        "<td>a, untrained</td><td>cls</td><td>25.00 %</td>",
        "3 nearest of 8 images vote on 4 of 2 classes",
        "mimic.teachers",
        "data:image/png;base64,iVBORw0KGgo",
        "images per second",
        "mimic.clip",
        "eval/other.json",
        "&lt;b&gt;",
    ] {
        assert!(page.contains(words), "the page lacks {words:?}");
    }
    // One plot of `rec` with both runs in it, one of `mimic.clip` with one.
    let plot = |title: &str| {
        let start = page
            .find(&format!("<figcaption>{title}</figcaption>"))
            .unwrap();
        let end = start + page[start..].find("</figure>").unwrap();
        page[start..end].matches("class=\"curve").count()
    };
    assert_eq!((plot("rec"), plot("mimic.clip")), (2, 1));
    for foreign in ["http://", "https://", "<script", "<link", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
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
    let (page, said) = page(&world, &[world.path("nowhere")]);
    for words in [
        "2 lines are damaged",
        "eval/knn.json",
        "recipe.toml",
        "is no folder",
    ] {
        assert!(
            page.contains(words) && said.contains(words),
            "{words}: {said}"
        );
    }
    assert!(page.contains("<figcaption>rec</figcaption>"));

    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let args = ["trainer", "report"].map(String::from).to_vec();
    let more = [
        text(world.path("nowhere")),
        "--out".to_owned(),
        text(world.path("x.html")),
    ];
    let error = run(&[args, more.to_vec()].concat()).unwrap_err();
    assert!(
        error.to_string().contains("none of the folders"),
        "{error:#}"
    );
    assert!(!world.path("x.html").exists());
}
