//! `verify --spot-check`: rows computed again.

use std::fs;

use pipeline::ExitStatus;
use schemas::{Cache, EncodedRow, RowFeatures, SamplesWriter, TeacherId, TeacherWriter};

use super::support::{World, run};

fn spot_check(world: &World, cache: &str, more: &[&str]) -> (ExitStatus, String) {
    spot_check_rows(world, cache, "12", more)
}

fn spot_check_rows(world: &World, cache: &str, rows: &str, more: &[&str]) -> (ExitStatus, String) {
    let [path, images] = [cache, "images"].map(|name| world.path(name).display().to_string());
    let args = ["pipeline", "verify", &path, "--images", &images, "--spot-check", rows];
    run(args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()).unwrap()
}

#[test]
fn every_codec_is_what_its_teacher_computes() {
    let world = World::new();
    for codec in ["f32", "f16", "bf16", "i8"] {
        world.build(codec, &["--codec", codec]).unwrap();
        let (status, text) = spot_check(&world, codec, &[]);
        assert_eq!(status, ExitStatus::Fine, "{text}");
        for teacher in ["clip", "dino"] {
            // Two of twelve samples that are spread over the cache cannot be used.
            assert!(text.contains(&format!("teacher {teacher}, 1")), "{text}");
        }
    }
    // One teacher, as JSON.
    let (_, text) = spot_check(&world, "f32", &["--teacher", "dino", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let checked = found["spot_check"].as_array().unwrap();
    assert_eq!((checked.len(), &checked[0]["teacher"]), (1, &"dino".into()));
    assert!(checked[0]["relative_l2_max"].as_f64().unwrap() < 1e-5);
}

/// Sound by every checksum, and not what the teacher computes.
#[test]
fn features_of_something_else_are_found() {
    let world = World::new();
    world.build("cache", &["--codec", "f32"]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    let (identity, altered) = (cache.identity(), world.path("altered"));
    schemas::create_cache(&altered, identity).unwrap();
    for (id, teacher) in cache.teachers() {
        schemas::add_teacher(&altered, teacher).unwrap();
        for part in 0..identity.parts() {
            let mut writer = TeacherWriter::create(&altered, part, identity, teacher).unwrap();
            for row in cache.teacher_part(id, part).unwrap().iter().map(Result::unwrap) {
                let (mut tokens, mut cls, mut attn) = (Vec::new(), Vec::new(), Vec::new());
                teacher.decode_tokens(&row.tokens, &mut tokens).unwrap();
                teacher.decode_cls(&row.cls, &mut cls).unwrap();
                teacher.decode_cls_attn(&row.cls_attn, &mut attn).unwrap();
                if *id == "dino".parse::<TeacherId>().unwrap() {
                    tokens.iter_mut().for_each(|value| *value *= 1.001);
                }
                let features = RowFeatures { tokens: &tokens[..], cls: &cls, cls_attn: &attn };
                writer.push(EncodedRow::encode(teacher, row.key, features).unwrap()).unwrap();
            }
            writer.finish().unwrap();
        }
    }
    for part in 0..identity.parts() {
        let mut writer = SamplesWriter::create(&altered, part, identity).unwrap();
        cache.samples(part).unwrap().iter().for_each(|row| writer.push(row).unwrap());
        writer.finish(&cache.rejects(part).unwrap()).unwrap();
    }
    let path = altered.display().to_string();
    assert_eq!(run(["pipeline", "verify", &path].map(str::to_owned).to_vec()).unwrap().0, ExitStatus::Fine);
    let (status, text) = spot_check(&world, "altered", &[]);
    assert_eq!(status, ExitStatus::Problems, "{text}");
    assert!(text.contains("teacher dino, sample") && !text.contains("teacher clip, sample"), "{text}");

    // Weights that were exchanged.
    let weights = format!("clip={}", world.path("dino").display());
    let (status, text) = spot_check(&world, "cache", &["--weights", &weights]);
    assert_eq!(status, ExitStatus::Problems, "{text}");
    assert!(text.contains("other weights"), "{text}");
    // What is wrong with one teacher keeps nobody from checking the other.
    assert!(text.contains("teacher clip, 0 rows") && !text.contains("teacher dino, 0 rows"), "{text}");
    // Rows of one part alone, all of them.
    let (_, text) = spot_check_rows(&world, "cache", "500", &["--part", "1"]);
    assert!(text.contains("teacher dino, 16 rows computed again") || text.contains("teacher dino, 14 rows"), "{text}");
}

/// Images that have changed or are gone since are problems, each by its name, and the others are checked all the same.
#[test]
fn changed_and_missing_images_are_named_one_by_one() {
    let world = World::new();
    world.build("cache", &["--codec", "f32"]).unwrap();
    let spoil = |name: &str, longer: bool| {
        let path = world.path("images").join(name);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        match longer {
            true => bytes.extend([0; 3]),
            false => bytes[last] ^= 1,
        }
        fs::write(path, bytes).unwrap();
    };
    // Names and lengths as they were.
    let changed = ["cat/001.jpg", "cat/013.jpg", "dog/010.png"];
    changed.iter().for_each(|name| spoil(name, false));
    let (status, text) = spot_check_rows(&world, "cache", "500", &[]);
    assert_eq!(status, ExitStatus::Problems, "{text}");
    for name in changed {
        assert!(text.contains(&format!("image {name:?} (sample ")), "{text}");
    }
    // Two views of each, for each teacher, beside the images themselves.
    let again = |text: &str| text.lines().filter(|line| line.contains("cannot be computed again")).count();
    assert_eq!(again(&text), 2 * 2 * changed.len(), "{text}");
    assert!(text.contains("teacher dino, 34 rows computed again"), "{text}");
    assert!(text.contains(&format!("problems: {} (", 5 * changed.len())), "{text}");

    // One that is gone moves all behind it in the source, and none of these is taken for another.
    fs::remove_file(world.path("images/cat/001.jpg")).unwrap();
    spoil("dog/010.png", true);
    let (status, text) = spot_check_rows(&world, "cache", "500", &["--json"]);
    assert_eq!(status, ExitStatus::Problems, "{text}");
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let problems = found["images"]["problems"].as_array().unwrap();
    let gone: Vec<_> =
        problems.iter().filter(|problem| problem.as_str().unwrap().contains("cannot be found")).collect();
    assert!(problems.len() == 3 && gone.len() == 1 && gone[0].as_str().unwrap().contains("cat/001.jpg"), "{text}");
    for checked in found["spot_check"].as_array().unwrap() {
        assert_eq!((checked["rows"].as_u64(), checked["problems"].as_array().unwrap().len()), (Some(34), 6), "{text}");
    }
}

/// Where the weights were looked for, and the flag that says where they are.
#[test]
fn weights_that_are_elsewhere_are_asked_for_by_the_flag() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    fs::rename(world.path("clip"), world.path("moved")).unwrap();
    let [path, images] = ["cache", "images"].map(|name| world.path(name).display().to_string());
    let args = ["pipeline", "verify", &path, "--images", &images, "--spot-check", "4"];
    let error = format!("{:#}", run(args.map(str::to_owned).to_vec()).unwrap_err());
    assert!(
        error.contains("--weights clip=DIR") && error.contains(&world.path("clip").display().to_string()),
        "{error}"
    );
    let moved = format!("clip={}", world.path("moved").display());
    assert_eq!(spot_check(&world, "cache", &["--weights", &moved]).0, ExitStatus::Fine);
}
