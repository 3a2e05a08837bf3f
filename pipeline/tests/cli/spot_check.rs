//! `verify --spot-check`: rows computed again.

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
