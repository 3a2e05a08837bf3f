//! docs/reading-a-cache.md as it stands there, run by pyarrow, polars, DuckDB and Hugging Face datasets over a cache with every codec.

use std::collections::BTreeMap;
use std::process::Command;

use schemas::{Cache, ContentHash};
use serde_json::Value;
use tests::{python, root, skipped};

/// The fenced blocks of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block.to_owned()).collect()
}

/// What the snippets found, said as JSON.
const EPILOGUE: &str = r#"
import hashlib
import sys

import duckdb
import jsonschema


def digest(data):
    return hashlib.sha256(data).hexdigest()[:32]


root = pathlib.Path(sys.argv[1])
for record, schema in [
    ("cache.json", "cache"),
    ("samples/part-00000.commit.json", "samples-commit"),
    *((f"teachers/{t.name}/teacher.json", "teacher") for t in (cache / "teachers").iterdir()),
    *((f"teachers/{t.name}/part-00001.commit.json", "teacher-commit") for t in (cache / "teachers").iterdir()),
]:
    rules = json.loads((root / f"schemas/json/{schema}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(rules)
    data = json.loads((cache / record).read_text())
    jsonschema.validate(data, rules)
    try:
        jsonschema.validate(data | {"unknown": 1}, rules)
        raise SystemExit(f"{schema}: an unknown field was accepted")
    except jsonschema.ValidationError:
        pass

features = {}
for folder in sorted((cache / "teachers").iterdir()):
    hashed = hashlib.sha256()
    for file in sorted(folder.glob("*.parquet")):
        for data in pq.read_table(file, columns=["tokens"])["tokens"].to_pylist():
            hashed.update(np.ascontiguousarray(tokens_of(data, teacher_of(folder.name))).astype("<f4").tobytes())
    features[folder.name] = hashed.hexdigest()[:32]

assert np.array_equal(again, tokens) and np.array_equal(from_dataset, tokens)
with open(sys.argv[2]) as file:
    queries = [duckdb.sql(query).fetchall() for query in json.load(file)]
print(json.dumps({
    "features": features,
    "crop": digest(np.asarray(crop).tobytes()),
    "rows": {"polars": rows, "per_label": [list(row) for row in per_label.rows()], "datasets": len(dataset)},
    "queries": queries,
}))
"#;

#[test]
fn other_tools_read_what_the_docs_say() {
    let Some(python) = python() else {
        skipped("docs/reading-a-cache.md was not run", "scripts/python-env has not been run");
        return;
    };
    let folder = root().join("tests/compat/v1/cache");
    let text = std::fs::read_to_string(root().join("docs/reading-a-cache.md")).expect("the page");
    let text = text.replace("CACHE", &folder.display().to_string());
    let (scripts, queries) = (blocks(&text, "python"), blocks(&text, "sql"));
    assert_eq!((scripts.len(), queries.len()), (4, 2));

    let dir = tempfile::tempdir().expect("a folder");
    let (script, sql) = (dir.path().join("docs.py"), dir.path().join("queries.json"));
    let write = |path: &std::path::Path, text: String| {
        schemas::atomic::write(path, text.as_bytes()).expect("written");
    };
    write(&script, scripts.concat() + EPILOGUE);
    write(&sql, serde_json::to_string(&queries).expect("JSON"));
    let output = Command::new(python)
        .args([&script, &root(), &sql])
        // What datasets keeps stays in the temporary folder, and nothing is asked of a network.
        .env("HF_HOME", dir.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("python starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(printed.lines().last().unwrap_or_default()).expect("JSON");

    // ---- What Rust reads.
    let cache = Cache::open(&folder).expect("it opens");
    let mut samples = Vec::new();
    let mut features: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for part in 0..cache.identity().plan.parts() {
        samples.extend(cache.samples(part).expect("the samples"));
        for (id, teacher) in cache.teachers() {
            let mut values = Vec::new();
            for row in cache.teacher_part(id, part).expect("the features").iter() {
                teacher.decode_tokens(&row.expect("sound").tokens, &mut values).expect("tokens");
                let all = features.entry(id.to_string()).or_default();
                all.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
    }
    for (id, bytes) in &features {
        assert_eq!(found["features"][id], ContentHash::of(bytes).to_string(), "{id}");
    }
    let first = cache.samples_part(0).expect("the samples");
    let image = first.read_image(0).expect("sound").expect("packed");
    let image = images::decode(&image).expect("a JPEG");
    let size = cache.teachers().values().next().expect("a teacher").input_size;
    let crop = images::render(&image, &first.rows()[0].view, size).expect("inside");
    assert_eq!(found["crop"], ContentHash::of(&crop.data).to_string());

    let rows = samples.len();
    let labeled = |label: i32| samples.iter().filter(|row| row.label == Some(label)).count();
    assert_eq!(found["rows"]["polars"], rows);
    assert_eq!(found["rows"]["datasets"], rows);
    assert_eq!(found["rows"]["per_label"], serde_json::json!([[0, labeled(0)], [1, labeled(1)]]));
    let [labels, joined] = [&found["queries"][0], &found["queries"][1]].map(|q| q.as_array().expect("rows"));
    assert_eq!(labels.len(), 2);
    assert_eq!((&labels[0][1], &labels[0][2]), (&labeled(0).into(), &(labeled(0) / 2).into()));
    assert_eq!(joined.len(), rows);
    let clip = cache.teachers().values().next().expect("a teacher");
    for (row, sample) in joined.iter().zip(&samples) {
        assert_eq!(*row, serde_json::json!([sample.key, sample.view.index, clip.tokens_bytes()]));
    }
}
