//! What makes a cache worth sharing: images inside, smaller features, teachers added later.

use std::fs;
use std::path::Path;

use pipeline::ExitStatus;
use schemas::{Cache, Codec, CodecError, Pack, TeacherId};

use crate::support::{World, assert_same_tree, output, run, stderr, stdout, tree};
use crate::teacher::write_teacher;

const JPEG: [&str; 2] = ["--pack", "jpeg:32:90"];

/// A build with the teacher `clip` alone.
fn build_clip(world: &World, out: &str, more: &[&str]) {
    let mut args = world.build_args(out, more);
    let dino = args.iter().position(|arg| arg.starts_with("teachers.dino")).unwrap();
    args.drain(dino - 1..=dino);
    assert_eq!(run(args).unwrap().0, ExitStatus::Fine);
}

fn add_teacher(world: &World, cache: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
    let mut args: Vec<String> = ["pipeline", "add-teacher"].map(String::from).to_vec();
    args.push(world.path(cache).display().to_string());
    args.extend(["--batch-size", "5", "--device", "cpu"].map(String::from));
    args.extend(["--teacher".to_owned(), format!("dino={}", world.path("dino").display())]);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    run(args)
}

fn teacher_id(id: &str) -> TeacherId {
    TeacherId::new(id).unwrap()
}

/// A teacher that is added later gives the very cache that both together give, and touches nothing that was there; packed images
/// are enough for it.
#[test]
fn a_teacher_added_later_is_as_if_it_had_been_there() {
    for pack in [&[][..], &["--pack", "original"], &JPEG] {
        let world = World::new();
        world.build("both", pack).unwrap();
        build_clip(&world, "cache", pack);
        let before = tree(&world.path("cache"));
        let images = world.path("images").display().to_string();
        if pack.is_empty() {
            let error = format!("{:#}", add_teacher(&world, "cache", &[]).unwrap_err());
            assert!(error.contains("holds no images") && error.contains("--images"), "{error}");
            add_teacher(&world, "cache", &["--images", &images]).unwrap();
        } else {
            fs::remove_dir_all(world.path("images")).unwrap();
            add_teacher(&world, "cache", &[]).unwrap();
        }
        let after = tree(&world.path("cache"));
        for (name, bytes) in &before {
            assert!(after[name] == *bytes, "{name} was touched");
        }
        assert_same_tree(&world.path("cache"), &world.path("both"));
        // Again: nothing to do.
        let again = match pack.is_empty() {
            true => add_teacher(&world, "cache", &["--images", &images]),
            false => add_teacher(&world, "cache", &[]),
        };
        assert!(again.unwrap().1.contains("nothing to do"));
    }
}

#[test]
fn other_images_and_unfinished_caches_get_no_teacher() {
    let world = World::new();
    build_clip(&world, "cache", &[]);
    fs::copy(world.path("images/dog/000.jpg"), world.path("images/dog/zzz.jpg")).unwrap();
    fs::remove_file(world.path("images/cat/001.jpg")).unwrap();
    let images = world.path("images").display().to_string();
    let error = format!("{:#}", add_teacher(&world, "cache", &["--images", &images]).unwrap_err());
    assert!(error.contains("is not the data set"), "{error}");

    fs::remove_file(world.path("cache/samples/part-00001.commit.json")).unwrap();
    let error = format!("{:#}", add_teacher(&world, "cache", &["--images", &images]).unwrap_err());
    assert!(error.contains("part 1 has no samples"), "{error}");
}

/// Teachers see what the student will be shown: the re-encoded pixels, and boxes in them.
#[test]
fn packed_jpegs_are_what_rows_and_features_are_of() {
    let world = World::new();
    world.build("cache", &JPEG).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert!(matches!(cache.identity().pack, Pack::Jpeg { short_side: 32, quality: 90 }));
    let mut packed = 0;
    for part in 0..cache.identity().plan.parts() {
        let samples = cache.samples_part(part).unwrap();
        for (i, row) in samples.rows().iter().enumerate() {
            let image = samples.read_image(i).unwrap();
            assert_eq!(image.is_some(), row.view.index == 0);
            if let Some(image) = image {
                packed += 1;
                let image = images::decode(&image).unwrap();
                assert_eq!((image.width, image.height), (row.width, row.height));
                assert_eq!(row.width.min(row.height), 32);
                assert!(row.view.crop.fits(row.width, row.height));
            }
        }
    }
    assert_eq!(packed, crate::support::USABLE);
    // What was lost is built again, from the packed images where they are there.
    let before = tree(&world.path("cache"));
    for file in ["teachers/dino/part-00000.commit.json", "samples/part-00001.commit.json"] {
        fs::remove_file(world.path("cache").join(file)).unwrap();
    }
    world.build("cache", &JPEG).unwrap();
    assert!(tree(&world.path("cache")) == before);
    let refused = format!("{:#}", world.build("cache", &["--pack", "jpeg:32:91"]).unwrap_err());
    assert!(refused.contains("pack.jpeg.quality"), "{refused}");
}

/// The error that the commits state is the one between this cache and one that lost nothing.
#[test]
fn every_lossy_codec_states_what_it_lost() {
    let world = World::new();
    world.build("exact", &["--codec", "f32"]).unwrap();
    let exact = Cache::open(&world.path("exact")).unwrap();
    for (codec, least_cos) in [("f16", 0.999_999), ("bf16", 0.999_9), ("i8", 0.999)] {
        world.build(codec, &["--codec", codec]).unwrap();
        let cache = Cache::open(&world.path(codec)).unwrap();
        for (id, teacher) in cache.teachers() {
            assert_eq!(teacher.codec.name(), codec);
            let width = teacher.width as usize;
            let (mut stated, mut found) = (CodecError::default(), CodecError::default());
            for part in 0..cache.identity().plan.parts() {
                let (lossy, lossless) = (cache.teacher_part(id, part).unwrap(), exact.teacher_part(id, part).unwrap());
                stated.add(lossy.commit().codec_error.as_ref().unwrap());
                assert_eq!(lossless.commit().codec_error, None);
                for row in 0..lossy.rows() {
                    let (mut given, mut stored) = (Vec::new(), Vec::new());
                    exact
                        .teacher(id)
                        .unwrap()
                        .decode_tokens(&lossless.read_row(row).unwrap().tokens, &mut given)
                        .unwrap();
                    teacher.decode_tokens(&lossy.read_row(row).unwrap().tokens, &mut stored).unwrap();
                    found.add(&CodecError::measure(&given, &stored, width));
                }
            }
            assert_eq!(stated.tokens, found.tokens);
            assert!((stated.relative_l2() - found.relative_l2()).abs() < 1e-12);
            assert!((stated.mean_cos() - found.mean_cos()).abs() < 1e-12);
            assert!(stated.mean_cos() > least_cos, "{codec} {id}: {}", stated.mean_cos());
            assert!(stated.relative_l2() > 0.0);
        }
    }
}

/// Calibrated once: neither threads nor interruptions change it, and another calibration is another cache.
#[test]
fn i8_is_calibrated_once() {
    let world = World::new();
    let i8 = ["--codec", "i8", "--calibration-images", "7"];
    world.build("cache", &[&i8[..], &["--threads", "1"]].concat()).unwrap();
    world.build("other", &[&i8[..], &["--threads", "3"]].concat()).unwrap();
    assert_same_tree(&world.path("other"), &world.path("cache"));
    let cache = Cache::open(&world.path("cache")).unwrap();
    let Codec::I8(affine) = &cache.teacher(&teacher_id("clip")).unwrap().codec else { panic!("it was asked for") };
    assert!((1..=7).contains(&affine.images), "bad images are passed by: {}", affine.images);

    for file in ["teachers/clip/part-00001.commit.json", "teachers/dino/part-00002.commit.json"] {
        fs::remove_file(world.path("cache").join(file)).unwrap();
    }
    // Other ranges would come of other images; the cache's own are used.
    world.build("cache", &i8).unwrap();
    assert_same_tree(&world.path("cache"), &world.path("other"));
    // The numbers of a table say nothing to anybody.
    let longest = 2 * (350 + world.path("cache").as_os_str().len()); // a line for each teacher
    for (change, words) in [
        (&["--codec", "i8", "--calibration-images", "3"][..], "calibrated over"),
        (&["--codec", "f16"], "codec = \"i8\", but codec = \"f16\" is asked for;"),
    ] {
        let refused = format!("{:#}", world.build("cache", change).unwrap_err());
        assert!(refused.contains(words), "{refused}");
        assert!(refused.len() < longest, "{refused}");
    }
    let refused = format!("{:#}", world.build("cache", &["--views", "3"]).unwrap_err());
    assert!(refused.contains("views.views = 2"), "{refused}");
    world.build("f16", &[]).unwrap();
    let refused = format!("{:#}", world.build("f16", &i8).unwrap_err());
    assert!(refused.contains("codec is f16"), "{refused}");
}

/// The summary says what the codec lost, and that it is too much where the calibration saw too little.
#[test]
fn a_bad_calibration_does_not_pass_in_silence() {
    let world = World::new();
    let i8 = |out: &str, images: &str| {
        let more = ["--codec", "i8", "--calibration-images", images];
        let built = output(&world.build_args(out, &more));
        assert_eq!(built.status.code(), Some(0), "{}", stderr(&built));
        assert!(stdout(&built).contains("codec error clip   relative L2 "), "{}", stdout(&built));
        stderr(&built).contains("more than rounding explains")
    };
    // The first of two samples is not an image.
    assert!(i8("bad", "2"));
    assert!(!i8("good", "256"));
}

#[test]
fn a_later_teacher_may_have_another_width_codec_and_layer() {
    let world = World::new();
    build_clip(&world, "cache", &JPEG);
    write_teacher(&world.path("dino"), 2, 9);
    add_teacher(&world, "cache", &["--codec", "i8", "--layer", "last_norm"]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    let dino = cache.teacher(&teacher_id("dino")).unwrap();
    assert_eq!((dino.codec.name(), dino.layer.as_str(), dino.patch_size), ("i8", "last_norm", 2));
    assert_eq!(dino.grid, cache.teacher(&teacher_id("clip")).unwrap().grid);
    assert!(schemas::verify(&world.path("cache"), &mut |_| {}).unwrap().problems.is_empty());
    let refused = add_teacher(&world, "cache", &["--codec", "i8"]).unwrap_err();
    assert!(format!("{refused:#}").contains("layer"), "{refused:#}");
}

/// An attempt that failed before its first part leaves the name free; one that succeeded holds it.
#[test]
fn a_failed_attempt_does_not_claim_the_name() {
    let world = World::new();
    build_clip(&world, "cache", &[]);
    let images = world.path("images");
    let given = images.display().to_string();
    let files: Vec<_> = tree(&images).into_keys().collect();
    let contents = tree(&images);
    for name in &files {
        let mut bytes = contents[name].clone();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        fs::write(images.join(name), bytes).unwrap();
    }
    let codec = |codec: &'static str| ["--images", &given, "--codec", codec].map(str::to_owned);
    let add = |codec_args: [String; 4]| {
        let args: Vec<&str> = codec_args.iter().map(String::as_str).collect();
        add_teacher(&world, "cache", &args)
    };
    let failed = add(codec("f32")).unwrap_err();
    assert!(format!("{failed:#}").contains("changed"), "{failed:#}");
    for name in &files {
        fs::write(images.join(name), &contents[name]).unwrap();
    }
    assert_eq!(add(codec("bf16")).unwrap().0, ExitStatus::Fine);
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.teachers()[&teacher_id("dino")].codec, Codec::Bf16);

    let refused = format!("{:#}", add(codec("f32")).unwrap_err());
    assert!(refused.contains("choose another name"), "{refused}");
}

/// Features whose batches were cut as the first version did it are read and added to, and not gone on with.
#[test]
fn a_cache_of_earlier_batches_is_sound_and_takes_other_teachers() {
    let world = World::new();
    let earlier = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat/v1/cache");
    for (name, bytes) in tree(&earlier) {
        let path = world.path("cache").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let add = |id: &str| {
        let teacher = format!("{id}={}", world.path("dino").display());
        let cache = world.path("cache").display().to_string();
        let words = ["pipeline", "add-teacher", &cache, "--device", "cpu", "--teacher", &teacher];
        run(words.map(str::to_owned).into())
    };
    let refused = format!("{:#}", add("clip").unwrap_err());
    let words = "batches = \"rows\", but batches = \"samples\" is asked for";
    assert!(refused.contains(words) && refused.contains("the version of the program that began it"), "{refused}");
    assert_eq!(add("later").unwrap().0, ExitStatus::Fine);
    let verify = ["pipeline", "verify", &world.path("cache").display().to_string()].map(str::to_owned);
    assert_eq!(run(verify.into()).unwrap().0, ExitStatus::Fine);
}

#[test]
fn a_picture_replaces_nothing_but_pictures() {
    let world = World::new();
    build_clip(&world, "cache", &[]);
    let before = tree(&world.path("cache"));
    let draw = |png: &str| {
        let args = ["pipeline", "inspect"].map(String::from);
        let rest = [world.path("cache").display().to_string(), "--png".into()];
        let png = [world.path(png).display().to_string()];
        let more = ["--images".into(), world.path("images").display().to_string()];
        run([&args[..], &rest, &png, &more].concat())
    };
    let refused = format!("{:#}", draw("cache/cache.json").unwrap_err());
    assert!(refused.contains("lies in the cache"), "{refused}");
    assert!(tree(&world.path("cache")) == before);
    draw("out.png").unwrap();
    draw("out.png").unwrap();
}
