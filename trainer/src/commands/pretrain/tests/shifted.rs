use schemas::Pack;

use super::*;

/// A cache whose teachers saw views of 6 x 6 patches, for the student's 4 x 4.
fn world(images: usize) -> World {
    let mut world = World::new(images);
    (world.grid, world.codec) = (6, Codec::F32);
    world
}

const SHIFT: [&str; 2] = ["--set", "data.random_shift=true"];

/// Cached and online targets are cut alike, and a focused mask is drawn from the same attention. The tolerance is that of
/// `cached_equals_online`.
#[test]
fn shifted_cached_equals_shifted_online() {
    let world = world(20);
    world.build_cache();
    let settings = [&SHIFT[..], &["--set", "mask.kind=focused", "--set", "mask.teacher=clip"]].concat();
    let cached = losses(&train(&world, "cached", &settings));
    let teacher = format!("clip={}", world.teacher_dir().display());
    let online = losses(&train(&world, "online", &[&settings[..], &["--online-teacher", &teacher]].concat()));
    assert_eq!((cached.len(), online.len()), (20, 20));
    for ((step, _, cached), (_, _, online)) in cached.iter().zip(&online) {
        for (name, value) in cached {
            let error = (value - online[name]).abs() / value.abs();
            assert!(error < 1e-5, "step {step}, {name}: cached {value}, online {}", online[name]);
        }
    }
    assert!((cached[0].2["mimic.clip"] - cached[19].2["mimic.clip"]).abs() > 1e-2);
}

/// Bit for bit, with two teachers and pictures of what is learned.
#[test]
fn a_shifted_run_resumes_exactly() {
    let mut world = world(9);
    world.add_second_teacher();
    world.build_cache();
    let more =
        ["--set", "mimic.teachers=[\"clip\", \"dino\"]", "--set", "schedule.epochs=5", "--set", "run.pictures=2"];
    let settings = [&SHIFT[..], &more].concat();
    let whole = train(&world, "whole", &settings);
    while losses(&world.path("cut")).len() < losses(&whole).len() {
        train(&world, "cut", &[&settings[..], &["--stop-after", "3"]].concat());
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), losses(&whole));
    assert!(tensors(&cut) == tensors(&whole));
    let refused = error(&world, "whole", &more);
    assert!(format!("{refused:#}").contains("data.random_shift"), "{refused:#}");
}

/// Two resolutions: cached and online targets have the same means, within the tolerance of `cached_equals_online`, and a run that is stopped
/// every three steps is the whole one, bit for bit.
#[test]
fn a_run_of_two_resolutions_equals_the_online_one_and_resumes_exactly() {
    let mut world = world(9);
    world.grid = 8;
    world.build_cache();
    let settings = [&SHIFT[..], &["--set", "data.half_resolution=0.5", "--set", "schedule.epochs=5"]].concat();
    let whole = train(&world, "whole", &settings);
    let teacher = format!("clip={}", world.teacher_dir().display());
    let online = losses(&train(&world, "online", &[&settings[..], &["--online-teacher", &teacher]].concat()));
    for ((step, _, cached), (_, _, online)) in losses(&whole).iter().zip(&online) {
        for (name, value) in cached {
            let error = (value - online[name]).abs() / value.abs();
            assert!(error < 1e-5, "step {step}, {name}: cached {value}, online {}", online[name]);
        }
    }
    let parts_alone = train(&world, "parts-alone", &SHIFT);
    assert_ne!(losses(&parts_alone)[..2], losses(&whole)[..2]);
    while losses(&world.path("cut")).len() < losses(&whole).len() {
        train(&world, "cut", &[&settings[..], &["--stop-after", "3"]].concat());
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), losses(&whole));
    assert!(tensors(&cut) == tensors(&whole));
    let refused = error(&world, "whole", &[&SHIFT[..], &["--set", "schedule.epochs=5"]].concat());
    assert!(format!("{refused:#}").contains("data.half_resolution"), "{refused:#}");
}

/// A cache that packs its images trains like one with the data set, and two caches of half the images like one of all.
#[test]
fn packed_images_and_several_caches_shift_alike() {
    let settings = [&SHIFT[..], &["--stop-after", "4"]].concat();
    let mut found = Vec::new();
    for pack in [Pack::None, Pack::Original] {
        let mut world = world(8);
        world.pack = pack;
        world.build_cache();
        found.push(losses(&train(&world, "run", &settings)));
    }
    assert_eq!(found[0], found[1]);

    let world = world(8);
    for class in ["a", "b"] {
        let copy = world.path(class).join(class);
        fs::create_dir_all(&copy).unwrap();
        for entry in fs::read_dir(world.images_dir().join(class)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        world.build_cache_of(&world.path(class), &world.path(&format!("cache-{class}")));
    }
    let mut args = world.pretrain_args("two", &settings);
    for (option, [first, second]) in [("--cache", ["cache-a", "cache-b"]), ("--images", ["a", "b"])] {
        let at = args.iter().position(|arg| arg == option).unwrap();
        args[at + 1] = world.path(first).to_str().unwrap().to_owned();
        args.extend([option.to_owned(), world.path(second).to_str().unwrap().to_owned()]);
    }
    run(&args).unwrap();
    assert_eq!(losses(&world.path("two")), found[0]);
}

/// A plain MAE sees the same parts of the views; the cache's teachers say how large those are.
#[test]
fn a_student_without_teachers_shifts_too() {
    let world = world(8);
    world.build_cache();
    let plain = ["--set", "mimic.teachers=[]", "--stop-after", "2"];
    let shifted = losses(&train(&world, "shifted", &[&SHIFT[..], &plain].concat()));
    assert_ne!(shifted, losses(&train(&world, "whole-views", &plain)));
    fs::remove_dir_all(world.cache_dir().join("teachers")).unwrap();
    let refused = error(&world, "no-teacher", &[&SHIFT[..], &plain].concat());
    assert!(format!("{refused:#}").contains("the cache has no teacher"), "{refused:#}");
}

#[test]
fn grids_that_do_not_fit_are_refused_with_what_to_do() {
    let larger = world(8);
    larger.build_cache();
    let refused = error(&larger, "off", &[]);
    let message = format!("{refused:#}");
    assert!(message.contains("6x6 grid") && message.contains("--set data.random_shift=true"), "{message}");
    assert_eq!(crate::exit_status(&refused), ExitStatus::CouldNot);

    for (size, grid) in [("48", "6x6"), ("64", "8x8")] {
        let size = format!("model.img_size={size}");
        let refused = error(&larger, "on", &[&SHIFT[..], &["--set", &size]].concat());
        let message = format!("{refused:#}");
        assert!(message.contains(&format!("the student a {grid} grid")), "{message}");
        assert!(message.contains("leave data.random_shift out"), "{message}");
    }
    let refused = error(&larger, "smaller", &["--set", "model.img_size=64"]);
    let message = format!("{refused:#}");
    assert!(message.contains("--grid 8") && !message.contains("random_shift"), "{message}");

    let half = ["--set", "data.half_resolution=0.5"];
    let message = format!("{:#}", error(&larger, "half", &[&SHIFT[..], &half].concat()));
    assert!(message.contains("teacher clip has 6. Build the cache with --grid 8"), "{message}");
    let message = format!("{:#}", error(&larger, "half-alone", &half));
    assert!(message.contains("needs data.random_shift = true"), "{message}");

    // Teachers of two grids have no one view.
    let mut mixed = World::new(8);
    mixed.add_second_teacher();
    (mixed.grid, mixed.second_grid) = (6, Some(5));
    mixed.build_cache();
    let both = ["--set", "mimic.teachers=[\"clip\", \"dino\"]"];
    let refused = error(&mixed, "mixed", &[&SHIFT[..], &both].concat());
    let message = format!("{refused:#}");
    assert!(message.contains("6x6 and 5x5"), "{message}");
}
