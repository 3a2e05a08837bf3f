//! Puts results that finish in any order back into the order in which the work was given out.

use std::collections::BTreeMap;

/// Holds results until it is their turn.
///
/// It holds as many as are in flight and no more; whoever gives out work bounds that.
#[derive(Debug)]
pub(crate) struct Reorder<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Reorder<T> {
    fn default() -> Self {
        Reorder { next: 0, waiting: BTreeMap::new() }
    }
}

impl<T> Reorder<T> {
    /// Takes result number `seq` (0, 1, 2 … in the order of the work).
    pub(crate) fn put(&mut self, seq: u64, item: T) {
        let before = self.waiting.insert(seq, item);
        debug_assert!(before.is_none() && seq >= self.next, "result {seq} came twice");
    }

    /// The next result in order, if it is here.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_out_in_the_order_of_the_work() {
        let mut reorder = Reorder::default();
        let mut out = Vec::new();
        for seq in [2, 0, 3, 1, 4] {
            reorder.put(seq, seq * 10);
            out.push(std::iter::from_fn(|| reorder.pop()).collect::<Vec<_>>());
        }
        assert_eq!(out, [vec![], vec![0], vec![], vec![10, 20, 30], vec![40]]);
    }
}
