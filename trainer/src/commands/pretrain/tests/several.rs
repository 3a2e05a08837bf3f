//! Several caches as one data set, and caches that were appended to.

use super::*;

/// Trains on caches and their images, in this order.
fn train_on(world: &World, name: &str, caches: &[&str], images: &[&str], more: &[&str]) -> anyhow::Result<()> {
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let mut args = vec!["trainer".to_owned(), "pretrain".to_owned()];
    args.extend(["--device", "cpu", "--threads", "2", "--out", &path(name)].map(String::from));
    args.extend(["--recipe".to_owned(), world.recipe().to_str().unwrap().to_owned()]);
    caches.iter().for_each(|cache| args.extend(["--cache".to_owned(), path(cache)]));
    images.iter().for_each(|images| args.extend(["--images".to_owned(), path(images)]));
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    run(&args)
}

/// A cache of all images, and the same images in two folders, class by class.
fn world() -> World {
    let world = World::with_cache(12);
    for (folder, class) in [("first", "a"), ("second", "b")] {
        fs::create_dir_all(world.path(folder)).unwrap();
        let copy = world.path(folder).join(class);
        fs::create_dir_all(&copy).unwrap();
        for entry in fs::read_dir(world.images_dir().join(class)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    world
}

/// Same images in the same order: the same weights, moments and losses, bit for bit.
#[test]
fn a_data_set_in_two_caches_or_two_generations_trains_as_in_one() {
    let world = world();
    for norm in ["ln", "standardize", "phi_s"] {
        let target = format!("target.norm={norm}");
        let more = ["--set", &*target, "--stop-after", "5"];
        let name = |kind: &str| format!("{kind}-{norm}");
        train_on(&world, &name("whole"), &["cache"], &["images"], &more).unwrap();
        let whole = tensors(&world.path(&name("whole")));

        if norm == "ln" {
            world.build_cache_of(&world.path("first"), &world.path("cache-1"));
            world.build_cache_of(&world.path("second"), &world.path("cache-2"));
            world.build_cache_of(&world.path("first"), &world.path("grown"));
            world.append(&world.path("second"), &world.path("grown"));
            let report = schemas::verify(&world.path("grown"), &mut |_| {}).unwrap();
            assert!(report.problems.is_empty() && report.missing.is_empty(), "{report:?}");
        }
        train_on(&world, &name("two"), &["cache-1", "cache-2"], &["first", "second"], &more).unwrap();
        train_on(&world, &name("grown"), &["grown"], &["images"], &more).unwrap();
        // One source for both.
        train_on(&world, &name("one-source"), &["cache-1", "cache-2"], &["images"], &more).unwrap();
        for kind in ["two", "grown", "one-source"] {
            let found = tensors(&world.path(&name(kind)));
            match norm {
                // Sums of other parts are added in another order.
                "standardize" => assert_eq!(found.map(|t| t.len()), whole.clone().map(|t| t.len())),
                _ => assert!(found == whole, "{kind}, {norm}"),
            }
            let close = losses(&world.path(&name(kind))).into_iter().zip(losses(&world.path(&name("whole"))));
            for ((_, _, a), (_, _, b)) in close {
                assert!(a.iter().zip(&b).all(|((_, a), (_, b))| (a - b).abs() <= 1e-5 * b.abs()), "{kind}, {norm}");
            }
        }
    }
    // In the other order it is another run.
    train_on(&world, "swapped", &["cache-2", "cache-1"], &["second", "first"], &["--stop-after", "5"]).unwrap();
    assert!(tensors(&world.path("swapped")) != tensors(&world.path("whole-ln")));
    // A run does not go on with another data set.
    let error = train_on(&world, "swapped", &["cache-1", "cache-2"], &["first", "second"], &[]).unwrap_err();
    assert!(format!("{error:#}").contains("samples"), "{error:#}");
}

#[test]
fn caches_that_are_not_alike_are_refused() {
    let mut world = world();
    world.build_cache_of(&world.path("first"), &world.path("cache-1"));
    world.codec = Codec::F32;
    world.build_cache_of(&world.path("second"), &world.path("f32"));
    world.codec = Codec::F16;
    world.views = 1;
    world.build_cache_of(&world.path("second"), &world.path("views"));
    for (other, what) in [
        ("f32", "differ in the codec of teacher clip: f16, and f32."),
        ("views", "differ in the number of views (--views): 2, and 1."),
    ] {
        let error = train_on(&world, "run", &["cache-1", other], &["first", "second"], &[]).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains(what) && said.contains("cache-1") && said.contains(other), "{said}");
        assert!(!said.contains("ViewIdentity"), "{said}");
        assert_eq!(crate::exit_status(&error), ExitStatus::CouldNot);
    }
    let error = train_on(&world, "run", &["cache-1", "cache-1"], &["first"], &[]).unwrap_err();
    assert!(format!("{error:#}").contains("is given twice"), "{error:#}");
    let three = ["images", "first", "second"];
    let error = train_on(&world, "run", &["cache-1", "cache"], &three, &[]).unwrap_err();
    assert!(format!("{error:#}").contains("once for each cache"), "{error:#}");
}

/// With one data set for all caches, an image is new if no cache has it; with a data set for each, if its own cache does not.
#[test]
fn images_that_no_cache_has_are_named_once() {
    let world = world();
    world.build_cache_of(&world.path("first"), &world.path("cache-1"));
    world.build_cache_of(&world.path("second"), &world.path("cache-2"));
    let new = world.path("images/a/new.png");
    fs::copy(fs::read_dir(world.path("first/a")).unwrap().next().unwrap().unwrap().path(), &new).unwrap();
    // Other bytes than any image that is there.
    let mut bytes = fs::read(&new).unwrap();
    bytes.extend([0; 5]);
    fs::write(&new, bytes).unwrap();
    fs::copy(&new, world.path("second/b/late.png")).unwrap();
    let told = |names: &[&str]| {
        let caches = joined::open(&["cache-1", "cache-2"].map(|name| world.path(name))).unwrap();
        let sources: Vec<_> = names.iter().map(|name| world.path(name).to_str().unwrap().to_owned()).collect();
        let images = joined::open_images(&caches, &sources).unwrap();
        let (config, shared) = (crate::recipe::Data::default(), names.len() == 1);
        let joined = joined::join(&caches, images, &[], &config, shared, &|_, _| {}).unwrap();
        joined.not_trained_on(shared)
    };
    let one = told(&["images"]);
    assert_eq!(one.len(), 1, "{one:?}");
    assert!(
        one[0].starts_with("1 of the images of --images are in none of the caches") && one[0].contains("a/new.png")
    );
    let each = told(&["first", "second"]);
    assert_eq!(each.len(), 1, "{each:?}");
    assert!(each[0].contains("cache-2 are not in it") && each[0].contains("b/late.png"), "{each:?}");
}
