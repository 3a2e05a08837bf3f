//! The error of a process that others have left.

/// Another process is gone, or did not come in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "rank {rank}, after step {step}: {why}. When all are there again, the same command continues from the last checkpoint"
)]
pub(crate) struct LostRank {
    /// The process that noticed it.
    pub(super) rank: usize,
    /// Steps done.
    pub(super) step: u64,
    pub(super) why: String,
}

/// `rank 3`, or `ranks 3, 5`
pub(super) fn named(ranks: &[usize]) -> String {
    let list: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, list.join(", "))
}
