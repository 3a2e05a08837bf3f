//! `tests/compat/v1`: a cache of the format's first version, which every later version reads to the same values.

use std::collections::BTreeMap;

use schemas::{Cache, ContentHash};
use serde_json::{Value, json};
use tests::root;

/// Everything in the cache, decoded: rows as they are, values as a hash over their f32, little-endian.
fn contents(cache: &Cache) -> Value {
    let mut rows = Vec::new();
    let mut rejects = Vec::new();
    let mut features: BTreeMap<String, [Vec<u8>; 3]> = BTreeMap::new();
    for part in 0..cache.identity().plan.parts() {
        let samples = cache.samples_part(part).expect("the samples");
        for (i, row) in samples.rows().iter().enumerate() {
            let image = samples.read_image(i).expect("the image");
            let pixels = image.map(|bytes| images::decode(&bytes).expect("a JPEG"));
            let crop = row.view.crop;
            rows.push(json!({
                "sample_id": row.sample_id, "view": row.view.index, "key": row.key, "label": row.label,
                "content_hash": row.content_hash, "size": [row.width, row.height],
                "crop": [crop.x, crop.y, crop.w, crop.h], "flip": row.view.flip,
                "pixels": pixels.map(|image| ContentHash::of(&image.data)),
            }));
        }
        let of_part = cache.rejects(part).expect("the rejects");
        rejects.extend(of_part.into_iter().map(|reject| json!([reject.sample_id, reject.reason])));
        for (id, teacher) in cache.teachers() {
            let part = cache.teacher_part(id, part).expect("the features");
            let all = features.entry(id.to_string()).or_default();
            let mut values = Vec::new();
            for row in part.iter() {
                let row = row.expect("a sound row");
                teacher.decode_tokens(&row.tokens, &mut values).expect("tokens");
                all[0].extend(values.iter().flat_map(|v| v.to_le_bytes()));
                teacher.decode_cls(&row.cls, &mut values).expect("cls");
                all[1].extend(values.iter().flat_map(|v| v.to_le_bytes()));
                teacher.decode_cls_attn(&row.cls_attn, &mut values).expect("attention");
                all[2].extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
    }
    let features: BTreeMap<_, _> =
        features.into_iter().map(|(id, bytes)| (id, bytes.map(|bytes| ContentHash::of(&bytes)))).collect();
    json!({"rows": rows, "rejects": rejects, "features": features})
}

#[test]
fn the_first_versions_cache_is_read() {
    let folder = root().join("tests/compat/v1");
    let report = schemas::verify(&folder.join("cache"), &mut |_| {}).expect("it can be looked at");
    assert!(report.problems.is_empty() && report.missing.is_empty(), "{report:?}");
    let cache = Cache::open(&folder.join("cache")).expect("it opens");
    let codecs: Vec<_> = cache.teachers().values().map(|teacher| teacher.codec.name()).collect();
    assert_eq!(codecs, ["f16", "f32", "bf16", "i8"]);
    let found = contents(&cache);
    let expected = folder.join("expected.json");
    // Only when the cache itself is made, which happens once per version of the format.
    if !expected.exists() {
        let text = serde_json::to_string_pretty(&found).expect("JSON") + "\n";
        schemas::atomic::write(&expected, text.as_bytes()).expect("written");
        panic!("{} was not there and is now: look at it", expected.display());
    }
    let expected = std::fs::read(&expected).expect("expected.json");
    assert_eq!(found, serde_json::from_slice::<Value>(&expected).expect("JSON"));
}
