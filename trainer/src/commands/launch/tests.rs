use super::*;

fn refused(words: &[&str]) -> String {
    refuse_other_commands(&words.iter().map(OsString::from).collect::<Vec<_>>()).unwrap_err().to_string()
}

#[test]
fn what_cannot_run_as_many_processes_is_refused_before_any_starts() {
    assert!(refused(&["knn", "--train", "a", "--test", "b", "--model", "m"]).contains("only pretrain and finetune"));
    assert!(refused(&["pretrain", "--cache", "a", "--oot", "b"]).contains("--oot"));
    let pretrain = ["pretrain", "--cache", "a", "--recipe", "r", "--out", "o"];
    assert!(refuse_other_commands(&pretrain.map(OsString::from)).is_ok());
}
