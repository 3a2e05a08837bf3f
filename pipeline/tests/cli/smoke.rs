//! What the program says and returns.

use super::support::{World, output, program, run, stderr, stdout};

#[test]
fn help_lists_the_commands_and_every_option() {
    let help = output(&["pipeline", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in ["build-cache", "verify", "inspect", "stats", "list", "--log-format", "130 or 143 interrupted"] {
        assert!(stdout(&help).replace('\n', " ").contains(word), "{word}");
    }
    assert!(stdout(&help).starts_with("Builds, checks and shows caches of teacher features"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = output(&["pipeline", "completions", shell]);
        assert_eq!(script.status.code(), Some(0));
        let script = stdout(&script);
        assert!(script.contains("build-cache") && script.contains("view-policy"), "{shell}");
    }
    let help = output(&["pipeline", "build-cache", "--help"]);
    let options = [
        "--images",
        "--out",
        "--teacher",
        "--views",
        "--view-policy",
        "--seed",
        "--grid",
        "--codec",
        "--precision",
        "--batch-size",
        "--threads",
        "--device",
        "--limit",
        "--dry-run",
        "--recipe",
        "--set",
    ];
    for option in options {
        assert!(stdout(&help).contains(option), "{option}");
    }
    let version = output(&["pipeline", "--version"]);
    assert_eq!(
        (version.status.code(), stdout(&version)),
        (Some(0), format!("pipeline {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn what_cannot_be_done_is_2_and_says_what_to_do() {
    let world = World::new();
    let nowhere = world.path("nowhere").display().to_string();
    let line = |words: &[&str]| ["pipeline"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    let third = format!("third={nowhere}");
    for (args, word) in [
        (line(&["build-cache"]), "--images"),
        (line(&["build-cache", "--typo"]), "--typo"),
        (line(&["verify", &nowhere]), "nowhere"),
        (line(&["inspect", &nowhere]), "nowhere"),
        (world.build_args("cache", &["--images", &nowhere]), "nowhere"),
        (world.build_args("cache", &["--teacher", &third]), "teacher third"),
        (world.build_args("cache", &["--device", "gpu"]), "gpu"),
        (world.build_args("cache", &["--codec", "f8"]), "f8"),
        (world.build_args("cache", &["--set", "view.sed=1"]), "sed"),
    ] {
        let failed = output(&args);
        assert_eq!(failed.status.code(), Some(2), "{args:?}: {}", stderr(&failed));
        assert!(stderr(&failed).contains(word), "{args:?}: {}", stderr(&failed));
        assert!(stdout(&failed).is_empty(), "{args:?}: {}", stdout(&failed));
    }
}

/// Results on stdout, messages on stderr; nothing in the wrong place.
#[test]
fn a_build_reports_on_stdout_and_logs_on_stderr() {
    let world = World::new();
    let built = output(&world.build_args("cache", &[]));
    assert_eq!(built.status.code(), Some(0), "{}", stderr(&built));
    assert!(stdout(&built).contains("rows               40"), "{}", stdout(&built));
    assert!(stderr(&built).contains("part_samples = 8") && stderr(&built).contains("rejected"), "{}", stderr(&built));

    let built = output(&world.build_args("json", &["--log-format", "json"]));
    let summary: serde_json::Value = serde_json::from_str(&stdout(&built)).expect("one JSON object");
    let lost = &summary["codec_error"]["clip"]["relative_l2"];
    assert!((1e-5..1e-3).contains(&lost.as_f64().unwrap()), "{summary}");
    assert_eq!((&summary["rows"], &summary["rejected"]), (&40.into(), &3.into()));
    assert_eq!(summary["run"]["images"], 23);
    for line in stderr(&built).lines() {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON lines");
        assert!(message["level"].is_string());
    }

    let json = |args: &[String]| -> serde_json::Value {
        let done = output(&[args, &["--log-format".into(), "json".into()]].concat());
        serde_json::from_str(&stdout(&done)).expect("one JSON object")
    };
    let verified = json(&["pipeline".into(), "verify".into(), text(&world, "json")]);
    assert_eq!(
        (&verified["sound"], &verified["rows"], &verified["problems"]),
        (&true.into(), &120.into(), &serde_json::json!([]))
    );
    std::fs::remove_file(world.path("json/samples/part-00000.parquet")).unwrap();
    let verified = json(&["pipeline".into(), "verify".into(), text(&world, "json")]);
    assert_eq!(verified["sound"], false);
    let problem = verified["problems"][0].as_str().unwrap();
    assert!(problem.contains("part-00000.parquet"), "{problem}");

    let forecast = json(&world.build_args("another", &["--dry-run"]));
    assert_eq!(
        (&forecast["images"], &forecast["rows_at_most"], &forecast["fits"]),
        (&23.into(), &46.into(), &true.into())
    );
    assert_eq!(forecast["teachers"][0]["identity"]["id"], "clip");
    assert!(forecast["time"]["images_per_second"].as_f64().unwrap() > 0.0);
}

fn text(world: &World, name: &str) -> String {
    world.path(name).display().to_string()
}

/// A path with a typing error looks like a model's id: that there is no such path is said before a hub is asked.
#[test]
fn a_path_that_is_not_there_is_said_before_a_hub_is_asked() {
    let world = World::new();
    // Nobody listens there, and nobody else is given this port while it is taken at another address of the host.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("127.0.0.2:{}", taken.local_addr().unwrap().port());
    let failed = program(&world.build_args("cache", &["--teacher", "clip=clips/clip-b16"]))
        .env("HF_ENDPOINT", format!("http://{closed}"))
        .env("HF_HUB_CACHE", world.path("hub"))
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    let said = stderr(&failed);
    // The hub may be there later.
    assert_eq!(failed.status.code(), Some(75), "{said}");
    let asking = format!("no such file or folder here; asking {closed} for clips/clip-b16@main");
    assert!(said.contains(&asking), "{said}");
}

/// A run folder is not a teacher; the error says how to make one from it.
#[test]
fn a_run_given_as_a_teacher_is_told_from_one() {
    let world = World::new();
    for (folder, files) in [("run", ["recipe.toml", "LAST"]), ("checkpoint", ["state.json", "model.safetensors"])] {
        std::fs::create_dir(world.path(folder)).unwrap();
        for file in files {
            std::fs::write(world.path(folder).join(file), "").unwrap();
        }
        let path = world.path(folder).display().to_string();
        let refused = world.build("cache", &["--teacher", &format!("student={path}")]);
        let said = format!("{:#}", refused.unwrap_err());
        assert!(said.contains(&format!("trainer export --run {path} ")), "{said}");
        assert!(!world.path("cache").exists(), "nothing is written");
    }
}

/// The recipe that a build prints repeats it.
#[test]
fn the_printed_recipe_is_a_recipe() {
    let world = World::new();
    let built = output(&world.build_args("cache", &[]));
    let log = stderr(&built);
    let recipe =
        log.split("[data]").nth(1).and_then(|rest| rest.split("\n\n\n").next()).expect("the recipe in the log");
    let recipe: String =
        format!("[data]{recipe}").lines().take_while(|line| !line.contains("INFO")).map(|l| format!("{l}\n")).collect();
    std::fs::write(world.path("recipe.toml"), &recipe).unwrap();
    let args =
        ["pipeline", "build-cache", "--recipe", &world.path("recipe.toml").display().to_string()].map(str::to_owned);
    let (_, said) = run(args.into()).unwrap();
    assert!(said.contains("nothing to do"), "{recipe}\n{said}");
}

#[test]
fn inspect_shows_the_same_in_text_and_json() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let cache = world.path("cache").display().to_string();
    let inspect = |more: &[&str]| {
        let args = ["pipeline", "inspect", &cache].into_iter().chain(more.iter().copied());
        run(args.map(str::to_owned).collect()).unwrap().1
    };
    let json: serde_json::Value = serde_json::from_str(&inspect(&["--json", "--row", "1"])).unwrap();
    assert_eq!(json["samples"]["rows"], 40);
    assert_eq!(json["samples"]["parts_complete"], 3);
    assert_eq!(json["rejected"], 3);
    let clip = &json["teachers"]["clip"];
    assert_eq!((&clip["identity"]["grid"], &clip["identity"]["input_size"]), (&4.into(), &16.into()));
    assert_eq!(clip["channels"]["tokens"], 40 * 16);
    assert!(clip["channels"]["std_max"][0].as_f64().unwrap() > 0.0);
    // 16 tokens of 32 channels in f16, less what zstd finds and more what pages cost.
    let tokens = clip["files"]["bytes_per_row"]["tokens"].as_f64().unwrap();
    assert!((700.0..1200.0).contains(&tokens), "{tokens}");
    assert_eq!(json["rows"].as_array().unwrap().len(), 2);
    assert_eq!(json["rows"][1]["teachers"]["dino"]["shape"], serde_json::json!([16, 32]));

    let text = inspect(&["--row", "1"]);
    for word in ["3 of 3 parts (complete), 40 rows", "rejected  3", "teacher dino", "sample 1 view 1", "crop", "mean"] {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    let rejected = run(["pipeline", "inspect", &cache, "--row", "0"].map(str::to_owned).into()).unwrap_err();
    assert!(format!("{rejected:#}").contains("was rejected"), "{rejected:#}");
    let outside = run(["pipeline", "inspect", &cache, "--row", "23"].map(str::to_owned).into()).unwrap_err();
    assert!(format!("{outside:#}").contains("there is no sample 23"), "{outside:#}");
}

/// An unwritable log does not end a build, a reader that closes early is not an error, and an error is printed whatever RUST_LOG
/// lets through.
#[test]
fn nobody_has_to_listen() {
    let world = World::new();
    let full = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).open("/dev/full").unwrap()
    };
    let mut build = program(&world.build_args("cache", &[]));
    assert!(build.stderr(full()).stdout(std::process::Stdio::null()).status().unwrap().success());
    let cache = world.path("cache").display().to_string();
    assert!(output(&["pipeline", "verify", &cache]).status.success());

    let mut commands = Vec::new();
    for command in ["inspect", "verify", "stats", "list"] {
        let line = ["pipeline", command, &cache].map(str::to_owned).to_vec();
        if command != "verify" {
            commands.push([&line[..], &["--json".to_owned()]].concat());
        }
        commands.push(line);
    }
    commands.push(world.build_args("cache", &[]));
    commands.push(world.build_args("cache", &["--log-format", "json"]));
    commands.push(world.build_args("another", &["--dry-run"]));
    for command in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let shown = program(&command)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(shown.status.code(), Some(0), "{command:?}: {}", stderr(&shown));
    }
    let wrong = ["pipeline", "verify", "gone"];
    let said = program(&wrong).env("RUST_LOG", "trainer=trace").output().unwrap();
    assert!(stderr(&said).contains("gone"), "{}", stderr(&said));
    assert_eq!(program(&wrong).stderr(full()).status().unwrap().code(), Some(2));
}
