use super::*;

fn refused(words: &[&str]) -> String {
    refuse_other_commands(&words.iter().map(OsString::from).collect::<Vec<_>>()).unwrap_err().to_string()
}

#[test]
fn what_cannot_run_as_many_processes_is_refused_before_any_starts() {
    let embed = ["embed", "--model", "m", "--images", "a", "--out", "o.npy"];
    assert!(refused(&embed).contains("only pretrain, finetune, knn and linprobe"));
    assert!(refused(&["pretrain", "--cache", "a", "--oot", "b"]).contains("--oot"));
    for command in ["pretrain --cache a --recipe r --out o", "knn --train a --test b --model m"] {
        let words: Vec<OsString> = command.split(' ').map(OsString::from).collect();
        assert!(refuse_other_commands(&words).is_ok(), "{command}");
    }
}
