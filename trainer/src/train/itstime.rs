//! When something that happens every N steps is due.

/// Whether `step` (counted from 1) is a multiple of `every`; false if `every` is `None`.
pub(crate) fn itstime(step: u64, every: impl Into<Option<u64>>) -> bool {
    every.into().is_some_and(|every| step.is_multiple_of(every))
}
