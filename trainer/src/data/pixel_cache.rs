//! Rendered crops kept in memory: a cache stores finitely many views, so a small data set is decoded once and not every epoch.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Crops by (sample, view), up to a number of bytes. Nothing is evicted when it is full: every view comes around equally often, so an
/// evicted crop would have to be decoded again.
///
/// Which crops are kept depends on which were loaded first; what a batch holds does not.
#[derive(Debug)]
pub(crate) struct PixelCache {
    budget: usize,
    kept: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    crops: HashMap<(usize, usize), Arc<[u8]>>,
}

impl PixelCache {
    /// A cache of at most `budget` bytes of pixels; 0 keeps nothing.
    pub(crate) fn new(budget: usize) -> PixelCache {
        PixelCache { budget, kept: RwLock::default() }
    }

    /// A crop, if it is kept.
    pub(crate) fn get(&self, sample: usize, view: usize) -> Option<Arc<[u8]>> {
        // Nothing panics while holding the lock, and a poisoned map would still hold whole crops.
        self.kept.read().unwrap_or_else(PoisonError::into_inner).crops.get(&(sample, view)).cloned()
    }

    /// Whether a crop is kept.
    pub(crate) fn has(&self, sample: usize, view: usize) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.crops.contains_key(&(sample, view))
    }

    /// Keeps a crop if there is room.
    pub(crate) fn put(&self, sample: usize, view: usize, crop: &[u8]) {
        if self.budget == 0 {
            return;
        }
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + crop.len() <= self.budget && kept.crops.insert((sample, view), crop.into()).is_none() {
            kept.bytes += crop.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits_and_gives_it_back() {
        let cache = PixelCache::new(10);
        cache.put(0, 0, &[1, 2, 3, 4]);
        cache.put(0, 1, &[5, 6, 7, 8]);
        cache.put(1, 0, &[9, 9, 9, 9]);
        assert_eq!(cache.get(0, 1).as_deref(), Some(&[5, 6, 7, 8][..]));
        assert_eq!(cache.get(1, 0), None, "12 bytes do not fit in 10");
        assert!(cache.has(0, 1) && !cache.has(1, 0));
        cache.put(0, 0, &[1, 2, 3, 4]);
        cache.put(2, 0, &[7, 7]);
        assert!(cache.get(2, 0).is_some(), "a crop that is there already takes no more room");
    }

    #[test]
    fn a_budget_of_zero_keeps_nothing() {
        let cache = PixelCache::new(0);
        cache.put(0, 0, &[]);
        assert_eq!(cache.get(0, 0), None);
    }
}
