//! `list`: every cache once, whole, half or damaged.

use std::fs;

use serde_json::Value;

use pipeline::ExitStatus;

use super::support::{World, run, tree};

fn list(world: &World, dir: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    let dir = world.path(dir).display().to_string();
    let args = ["pipeline", "list", &dir].into_iter().chain(more.iter().copied());
    run(args.map(str::to_owned).collect())
}

fn json(world: &World, dir: &str) -> (ExitStatus, Value) {
    let (status, said) = list(world, dir, &["--json"]).unwrap();
    (status, serde_json::from_str(&said).unwrap())
}

#[test]
fn caches_are_found_once_and_described() {
    let world = World::new();
    world.build("caches/whole", &[]).unwrap();
    world.build("caches/deep/er/half", &["--set", "view.views=1", "--view-policy", "center"]).unwrap();
    fs::remove_file(world.path("caches/deep/er/half/teachers/dino/part-00001.commit.json")).unwrap();
    // What lies in a cache is its own, and links lead round in circles.
    fs::create_dir_all(world.path("caches/whole/inside")).unwrap();
    fs::copy(world.path("caches/whole/cache.json"), world.path("caches/whole/inside/cache.json")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink(world.path("caches"), world.path("caches/deep/loop")).unwrap();
        symlink(world.path("caches/whole"), world.path("caches/a-link")).unwrap();
        symlink(world.path("nowhere"), world.path("caches/broken")).unwrap();
    }
    let (status, found) = json(&world, "caches");
    assert_eq!(status, ExitStatus::Fine);
    let caches = found["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 2, "{found}");
    let (half, whole) = (&caches[0], &caches[1]);
    let path = |name: &str| world.path(name).display().to_string();
    assert_eq!(half["path"], path("caches/deep/er/half"));
    assert_eq!(whole["path"], path("caches/whole"));
    assert_eq!(
        (&whole["state"], &whole["images"], &whole["views"], &whole["policy"], &whole["rows"]),
        (&"complete".into(), &23.into(), &2.into(), &"rrc".into(), &40.into())
    );
    assert_eq!((&whole["teachers"]["clip"], &whole["reason"]), (&1.0.into(), &Value::Null));
    let bytes: usize = tree(&world.path("caches/whole")).values().map(Vec::len).sum();
    assert_eq!(whole["bytes"], bytes);
    // The middle part has 8 of 23 images.
    assert_eq!(half["state"], "incomplete");
    assert_eq!(half["teachers"]["dino"], 15.0 / 23.0);
    assert_eq!((&half["rows"], &half["policy"]), (&20.into(), &"center".into()));

    let (_, text) = list(&world, "caches", &[]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("cache ") && lines[0].ends_with("teachers"), "{text}");
    let column = lines[0].find("state").unwrap();
    assert!(lines[1][column..].starts_with("incomplete  clip 100 %, dino 65 %"), "{text}");
    assert!(lines[2][column..].starts_with("complete    clip 100 %, dino 100 %"), "{text}");
    assert!(lines[3].contains("part-00001.parquet is not built yet"), "{text}");

    // A cache is below itself.
    let (_, found) = json(&world, "caches/whole");
    assert_eq!(found["caches"].as_array().unwrap().len(), 1);
}

#[test]
fn damage_is_said_and_is_status_1() {
    let world = World::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        world.build(&format!("caches/{name}"), &[]).unwrap();
    }
    fs::write(world.path("caches/a/cache.json"), "{\"format_version\": 1").unwrap();
    let file = world.path("caches/b/teachers/clip/part-00002.parquet");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    fs::remove_file(world.path("caches/c/samples/part-00000.parquet")).unwrap();
    fs::remove_file(world.path("caches/d/rejects/part-00001.jsonl")).unwrap();
    fs::write(world.path("caches/e/rejects/part-00001.jsonl"), "{}\n\n\n").unwrap();
    // A stranger's file is none of the cache's.
    fs::write(world.path("caches/f/teachers/readme.txt"), "two teachers").unwrap();
    let (status, found) = json(&world, "caches");
    assert_eq!(status, ExitStatus::Problems);
    assert_eq!(found["caches"][5]["state"], "complete", "{found}");
    for (cache, word) in found["caches"].as_array().unwrap().iter().zip([
        "cache.json",
        "its commit record says",
        "cannot read",
        "part-00001.jsonl",
        "part-00001.jsonl",
    ]) {
        assert_eq!(cache["state"], "damaged", "{cache}");
        assert!(cache["reason"].as_str().unwrap().contains(word), "{cache}");
    }
    let (status, text) = list(&world, "caches", &[]).unwrap();
    assert_eq!(status, ExitStatus::Problems);
    assert_eq!(text.matches("DAMAGED").count(), 5, "{text}");
    assert!(text.contains("pipeline verify"), "{text}");
}

#[test]
fn nothing_is_nothing_and_no_folder_is_an_error() {
    let world = World::new();
    let (status, text) = list(&world, "images", &[]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(text.contains("no cache below"), "{text}");
    let error = list(&world, "nowhere", &[]).unwrap_err();
    assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
}
