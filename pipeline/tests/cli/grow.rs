//! Data sets that grow: `add-images`, and what it leaves alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pipeline::ExitStatus;
use schemas::{Cache, ContentHash, TeacherId};

use super::support::{BAD, USABLE, World, assert_same_tree, output, run, stderr, tree, write_image};

/// Images that [`grow`] adds: one of them in a class that sorts before all others, and one that cannot be used.
const ADDED: u64 = 9;

/// Puts new images among those that are there.
fn grow(world: &World) {
    for idx in 100..107 {
        write_image(&world.path("images"), idx);
    }
    let class = world.path("images/ant");
    fs::create_dir_all(&class).unwrap();
    fs::copy(world.path("images/cat/101.jpg"), class.join("000.jpg")).unwrap();
    // Another image with other bytes than its copy.
    let mut bytes = fs::read(class.join("000.jpg")).unwrap();
    bytes.extend([0; 3]);
    fs::write(class.join("000.jpg"), bytes).unwrap();
    fs::write(class.join("001.png"), "not an image").unwrap();
}

fn add_args(world: &World, cache: &str, images: &str, more: &[&str]) -> Vec<String> {
    let path = |name: &str| world.path(name).display().to_string();
    let args = ["pipeline", "add-images", &path(cache), "--images", &path(images)];
    args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
}

fn add(world: &World, cache: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    run(add_args(world, cache, "images", more))
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    for (name, bytes) in tree(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(&name), bytes).unwrap();
    }
    to.to_path_buf()
}

fn verify(world: &World, cache: &str, more: &[&str]) -> (ExitStatus, String) {
    let path = world.path(cache).display().to_string();
    let args = ["pipeline", "verify", &path].iter().chain(more).map(|arg| (*arg).to_owned()).collect();
    run(args).unwrap()
}

/// Key and label's name of every row's sample, by number.
fn samples(cache: &Cache) -> BTreeMap<u64, (String, String)> {
    let identity = cache.identity();
    let name = |label: Option<i32>| identity.all_label_names()[label.unwrap() as usize].clone();
    let rows = (0..identity.parts()).flat_map(|part| cache.samples(part).unwrap());
    rows.map(|row| (row.sample_id, (row.key, name(row.label)))).collect()
}

/// The features of every row, by content and view.
fn features(cache: &Cache, id: &str) -> BTreeMap<(ContentHash, u16), Vec<f32>> {
    let id: TeacherId = id.parse().unwrap();
    let mut features = BTreeMap::new();
    for part in 0..cache.identity().parts() {
        for row in cache.teacher_part(&id, part).unwrap().iter().map(Result::unwrap) {
            let mut tokens = Vec::new();
            cache.teacher(&id).unwrap().decode_tokens(&row.tokens, &mut tokens).unwrap();
            features.insert((row.key.content_hash, row.key.view), tokens);
        }
    }
    features
}

#[test]
fn new_images_become_new_parts_and_nothing_that_was_there_changes() {
    let world = World::new();
    world.build("cache", &["--codec", "f32"]).unwrap();
    let before = tree(&world.path("cache"));
    grow(&world);

    let (status, _) = add(&world, "cache", &[]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    let after = tree(&world.path("cache"));
    for (name, bytes) in &before {
        // What the source holds beside its images is told anew.
        assert!(after[name] == *bytes || name.ends_with("skipped.jsonl"), "{name} has changed");
    }
    let (status, text) = verify(&world, "cache", &[]);
    assert_eq!(status, ExitStatus::Fine, "{text}");
    let images = world.path("images").display().to_string();
    let (status, text) = verify(&world, "cache", &["--images", &images]);
    assert_eq!(status, ExitStatus::Fine, "{text}");

    let cache = Cache::open(&world.path("cache")).unwrap();
    let identity = cache.identity();
    assert_eq!(identity.samples(), USABLE + BAD + ADDED);
    assert_eq!(identity.range(3), 23..31, "the first new part begins with the first new sample");
    // Labels of the earlier images keep their numbers although the new class sorts before theirs.
    assert_eq!(identity.all_label_names(), ["cat", "dog", "ant"]);
    let samples = samples(&cache);
    assert_eq!(samples.len() as u64, USABLE + ADDED - 1);
    for (key, label) in samples.values() {
        assert_eq!(key.split('/').next().unwrap(), label);
    }
    let keys: BTreeSet<_> = samples.values().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), samples.len(), "an image is there twice");

    // The features are those of a cache that was built from all images at once. Other images share a forward pass, hence the rounding.
    world.build("whole", &["--codec", "f32"]).unwrap();
    let whole = Cache::open(&world.path("whole")).unwrap();
    for id in ["clip", "dino"] {
        let (grown, whole) = (features(&cache, id), features(&whole, id));
        assert_eq!(grown.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for (row, tokens) in grown {
            let worst = tokens.iter().zip(&whole[&row]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{id}: {row:?} differs by {worst}");
        }
    }
}

#[test]
fn added_parts_have_the_same_bytes_however_they_were_built() {
    let world = World::new();
    world.build("base", &["--codec", "i8"]).unwrap();
    grow(&world);
    let base = world.path("base");
    copy(&base, &world.path("once"));
    add(&world, "once", &[]).unwrap();
    // By two workers.
    copy(&base, &world.path("shared"));
    for worker in ["1/2", "0/2"] {
        add(&world, "shared", &["--worker", worker, "--threads", "1"]).unwrap();
    }
    assert_same_tree(&world.path("shared"), &world.path("once"));
    // Interrupted after one of two new parts, or after one teacher of it.
    for kept in ["part-00003", "teachers/clip/part-00003"] {
        let half = copy(&world.path("once"), &world.path("half"));
        for name in tree(&half).into_keys() {
            let is_new = name.contains("part-00003") || name.contains("part-00004");
            let of_samples = name.starts_with("samples/part-00003") || name.starts_with("rejects/part-00003");
            if is_new && !name.contains(kept) && !of_samples {
                fs::remove_file(half.join(name)).unwrap();
            }
        }
        add(&world, "half", &[]).unwrap();
        assert_same_tree(&half, &world.path("once"));
        fs::remove_dir_all(half).unwrap();
    }
    // What it computes with is said by name.
    let said = stderr(&output(&add_args(&world, "shared", "images", &["--dry-run"])));
    let heading =
        format!("the recipe in full for teachers clip and dino of {}:\n[data]", world.path("shared").display());
    assert!(said.contains(&heading), "{said}");
    // Twice is once.
    let before = tree(&world.path("once"));
    add(&world, "once", &[]).unwrap();
    assert_eq!(before, tree(&world.path("once")));
    // The command that built the cache says how to go on, or finds it finished.
    let error = world.build("base", &["--codec", "i8"]).unwrap_err();
    assert!(format!("{error:#}").contains("pipeline add-images"), "{error:#}");
    assert_eq!(world.build("once", &["--codec", "i8"]).unwrap().0, ExitStatus::Fine);
    assert_eq!(before, tree(&world.path("once")));
}

#[test]
fn a_second_addition_follows_the_first_and_a_teacher_is_added_to_all() {
    let world = World::new();
    let clip = world.path("clip").display().to_string();
    let mut args = world.build_args("cache", &[]);
    // With one teacher alone.
    let dino = args.iter().position(|arg| arg.starts_with("teachers.dino=")).unwrap();
    args.drain(dino - 1..=dino);
    run(args).unwrap();
    grow(&world);
    add(&world, "cache", &[]).unwrap();
    for idx in 200..203 {
        write_image(&world.path("images"), idx);
    }
    // Its weights have moved.
    fs::rename(world.path("clip"), world.path("moved")).unwrap();
    let error = add(&world, "cache", &[]).unwrap_err();
    assert!(format!("{error:#}").contains(&clip), "{error:#}");
    let teacher = format!("clip={}", world.path("moved").display());
    add(&world, "cache", &["--teacher", &teacher]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.identity().generations.len(), 2);
    assert_eq!(cache.identity().samples(), USABLE + BAD + ADDED + 3);

    let dino = format!("dino={}", world.path("dino").display());
    let [path, images] = ["cache", "images"].map(|name| world.path(name).display().to_string());
    let args = ["pipeline", "add-teacher", &path, "--images", &images, "--teacher", &dino, "--batch-size", "5"];
    run(args.map(str::to_owned).to_vec()).unwrap();
    let (status, text) = verify(&world, "cache", &[]);
    assert_eq!(status, ExitStatus::Fine, "{text}");
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(features(&cache, "dino").len(), features(&cache, "clip").len());
}

#[test]
fn images_of_another_source_are_added_and_gone_ones_stay() {
    let world = World::new();
    world.build("cache", &["--pack", "original"]).unwrap();
    let before = tree(&world.path("cache"));
    for idx in 100..104 {
        write_image(&world.path("new"), idx);
    }
    run(add_args(&world, "cache", "new", &[])).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.identity().samples(), USABLE + BAD + 4);
    let after = tree(&world.path("cache"));
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes || name.ends_with("skipped.jsonl")));
    assert_eq!(verify(&world, "cache", &[]).0, ExitStatus::Fine);
    // Only a source that has all of them can be compared with it.
    let new = world.path("new").display().to_string();
    let (status, text) = verify(&world, "cache", &["--images", &new]);
    assert_eq!(status, ExitStatus::Problems);
    assert!(text.contains("23 images of the cache cannot be found there"), "{text}");
}

#[test]
fn what_cannot_be_added_is_refused_before_anything_is_written() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let before = tree(&world.path("cache"));
    let refused = |args: Vec<String>, why: &str| {
        let error = format!("{:#}", run(args).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert_eq!(before, tree(&world.path("cache")), "{why}");
    };
    // Labels of another kind.
    let flat = world.path("flat");
    fs::create_dir_all(&flat).unwrap();
    fs::copy(world.path("images/dog/000.jpg"), flat.join("a.jpg")).unwrap();
    refused(add_args(&world, "cache", "flat", &[]), "give the new images in the layout of the earlier ones");
    // A teacher that is not there.
    refused(add_args(&world, "cache", "images", &["--teacher", "vit=/nowhere"]), "has no teacher vit");
    // A dry run.
    grow(&world);
    let (_, text) = run(add_args(&world, "cache", "images", &["--dry-run"])).unwrap();
    assert!(text.contains("2 to build"), "{text}");
    assert_eq!(before, tree(&world.path("cache")));
    // Another set of weights.
    let other = format!("clip={}", world.path("dino").display());
    refused(add_args(&world, "cache", "images", &["--teacher", &other]), "clip");
    // An unfinished cache.
    fs::remove_file(world.path("cache/samples/part-00001.commit.json")).unwrap();
    let error = format!("{:#}", add(&world, "cache", &[]).unwrap_err());
    assert!(error.contains("part 1 has no samples yet"), "{error}");
}

#[test]
fn an_addition_that_was_begun_is_finished_with_its_own_images() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    grow(&world);
    add(&world, "cache", &[]).unwrap();
    let cache = world.path("cache");
    for name in tree(&cache).into_keys().filter(|name| name.contains("part-00004")) {
        fs::remove_file(cache.join(name)).unwrap();
    }
    // One more image since.
    write_image(&world.path("images"), 0xfff);
    let before = tree(&cache);
    let error = format!("{:#}", add(&world, "cache", &[]).unwrap_err());
    assert!(error.contains("have changed since"), "{error}");
    assert_eq!(before, tree(&cache));
    // Without a finished part, the addition is begun anew with all of them.
    for name in tree(&cache).into_keys().filter(|name| name.contains("part-00003")) {
        fs::remove_file(cache.join(name)).unwrap();
    }
    add(&world, "cache", &[]).unwrap();
    let grown = Cache::open(&cache).unwrap();
    assert_eq!(grown.identity().generations.len(), 1);
    assert_eq!(grown.identity().samples(), USABLE + BAD + ADDED + 1);
    assert_eq!(verify(&world, "cache", &[]).0, ExitStatus::Fine);
}

#[test]
fn more_images_that_arrive_during_an_addition_wait_for_the_next() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    grow(&world);
    copy(&world.path("cache"), &world.path("once"));
    add(&world, "once", &[]).unwrap();
    // One of two workers has done its share, and another image comes.
    add(&world, "cache", &["--worker", "0/2"]).unwrap();
    assert!(!world.path("cache/samples/part-00004.commit.json").exists());
    write_image(&world.path("images"), 0xfff);
    add(&world, "cache", &[]).unwrap();
    assert_same_tree(&world.path("cache"), &world.path("once"));
    add(&world, "cache", &[]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.identity().generations.len(), 2);
    assert_eq!(cache.identity().samples(), USABLE + BAD + ADDED + 1);
    assert_eq!(verify(&world, "cache", &[]).0, ExitStatus::Fine);
}

#[test]
fn a_damaged_cache_is_repaired_although_its_source_has_grown() {
    let world = World::new();
    world.build("base", &[]).unwrap();
    copy(&world.path("base"), &world.path("cache"));
    grow(&world);
    add(&world, "cache", &[]).unwrap();
    let whole = tree(&world.path("cache"));
    let damage = |cache: &str, name: &str| {
        let path = world.path(cache).join(name);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    for names in [
        &["samples/part-00001.parquet"][..],
        &["samples/part-00003.parquet", "teachers/dino/part-00000.parquet"],
        &["samples/part-00002.commit.json", "teachers/clip/part-00004.parquet"],
    ] {
        names.iter().for_each(|name| damage("cache", name));
        assert_eq!(verify(&world, "cache", &[]).0, ExitStatus::Problems);
        let error = format!("{:#}", add(&world, "cache", &[]).unwrap_err());
        assert!(error.contains("--repair") || error.contains("restore it"), "{error}");
        world.build("cache", &["--repair"]).unwrap();
        assert_eq!(whole, tree(&world.path("cache")), "{names:?}");
    }
    // A part that somebody has removed is built by the same command.
    for name in ["samples/part-00001.commit.json", "samples/part-00001.parquet", "rejects/part-00001.jsonl"] {
        fs::remove_file(world.path("cache").join(name)).unwrap();
    }
    world.build("cache", &[]).unwrap();
    assert_eq!(whole, tree(&world.path("cache")));
    // Before anything was appended.
    let whole = tree(&world.path("base"));
    damage("base", "teachers/dino/part-00001.parquet");
    world.build("base", &["--repair"]).unwrap();
    let repaired = tree(&world.path("base"));
    assert!(whole.iter().all(|(name, bytes)| repaired[name] == *bytes || name.ends_with("skipped.jsonl")));
}

#[test]
fn a_lost_record_of_an_addition_is_damage_and_written_again() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    grow(&world);
    add(&world, "cache", &[]).unwrap();
    let whole = tree(&world.path("cache"));
    fs::remove_file(world.path("cache/generations/00001.json")).unwrap();
    let (status, text) = verify(&world, "cache", &[]);
    assert_eq!(status, ExitStatus::Problems);
    assert!(text.contains("generations/00001.json is missing") && text.contains("add-images"), "{text}");
    add(&world, "cache", &[]).unwrap();
    assert_eq!(whole, tree(&world.path("cache")));
}
