//! `--dedup`: each content once, whatever is built first.

use std::collections::BTreeSet;
use std::fs;

use pipeline::ExitStatus;
use schemas::Cache;

use super::support::{World, assert_same_tree, run, tree};

/// Copies of images: one that sorts before its original, one behind it, and one of an image that cannot be used.
fn with_copies() -> World {
    let world = World::new();
    let image = |name: &str| world.path("images").join(name);
    for (from, to) in [
        ("dog/012.jpg", "cat/000-first.jpg"),
        ("cat/001.jpg", "dog/zz-last.jpg"),
        ("cat/001.jpg", "dog/zzz-last.jpg"),
        ("cat/000-text.png", "dog/text.png"),
    ] {
        fs::copy(image(from), image(to)).unwrap();
    }
    world
}

#[test]
fn the_first_of_equal_images_is_stored_and_the_others_are_told() {
    let world = with_copies();
    let (status, text) = world.build("all", &[]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(text.contains("copies             3: samples with the same bytes"), "{text}");

    // Copies do not count as images that cannot be used.
    let (status, text) = world.build("once", &["--dedup", "--max-rejects", "3"]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(text.contains("4  duplicate"), "{text}");
    assert!(!text.contains("copies  "), "{text}");
    let cache = Cache::open(&world.path("once")).unwrap();
    let parts = 0..cache.identity().parts();
    let keys: BTreeSet<String> =
        parts.clone().flat_map(|part| cache.samples(part).unwrap()).map(|row| row.key).collect();
    assert!(keys.contains("cat/000-first.jpg") && !keys.contains("dog/012.jpg"));
    assert!(keys.contains("cat/001.jpg") && !keys.iter().any(|key| key.starts_with("dog/zz")));
    let rejects: Vec<_> = parts.flat_map(|part| cache.rejects(part).unwrap()).collect();
    let reason = |key: &str| rejects.iter().find(|reject| reject.key == key).unwrap().reason.clone();
    assert_eq!(reason("dog/012.jpg"), "duplicate: the same bytes as sample 0 (\"cat/000-first.jpg\")");
    assert!(reason("dog/text.png").contains("\"cat/000-text.png\""));
    let path = world.path("once").display().to_string();
    assert_eq!(run(["pipeline", "verify", &path].map(str::to_owned).to_vec()).unwrap().0, ExitStatus::Fine);
    assert!(!world.path("once/work").exists());
}

#[test]
fn which_copy_is_stored_does_not_depend_on_what_is_built_first() {
    let world = with_copies();
    world.build("once", &["--dedup"]).unwrap();
    for worker in ["2/3", "0/3", "1/3"] {
        world.build("shared", &["--dedup", "--worker", worker]).unwrap();
        // What was read is kept until the last of them has ended.
        assert_eq!(world.path("shared/work/contents").exists(), worker != "1/3");
    }
    assert_same_tree(&world.path("shared"), &world.path("once"));
    // Goes on where it was, also when what was read is damaged or gone.
    for name in tree(&world.path("shared")).into_keys().filter(|name| name.contains("part-00001")) {
        fs::remove_file(world.path("shared").join(name)).unwrap();
    }
    world.build("shared", &["--dedup"]).unwrap();
    assert_same_tree(&world.path("shared"), &world.path("once"));
    // It is a setting of the cache.
    let error = world.build("once", &[]).unwrap_err();
    assert!(format!("{error:#}").contains("data.dedup"), "{error:#}");
}

#[test]
fn added_copies_of_earlier_images_are_not_stored_again() {
    let world = World::new();
    world.build("cache", &["--dedup"]).unwrap();
    let image = |name: &str| world.path("images").join(name);
    fs::copy(image("dog/012.jpg"), image("cat/000-first.jpg")).unwrap();
    let mut other = fs::read(image("dog/012.jpg")).unwrap();
    other.push(0);
    fs::write(image("cat/000-other.jpg"), other).unwrap();
    let [path, images] = ["cache", "images"].map(|name| world.path(name).display().to_string());
    run(["pipeline", "add-images", &path, "--images", &images].map(str::to_owned).to_vec()).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    let keys: Vec<String> = cache.rejects(3).unwrap().into_iter().map(|reject| reject.key).collect();
    assert_eq!(keys, ["cat/000-first.jpg"]);
    assert_eq!(cache.samples(3).unwrap()[0].key, "cat/000-other.jpg");
}
