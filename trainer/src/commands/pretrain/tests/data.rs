use schemas::{Pack, TeacherId, layout};

use super::*;
use crate::testing::TEACHER_WIDTH;

/// The proof that the cache is right: twenty steps from an f32 cache and twenty with the teacher in the loop.
///
/// The tolerance: the teacher's kernels may round the last bit (1e-7) otherwise when its batch has another size, and twenty updates
/// carry that along. Where these lines were written there was no difference at all; another crop, row, mask or
/// normalization changes the first loss by more than 1e-2.
#[test]
fn cached_equals_online() {
    let mut world = World::new(20);
    world.codec = Codec::F32;
    world.build_cache();
    let settings = ["--set", "schedule.epochs=4", "--set", "mask.kind=focused", "--set", "mask.teacher=clip"];
    let cached = losses(&train(&world, "cached", &settings));
    let teacher = format!("clip={}", world.teacher_dir().display());
    let online = losses(&train(&world, "online", &[&settings[..], &["--online-teacher", &teacher]].concat()));
    assert_eq!((cached.len(), online.len()), (20, 20));
    let mut largest = 0.0f64;
    for ((step, _, cached), (_, _, online)) in cached.iter().zip(&online) {
        for (name, value) in cached {
            let error = (value - online[name]).abs() / value.abs();
            largest = largest.max(error);
            assert!(error < 1e-5, "step {step}, {name}: cached {value}, online {}", online[name]);
        }
    }
    println!("largest relative difference between cached and online losses: {largest:.1e}");
    // It would show if the teacher were another one.
    assert!((cached[0].2["mimic.clip"] - cached[19].2["mimic.clip"]).abs() > 1e-2);
}

/// Frames of 12 bits under a window, and a picture that earlier rules do not turn: features that were cached equal those of the pixels
/// that the student sees. The tolerance is that of `cached_equals_online`.
#[test]
fn the_student_sees_the_pixels_that_the_cache_names() {
    for (image_code, window) in [
        (images::IMAGE_CODE, "0,4095"),
        (images::IMAGE_CODE, "percentile:1,99"),
        (images::IMAGE_CODE_COLOR_1, "high-byte"),
    ] {
        let mut world = World::new(8);
        world.codec = Codec::F32;
        world.image_code = image_code.to_owned();
        world.depth_window = window.parse().unwrap();
        for class in ["a", "b"] {
            for entry in fs::read_dir(world.images_dir().join(class)).unwrap() {
                let path = entry.unwrap().path();
                let mut frame = image::open(&path).unwrap().into_luma16();
                frame.pixels_mut().for_each(|pixel| pixel.0[0] >>= 4);
                frame.save(&path).unwrap();
            }
        }
        let turned = "../tests/golden/images/files/turn-xmp-attribute.jpg";
        let turned = Path::new(env!("CARGO_MANIFEST_DIR")).join(turned);
        fs::copy(turned, world.images_dir().join("a/turned.jpg")).unwrap();
        world.build_cache();
        let teacher = format!("clip={}", world.teacher_dir().display());
        let cached_run = train(&world, "cached", &[]);
        let cached = losses(&cached_run);
        let online = losses(&train(&world, "online", &["--online-teacher", &teacher]));
        for ((step, _, cached), (_, _, online)) in cached.iter().zip(&online) {
            for (name, value) in cached {
                let error = (value - online[name]).abs() / value.abs();
                assert!(error < 1e-5, "{window}, step {step}, {name}: {value} {online:?}");
            }
        }
        // An evaluation of the run sees images as the run did.
        let model = cached_run.display().to_string();
        let decoder = crate::pretrained::depth_window::decoder(None, &[&model]).unwrap();
        assert_eq!(decoder.window(), world.depth_window);
        let checkpoint = crate::train::checkpoint::newest(&cached_run).unwrap().unwrap();
        let read = crate::pretrained::trained::Trained::read(&checkpoint, false).unwrap();
        assert!(read.is_some(), "a checkpoint's folder means its weights");
        for name in [
            format!("unfused:{model}"),
            format!("untrained:unfused:{model}"),
            checkpoint.display().to_string(),
            checkpoint.join("model.safetensors").display().to_string(),
        ] {
            let decoder = crate::pretrained::depth_window::decoder(None, &[&name]).unwrap();
            assert_eq!(decoder.window(), world.depth_window, "{name}");
        }
        let average = format!("ema:{model}");
        let asked = crate::pretrained::depth_window::decoder(Some("7,9".parse().unwrap()), &[&average]).unwrap();
        assert_eq!(asked.window().to_string(), "7,9");
    }
}

#[test]
fn an_online_teacher_is_the_one_of_the_cache() {
    let world = World::with_cache(8);
    let path = world.teacher_dir().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    // The lowest bit of one weight.
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let teacher = format!("clip={}", world.teacher_dir().display());
    let message = format!("{:#}", error(&world, "run", &["--online-teacher", &teacher]));
    assert!(message.contains("not those the cache was built with"), "{message}");
    let stray = format!("dino={}", world.teacher_dir().display());
    let message = format!("{:#}", error(&world, "stray", &["--online-teacher", &stray]));
    assert!(message.contains("the recipe uses no such teacher"), "{message}");
}

#[test]
fn a_damaged_row_is_refused_in_the_words_of_verify() {
    let world = World::with_cache(8);
    let path = layout::teacher_file(&world.cache_dir(), &TeacherId::new("clip").unwrap(), 1);
    let whole = fs::read(&path).unwrap();
    // In the middle of the file, where the tokens are.
    let mut damaged = whole.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 0x40;
    fs::write(&path, &damaged).unwrap();
    let refused = error(&world, "run", &[]);
    assert!(refused.chain().any(|cause| matches!(cause.downcast_ref(), Some(Problem::Cache(_)))), "{refused:#}");
    assert_eq!(crate::exit_status(&refused), program::ExitStatus::Problems);
    let message = format!("{refused:#}");
    assert!(message.contains("part-00001.parquet") && message.contains("row"), "{message}");
    let report = schemas::verify(&world.cache_dir(), &mut |_| ()).unwrap();
    let said: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert!(said.contains(&message), "the trainer said {message:?}, verify {said:?}");
}

#[test]
fn a_cache_of_other_pixels_or_other_crops_is_refused() {
    let mut world = World::new(8);
    world.image_code = "pillow 13".to_owned();
    world.build_cache();
    let refused = error(&world, "pixels", &[]);
    assert!(format!("{refused:#}").contains("image code \"pillow 13; bicubic\""), "{refused:#}");
    assert_eq!(crate::exit_status(&refused), program::ExitStatus::Problems);

    let mut world = World::new(8);
    world.view_seed = 4;
    world.build_cache();
    let refused = error(&world, "crops", &[]);
    let message = format!("{refused:#}");
    assert!(message.contains("part 0, row 0 (a/0000.png): the view is not the one"), "{message}");
}

#[test]
fn features_of_other_images_are_refused() {
    let mut world = World::new(8);
    world.foreign_features = true;
    world.build_cache();
    let refused = error(&world, "run", &[]);
    let join = refused.chain().find_map(|cause| match cause.downcast_ref() {
        Some(Problem::Cache(schemas::Error::Join { column, .. })) => Some(column.clone()),
        _ => None,
    });
    assert_eq!(join.as_deref(), Some("content_hash"), "{refused:#}");
}

#[test]
fn an_unfinished_cache_is_refused_unless_allowed() {
    let world = World::with_cache(14);
    fs::remove_file(layout::teacher_commit(&world.cache_dir(), &TeacherId::new("clip").unwrap(), 1)).unwrap();
    let refused = error(&world, "refused", &[]);
    let message = format!("{refused:#}");
    assert!(message.contains("1 of 3 parts") && message.contains("part 1 lacks the features of clip"), "{message}");
    assert_eq!(crate::exit_status(&refused), program::ExitStatus::Problems);
    // Nine images are left: two steps of four an epoch.
    let run = train(&world, "allowed", &["--set", "data.allow_incomplete=true"]);
    assert_eq!(losses(&run).len(), 8);
    // Plain MAE does not miss it.
    assert_eq!(losses(&train(&world, "mae", &["--set", "mimic.teachers=[]"])).len(), 12);
}

#[test]
fn renamed_images_are_found_by_content() {
    let world = World::with_cache(9);
    let whole = train(&world, "whole", &[]);
    fs::rename(world.images_dir().join("a"), world.images_dir().join("moved")).unwrap();
    fs::rename(world.images_dir().join("b/0001.png"), world.images_dir().join("b/first.png")).unwrap();
    let renamed = train(&world, "renamed", &[]);
    assert!(tensors(&whole) == tensors(&renamed));
}

#[test]
fn missing_images_are_listed_and_skipped_only_when_told() {
    let world = World::with_cache(10);
    for name in ["a/0002.png", "b/0005.png"] {
        fs::remove_file(world.images_dir().join(name)).unwrap();
    }
    let refused = error(&world, "refused", &[]);
    let message = format!("{refused:#}");
    assert!(
        message.contains("2 of the cache's 10 images") && message.contains("0002") && message.contains("0005"),
        "{message}"
    );
    assert_eq!(crate::exit_status(&refused), program::ExitStatus::Problems);
    let run = train(&world, "skipped", &["--set", "data.missing=skip"]);
    assert_eq!(losses(&run).len(), 8, "eight images are two steps an epoch");
}

#[test]
fn a_changed_image_is_refused() {
    let world = World::with_cache(8);
    // Another image under the old name.
    fs::copy(world.images_dir().join("b/0003.png"), world.images_dir().join("a/0004.png")).unwrap();
    let refused = error(&world, "run", &[]);
    assert!(
        matches!(refused.downcast_ref(), Some(Problem::MissingImages { .. } | Problem::Changed { .. })),
        "{refused:#}"
    );
    let said = format!("{refused:#}");
    assert!(said.contains("0004") && !said.contains("0003"), "{said}");
}

#[test]
fn another_grid_is_refused_naming_both() {
    let world = World::with_cache(8);
    let refused = error(&world, "run", &["--set", "model.img_size=64"]);
    let message = format!("{refused:#}");
    assert!(message.contains("4x4 grid") && message.contains("8x8 grid"), "{message}");
}

#[test]
fn too_few_images_for_a_step_is_an_error() {
    let world = World::with_cache(3);
    let message = format!("{:#}", error(&world, "run", &[]));
    assert!(message.contains("3 images cannot fill one step"), "{message}");
}

#[test]
fn a_run_longer_than_can_be_counted_is_refused() {
    let world = World::with_cache(8);
    let message = format!("{:#}", error(&world, "run", &["--set", "schedule.epochs=9223372036854775807"]));
    assert_eq!(message, "schedule.epochs = 9223372036854775807: longer than can be counted");
}

/// A machine that has the cache and nothing else.
#[test]
fn a_cache_that_carries_its_images_is_all_that_is_needed() {
    let jpeg = Pack::Jpeg { short_side: 24, quality: 90 };
    let mut first = Vec::new();
    for pack in [Pack::None, Pack::Original, jpeg] {
        let mut world = World::new(8);
        world.pack = pack;
        world.build_cache();
        if pack != Pack::None {
            fs::remove_dir_all(world.images_dir()).unwrap();
        }
        let lines = losses(&train(&world, "run", &["--stop-after", "3"]));
        first.push(lines.iter().map(|(_, _, of)| of["loss"]).collect::<Vec<_>>());
    }
    assert_eq!(first[0], first[1], "the same pixels by another way");
    assert_ne!(first[0], first[2], "re-encoded pixels are others");
}

#[test]
fn pixels_that_are_missing_or_other_than_the_features_are_refused() {
    let mut world = World::new(8);
    world.pack = Pack::Jpeg { short_side: 24, quality: 90 };
    world.build_cache();
    let images = world.images_dir().to_str().unwrap().to_owned();
    let refused = error(&world, "run", &["--images", &images]);
    assert!(format!("{refused:#}").contains("leave out --images"), "{refused:#}");

    // A byte of a packed image: named by file and row, as verify does.
    let file = schemas::layout::samples_file(&world.cache_dir(), 0);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(4).position(|at| at == b"JFIF").unwrap();
    bytes[at + 200] ^= 1;
    fs::write(&file, bytes).unwrap();
    let refused = format!("{:#}", error(&world, "damaged", &[]));
    let report = schemas::verify(&world.cache_dir(), &mut |_| {}).unwrap();
    assert!(refused.contains(&report.problems[0].to_string()), "{refused}");
    assert!(refused.contains("row 0"), "{refused}");

    let mut bare = World::with_cache(8);
    // So that no --images is given.
    bare.pack = Pack::Original;
    let refused = error(&bare, "run", &[]);
    assert!(format!("{refused:#}").contains("holds no pixels"), "{refused:#}");
}

/// Steps of codec i8 become, on the device, the values that the decoder gives.
#[test]
fn i8_trains_like_the_values_it_stands_for() {
    let run = |codec: Codec| {
        let mut world = World::new(8);
        world.codec = codec;
        world.build_cache();
        let lines = losses(&train(&world, "run", &["--stop-after", "6"]));
        lines.iter().map(|(_, _, of)| of["mimic.clip"]).collect::<Vec<_>>()
    };
    let exact = run(Codec::F32);
    // The random teacher's features lie within ±8; two channels stand for those with heavy tails.
    let affine = schemas::Affine {
        scale: vec![8.0 / 127.0; TEACHER_WIDTH as usize],
        offset: vec![0.0; TEACHER_WIDTH as usize],
        outliers: vec![3, 60],
        images: 8,
    };
    for (codec, tolerance) in [(Codec::Bf16, 1e-3), (Codec::I8(affine), 2e-2)] {
        let found = run(codec.clone());
        for (exact, found) in exact.iter().zip(&found) {
            let error = (exact - found).abs() / exact;
            assert!(error > 0.0 && error < tolerance, "{codec}: {exact} {found}");
        }
    }
}

#[test]
fn a_run_may_use_fewer_views_than_there_are() {
    let world = World::with_cache(8);
    let one = |run: &str, views: &str| {
        let setting = format!("data.views={views}");
        losses(&train(&world, run, &["--set", &setting, "--stop-after", "4"]))
    };
    let (one_view, both) = (one("one", "1"), one("both", "2"));
    // Two steps an epoch: the second epoch differs.
    assert_eq!(one_view[..2], both[..2]);
    assert_ne!(one_view[2..], both[2..]);
    let refused = error(&world, "three", &["--set", "data.views=3"]);
    assert!(format!("{refused:#}").contains("has 2 per image"), "{refused:#}");
    let refused = error(&world, "none", &["--set", "data.views=0"]);
    assert!(format!("{refused:#}").contains("data.views"), "{refused:#}");
}
