//! A build that goes on over a source whose images have changed places, for every kind of source.

use std::fs;
use std::path::PathBuf;

use pipeline::ExitStatus;
use pipeline::cli::Cli;

use super::sources::{self, IMAGES, KINDS, Kind, write};
use super::support::{World, assert_same_tree, run, tree};

/// An image that no decoder takes; it has its place in the order all the same.
const REJECTED: usize = 5;

/// Where a cache's part files lie.
const FOLDERS: [&str; 4] = ["samples", "rejects", "teachers/clip", "teachers/dino"];

/// Three parts of the world's 8, one of them with an image of no use.
fn pictures() -> Vec<Vec<u8>> {
    let mut pictures = sources::pictures();
    pictures[REJECTED].fill(7);
    pictures
}

fn build(world: &World, out: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    let source = world.path("source").display().to_string();
    let args = [&["--images", &source], more].concat();
    world.build(out, &args)
}

/// What a build leaves that is stopped when it has finished the parts of `kept`.
fn interrupted(world: &World, whole: &str, out: &str, kept: &[u32]) -> PathBuf {
    let to = world.path(out);
    let _ = fs::remove_dir_all(&to);
    for (name, bytes) in tree(&world.path(whole)) {
        let part = name.split("part-0000").nth(1).map(|rest| &rest[..1]);
        if part.is_none_or(|part| kept.iter().any(|kept| kept.to_string() == part)) {
            let path = to.join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
    to
}

/// What may happen to a source between two sessions of a build.
fn changes() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let made = |edit: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut images = pictures();
        edit(&mut images);
        images
    };
    vec![
        ("a finished and an open place swapped", made(&|i| i.swap(2, 20))),
        ("two finished places swapped", made(&|i| i.swap(0, 7))),
        ("reversed", made(&|i| i.reverse())),
        ("numbered anew", made(&|i| i.rotate_left(1))),
        ("the halves swapped", made(&|i| i.rotate_left(IMAGES / 2))),
        ("the image of no use swapped", made(&|i| i.swap(REJECTED, 21))),
        ("one pixel of one image", made(&|i| i[3][100] ^= 1)),
        ("one image mended", made(&|i| i[REJECTED] = i[9].clone())),
        ("one image spoilt", made(&|i| i[6].fill(9))),
    ]
}

#[test]
fn images_that_changed_places_are_noticed_before_a_build_goes_on() {
    let world = World::new();
    for kind in KINDS {
        for pack in ["none", "original", "jpeg:12:95"] {
            let pack = ["--pack", pack];
            write(kind, &world.path("source"), &pictures());
            let whole = format!("whole-{kind:?}-{}", pack[1].len());
            build(&world, &whole, &pack).unwrap();
            // The places of what is finished are not the first ones only.
            for kept in [&[0][..], &[0, 2]] {
                let half = interrupted(&world, &whole, "half", kept);
                let before = tree(&half);
                for (what, images) in changes() {
                    write(kind, &world.path("source"), &images);
                    let refused = format!("{:#}", build(&world, "half", &pack).expect_err(what));
                    assert!(refused.contains("no longer in their places"), "{kind:?}, {what}: {refused}");
                    assert!(tree(&half) == before, "{kind:?}, {what}: written to");
                }
                write(kind, &world.path("source"), &pictures());
                build(&world, "half", &pack).unwrap();
                assert_same_tree(&half, &world.path(&whole));
            }
        }
    }
}

/// What no finished part was built from may change: the cache is that of the source as it is.
#[test]
fn places_that_are_still_open_may_change() {
    let world = World::new();
    for kind in KINDS {
        write(kind, &world.path("source"), &pictures());
        let (old, new) = (format!("old-{kind:?}"), format!("new-{kind:?}"));
        build(&world, &old, &[]).unwrap();
        let mut images = pictures();
        images.swap(11, 20);
        write(kind, &world.path("source"), &images);
        build(&world, &new, &[]).unwrap();
        let half = interrupted(&world, &old, "half", &[0]);
        build(&world, "half", &[]).unwrap();
        assert_same_tree(&half, &world.path(&new));
    }
}

/// A teacher that comes later reads the images again; each is compared with its row.
#[test]
fn a_later_teacher_does_not_take_other_images_for_those_of_the_cache() {
    let world = World::new();
    for kind in KINDS {
        let source = world.path("source");
        write(kind, &source, &pictures());
        let out = format!("cache-{kind:?}");
        build(&world, &out, &[]).unwrap();
        let teacher = format!("later={}", world.path("clip").display());
        let add = || {
            let words = [
                "pipeline",
                "add-teacher",
                &world.path(&out).display().to_string(),
                "--teacher",
                &teacher,
                "--images",
                &source.display().to_string(),
                "--device",
                "cpu",
            ];
            run(words.map(str::to_owned).into())
        };
        let mut images = pictures();
        images.swap(10, 23);
        write(kind, &source, &images);
        let refused = format!("{:#}", add().unwrap_err());
        assert!(refused.contains("images have changed places"), "{kind:?}: {refused}");
        write(kind, &source, &pictures());
        assert_eq!(add().unwrap().0, ExitStatus::Fine);
    }
}

/// Parts of two builds over the same names and other places: each row is right in itself, and some images are there twice.
#[test]
fn verify_counts_what_is_there_twice_and_tells_copies_from_a_mixture() {
    let world = World::new();
    let source = world.path("source");
    let verify = |cache: &str, images: bool| {
        let mut words = vec!["pipeline".to_owned(), "verify".to_owned()];
        words.push(world.path(cache).display().to_string());
        if images {
            words.extend(["--images".to_owned(), source.display().to_string()]);
        }
        run(words).unwrap()
    };
    write(Kind::Parquet, &source, &pictures());
    build(&world, "mixed", &[]).unwrap();
    let (status, said) = verify("mixed", true);
    assert_eq!(status, ExitStatus::Fine, "{said}");
    assert!(!said.contains("more than one part") && said.contains("24 images at their place"), "{said}");

    let mut images = pictures();
    images.reverse();
    write(Kind::Parquet, &source, &images);
    build(&world, "other", &[]).unwrap();
    for folder in FOLDERS {
        for (name, bytes) in tree(&world.path("other").join(folder)) {
            if name.contains("part-00002") {
                fs::write(world.path("mixed").join(folder).join(name), bytes).unwrap();
            }
        }
    }
    // 0 to 7 are in the first part and, in reverse, in the last; one of them is of no use.
    let (status, said) = verify("mixed", false);
    assert_eq!(status, ExitStatus::Fine, "{said}");
    assert!(
        said.contains("7 images are in more than one part, 14 samples in all (for example samples 0 and 23)"),
        "{said}"
    );
    let (status, said) = verify("mixed", true);
    assert_eq!(status, ExitStatus::Problems, "{said}");
    assert!(said.contains("no longer in their places"), "{said}");

    // An image that is gone is a problem of the data, and those of the cache are told beside it.
    build(&world, "holed", &[]).unwrap();
    images.truncate(22);
    fs::remove_dir_all(&source).unwrap();
    write(Kind::Parquet, &source, &images);
    for damaged in [false, true] {
        if damaged {
            fs::remove_file(world.path("holed/teachers/clip/part-00001.parquet")).unwrap();
        }
        let (status, said) = verify("holed", true);
        assert_eq!(status, ExitStatus::Problems, "{said}");
        assert!(
            said.contains("22 images here, 24 there") && said.contains("2 images of the cache cannot be found there"),
            "{said}"
        );
        assert!(said.contains("(sample 22)") && said.contains("(sample 23)"), "{said}");
        assert!(said.contains(if damaged { "problems: 3 (" } else { "problems: 2 (" }), "{said}");
    }

    // Copies in a data set are counted and are no problem, with the images at hand too.
    let mut images = pictures();
    images[23] = images[0].clone();
    write(Kind::Parquet, &source, &images);
    build(&world, "copies", &[]).unwrap();
    let (status, said) = verify("copies", true);
    assert_eq!(status, ExitStatus::Fine, "{said}");
    assert!(said.contains("1 image is in more than one part, 2 samples in all"), "{said}");
}

/// Records without a finished part are what an interrupted build leaves: they bind nothing, and nothing of them stays.
#[test]
fn an_interrupted_cache_without_a_part_starts_over() {
    let world = World::new();
    for kind in KINDS {
        write(kind, &world.path("source"), &pictures());
        build(&world, "whole", &[]).unwrap();
        let other = ["--views", "3", "--grid", "5", "--codec", "i8", "--part-samples", "7"];
        build(&world, "other", &other).unwrap();
        for (from, more, expected) in [("whole", &other[..], "other"), ("other", &[], "whole")] {
            let begun = interrupted(&world, from, "begun", &[]);
            let stray = begun.join("teachers/stray");
            fs::create_dir_all(&stray).unwrap();
            fs::copy(begun.join("teachers/clip/teacher.json"), stray.join("teacher.json")).unwrap();
            let before = tree(&begun);
            build(&world, "begun", &[more, &["--dry-run"]].concat()).unwrap();
            assert!(tree(&begun) == before, "a dry run writes nothing");
            build(&world, "begun", more).unwrap();
            assert_same_tree(&begun, &world.path(expected));
        }
        for cache in ["whole", "other"] {
            fs::remove_dir_all(world.path(cache)).unwrap();
        }
    }
}

#[test]
fn all_that_differs_is_refused_at_once() {
    let world = World::new();
    write(Kind::Folder, &world.path("source"), &pictures());
    build(&world, "cache", &[]).unwrap();
    let clip = world.path("clip").display().to_string();
    let more = ["--views", "3", "--seed", "9", "--grid", "5", "--codec", "f32", "--part-samples", "7", "--limit", "20"];
    let refused = format!("{:#}", build(&world, "cache", &more).unwrap_err());
    for words in [
        "views.views = 2, but views.views = 3",
        "views.seed = 0, but views.seed = 9",
        "plan.part_samples = 8, but plan.part_samples = 7",
        "dataset.samples = 24, but dataset.samples = 20",
        "grid = 4, but grid = 5",
        "codec = \"f16\", but codec = \"f32\"",
        // And by their names in a recipe.
        "other settings than the cache's (view.seed, view.views, cache.part_samples)",
        "other settings than the cache's (features.codec, features.grid)",
        "teachers/clip/teacher.json",
        "teachers/dino/teacher.json",
    ] {
        assert!(refused.contains(words), "{words:?} is not in {refused}");
    }
    // A codec that would be calibrated first is refused beside the rest, before anything is read for it.
    let more = ["--views", "3", "--grid", "5", "--codec", "i8"];
    let refused = format!("{:#}", build(&world, "cache", &more).unwrap_err());
    for words in [
        "views.views = 2, but views.views = 3",
        "grid = 4, but grid = 5",
        "clip/teacher.json: codec is f16 in the cache and i8 was asked for",
        "dino/teacher.json: codec is f16 in the cache and i8 was asked for",
    ] {
        assert!(refused.contains(words), "{words:?} is not in {refused}");
    }
    // A teacher of another name has no record to differ from.
    let cache = world.path("cache").display().to_string();
    let source = world.path("source").display().to_string();
    let add = |id: &str, more: &[&str]| {
        let teacher = format!("{id}={clip}");
        let mut words = vec!["pipeline", "add-teacher", &cache, "--images", &source];
        words.extend(["--device", "cpu", "--teacher", &teacher]);
        words.extend(more);
        let words = words.into_iter().map(str::to_owned).collect();
        format!("{:#}", run(words).unwrap_err())
    };
    let refused = add("clip", &["--codec", "f32", "--batch-size", "3"]);
    assert!(refused.contains("(features.batch_size, features.codec)"), "{refused}");
    assert!(refused.contains("codec = \"f16\"") && refused.contains("batch_size = 5, but batch_size = 3"), "{refused}");
}

/// Which of two values is meant is not ours to guess; what may be many is still taken.
#[test]
fn an_option_given_twice_is_refused() {
    let parse = |line: &str| {
        let words = line.split(' ').map(Into::into);
        program::cli::parse::<Cli>(words).map(drop).map_err(|e| e.to_string())
    };
    for line in [
        "pipeline build-cache --images a --images b",
        "pipeline build-cache --images a --images a",
        "pipeline build-cache --images=a --out o --images=b",
        "pipeline build-cache --dry-run --dry-run",
        "pipeline build-cache --grid 4 --grid 5",
        "pipeline build-cache --log-format text --log-format json",
        "pipeline --log-format text --log-format=json build-cache",
        "pipeline --log-format text build-cache --log-format json",
        "pipeline add-teacher c --teacher a=b --images a --images b",
        "pipeline verify c --images a --images b",
        "pipeline inspect c --view 1 --view 2",
        "pipeline stats c --limit 1 --limit 2",
        "pipeline list c --json --json",
    ] {
        let refused = parse(line).unwrap_err();
        assert!(refused.contains("cannot be used multiple times"), "{line}: {refused}");
    }
    for line in [
        "pipeline build-cache --teacher a=b --teacher c=d --set view.views=2 --set view.seed=3 --log-format json",
        "pipeline inspect c --row 1 --row 2-3",
        "pipeline stats c --teacher a --teacher b",
    ] {
        parse(line).unwrap();
    }
    let world = World::new();
    let set = |key: &str| format!("{key}=1");
    for key in ["view.seed", "run.threads"] {
        let more = ["--set", &set(key), "--set", &format!(" {}", set(key))];
        let refused = format!("{:#}", world.build("cache", &more).unwrap_err());
        assert!(refused.contains(&format!("{key} is given twice")), "{refused}");
    }
}

/// What is not said is as the cache has it, as its grid is; what is said otherwise is refused.
#[test]
fn the_size_of_parts_stays_that_of_the_cache() {
    let world = World::new();
    let args = |more: &[&str]| {
        let args = world.build_args("cache", more);
        // Neither in the recipe nor by a flag, unless `more` has it.
        let place = args.iter().position(|arg| arg == "cache.part_samples=8");
        match place {
            Some(place) if more.is_empty() => [&args[..place - 1], &args[place + 1..]].concat(),
            _ => args,
        }
    };
    run(args(&["--part-samples", "7"])).unwrap();
    let before = tree(&world.path("cache"));
    fs::remove_file(world.path("cache/teachers/clip/part-00001.commit.json")).unwrap();
    assert_eq!(run(args(&[])).unwrap().0, ExitStatus::Fine);
    assert_eq!(tree(&world.path("cache")), before);
    let error = format!("{:#}", run(args(&["--part-samples", "9"])).unwrap_err());
    assert!(error.contains("cache.part_samples") && error.contains("plan.part_samples = 7"), "{error}");
}
