//! What `inspect` draws, pixel by pixel, and which rows it chooses.

use std::fs;

use images::RgbImage;
use schemas::{Cache, SampleRow, TeacherId};
use serde_json::Value;

use super::support::{World, output, run, stderr};

/// The arguments after `pipeline inspect CACHE`.
fn inspect(world: &World, cache: &str, more: &[&str]) -> anyhow::Result<String> {
    let cache = world.path(cache).display().to_string();
    let args = ["pipeline", "inspect", &cache].into_iter().chain(more.iter().copied());
    run(args.map(str::to_owned).collect()).map(|(_, said)| said)
}

/// Draws, and gives what the JSON says with the picture.
fn draw(world: &World, cache: &str, more: &[&str]) -> (Value, RgbImage) {
    let png = world.path("sheet.png");
    let path = png.display().to_string();
    let args: Vec<&str> = ["--json", "--png", &path].into_iter().chain(more.iter().copied()).collect();
    let said = inspect(world, cache, &args).unwrap();
    let json: Value = serde_json::from_str(&said).unwrap();
    let img = images::decode(&fs::read(&png).unwrap()).unwrap();
    let picture = &json["picture"];
    assert_eq!((number(&picture["width"]), number(&picture["height"])), (img.width, img.height));
    (json, img)
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

/// A square of a sheet.
fn cut(img: &RgbImage, left: u32, top: u32, side: u32) -> RgbImage {
    let mut data = Vec::new();
    for y in top..top + side {
        let start = 3 * (y * img.width + left) as usize;
        data.extend_from_slice(&img.data[start..start + 3 * side as usize]);
    }
    RgbImage { width: side, height: side, data }
}

fn pixel(img: &RgbImage, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y * img.width + x) as usize;
    img.data[at..at + 3].try_into().unwrap()
}

fn sample(world: &World, cache: &str, id: u64, view: u16) -> (Cache, u32, usize, SampleRow) {
    let cache = Cache::open(&world.path(cache)).unwrap();
    let part = u32::try_from(id / cache.identity().plan.part_samples).unwrap();
    let (row, sample) = cache
        .samples(part)
        .unwrap()
        .into_iter()
        .enumerate()
        .find(|(_, s)| (s.sample_id, s.view.index) == (id, view))
        .unwrap();
    (cache, part, row, sample)
}

/// Scores of the first principal component by power iteration; the largest coefficient of its axis is positive.
fn first_component(tokens: &[f32], width: usize) -> Vec<f64> {
    let n = tokens.len() / width;
    let mean: Vec<f64> =
        (0..width).map(|c| (0..n).map(|i| f64::from(tokens[i * width + c])).sum::<f64>() / n as f64).collect();
    let at = |i: usize, c: usize| f64::from(tokens[i * width + c]) - mean[c];
    let mut axis: Vec<f64> = (0..width).map(|c| 1.0 + c as f64 / 7.0).collect();
    let mut scores = vec![0.0; n];
    for _ in 0..5000 {
        for (i, score) in scores.iter_mut().enumerate() {
            *score = (0..width).map(|c| at(i, c) * axis[c]).sum();
        }
        for (c, coefficient) in axis.iter_mut().enumerate() {
            *coefficient = (0..n).map(|i| at(i, c) * scores[i]).sum();
        }
        let norm = axis.iter().map(|v| v * v).sum::<f64>().sqrt();
        axis.iter_mut().for_each(|v| *v /= norm);
    }
    let largest = axis.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
    (0..n).map(|i| largest.signum() * (0..width).map(|c| at(i, c) * axis[c]).sum::<f64>()).collect()
}

/// The crop is the student's; the components, the attention and the mask are those of the row's features.
#[test]
fn every_panel_shows_what_it_says() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let source = world.path("images").display().to_string();
    let (json, sheet) = draw(&world, "cache", &["--images", &source, "--row", "5", "--view", "1"]);
    let picture = &json["picture"];
    let side = number(&picture["panel"]);
    assert_eq!(side, 224);
    let [row] = picture["rows"].as_array().unwrap().as_slice() else {
        panic!("one view of one sample: {picture}");
    };
    assert_eq!((&row["sample_id"], &row["view"]), (&5.into(), &1.into()));
    let top = number(&row["top"]);
    let (cache, part, at, sample) = sample(&world, "cache", 5, 1);

    let bytes = fs::read(world.path("images").join(&sample.key)).unwrap();
    let crop = images::render(&images::decode(&bytes).unwrap(), &sample.view, side).unwrap();
    let drawn = cut(&sheet, number(&picture["crop_left"]), top, side);
    assert!(drawn == crop, "the crop is images::render's");

    for (name, teacher) in picture["teachers"].as_object().unwrap() {
        let identity = &cache.teachers()[&TeacherId::new(name.as_str()).unwrap()];
        let feature = cache.teacher_part(&identity.id, part).unwrap().read_row(at).unwrap();
        let left: Vec<u32> = teacher["left"].as_array().unwrap().iter().map(number).collect();
        let patch = side / identity.grid;
        let patches: Vec<(u32, u32)> =
            (0..identity.grid).flat_map(|y| (0..identity.grid).map(move |x| (x * patch, y * patch))).collect();

        // Components: flat patches, and red as the first component says; of 16 values the 1st percentile is the least.
        let drawn = cut(&sheet, left[0], top, side);
        let mut tokens = Vec::new();
        identity.decode_tokens(&feature.tokens, &mut tokens).unwrap();
        let scores = first_component(&tokens, identity.width as usize);
        let (low, high) = scores.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        for (&(x, y), score) in patches.iter().zip(&scores) {
            let color = pixel(&drawn, x, y);
            assert_eq!(color, pixel(&drawn, x + patch - 1, y + patch - 1));
            let red = 255.0 * (score - low) / (high - low);
            assert!((f64::from(color[0]) - red).abs() <= 1.0, "{name}: {color:?}, expected {red}");
        }
        let explained: f64 = teacher["explained"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum();
        assert!((0.2..=1.0).contains(&explained));

        // Attention: the brightest place is in the patch that CLS attends to most.
        let drawn = cut(&sheet, left[1], top, side);
        let mut attention = Vec::new();
        identity.decode_cls_attn(&feature.cls_attn, &mut attention).unwrap();
        let red_at = |&(x, y): &(u32, u32)| {
            let [r, g, _] = pixel(&drawn, x + patch / 2, y + patch / 2);
            u32::from(r) + u32::from(g)
        };
        let peak = (0..16).max_by(|&a, &b| attention[a].total_cmp(&attention[b])).unwrap();
        let brightest = patches.iter().map(red_at).max().unwrap();
        assert!(red_at(&patches[peak]) + 40 >= brightest && brightest > 380, "{name}");

        // Mask: 4 of 16 patches are the crop's, the others nearly gray.
        let drawn = cut(&sheet, left[2], top, side);
        let seen = patches
            .iter()
            .filter(|&&(x, y)| (0..patch).all(|d| pixel(&drawn, x + d, y + d) == pixel(&crop, x + d, y + d)))
            .count();
        assert_eq!(seen, 4, "{name}");
        let gray = |&&(x, y): &&(u32, u32)| {
            (0..patch).all(|d| {
                let [r, g, b] = pixel(&drawn, x + d, y + d);
                r >= 180 && r.abs_diff(b) < 12 && r.abs_diff(g) < 12
            })
        };
        assert!(patches.iter().filter(gray).count() >= 12, "{name}");
    }

    // The same picture again, though the images have other names and places now.
    let before = fs::read(world.path("sheet.png")).unwrap();
    let elsewhere = world.path("elsewhere");
    fs::create_dir_all(elsewhere.join("all")).unwrap();
    for class in ["cat", "dog"] {
        for entry in fs::read_dir(world.path("images").join(class)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().replace('0', "z");
            fs::copy(entry.path(), elsewhere.join("all").join(format!("{class}{name}"))).unwrap();
        }
    }
    let elsewhere = elsewhere.display().to_string();
    draw(&world, "cache", &["--images", &elsewhere, "--row", "5", "--view", "1"]);
    assert!(fs::read(world.path("sheet.png")).unwrap() == before);
}

#[test]
fn a_packed_cache_needs_no_images() {
    let world = World::new();
    world.build("cache", &["--pack", "jpeg:24:90"]).unwrap();
    let (json, sheet) = draw(&world, "cache", &["--row", "5", "--row", "9", "--panel", "96"]);
    let picture = &json["picture"];
    let side = number(&picture["panel"]);
    assert_eq!(side, 96);
    let rows = picture["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "two views of two samples");
    for row in rows {
        let (id, view) = (row["sample_id"].as_u64().unwrap(), number(&row["view"]));
        let (cache, part, _, sample) = sample(&world, "cache", id, u16::try_from(view).unwrap());
        let samples = cache.samples_part(part).unwrap();
        let first = samples.rows().iter().position(|s| s.sample_id == id).unwrap();
        let packed = samples.read_image(first).unwrap().expect("a packed image");
        let crop = images::render(&images::decode(&packed).unwrap(), &sample.view, side).unwrap();
        let left = number(&picture["crop_left"]);
        assert!(cut(&sheet, left, number(&row["top"]), side) == crop);
    }
}

#[test]
fn pixels_that_cannot_be_had_are_asked_for() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let png = world.path("sheet.png").display().to_string();
    let error = inspect(&world, "cache", &["--png", &png]).unwrap_err();
    assert!(format!("{error:#}").contains("--images SRC"), "{error:#}");

    // Another image in its place is not taken for it.
    let (_, _, _, sample) = sample(&world, "cache", 5, 0);
    let key = world.path("images").join(&sample.key);
    fs::copy(world.path("images/dog/000.jpg"), &key).unwrap();
    let source = world.path("images").display().to_string();
    let error = inspect(&world, "cache", &["--png", &png, "--images", &source, "--row", "5"]).unwrap_err();
    let hash = sample.content_hash.to_string();
    assert!(format!("{error:#}").contains(&hash), "{error:#}");
    assert!(!world.path("sheet.png").exists());
}

/// Without --row: first, middle, last. What a teacher lacks is left empty.
#[test]
fn rows_are_chosen_by_rule_and_gaps_are_shown() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let source = world.path("images").display().to_string();
    let last = world.path("cache/teachers/dino/part-00002.commit.json");
    fs::remove_file(last).unwrap();
    let (json, sheet) = draw(&world, "cache", &["--images", &source]);
    let picture = &json["picture"];
    let cache = Cache::open(&world.path("cache")).unwrap();
    let ids = |part: u32| -> Vec<u64> {
        let rows = cache.samples(part).unwrap().into_iter();
        rows.filter(|s| s.view.index == 0).map(|s| s.sample_id).collect()
    };
    let middle = ids(1);
    let expected = [ids(0)[0], middle[middle.len() / 2], *ids(2).last().unwrap()];
    let rows = picture["rows"].as_array().unwrap();
    let drawn: Vec<u64> = rows.iter().map(|r| r["sample_id"].as_u64().unwrap()).collect();
    assert_eq!(drawn, expected);
    assert!(rows.iter().all(|row| row["view"] == 0));
    let left = number(&picture["teachers"]["dino"]["left"][0]);
    let side = number(&picture["panel"]);
    let corner = |row: &Value| pixel(&sheet, left + side - 1, number(&row["top"]) + side - 1);
    assert_eq!(corner(&rows[2]), [240, 241, 244]);
    let gap = cut(&sheet, left, number(&rows[2]["top"]), side);
    assert!(gap.data.chunks(3).all(|p| p == [240, 241, 244]));
    let filled = cut(&sheet, left, number(&rows[0]["top"]), side);
    assert!(filled.data.chunks(3).any(|p| p != &filled.data[..3]));
}

#[test]
fn rows_may_be_named_many_times_and_as_ranges() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let rows = |more: &[&str]| -> Vec<(u64, u64)> {
        let args: Vec<&str> = ["--json"].into_iter().chain(more.iter().copied()).collect();
        let json: Value = serde_json::from_str(&inspect(&world, "cache", &args).unwrap()).unwrap();
        let rows = json["rows"].as_array().unwrap();
        rows.iter().map(|r| (r["sample_id"].as_u64().unwrap(), r["view"].as_u64().unwrap())).collect()
    };
    // Sample 0 was rejected: in a range it is passed by.
    assert_eq!(
        rows(&["--row", "0-2", "--row", "20", "--row", "2"]),
        [(1, 0), (1, 1), (2, 0), (2, 1), (20, 0), (20, 1)]
    );
    assert_eq!(rows(&["--row", "20", "--row", "1", "--view", "1"]), [(1, 1), (20, 1)]);
    for (more, word) in [
        (&["--row", "0"][..], "was rejected"),
        (&["--row", "5", "--row", "20-23"], "there is no sample 23"),
        (&["--row", "1", "--view", "2"], "there is no view 2"),
        (&["--view", "1"], "--row"),
    ] {
        let error = inspect(&world, "cache", more).unwrap_err();
        assert!(format!("{error:#}").contains(word), "{more:?}: {error:#}");
    }
    for (words, expected) in [
        (&["--row", "5-x"][..], "not a sample number"),
        (&["--row", "9-3"], "ends before it begins"),
        (&["--row", "1", "--images", "x"], "--png"),
        (&["--row", "1", "--png", "x", "--panel", "9"], "64..=512"),
    ] {
        let cache = world.path("cache").display().to_string();
        let args: Vec<&str> = ["pipeline", "inspect", &cache].into_iter().chain(words.iter().copied()).collect();
        let failed = output(&args);
        assert_eq!(failed.status.code(), Some(2), "{words:?}");
        assert!(stderr(&failed).contains(expected), "{}", stderr(&failed));
    }
}
