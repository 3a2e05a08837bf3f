//! What a parser says of a wrong value, in the words of the person who wrote the value.

/// `text` with serde's sentences about types replaced: ``invalid type: floating point `8.5`, expected usize`` becomes
/// `` `8.5` is not a whole number, 0 or more``. Everything else stays: the place in the file, the key, sentences of our own.
pub fn plain_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = sentence(rest) {
        let Some((given, expected, behind)) = parts(after) else {
            break;
        };
        out += before;
        out += &format!("{given} is not {expected}");
        rest = behind;
    }
    out += rest;
    out.replace("unknown variant", "unknown value")
        .replace("unknown field", "unknown key")
        .replace("missing field", "missing key")
}

/// What stands before and behind the beginning of the next sentence about a type.
fn sentence(text: &str) -> Option<(&str, &str)> {
    let beginnings = ["invalid type: ", "invalid value: "];
    let at = |words: &str| text.find(words).map(|at| (at, words.len()));
    let (at, len) = beginnings.into_iter().filter_map(at).min()?;
    Some((&text[..at], &text[at + len..]))
}

/// The value, what it should be, and what follows.
fn parts(text: &str) -> Option<(&str, &str, &str)> {
    let (given, rest) = text.split_once(", expected ")?;
    // `floating point `8.5``: the kind is plain from the value; a map or a sequence has no value.
    let kinds = ["floating point ", "integer ", "string ", "boolean "];
    let given = kinds.into_iter().find_map(|kind| given.strip_prefix(kind)).unwrap_or(match given {
        "map" => "a table",
        "sequence" => "a list",
        // What the TOML parser says of a number where a choice has names.
        "unit variant" => "the value",
        other => other,
    });
    let ends = ["\n", ",", " in `", " at line "];
    let ends = ends.into_iter().filter_map(|end| rest.find(end));
    let end = ends.min().unwrap_or(rest.len());
    let (expected, rest) = rest.split_at(end);
    let expected = match expected.trim() {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, 0 or more",
        "isize" | "i64" | "i32" | "i16" | "i8" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => r#"a list, such as ["a", "b"]"#,
        "a string" | "string only" => r#"text, as in "text""#,
        "a map" => "a table of keys",
        other if other.starts_with("struct ") => "a table of keys",
        other => other,
    };
    Some((given, expected, rest))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "what is read is not looked at")]
    struct Section {
        count: u64,
        share: Option<f64>,
        on: Option<bool>,
        names: Option<Vec<String>>,
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Error,
        Skip,
    }

    #[test]
    fn a_wrong_value_is_told_without_names_of_types() {
        for (json, said) in [
            (r#"{"count": 8.5}"#, "`8.5` is not a whole number, 0 or more"),
            (r#"{"count": -1}"#, "`-1` is not a whole number, 0 or more"),
            (r#"{"count": "x"}"#, "\"x\" is not a whole number, 0 or more"),
            (r#"{"count": 1, "share": "x"}"#, "\"x\" is not a number"),
            (r#"{"count": 1, "on": 3}"#, "`3` is not true or false"),
            (r#"{"count": 1, "names": "clip"}"#, r#""clip" is not a list, such as ["a", "b"]"#),
            (r#"{"count": 1, "names": [7]}"#, r#"`7` is not text, as in "text""#),
            (r#"{"count": 1, "kind": "no"}"#, "unknown value `no`, expected `error` or `skip`"),
            (r#"{"count": 1, "x": 1}"#, "unknown key `x`, expected one of"),
            (r#"{"share": 1}"#, "missing key `count`"),
        ] {
            let error = serde_json::from_str::<Section>(json).unwrap_err();
            let plain = plain_words(&error.to_string());
            assert!(plain.starts_with(said), "{plain}");
            // Where it stands is kept.
            assert!(plain.contains("line 1 column"), "{plain}");
        }
    }

    #[test]
    fn a_number_for_a_name_is_told_as_the_toml_parser_finds_it() {
        let found = "invalid type: unit variant, expected string only\nin `features.precision`\n";
        assert_eq!(plain_words(found), "the value is not text, as in \"text\"\nin `features.precision`\n");
    }

    #[test]
    fn other_texts_stay() {
        for text in ["", "cannot be read", "invalid type: what", "TOML parse error at line 3, column 5"] {
            assert_eq!(plain_words(text), text);
        }
    }
}
