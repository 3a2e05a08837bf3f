//! The weights files in the corpus of odd inputs; `images/tests/corpus.rs` compares folder and table.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use models::weights::Weights;

#[test]
fn weights_are_read_or_refused_as_the_corpus_says() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus");
    let table = std::fs::read_to_string(corpus.join("outcomes.tsv")).unwrap();
    let (mut entries, mut wrong) = (0, Vec::new());
    for line in table.lines().filter(|line| line.starts_with("weights/")) {
        entries += 1;
        let (entry, outcome) = line.split_once('\t').unwrap();
        let found = Weights::read(&corpus.join(entry));
        let is_right = match (&found, outcome.strip_prefix("read ")) {
            (Ok(weights), Some(names)) => {
                let mut names = names.split(", ");
                names.all(|name| weights.tensors().contains_key(name))
            }
            (Err(_), None) => outcome == "refused",
            _ => false,
        };
        if !is_right {
            let found = found.map(|weights| weights.tensors().keys().cloned().collect::<Vec<_>>());
            wrong.push(format!("{entry}: {outcome} expected, {found:?} found"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(entries > 5, "only {entries} entries");
}
