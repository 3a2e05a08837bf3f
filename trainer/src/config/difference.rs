//! What distinguishes two recipes: a run folder goes on with the recipe it began with.

use std::collections::BTreeSet;

use super::{Recipe, ScheduleKind};

impl Recipe {
    /// The settings in which `self` and `other` differ, in the order of their names: dotted name and both values as TOML.
    ///
    /// Settings that cannot change what is computed, only how fast and what is kept, do not count: `data.prefetch`,
    /// `data.pixel_cache_mib`, `run.log_every`, `run.checkpoint_every`, `run.keep_checkpoints`, `run.keep_every`,
    /// `run.pictures`, `run.peak_tflops`, `run.grad_checkpointing`, `run.deterministic` and `run.stop_after_nonfinite`. Nor does `schedule.epochs` of two `wsd` schedules: whether it may change
    /// depends on where the run stands, see [`run_folder::refuse_other_length`](crate::run_folder::refuse_other_length).
    /// Nor does the place of `model.init`, whose content a run compares by its hash.
    pub fn differences(&self, other: &Recipe) -> Vec<(String, String, String)> {
        let mut other = other.clone();
        other.data.prefetch = self.data.prefetch;
        other.data.pixel_cache_mib = self.data.pixel_cache_mib;
        other.run.pictures = self.run.pictures;
        other.run.peak_tflops = self.run.peak_tflops;
        if let (Some(before), Some(now)) = (&self.model.init, &mut other.model.init) {
            now.clone_from(before);
        }
        other.run.log_every = self.run.log_every;
        other.run.checkpoint_every = self.run.checkpoint_every;
        other.run.keep_checkpoints = self.run.keep_checkpoints;
        other.run.keep_every = self.run.keep_every;
        other.run.grad_checkpointing = self.run.grad_checkpointing;
        other.run.deterministic = self.run.deterministic;
        other.run.stop_after_nonfinite = self.run.stop_after_nonfinite;
        if [self.schedule.kind, other.schedule.kind] == [ScheduleKind::Wsd; 2] {
            other.schedule.epochs = self.schedule.epochs;
        }
        let value = |r: &Recipe| toml::Value::try_from(r).expect("a recipe is plain tables of plain values");
        differences("", &value(self), &value(&other))
    }
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
    let of_key = |key: &String| {
        let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        match (ta.get(key), tb.get(key)) {
            (Some(va), Some(vb)) => differences(&full, va, vb),
            (va, vb) => {
                let text = |v: Option<&toml::Value>| v.map_or("unset".to_owned(), |v| v.to_string());
                vec![(full, text(va), text(vb))]
            }
        }
    };
    keys.into_iter().flat_map(of_key).collect()
}
