//! JSON Schemas of the records, for those who read or write caches in other languages; made from the types, never by hand.

use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::{CacheIdentity, Generation, SamplesCommit, TeacherCommit, TeacherIdentity};

/// (file name, schema as text) of each kind of record. The texts lie in `schemas/json/`, which a test compares.
///
/// A record also has what the format says in words: its canonical form, and the digest, which the schemas list as a field.
pub fn all() -> [(&'static str, String); 5] {
    [
        ("cache.schema.json", of::<CacheIdentity>("cache.json")),
        ("generation.schema.json", of::<Generation>("generations/NNNNN.json")),
        ("teacher.schema.json", of::<TeacherIdentity>("teacher.json")),
        ("samples-commit.schema.json", of::<SamplesCommit>("samples/part-NNNNN.commit.json")),
        ("teacher-commit.schema.json", of::<TeacherCommit>("teachers/<id>/part-NNNNN.commit.json")),
    ]
}

fn of<T: JsonSchema>(file: &str) -> String {
    let mut schema = schemars::schema_for!(T).to_value();
    let fields = schema.as_object_mut().expect("the schema of a record is an object");
    fields.insert("title".into(), file.into());
    fields.insert("additionalProperties".into(), Value::Bool(false));
    let digest = json!({
        "description": "SHA-256, lower-case hexadecimal, of all bytes of the file before this field's line.",
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
    });
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.insert("digest".into(), digest);
        // Every field is written, those without a value as null; but those with a default may be absent.
        let required = properties.iter().filter(|(_, schema)| schema.get("default").is_none());
        let all = required.map(|(name, _)| name.as_str().into()).collect();
        fields.insert("required".into(), Value::Array(all));
    }
    serde_json::to_string_pretty(&schema).expect("a schema is plain JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The committed texts are those of the types. To renew one, delete it and run this twice.
    #[test]
    fn the_committed_schemas_are_those_of_the_types() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("json");
        for (name, text) in all() {
            let path = folder.join(name);
            if !path.exists() {
                crate::atomic::write(&path, text.as_bytes()).unwrap();
                panic!("{} was not there and is now: look at it", path.display());
            }
            let committed = std::fs::read_to_string(&path).unwrap();
            assert!(committed == text, "{} is not that of the type", path.display());
        }
    }
}
