use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::{
    ChannelSums, CodecError, ContentHash, FileStamp, Pack, Plan, Reject, Skipped, TeacherCommit, TeacherId, ViewPolicy,
    read_skipped, write_skipped,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    format_version: u32,
    name: String,
    sums: Vec<f64>,
    seed: u64,
}

fn record() -> Record {
    // Numbers that a careless parser changes in the last bit, and one that no f64 holds.
    Record {
        format_version: 1,
        name: "é \"x\"\n".to_string(),
        sums: vec![0.1 + 0.2, 5e-324, -1.7976931348623157e308],
        seed: u64::MAX,
    }
}

/// Reads a record with this text.
fn read_text(text: &[u8]) -> Result<Option<Record>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    atomic::write(&path, text).unwrap();
    read(&path)
}

/// A text with a digest that holds.
fn sealed(body: &str) -> String {
    body.to_string() + DIGEST_START + &sha256_hex(body.as_bytes()) + DIGEST_END
}

#[test]
fn records_read_back_to_the_last_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    assert_eq!(read::<Record>(&path).unwrap(), None);
    write(&path, &record()).unwrap();
    assert_eq!(read(&path).unwrap(), Some(record()));
}

#[test]
fn the_text_is_canonical() {
    let text = seal(&record());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["{", "  \"format_version\": 1,", "  \"name\": \"é \\\"x\\\"\\n\","]);
    assert!(lines[5].starts_with("  \"digest\": \"") && lines[6] == "}" && lines.len() == 7);
    // The order of the fields in memory does not matter.
    assert_eq!(
        canonical(&json!({"b": {"y": 1, "x": [1.5, null]}, "a": "t"})),
        r#"{"a":"t","b":{"x":[1.5,null],"y":1}}"#
    );
}

#[test]
fn any_changed_byte_shows() {
    let text = seal(&record()).into_bytes();
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut damaged = text.clone();
            damaged[at] ^= 1 << bit;
            assert!(matches!(read_text(&damaged), Err(Error::RecordDigest { .. })), "bit {bit} of byte {at}");
        }
    }
    for length in 0..text.len() {
        assert!(matches!(read_text(&text[..length]), Err(Error::RecordDigest { .. })), "cut to {length}");
    }
}

#[test]
fn an_intact_record_that_says_something_else_is_refused() {
    let check = |body: &str, words: &str| match read_text(sealed(body).as_bytes()) {
        Err(error @ (Error::Record { .. } | Error::Version { .. })) => {
            assert!(error.to_string().contains(words), "{error}")
        }
        other => panic!("{body}: {other:?}"),
    };
    check("{\n  \"format_version\": 2,\n  \"from\": \"the future\",\n", "format version 2");
    check("{\n  \"name\": \"x\",\n", "format_version");
    check("{\n  \"format_version\": 1,\n  \"name\": \"x\",\n", "missing field `sums`");
    check(
        "{\n  \"format_version\": 1,\n  \"name\": \"x\",\n  \"seed\": 1,\n  \"sums\": [],\n  \"color\": 3,\n",
        "color",
    );
    check("{\n  \"format_version\": 1,\n  \"name\": \"x\",\n  \"seed\": -1,\n  \"sums\": [],\n", "-1");
    check("[\n", "expected");
    check(&("[".repeat(10_000) + "\n"), "recursion");
}

#[test]
fn differences_are_named_and_shared_fields_come_first() {
    let old = json!({"views": {"policy": "rrc", "flip": 0.5, "scale": [0.2, 1.0]}, "names": ["a"]});
    let new = json!({"views": {"policy": "center"}, "names": ["a", "b"]});
    let named: Vec<_> = differences(&old, &new).into_iter().map(|difference| difference.field).collect();
    assert_eq!(named, ["views.policy", "names[1]", "views.flip", "views.scale"]);
    let scale = json!({"views": {"policy": "rrc", "flip": 0.5, "scale": [0.3, 1.0]}, "names": ["a"]});
    let found = differences(&old, &scale);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (&*found[0].field, &found[0].left, &found[0].right),
        ("views.scale[0]", &Some(json!(0.2)), &Some(json!(0.3)))
    );
    assert!(differences(&old, &old).is_empty());
}

/// Numbers that JSON can hold, among them those with the longest digits.
fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("JSON has no other numbers", |value| value.is_finite())
}

proptest! {
    // Each writes files that reach the disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any texts and numbers come back as they were, to the bit.
    #[test]
    fn any_record_survives(
        (kind, names, seed) in (any::<String>(), proptest::collection::vec(any::<String>(), 0..4), any::<u64>()),
        (scale, ratio, flip) in (proptest::array::uniform2(finite()), proptest::array::uniform2(finite()), finite()),
        (samples, part_samples, quality) in (any::<u64>(), any::<u64>(), any::<u8>()),
        (sum, sum_sq, count) in (proptest::collection::vec(finite(), 0..9), proptest::collection::vec(finite(), 0..9), any::<u64>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        let mut cache = crate::testing::identity();
        cache.dataset.kind = kind;
        cache.label_names = names;
        cache.views.seed = seed;
        cache.views.policy = ViewPolicy::Rrc { scale, ratio, flip };
        cache.plan = Plan { samples, part_samples };
        cache.pack = Pack::Jpeg { short_side: 7, quality };
        write(&path, &cache).unwrap();
        let back = read::<crate::CacheIdentity>(&path).unwrap().unwrap();
        prop_assert_eq!(back.fingerprint(), cache.fingerprint());
        prop_assert_eq!(back, cache);

        let texts = String::new();
        let (sha256, footer_sha256) = (texts.clone(), texts.clone());
        let file = FileStamp { rows: samples, bytes: count, sha256, footer_bytes: seed, footer_sha256 };
        let channels = ChannelSums { count, sum, sum_sq };
        let codec_error = Some(CodecError { cos_min: flip, ..CodecError::default() });
        let id = TeacherId::new("clip").unwrap();
        let commit = TeacherCommit {
            format_version: 1, id, part: 3, cache: texts.clone(), teacher: texts, file, channels, codec_error,
        };
        write(&path, &commit).unwrap();
        let back = read::<TeacherCommit>(&path).unwrap().unwrap();
        let bits = |sums: &ChannelSums| sums.sum.iter().chain(&sums.sum_sq).map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&back.channels), bits(&commit.channels));
        prop_assert_eq!(back, commit);
    }

    #[test]
    fn any_lines_survive(lines in proptest::collection::vec((any::<String>(), any::<String>(), any::<u64>(), any::<Option<[u8; 16]>>()), 0..5)) {
        let folder = tempfile::tempdir().unwrap();
        let skipped: Vec<_> = lines.iter().map(|(key, reason, count, _)| Skipped::new(key, reason, *count)).collect();
        write_skipped(folder.path(), &skipped).unwrap();
        prop_assert_eq!(read_skipped(folder.path()).unwrap(), skipped);
        for (key, reason, sample_id, hash) in lines {
            let reject = Reject { sample_id, key, reason, content_hash: hash.map(ContentHash) };
            prop_assert_eq!(crate::reject::from_line(crate::reject::to_line(&reject).as_bytes()), Ok(reject));
        }
    }
}
