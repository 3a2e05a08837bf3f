//! What `verify` says about a damaged row is what the trainer says when it meets it.

use tests::programs::{build, pretrain};

/// A row that is damaged on disk stops training with the words that `verify` has for it.
#[test]
fn the_trainer_refuses_a_damaged_row_in_the_words_of_verify() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, cache) = build(dir.path());
    let part = cache.join("teachers/clip/part-00001.parquet");
    let mut bytes = std::fs::read(&part).expect("a teacher's part");
    // The middle of the file lies in the tokens of some row: they are nearly all of it.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    #[allow(clippy::disallowed_methods, reason = "this test damages a file on purpose, in place")]
    std::fs::write(&part, bytes).expect("writable");

    let report = schemas::verify(&cache, &mut |_| {}).expect("verify looks at every file");
    let said: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    let row =
        said.iter().find(|problem| problem.contains("row")).unwrap_or_else(|| panic!("no row is named: {said:?}"));
    assert!(row.contains("part-00001.parquet"), "{row}");

    let refused = pretrain(&cache, &images, &dir.path().join("run"), &[]).expect_err("the row is in every epoch");
    assert!(format!("{refused:#}").contains(row.as_str()), "verify: {row}\ntrainer: {refused:#}");
    assert_eq!(trainer::exit_status(&refused), trainer::ExitStatus::Problems);
}
