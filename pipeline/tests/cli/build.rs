//! What a build writes, and what it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use images::ImageSource;
use models::precision::Precision;
use models::teacher::Teacher;
use pipeline::ExitStatus;
use schemas::{Cache, ContentHash, FeatureCodec, SamplesWriter, Scalar, TeacherId};
use tch::{Device, Kind, Tensor};

use super::support::{BAD, USABLE, World, assert_same_tree, output, program, run, stderr, tree, write_image};
use super::teacher::write_teacher;

#[test]
fn every_usable_image_has_its_rows_and_every_other_its_reason() {
    let world = World::new();
    let (status, said) = world.build("cache", &[]).unwrap();
    // Bad images are reported and are no failure.
    assert_eq!(status, ExitStatus::Fine);
    assert!(said.contains("rejected           3"), "{said}");

    let cache = Cache::open(&world.path("cache")).unwrap();
    let source = ImageSource::open(&world.path("images").display().to_string()).unwrap();
    assert_eq!(source.len() as u64, USABLE + BAD);
    let (mut rows, mut rejects) = (Vec::new(), Vec::new());
    for part in 0..cache.identity().plan.parts() {
        rows.extend(cache.samples(part).unwrap());
        rejects.extend(cache.rejects(part).unwrap());
    }
    let reasons: Vec<_> = rejects.iter().map(|r| (r.key.as_str(), r.reason.split(':').next().unwrap())).collect();
    assert_eq!(
        reasons,
        [
            ("cat/000-text.png", "unknown-format"),
            ("cat/006-cut.jpg", "truncated"),
            ("dog/999-empty.jpg", "unknown-format")
        ]
    );
    assert_eq!(rows.len() as u64, 2 * USABLE);

    for (row, expected) in rows.iter().zip(
        (0..source.len()).filter(|&i| rejects.iter().all(|r| r.sample_id != i as u64)).flat_map(|i| [(i, 0), (i, 1)]),
    ) {
        let (idx, view) = expected;
        assert_eq!((row.sample_id, row.view.index), (idx as u64, view));
        let bytes = source.read(idx).unwrap();
        assert_eq!(
            (row.key.as_str(), row.label, row.content_hash),
            (source.key(idx), source.label(idx), ContentHash::of(&bytes))
        );
        let image = images::decode(&bytes).unwrap();
        assert_eq!((row.width, row.height), (image.width, image.height));
        let views = &cache.identity().views;
        assert_eq!(
            row.view,
            images::draw_view(&views.policy, views.seed, &row.content_hash, view, image.width, image.height)
        );
    }
}

/// The stored features are those of the pixels that the row describes, computed here one image at a time.
#[test]
fn features_are_the_teachers_of_the_rows_pixels() {
    let world = World::new();
    world.build("cache", &["--codec", "f32"]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    let source = ImageSource::open(&world.path("images").display().to_string()).unwrap();
    for (name, size) in [("clip", 16), ("dino", 32)] {
        let id = TeacherId::new(name).unwrap();
        let teacher = Teacher::load(&world.path(name), Device::Cpu).unwrap();
        for part in 0..cache.identity().plan.parts() {
            let features = cache.teacher_part(&id, part).unwrap();
            let samples = cache.samples(part).unwrap();
            assert_eq!(features.rows(), samples.len());
            for (row, sample) in samples.iter().enumerate() {
                let feature = features.read_row(row).unwrap();
                assert_eq!(feature.key, sample.row_key());
                let image = images::decode(&source.read(sample.sample_id as usize).unwrap()).unwrap();
                let pixels = images::render(&image, &sample.view, size).unwrap();
                let pixels =
                    Tensor::from_slice(&pixels.data).view([1, size.into(), size.into(), 3]).permute([0, 3, 1, 2]);
                let expected = teacher.forward(&pixels.contiguous(), Precision::F32).unwrap();
                // Another batch size may add up in another order: a few units in the last place of f32.
                assert_close(&feature.tokens, Scalar::F32, &expected.tokens, 1e-5);
                assert_close(&feature.cls, Scalar::F32, &expected.cls, 1e-5);
                // Half precision has 11 bits.
                assert_close(&feature.cls_attn, Scalar::F16, &expected.cls_attn, 1e-3);
            }
        }
    }
}

/// An image that cannot be used makes its own batch shorter and shifts no other: the features of all other batches keep every bit.
#[test]
fn a_bad_image_changes_no_feature_of_another_batch() {
    let world = World::new();
    world.build("good", &["--codec", "f32"]).unwrap();
    // Two samples a batch: sample 2 shares its batch with sample 3, and the parts hold 8.
    let cache = Cache::open(&world.path("good")).unwrap();
    let key = cache.samples(0).unwrap().iter().find(|row| row.sample_id == 2).unwrap().key.clone();
    fs::write(world.path("images").join(&key), "spoilt").unwrap();
    world.build("bad", &["--codec", "f32"]).unwrap();
    let tokens = |name: &str, id: &str| {
        let cache = Cache::open(&world.path(name)).unwrap();
        let teacher = TeacherId::new(id).unwrap();
        let parts = 0..cache.identity().plan.parts();
        let rows = parts.flat_map(|part| cache.teacher_part(&teacher, part).unwrap().iter().collect::<Vec<_>>());
        rows.map(|row| row.unwrap()).map(|row| ((row.key.sample_id, row.key.view), row)).collect::<BTreeMap<_, _>>()
    };
    for id in ["clip", "dino"] {
        let (good, bad) = (tokens("good", id), tokens("bad", id));
        let lost: Vec<_> = good.keys().filter(|place| !bad.contains_key(place)).collect();
        assert_eq!(lost, [&(2, 0), &(2, 1)]);
        for ((sample_id, view), row) in &bad {
            assert!(*sample_id == 3 || good[&(*sample_id, *view)] == *row, "{id}: sample {sample_id}, view {view}");
        }
    }
}

fn assert_close(bytes: &[u8], codec: Scalar, expected: &Tensor, relative: f64) {
    let mut values = vec![0.0; bytes.len() / codec.bytes_per_value()];
    codec.decode_into(bytes, 1, &mut values).unwrap();
    let (found, expected) = (Tensor::from_slice(&values), expected.flatten(0, -1).to_kind(Kind::Float));
    let error = (&found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    assert!(error < relative, "relative error {error}");
}

/// Frames of 12 bits in files of 16: their features are those of the window, which is part of the cache, and the default is warned of.
#[test]
fn images_of_more_than_8_bits_go_through_the_window() {
    let world = World::new();
    let frames = world.path("frames/c");
    fs::create_dir_all(&frames).unwrap();
    for frame in 0..4u32 {
        let level = |x: u32, y: u32| image::Luma([((x * 97 + y * 31 * (frame + 1)) % 4096) as u16]);
        let img = image::ImageBuffer::<image::Luma<u16>, Vec<u16>>::from_fn(48, 40, level);
        img.save(frames.join(format!("{frame}.png"))).unwrap();
    }
    let source = format!("data.images={}", world.path("frames").display());
    let images = ["--set", source.as_str(), "--view-policy", "center", "--views", "1"];
    let with = |more: &[&'static str]| [&images[..], more].concat();

    let default = program(&world.build_args("default", &images)).output().unwrap();
    let said = stderr(&default);
    assert!(default.status.success(), "{said}");
    assert!(said.contains("uses only 0 to") && said.contains("4 of 4 images"), "{said}");
    let cache_json = fs::read_to_string(world.path("default/cache.json")).unwrap();
    assert!(!cache_json.contains("depth_window"), "{cache_json}");

    let args = with(&["--depth-window", "0,4095"]);
    let windowed = program(&world.build_args("windowed", &args)).output().unwrap();
    let said = stderr(&windowed);
    assert!(windowed.status.success() && !said.contains("WARN"), "{said}");
    let cache = Cache::open(&world.path("windowed")).unwrap();
    assert_eq!(cache.identity().depth_window.to_string(), "0,4095");
    let clip = TeacherId::new("clip").unwrap();
    let features = |name: &str| fs::read(world.path(name).join("teachers/clip/part-00000.parquet")).unwrap();
    assert!(cache.teachers().contains_key(&clip));
    assert_ne!(features("default"), features("windowed"));

    // Another window is another cache, and an unknown word is refused.
    let refused = world.build("windowed", &with(&["--depth-window", "full-range"])).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("depth_window") && refused.contains("0,4095"), "{refused}");
    let unknown = world.build("new", &with(&["--depth-window", "12-bit"])).unwrap_err();
    assert!(format!("{unknown:#}").contains("percentile:LOW,HIGH"), "{unknown:#}");
    // As the recipe says it, and all the same.
    let (status, _) = world.build("windowed", &with(&["--set", "data.depth_window=0,4095"])).unwrap();
    assert_eq!(status, ExitStatus::Fine);
}

/// A cache of the earlier rules for images is gone on with by them.
#[test]
fn a_cache_of_earlier_rules_is_finished_by_them() {
    let world = World::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images/files");
    let name = "turn-xmp-attribute.jpg";
    fs::copy(golden.join(name), world.path("images/cat").join(name)).unwrap();
    world.build("today", &[]).unwrap();
    let mut identity = Cache::open(&world.path("today")).unwrap().identity().clone();
    identity.image_code = images::IMAGE_CODE_COLOR_1.to_owned();
    // A first part that no rule changes makes it a cache to go on with.
    let earlier = world.path("earlier");
    schemas::create_cache(&earlier, &identity).unwrap();
    let today = Cache::open(&world.path("today")).unwrap();
    let rows = today.samples(0).unwrap();
    assert!(rows.iter().all(|row| !row.key.ends_with(name)));
    let mut part = SamplesWriter::create(&earlier, 0, &identity).unwrap();
    rows.iter().for_each(|row| part.push(row).unwrap());
    part.finish(&today.rejects(0).unwrap()).unwrap();
    let built = program(&world.build_args("earlier", &[])).output().unwrap();
    let said = stderr(&built);
    assert!(built.status.success() && said.contains("earlier rules"), "{said}");
    let size = |cache: &str| {
        let cache = Cache::open(&world.path(cache)).unwrap();
        let parts = 0..cache.identity().plan.parts();
        let mut rows = parts.flat_map(|part| cache.samples(part).unwrap());
        let row = rows.find(|row| row.key.ends_with(name)).unwrap();
        (row.width, row.height)
    };
    assert_eq!((size("today"), size("earlier")), ((11, 16), (16, 11)));
    let verified = pipeline_verify(&world, "earlier");
    assert_eq!(verified, ExitStatus::Fine);
}

fn pipeline_verify(world: &World, cache: &str) -> ExitStatus {
    let cache = world.path(cache).display().to_string();
    run(vec!["pipeline".to_owned(), "verify".to_owned(), cache]).unwrap().0
}

#[test]
fn a_finished_cache_is_left_alone() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let modified = |name: &str| fs::metadata(world.path("cache").join(name)).unwrap().modified().unwrap();
    let before: Vec<_> = tree(&world.path("cache")).into_keys().map(|name| (modified(&name), name)).collect();
    let (status, said) = world.build("cache", &[]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(said.contains("nothing to do"), "{said}");
    // It has not read the files, and says what does.
    assert!(said.contains("has its size") && !said.contains("complete"), "{said}");
    assert!(said.contains(&format!("`pipeline verify {}`", world.path("cache").display())), "{said}");
    let after: Vec<_> = tree(&world.path("cache")).into_keys().map(|name| (modified(&name), name)).collect();
    assert_eq!(after, before);
}

#[test]
fn threads_change_no_byte() {
    let world = World::new();
    world.build("one", &["--threads", "1"]).unwrap();
    for threads in ["2", "3", "7"] {
        world.build(threads, &["--threads", threads]).unwrap();
        assert_same_tree(&world.path(threads), &world.path("one"));
    }
}

#[test]
fn bf16_differs_from_f32_and_does_not_depend_on_threads_either() {
    let world = World::new();
    world.build("one", &["--threads", "1", "--precision", "bf16"]).unwrap();
    world.build("three", &["--threads", "3", "--precision", "bf16"]).unwrap();
    assert_same_tree(&world.path("three"), &world.path("one"));
    world.build("f32", &[]).unwrap();
    let part = "teachers/clip/part-00000.parquet";
    assert!(tree(&world.path("one"))[part] != tree(&world.path("f32"))[part]);
}

#[test]
fn what_would_change_the_bytes_is_refused_by_name() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let before = tree(&world.path("cache"));
    for (change, field) in [
        (&["--seed", "1"][..], "seed"),
        (&["--views", "3"], "views"),
        (&["--set", "view.scale=[0.5, 1.0]"], "scale"),
        (&["--set", "view.flip=0.25"], "flip"),
        (&["--set", "view.views=1", "--view-policy", "center"], "policy"),
        (&["--codec", "f32"], "codec"),
        (&["--precision", "bf16"], "precision"),
        (&["--batch-size", "4"], "batch_size"),
        (&["--set", "cache.part_samples=9"], "part_samples"),
        (&["--limit", "5"], "samples"),
        (&["--grid", "5"], "grid"),
    ] {
        for dry_run in [&[][..], &["--dry-run"]] {
            let error = world.build("cache", &[change, dry_run].concat()).expect_err(field);
            assert!(format!("{error:#}").contains(field), "{change:?}: {error:#}");
        }
    }
    let error = |what: &str| format!("{:#}", world.build("cache", &[]).expect_err(what));
    write_teacher(&world.path("dino"), 8, 99);
    // Nor is the new teacher of a refused command left behind, which would make the cache incomplete.
    let another = format!("another={}", world.path("clip").display());
    assert!(world.build("cache", &["--teacher", &another]).is_err());
    assert!(error("other weights").contains("weights_sha256"), "{}", error("other weights"));
    write_teacher(&world.path("dino"), 8, 2);
    fs::remove_file(world.path("images/dog/000.jpg")).unwrap();
    assert!(error("one image less").contains("dataset"), "{}", error("one image less"));
    assert!(tree(&world.path("cache")) == before, "a refused build has changed the cache");
}

#[test]
fn a_teacher_added_later_is_the_same_as_one_built_at_once() {
    let world = World::new();
    world.build("both", &[]).unwrap();
    let mut only_clip = world.build_args("later", &[]);
    let dino = only_clip.iter().position(|arg| arg.starts_with("teachers.dino=")).unwrap();
    only_clip.drain(dino - 1..=dino);
    run(only_clip).unwrap();
    assert!(!world.path("later/teachers/dino").exists());
    world.build("later", &[]).unwrap();
    assert_same_tree(&world.path("later"), &world.path("both"));
}

#[test]
fn only_what_is_missing_is_built_again() {
    let world = World::new();
    world.build("whole", &[]).unwrap();
    world.build("cache", &[]).unwrap();
    let cache = world.path("cache");
    for missing in [
        &["samples/part-00001.commit.json"][..],
        &["teachers/dino/part-00000.commit.json"],
        &["teachers/clip/part-00002.commit.json", "teachers/clip/part-00002.parquet", "samples/part-00002.commit.json"],
        &["rejects/part-00000.jsonl", "samples/part-00000.commit.json"],
    ] {
        missing.iter().for_each(|name| fs::remove_file(cache.join(name)).unwrap());
        let (status, said) = world.build("cache", &[]).unwrap();
        assert_eq!(status, ExitStatus::Fine);
        assert!(!said.contains("nothing to do"), "{said}");
        assert_same_tree(&cache, &world.path("whole"));
    }
}

#[test]
fn an_image_that_changed_under_a_cache_is_named() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    fs::remove_file(world.path("cache/teachers/clip/part-00000.commit.json")).unwrap();
    // The same length, so that only the content tells.
    let path = world.path("images/cat/001.jpg");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", world.build("cache", &[]).unwrap_err());
    assert!(error.contains("cat/001.jpg") && error.contains("has changed"), "{error}");
}

#[test]
fn a_source_without_a_usable_image_is_a_problem_of_the_data() {
    let world = World::new();
    for class in ["cat", "dog"] {
        for entry in fs::read_dir(world.path("images").join(class)).unwrap() {
            fs::write(entry.unwrap().path(), "spoilt").unwrap();
        }
    }
    let all = ["--max-rejects", "100%"];
    let (status, _) = world.build("cache", &all).unwrap();
    assert_eq!(status, ExitStatus::Problems);
    // The finished cache says so again.
    assert_eq!(world.build("cache", &all).unwrap().0, ExitStatus::Problems);
}

/// A teacher that gives no numbers for any image: the build stops when that is clear, and stores none.
#[test]
fn features_that_are_not_numbers_are_rejected_and_stop_the_build() {
    let world = World::new();
    let folder = world.path("dino");
    let weights = models::weights::Weights::read(&folder).unwrap();
    // Finite weights, or they would not be loaded; a product of the largest ones is not.
    for (what, value, codec, advice) in [("weight", 3e38, "f32", "finite values only"), ("bias", 1e5, "f16", "as f16")]
    {
        let name = format!("encoder.layer.1.output.dense.{what}");
        let bias = weights.get(&name).unwrap().copy();
        let _ = bias.get(3).fill_(value);
        fs::write(
            folder.join("model.safetensors"),
            models::weights::to_bytes(&with(&weights, &name, &bias), None).unwrap(),
        )
        .unwrap();
        let out = format!("cache-{codec}");
        let args = ["--codec", codec, "--threads", "1"];
        let error = world.build(&out, &args).unwrap_err();
        assert_eq!(pipeline::exit_status(&error), ExitStatus::Problems);
        let error = error.to_string();
        let parts = [
            "images cannot be used, and 10 of 23 are allowed (--max-rejects)",
            "non-finite: teacher dino, layer last",
            advice,
        ];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert!(tree(&world.path(&out)).keys().all(|name| !name.contains("/.")), "temporary files are left");
        // If they are allowed, they are counted like other bad images.
        let (status, said) = world.build(&out, &[&args[..], &["--max-rejects", "100%"]].concat()).unwrap();
        assert_eq!(status, ExitStatus::Problems);
        assert!(said.contains("20  non-finite") && said.contains("rejected           23"), "{said}");
    }
}

#[test]
fn too_many_bad_images_stop_the_build_and_what_is_finished_is_kept() {
    let world = World::new();
    for (limit, status) in [("0", ExitStatus::Problems), ("2", ExitStatus::Problems), ("12%", ExitStatus::Problems)] {
        let error = world.build("cache", &["--max-rejects", limit]).unwrap_err();
        assert_eq!(pipeline::exit_status(&error), status);
        let error = error.to_string();
        assert!(error.contains("of 23 are allowed") && error.contains("unknown-format"), "{error}");
    }
    // What is finished belongs to the images as they were, and the message says how it is kept.
    let error = world.build("cache", &["--max-rejects", "2"]).unwrap_err().to_string();
    assert!(error.contains("Finished parts are kept") && error.contains("--reuse"), "{error}");
    // 3 of 23 are 13 %.
    assert_eq!(world.build("cache", &["--max-rejects", "14%"]).unwrap().0, ExitStatus::Fine);
    assert_eq!(world.build("whole", &[]).unwrap().0, ExitStatus::Fine);
    super::support::assert_same_tree(&world.path("cache"), &world.path("whole"));
}

/// What the message says works: the same command while no part is finished, and another folder with `--reuse` after that.
#[test]
fn mended_images_enter_the_cache_as_the_message_says() {
    let world = World::new();
    let none = ["--max-rejects", "0", "--threads", "1"];
    let mend = |name: &str, idx: u32| {
        write_image(&world.path("mended"), idx);
        let made = tree(&world.path("mended")).into_values().next().unwrap();
        fs::write(world.path("images").join(name), made).unwrap();
        fs::remove_dir_all(world.path("mended")).unwrap();
    };
    let error = world.build("cache", &none).unwrap_err().to_string();
    assert!(error.contains("No part is finished yet") && error.contains("000-text.png"), "{error}");
    mend("cat/000-text.png", 50);
    mend("cat/006-cut.jpg", 51);
    // The last image of the source is the third of no use: two parts are finished by then.
    let error = world.build("cache", &none).unwrap_err().to_string();
    assert!(error.contains("Finished parts are kept") && error.contains("999-empty.jpg"), "{error}");
    mend("dog/999-empty.jpg", 52);
    let cache = world.path("cache").display().to_string();
    let refused = format!("{:#}", world.build("cache", &none).unwrap_err());
    assert!(refused.contains(&format!("build into another folder with --reuse {cache}")), "{refused}");
    let (status, said) = world.build("mended", &[&none[..], &["--reuse", &cache]].concat()).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(said.contains("rejected           0") && said.contains("reused             64 rows"), "{said}");
}

/// A reject keeps its place for good; the mended image enters under another name.
#[test]
fn a_mended_reject_is_added_under_another_name() {
    let world = World::new();
    let built = output(&world.build_args("cache", &[]));
    let said = stderr(&built);
    let cache = world.path("cache").display().to_string();
    assert!(said.contains(&format!("under a new name and run `pipeline add-images {cache}`")), "{said}");
    fs::copy(world.path("images/cat/005.jpg"), world.path("images/cat/006-mended.jpg")).unwrap();
    let images = world.path("images").display().to_string();
    run(["pipeline", "add-images", &cache, "--images", &images].map(str::to_owned).to_vec()).unwrap();
    let cache = schemas::Cache::open(&world.path("cache")).unwrap();
    let last = cache.samples(cache.identity().parts() - 1).unwrap();
    assert!(last.iter().all(|row| row.key == "cat/006-mended.jpg") && last.len() == 2, "{last:?}");
}

fn with(weights: &models::weights::Weights, replaced: &str, by: &Tensor) -> std::collections::BTreeMap<String, Tensor> {
    let replace = |(name, tensor): (&String, &Tensor)| {
        let tensor = if name == replaced { by } else { tensor };
        (name.clone(), tensor.shallow_clone())
    };
    weights.tensors().iter().map(replace).collect()
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let world = World::new();
    let (status, said) = world.build("cache", &["--dry-run"]).unwrap();
    assert_eq!(status, ExitStatus::Fine);
    assert!(!world.path("cache").exists());
    for word in ["23 images", "3 parts of 8", "teacher clip", "teacher dino", "free: fits", "img/s", "cls_attn"] {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    let (_, said) = run(["pipeline", "--log-format", "json"]
        .map(str::to_owned)
        .into_iter()
        .chain(world.build_args("cache", &["--dry-run"]).into_iter().skip(1))
        .collect())
    .unwrap();
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    for teacher in json["teachers"].as_array().unwrap() {
        let field = |name: &str| teacher["identity"][name].as_u64().unwrap();
        let (rows, grid) = (teacher["to_write"]["rows"].as_u64().unwrap(), field("grid"));
        // f16 is two bytes a value.
        let expected = [("tokens", grid * grid * field("width")), ("cls", field("width")), ("cls_attn", grid * grid)];
        for (column, values) in expected {
            assert_eq!(teacher["columns"][column].as_u64().unwrap(), 2 * rows * values, "{column}");
        }
    }
    assert_eq!(json["break_even"].is_null(), json["break_even_unknown"].is_string(), "{said}");
    world.build("cache", &[]).unwrap();
    let before = tree(&world.path("cache"));
    let (_, said) = world.build("cache", &["--dry-run"]).unwrap();
    assert!(said.contains("nothing to do"), "{said}");
    assert!(tree(&world.path("cache")) == before);
}

/// The run may be of either kind of training, which shows in its recipe alone.
#[test]
fn a_run_is_not_a_teacher_until_it_is_exported() {
    let world = World::new();
    fs::create_dir(world.path("tuned")).unwrap();
    for name in ["recipe.toml", "LAST"] {
        fs::write(world.path("tuned").join(name), "").unwrap();
    }
    let teacher = format!("tuned={}", world.path("tuned").display());
    let refused = format!("{:#}", world.build("cache", &["--teacher", &teacher]).unwrap_err());
    assert!(refused.contains("is a run of trainer pretrain or finetune"), "{refused}");
    assert!(refused.contains("trainer export --run"), "{refused}");
}

#[test]
fn a_dry_run_refuses_the_folders_that_a_build_refuses() {
    let world = World::new();
    fs::create_dir(world.path("mine")).unwrap();
    fs::write(world.path("mine/notes.txt"), "mine").unwrap();
    for (out, words) in
        [("mine", "\"notes.txt\" and is not a cache"), ("images/cache", "lies in the folder of --images")]
    {
        let [built, tried] =
            [&[][..], &["--dry-run"]].map(|more| format!("{:#}", world.build(out, more).expect_err(out)));
        assert_eq!(built, tried);
        assert!(built.contains(words), "{built}");
    }
}

/// What a dry run says is needed is enough, and not much more than that when rows are large beside the files' own structure.
#[test]
fn a_dry_run_bounds_the_bytes() {
    let world = World::new();
    for more in [&[][..], &["--codec", "f32", "--set", "cache.part_samples=100", "--set", "view.views=20"]] {
        let (_, said) = world.build("cache", &[more, &["--dry-run"]].concat()).unwrap();
        let needed =
            said.split("disk               at most ").nth(1).and_then(|rest| rest.split(" needed").next()).unwrap();
        let (number, unit) = needed.split_once(' ').unwrap();
        let scale = match unit {
            "kB" => 1e3,
            "MB" => 1e6,
            other => panic!("{other}"),
        };
        // Printed with two digits after the point.
        let needed = (number.parse::<f64>().unwrap() + 0.005) * scale;
        world.build("cache", more).unwrap();
        let written: usize = tree(&world.path("cache")).values().map(Vec::len).sum();
        assert!(written as f64 <= needed, "{written} bytes written, {needed} foreseen");
        assert!(more.is_empty() || needed < 1.4 * written as f64, "{written} bytes written, {needed} foreseen");
        fs::remove_dir_all(world.path("cache")).unwrap();
    }
}

#[test]
fn a_limit_is_the_first_images_of_the_source() {
    let world = World::new();
    world.build("cache", &["--limit", "9"]).unwrap();
    let cache = Cache::open(&world.path("cache")).unwrap();
    assert_eq!(cache.identity().plan.samples, 9);
    let last = cache.samples(1).unwrap();
    assert_eq!(last.last().map(|row| row.sample_id), Some(8));
}

#[test]
fn a_folder_of_something_else_is_not_written_to() {
    let world = World::new();
    let error = format!("{:#}", world.build("clip", &[]).unwrap_err());
    assert!(error.contains("is not a cache"), "{error}");
}

/// Its own files would be images or shards of the next command.
#[test]
fn a_cache_among_its_images_is_refused() {
    let world = World::new();
    std::os::unix::fs::symlink(world.path("images"), world.path("link")).unwrap();
    for out in ["images/cache", "images/cat/deep/cache", "link/cache", "images/../link/x"] {
        let error = format!("{:#}", world.build(out, &[]).unwrap_err());
        assert!(error.contains("give a folder beside it"), "{out}: {error}");
        assert!(!world.path(out).exists());
    }
    world.build("images-cache", &[]).unwrap();
}

/// The program alone reads the environment. The record names model and commit, never a path of this machine's cache.
#[test]
fn a_teacher_by_id_comes_from_the_cache_of_the_hub() {
    let world = World::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let model = world.path("hub/models--org--clip-tiny");
    let snapshot = model.join("snapshots").join(commit);
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(model.join("refs/main"), commit).unwrap();
    for entry in fs::read_dir(world.path("clip")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let build = |out: &str, teacher: &str| {
        program(&world.build_args(out, &["--teacher", teacher]))
            .env("HF_HUB_CACHE", world.path("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap()
    };
    let by_id = build("by-id", "clip=org/clip-tiny");
    assert_eq!(by_id.status.code(), Some(0), "{}", stderr(&by_id));
    let clip = TeacherId::new("clip").unwrap();
    let cache = Cache::open(&world.path("by-id")).unwrap();
    assert_eq!(cache.teachers()[&clip].source, format!("org/clip-tiny@{commit}"));
    // The weights are the same, so a build by path goes on where the one by id ended.
    assert_eq!(world.build("by-id", &[]).unwrap().0, ExitStatus::Fine);
    assert_eq!(Cache::open(&world.path("by-id")).unwrap().teachers()[&clip].source, format!("org/clip-tiny@{commit}"));

    let missing = build("missing", "clip=org/nosuch@v2");
    assert_eq!(missing.status.code(), Some(2));
    let said = stderr(&missing);
    for words in ["teacher clip: org/nosuch@v2", "no such file or folder", "HF_HUB_OFFLINE"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(!world.path("missing").exists());
}
