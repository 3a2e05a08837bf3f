//! The error of a process that others have left.

/// Another process is gone, or did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank}{}: {why}. When all are there again, the same command {}", after(*.step), goes_on(*.step))]
pub(crate) struct LostRank {
    /// The process that noticed it.
    pub(super) rank: usize,
    /// Steps done; `None` outside of training.
    pub(super) step: Option<u64>,
    pub(super) why: String,
}

fn after(step: Option<u64>) -> String {
    step.map(|step| format!(", after step {step}")).unwrap_or_default()
}

fn goes_on(step: Option<u64>) -> &'static str {
    match step {
        Some(_) => "continues from the last checkpoint",
        None => "starts again",
    }
}

/// `rank 3`, or `ranks 3, 5`
pub(super) fn named(ranks: &[usize]) -> String {
    let list: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, list.join(", "))
}
