//! The settings in which two recipes differ: a run can be continued only with the recipe that it was started with.

use std::collections::{BTreeMap, BTreeSet};

/// The leaves of a TOML value by their dotted names.
pub(crate) fn leaves(name: &str, value: &toml::Value) -> BTreeMap<String, String> {
    let toml::Value::Table(table) = value else {
        return BTreeMap::from([(name.to_owned(), value.to_string())]);
    };
    let of_key = |(key, value): (&String, &toml::Value)| {
        leaves(&if name.is_empty() { key.clone() } else { format!("{name}.{key}") }, value)
    };
    table.iter().flat_map(of_key).collect()
}

/// The leaves, in key order, in which two TOML values differ, as (dotted name, left, right).
pub(crate) fn differences(name: &str, a: &toml::Value, b: &toml::Value) -> Vec<(String, String, String)> {
    let (toml::Value::Table(ta), toml::Value::Table(tb)) = (a, b) else {
        return match a == b {
            true => Vec::new(),
            false => vec![(name.to_owned(), a.to_string(), b.to_string())],
        };
    };
    let keys: BTreeSet<&String> = ta.keys().chain(tb.keys()).collect();
    let compare = |key: &String| {
        let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        match (ta.get(key), tb.get(key)) {
            (Some(va), Some(vb)) => differences(&full, va, vb),
            (va, vb) => {
                let text = |v: Option<&toml::Value>| v.map_or("unset".to_owned(), |v| v.to_string());
                vec![(full, text(va), text(vb))]
            }
        }
    };
    keys.into_iter().flat_map(compare).collect()
}
