//! Features made of stored ones: `--reuse`, `recode`, and `drop-teacher`.

use std::collections::BTreeMap;
use std::fs;

use pipeline::ExitStatus;
use schemas::{Cache, Codec, ContentHash, FeatureCodec, TeacherId, TeacherRow};

use super::support::{World, assert_same_tree, output, run, stderr, tree, write_image};

fn open(world: &World, name: &str) -> Cache {
    Cache::open(&world.path(name)).unwrap()
}

fn id(id: &str) -> TeacherId {
    id.parse().unwrap()
}

/// The stored rows of a teacher by content and view.
fn stored(cache: &Cache, teacher: &str) -> BTreeMap<(ContentHash, u16), TeacherRow> {
    let parts = 0..cache.identity().parts();
    let rows = parts.flat_map(|part| {
        let part = cache.teacher_part(&id(teacher), part).unwrap();
        part.iter().map(Result::unwrap).collect::<Vec<_>>()
    });
    rows.map(|row| ((row.key.content_hash, row.key.view), row)).collect()
}

fn tokens(cache: &Cache, teacher: &str, row: &TeacherRow) -> Vec<f32> {
    let mut tokens = Vec::new();
    cache.teacher(&id(teacher)).unwrap().decode_tokens(&row.tokens, &mut tokens).unwrap();
    tokens
}

fn command(world: &World, command: &str, cache: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    let path = world.path(cache).display().to_string();
    run(["pipeline", command, &path].iter().chain(more).map(|arg| (*arg).to_owned()).collect())
}

fn assert_sound(world: &World, cache: &str) {
    let (status, text) = command(world, "verify", cache, &[]).unwrap();
    assert_eq!(status, ExitStatus::Fine, "{text}");
}

#[test]
fn known_crops_keep_their_features_wherever_the_image_is_now() {
    let world = World::new();
    for codec in ["f16", "i8"] {
        let old = format!("old-{codec}");
        world.build(&old, &["--codec", codec]).unwrap();
        let path = world.path(&old).display().to_string();
        // Other images, another order, and more views.
        for idx in 100..104 {
            write_image(&world.path("images"), idx);
        }
        let _ = fs::rename(world.path("images/dog/000.jpg"), world.path("images/dog/zebra.jpg"));
        let new = format!("new-{codec}");
        let (status, text) =
            world.build(&new, &["--codec", codec, "--reuse", &path, "--views", "3", "--part-samples", "7"]).unwrap();
        assert_eq!(status, ExitStatus::Fine);
        let (old, new) = (open(&world, &old), open(&world, &new));
        assert_sound(&world, &format!("new-{codec}"));
        for teacher in ["clip", "dino"] {
            let (before, after) = (stored(&old, teacher), stored(&new, teacher));
            for (crop, row) in &before {
                let kept = &after[crop];
                assert!(
                    (&kept.tokens, &kept.cls, &kept.cls_attn) == (&row.tokens, &row.cls, &row.cls_attn),
                    "{crop:?}"
                );
            }
            assert!(after.len() > before.len());
        }
        let reused = stored(&old, "clip").len() + stored(&old, "dino").len();
        assert!(text.contains(&format!("reused             {reused} rows of features")), "{text}");
    }
    // The crops that were computed are those of a build without it. Other rows share a forward pass, hence the rounding.
    world.build("whole", &["--views", "3", "--part-samples", "7"]).unwrap();
    let (whole, new) = (open(&world, "whole"), open(&world, "new-f16"));
    for teacher in ["clip", "dino"] {
        let (whole_rows, rows) = (stored(&whole, teacher), stored(&new, teacher));
        assert_eq!(whole_rows.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
        for (crop, row) in &rows {
            let pairs = tokens(&new, teacher, row).into_iter().zip(tokens(&whole, teacher, &whole_rows[crop]));
            let worst = pairs.map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{crop:?}: {worst}");
        }
    }
}

#[test]
fn what_was_seen_or_computed_otherwise_is_not_reused() {
    let world = World::new();
    world.build("old", &[]).unwrap();
    let old = world.path("old").display().to_string();
    let swapped = format!("clip={}", world.path("dino").display());
    for (more, why) in [
        (&["--pack", "jpeg:30:90"][..], "decoded or packed otherwise"),
        (&["--codec", "f32"], "its teacher clip is another"),
        (&["--batch-size", "4"], "its teacher clip is another"),
    ] {
        let error = world.build("new", &[more, &["--reuse", &old]].concat()).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
        assert!(!world.path("new").exists());
    }
    // One teacher is another, the other the same.
    let (_, text) = world.build("new", &["--teacher", &swapped, "--reuse", &old]).unwrap();
    assert!(text.contains("reused             40 rows"), "{text}");
    // Not from itself.
    let error = world.build("old", &["--reuse", &old]).unwrap_err();
    assert!(format!("{error:#}").contains("another cache"), "{error:#}");
}

/// An image whose features are all taken over is read and hashed, and neither decoded nor rendered: its crops follow from its content and size.
#[test]
fn images_that_nobody_has_to_see_are_not_rendered() {
    let world = World::new();
    let (_, text) = world.build("old", &[]).unwrap();
    assert!(text.contains("crop and resample"), "{text}");
    let old = world.path("old").display().to_string();
    let (_, text) = world.build("all", &["--reuse", &old]).unwrap();
    assert!(text.contains("reused             80 rows") && !text.contains("crop and resample"), "{text}");
    assert_sound(&world, "all");
    // Some of them, in batches with others.
    for idx in 100..104 {
        write_image(&world.path("images"), idx);
    }
    let (_, text) = world.build("some", &["--reuse", &old]).unwrap();
    assert!(text.contains("reused             80 rows") && text.contains("crop and resample"), "{text}");
    assert_sound(&world, "some");
    for teacher in ["clip", "dino"] {
        let before = stored(&open(&world, "old"), teacher);
        let all = stored(&open(&world, "all"), teacher);
        assert!(all == before, "{teacher}: other rows");
        let some = stored(&open(&world, "some"), teacher);
        assert!(
            some.len() == before.len() + 8
                && before.iter().all(|(crop, row)| {
                    let kept = &some[crop];
                    (&kept.tokens, &kept.cls, &kept.cls_attn) == (&row.tokens, &row.cls, &row.cls_attn)
                })
        );
    }
    // The new images have the features of a build without it.
    world.build("whole", &[]).unwrap();
    let (whole, some) = (open(&world, "whole"), open(&world, "some"));
    let (whole_rows, rows) = (stored(&whole, "clip"), stored(&some, "clip"));
    for (crop, row) in &rows {
        let pairs = tokens(&some, "clip", row).into_iter().zip(tokens(&whole, "clip", &whole_rows[crop]));
        let worst = pairs.map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
        assert!(worst < 2e-3, "{crop:?}: {worst}");
    }
}

/// A build that reuses nothing succeeds; its summary says why, and a dry run says that it does not know.
#[test]
fn why_rows_are_not_reused_is_told() {
    let world = World::new();
    world.build("old", &[]).unwrap();
    let old = world.path("old").display().to_string();
    // The same images with other crops.
    let (status, text) = world.build("seed", &["--seed", "9", "--reuse", &old]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(text.contains("reused             0 rows"), "{text}");
    assert!(text.contains("computed         80 rows of other crops of its images"), "{text}");
    // Another image, and a teacher that is another one.
    write_image(&world.path("images"), 100);
    let swapped = format!("clip={}", world.path("dino").display());
    let args = ["--teacher", &swapped, "--reuse", &old];
    let (_, dry) = world.build("new", &[&args[..], &["--dry-run"]].concat()).unwrap();
    assert!(dry.contains("reuse              the time above is that of a build without --reuse"), "{dry}");
    let (_, text) = world.build("new", &args).unwrap();
    assert!(text.contains("computed         4 rows of images that it does not have"), "{text}");
    assert!(text.contains("computed         40 rows of teachers that it does not have"), "{text}");
}

/// Its network would give other bytes than those that were recoded, so a repair names the commands that give the same ones.
#[test]
fn a_recoded_teacher_is_repaired_by_recoding() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    command(&world, "recode", "cache", &["--teacher", "clip", "--codec", "i8"]).unwrap();
    // Of the same codec, and computed by its network.
    let teacher = format!("computed={}", world.path("clip").display());
    let images = world.path("images").display().to_string();
    let added = ["--teacher", &teacher, "--images", &images, "--codec", "i8", "--batch-size", "5", "--device", "cpu"];
    command(&world, "add-teacher", "cache", &added).unwrap();
    let whole = tree(&world.path("cache"));
    let damage = |name: &str| {
        let mut bytes = whole[name].clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(world.path("cache").join(name), bytes).unwrap();
    };
    let repair = |teachers: &[&str]| {
        let mut args = world.build_args("cache", &["--repair"]);
        if let [teacher] = teachers {
            for id in ["clip", "dino"] {
                let at = args.iter().position(|arg| arg.starts_with(&format!("teachers.{id}="))).unwrap();
                args.drain(at - 1..=at);
            }
            let path = world.path("clip").display().to_string();
            args.extend(["--teacher".to_owned(), format!("{teacher}={path}"), "--codec".to_owned(), "i8".to_owned()]);
        }
        run(args)
    };
    damage("teachers/clip-i8/part-00001.parquet");
    damage("samples/part-00000.parquet");
    for teachers in [&[][..], &["clip-i8"]] {
        let refused = format!("{:#}", repair(teachers).unwrap_err());
        assert!(refused.contains("recode") && refused.contains("--teacher clip --codec i8 --as clip-i8"), "{refused}");
        assert!(refused.contains("clip-i8/part-00001.commit.json"), "{refused}");
        assert!(world.path("cache/samples/part-00000.commit.json").exists(), "something was taken out");
    }
    // As it says.
    fs::remove_file(world.path("cache/teachers/clip-i8/part-00001.commit.json")).unwrap();
    let (_, said) = command(&world, "verify", "cache", &[]).unwrap();
    let cache = world.path("cache").display().to_string();
    assert!(said.contains(&format!("run `pipeline recode {cache} --teacher clip --codec i8 --as clip-i8`")), "{said}");
    repair(&[]).unwrap();
    command(&world, "recode", "cache", &["--teacher", "clip", "--codec", "i8"]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
    // What a network computed is computed again.
    damage("teachers/computed/part-00001.parquet");
    repair(&["computed"]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
}

/// While a build is at work, what is not built yet is still to come.
#[test]
fn recoding_beside_a_build_may_be_tried_again() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let commit = world.path("cache/teachers/clip/part-00002.commit.json");
    fs::remove_file(&commit).unwrap();
    let cache = world.path("cache").display().to_string();
    let images = world.path("images").display().to_string();
    let recode = ["pipeline", "recode", &cache, "--teacher", "clip", "--codec", "i8"];
    let add = ["pipeline", "add-images", &cache, "--images", &images];
    let build = fs::File::open(&cache).unwrap();
    build.lock_shared().unwrap();
    let busy = output(&recode);
    assert_eq!(busy.status.code(), Some(75), "{}", stderr(&busy));
    assert!(stderr(&busy).contains("A build is at work here"), "{}", stderr(&busy));
    fs::remove_file(world.path("cache/samples/part-00001.commit.json")).unwrap();
    let busy = output(&add);
    assert_eq!(busy.status.code(), Some(75), "{}", stderr(&busy));
    build.unlock().unwrap();
    for command in [&recode[..], &add] {
        let refused = output(command);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    }
    assert!(stderr(&output(&add)).contains("run the same `pipeline build-cache` that began"));
}

/// Temporary files of processes that were killed go with the next command, those of living ones stay.
#[test]
fn what_killed_processes_left_is_removed() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let whole = tree(&world.path("cache"));
    let left = [
        ".cache.json.0123456789abcdef.tmp",
        "samples/.part-00001.parquet.0123456789abcdef.tmp",
        "rejects/.skipped.jsonl.0123456789abcdef.tmp",
        "teachers/dino/.part-00002.commit.json.0123456789abcdef.tmp",
    ];
    for name in left {
        fs::write(world.path("cache").join(name), "half").unwrap();
    }
    let living = world.path("cache/teachers/clip/.part-00000.parquet.fedcba9876543210.tmp");
    fs::write(&living, "half").unwrap();
    let held = fs::File::open(&living).unwrap();
    held.lock().unwrap();
    world.build("cache", &[]).unwrap();
    assert!(living.exists());
    held.unlock().unwrap();
    world.build("cache", &[]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
    // A part that is recoded again.
    command(&world, "recode", "cache", &["--teacher", "clip", "--codec", "i8"]).unwrap();
    let whole = tree(&world.path("cache"));
    fs::remove_file(world.path("cache/teachers/clip-i8/part-00001.commit.json")).unwrap();
    fs::write(world.path("cache/teachers/clip-i8/.part-00001.parquet.0123456789abcdef.tmp"), "half").unwrap();
    command(&world, "recode", "cache", &["--teacher", "clip", "--codec", "i8"]).unwrap();
    assert!(tree(&world.path("cache")) == whole);
}

#[test]
fn a_recoded_teacher_is_the_one_that_a_build_would_have_written() {
    let world = World::new();
    world.build("exact", &["--codec", "f32"]).unwrap();
    for codec in ["f16", "bf16", "i8"] {
        command(&world, "recode", "exact", &["--teacher", "clip", "--codec", codec]).unwrap();
        world.build(codec, &["--codec", codec]).unwrap();
        let (exact, built) = (open(&world, "exact"), open(&world, codec));
        let recoded = format!("clip-{codec}");
        assert_eq!(exact.teacher(&id(&recoded)).unwrap().codec, built.teacher(&id("clip")).unwrap().codec);
        assert!(stored(&exact, &recoded) == stored(&built, "clip"), "{codec}: other features");
        for part in 0..built.identity().parts() {
            let [of_recoded, of_built] = [(&exact, &*recoded), (&built, "clip")]
                .map(|(cache, teacher)| cache.part_state(part).unwrap().teachers[&id(teacher)].clone());
            assert_eq!(of_recoded.channels, of_built.channels);
            assert_eq!(of_recoded.codec_error, of_built.codec_error);
        }
    }
    assert_sound(&world, "exact");
}

/// By the same ranges, i8 of f16 values is i8 of the exact values, but where f16's rounding crosses the middle of a step.
#[test]
fn recoding_what_is_rounded_already_moves_few_values_by_one_step() {
    let world = World::new();
    for codec in ["f32", "f16"] {
        world.build(codec, &["--codec", codec]).unwrap();
    }
    command(&world, "recode", "f16", &["--teacher", "clip", "--codec", "i8"]).unwrap();
    let (exact, rounded) = (open(&world, "f32"), open(&world, "f16"));
    let Codec::I8(affine) = rounded.teacher(&id("clip-i8")).unwrap().codec.clone() else {
        panic!("it was recoded to i8");
    };
    let (width, of_exact) = (affine.width(), stored(&exact, "clip"));
    let (mut moved, mut all) = (0, 0);
    for (crop, recoded) in stored(&rounded, "clip-i8") {
        let mut built = Vec::new();
        affine.encode(&tokens(&exact, "clip", &of_exact[&crop]), width, &mut built).unwrap();
        let codes = built.len() - 2 * affine.outliers.len() * (built.len() / (width + 2 * affine.outliers.len()));
        for (a, b) in built[..codes].iter().zip(&recoded.tokens[..codes]) {
            let steps = (i16::from(a.cast_signed()) - i16::from(b.cast_signed())).abs();
            assert!(steps <= 1, "{crop:?}: {steps} steps");
            moved += usize::from(steps == 1);
            all += 1;
        }
    }
    assert!(moved * 20 < all, "{moved} of {all}");
}

#[test]
fn recoding_goes_on_where_it_was_and_refuses_what_gains_nothing() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let recode = |more: &[&str]| command(&world, "recode", "cache", &[&["--teacher", "clip"], more].concat());
    recode(&["--codec", "i8", "--threads", "1"]).unwrap();
    let whole = tree(&world.path("cache"));
    for name in ["part-00001.commit.json", "part-00001.parquet", "part-00002.commit.json"] {
        fs::remove_file(world.path("cache/teachers/clip-i8").join(name)).unwrap();
    }
    recode(&["--codec", "i8", "--threads", "3"]).unwrap();
    assert_eq!(whole, tree(&world.path("cache")));
    // All of it is there.
    recode(&["--codec", "i8"]).unwrap();
    assert_eq!(whole, tree(&world.path("cache")));
    for (more, why) in [
        (&["--codec", "f16"][..], "is stored in f16"),
        (&["--codec", "i8", "--as", "clip"], "give its copy another name"),
        (&["--codec", "bf16", "--as", "dino"], "codec"),
        (&["--codec", "i8", "--calibration-images", "5"], "was calibrated over"),
    ] {
        let error = recode(more).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
    assert_eq!(whole, tree(&world.path("cache")));
}

#[test]
fn a_dropped_teacher_leaves_the_cache_as_if_it_had_never_been() {
    let world = World::new();
    let clip = format!("clip={}", world.path("clip").display());
    let mut args = world.build_args("alone", &[]);
    let dino = args.iter().position(|arg| arg.starts_with("teachers.dino=")).unwrap();
    args.drain(dino - 1..=dino);
    run(args).unwrap();
    world.build("both", &["--teacher", &clip]).unwrap();
    command(&world, "drop-teacher", "both", &["dino"]).unwrap();
    assert_same_tree(&world.path("both"), &world.path("alone"));
    for (more, why) in [(&["dino"][..], "has no teacher dino"), (&["clip"], "its only teacher")] {
        let error = command(&world, "drop-teacher", "both", more).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
    assert_same_tree(&world.path("both"), &world.path("alone"));
    command(&world, "drop-teacher", "both", &["clip", "--last"]).unwrap();
    assert!(open(&world, "both").teachers().is_empty());
}
