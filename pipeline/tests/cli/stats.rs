//! `stats` against sums made here, row by row.

use std::fs;

use schemas::{Cache, TeacherId};
use serde_json::Value;

use super::support::{World, output, program, run, stderr, stdout};

fn stats(world: &World, more: &[&str]) -> anyhow::Result<String> {
    let cache = world.path("cache").display().to_string();
    let args = ["pipeline", "stats", &cache].into_iter().chain(more.iter().copied());
    run(args.map(str::to_owned).collect()).map(|(_, said)| said)
}

fn json(world: &World, more: &[&str]) -> Value {
    let args: Vec<&str> = ["--json"].into_iter().chain(more.iter().copied()).collect();
    serde_json::from_str(&stats(world, &args).unwrap()).unwrap()
}

/// Tokens `[N, D]` and attention `[rows, L]` of the first `limit` rows.
fn values(world: &World, name: &str, limit: usize) -> (Vec<f32>, Vec<Vec<f32>>) {
    let cache = Cache::open(&world.path("cache")).unwrap();
    let id = TeacherId::new(name).unwrap();
    let teacher = cache.teacher(&id).unwrap();
    let (mut all, mut attention) = (Vec::new(), Vec::new());
    for part in 0..cache.identity().plan.parts() {
        let features = cache.teacher_part(&id, part).unwrap();
        for row in 0..features.rows() {
            if attention.len() == limit {
                break;
            }
            let row = features.read_row(row).unwrap();
            let (mut tokens, mut weights) = (Vec::new(), Vec::new());
            teacher.decode_tokens(&row.tokens, &mut tokens).unwrap();
            teacher.decode_cls_attn(&row.cls_attn, &mut weights).unwrap();
            all.extend(tokens);
            attention.push(weights);
        }
    }
    (all, attention)
}

fn close(found: &Value, expected: f64, relative: f64) {
    let found = found.as_f64().unwrap();
    // A second-moment difference loses some of the 16 digits of f64.
    assert!((found - expected).abs() <= relative * expected.abs() + 1e-9, "{found} instead of {expected}");
}

#[test]
fn the_numbers_are_those_of_the_rows() {
    const WIDTH: usize = 32;
    let world = World::new();
    world.build("cache", &[]).unwrap();
    for (limit, more) in [(40, &[][..]), (13, &["--limit", "13"])] {
        let json = json(&world, more);
        for name in ["clip", "dino"] {
            let teacher = &json["teachers"][name];
            let (tokens, attention) = values(&world, name, limit);
            assert_eq!((&teacher["rows"], &teacher["rows_read"]), (&40.into(), &limit.into()));
            let features = &teacher["features"];
            assert_eq!(features["tokens"], limit * 16);
            assert_eq!(features["non_finite"]["tokens"], 0);
            let n = (limit * 16) as f64;
            let total: f64 = tokens.iter().map(|&v| f64::from(v).powi(2)).sum();
            let channels = &features["channels"];
            for c in 0..WIDTH {
                let values: Vec<f64> = tokens.iter().skip(c).step_by(WIDTH).map(|&v| f64::from(v)).collect();
                let mean = values.iter().sum::<f64>() / n;
                let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                close(&channels["mean"][c], mean, 1e-9);
                close(&channels["std"][c], var.sqrt(), 1e-9);
                close(&channels["min"][c], values.iter().copied().fold(f64::MAX, f64::min), 1e-7);
                close(&channels["max"][c], values.iter().copied().fold(f64::MIN, f64::max), 1e-7);
                let sq = values.iter().map(|v| v * v).sum::<f64>();
                close(&channels["share"][c], sq / total, 1e-9);
            }
            let mut norms: Vec<f64> =
                tokens.chunks(WIDTH).map(|t| t.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()).collect();
            let outliers = norms
                .chunks(16)
                .map(|row| {
                    let mut sorted = row.to_vec();
                    sorted.sort_by(f64::total_cmp);
                    row.iter().filter(|norm| **norm > 3.0 * sorted[7]).count()
                })
                .sum::<usize>();
            assert_eq!(features["outliers"]["tokens"], outliers);
            norms.sort_by(f64::total_cmp);
            let found = &features["token_norm"];
            close(&found["mean"], norms.iter().sum::<f64>() / n, 1e-9);
            for (field, percent) in [("p1", 1), ("p50", 50), ("p99", 99)] {
                let rank = (norms.len() * percent).div_ceil(100);
                close(&found[field], norms[rank - 1], 1.001e-3);
            }
            close(&found["max"], norms[norms.len() - 1], 1e-9);

            let rows = attention.len() as f64;
            let sums: Vec<f64> = attention.iter().map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
            let entropy: f64 = attention
                .iter()
                .zip(&sums)
                .flat_map(|(row, sum)| row.iter().map(move |&v| f64::from(v) / sum))
                .map(|p| if p > 0.0 { -p * p.log2() } else { 0.0 })
                .sum();
            let found = &features["attention"];
            close(&found["entropy_bits"]["mean"], entropy / rows, 1e-9);
            close(&found["sum"]["mean"], sums.iter().sum::<f64>() / rows, 1e-9);
            let third: f64 = attention.iter().map(|row| f64::from(row[3])).sum();
            close(&found["mean"][3], third / rows, 1e-9);
        }
    }
}

#[test]
fn bytes_and_codec_errors_are_those_of_the_records() {
    let world = World::new();
    world.build("cache", &["--codec", "i8"]).unwrap();
    let json = json(&world, &["--teacher", "dino", "--teacher", "dino"]);
    assert_eq!(json["teachers"].as_object().unwrap().len(), 1);
    let dino = &json["teachers"]["dino"];
    let cache = Cache::open(&world.path("cache")).unwrap();
    let id = TeacherId::new("dino").unwrap();
    let (mut files, mut sq, mut sq_error) = (0, 0.0, 0.0);
    for part in 0..cache.identity().plan.parts() {
        let part = cache.teacher_part(&id, part).unwrap();
        files += fs::metadata(part.path()).unwrap().len();
        let error = part.commit().codec_error.clone().expect("i8 measures");
        sq += error.sq.iter().sum::<f64>();
        sq_error += error.sq_error.iter().sum::<f64>();
    }
    // 20 usable images of two views.
    close(&dino["bytes"]["per_image"], files as f64 / 20.0, 1e-12);
    assert_eq!(dino["bytes"]["f32_per_image"], 2.0 * 4.0 * (16 * 32 + 32 + 16) as f64);
    assert_eq!(dino["bytes"]["columns"]["cls_attn"]["encoded_per_image"], 2.0 * 2.0 * 16.0);
    assert_eq!(dino["codec_error"]["known"], "measured");
    close(&dino["codec_error"]["relative_l2"], (sq_error / sq).sqrt(), 1e-12);

    let text = stats(&world, &["--limit", "9"]).unwrap();
    for word in [
        "teacher clip: 4 x 4 tokens of 32 channels, i8; 9 of 40 rows read, 3 of 3 parts complete",
        "not finite      0 values",
        "token norm",
        "outlier tokens",
        "mean attention, @ = ",
        "codec error     relative L2",
    ] {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    let world = World::new();
    world.build("cache", &["--codec", "f32"]).unwrap();
    assert!(stats(&world, &[]).unwrap().contains("none: the codec keeps every bit"));
}

/// Sums are added in the order of rows on any number of threads.
#[test]
fn threads_do_not_change_a_digit() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let cache = world.path("cache").display().to_string();
    let with = |threads: &str| {
        let output =
            program(&["pipeline", "stats", &cache, "--json"]).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(with("1"), with("5"));
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let world = World::new();
    world.build("cache", &[]).unwrap();
    let error = stats(&world, &["--teacher", "sam"]).unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("sam") && said.contains("dino"), "{said}");
    let cache = world.path("cache").display().to_string();
    let none = output(&["pipeline", "stats", &cache, "--limit", "0"]);
    assert_eq!(none.status.code(), Some(2));

    fs::remove_file(world.path("cache/teachers/clip/part-00001.commit.json")).unwrap();
    for part in 0..3 {
        let commit = format!("cache/teachers/dino/part-{part:05}.commit.json");
        fs::remove_file(world.path(&commit)).unwrap();
    }
    let partly = json(&world, &[]);
    let clip = &partly["teachers"]["clip"];
    assert_eq!((&clip["parts_complete"], &clip["parts"]), (&2.into(), &3.into()));
    assert!(partly["teachers"]["dino"]["features"].is_null());
    assert!(stats(&world, &[]).unwrap().contains("nothing is built yet"));

    let file = world.path("cache/teachers/clip/part-00000.parquet");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x55;
    fs::write(&file, bytes).unwrap();
    let error = stats(&world, &["--teacher", "clip"]).unwrap_err();
    assert!(format!("{error:#}").contains("part-00000.parquet"), "{error:#}");
}
