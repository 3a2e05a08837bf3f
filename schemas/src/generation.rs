//! Samples that were appended to a finished cache.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::commit::check_place;
use crate::identity::Rules;
use crate::{CacheIdentity, DatasetIdentity, Error, FORMAT_VERSION, Plan, Result, json, layout};

/// The contents of `generations/NNNNN.json`: one addition to the data set. `cache.json` describes generation 0.
///
/// Its samples are numbered on from those before, and begin a part of their own, so no file that was there changes. All else is that
/// of the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generation {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Its number, 1 for the first addition.
    pub generation: u32,
    /// Fingerprint of the generation before: of `cache.json` for the first.
    pub after: String,
    /// The samples that were added, without those before.
    pub dataset: DatasetIdentity,
    /// Names of the classes of the cache from this generation on: those before, and new ones behind them.
    pub label_names: Vec<String>,
}

impl Generation {
    /// SHA-256 of the record in canonical JSON; it depends on all generations before. Commit records of its parts carry it.
    pub fn fingerprint(&self) -> String {
        json::sha256_hex(json::canonical(&json::to_value(self)).as_bytes())
    }
}

/// The whole cache, with what was appended.
impl CacheIdentity {
    /// Number of samples, the unusable ones included.
    pub fn samples(&self) -> u64 {
        self.plans().map(|plan| plan.samples).sum()
    }

    /// Number of parts.
    pub fn parts(&self) -> u32 {
        self.plans().map(|plan| plan.parts()).fold(0, u32::saturating_add)
    }

    /// The sample ids of a part; empty beyond the last part.
    pub fn range(&self, part: u32) -> Range<u64> {
        let (mut first_part, mut first_sample) = (0, 0);
        for plan in self.plans() {
            if part - first_part < plan.parts() {
                let range = plan.range(part - first_part);
                return first_sample + range.start..first_sample + range.end;
            }
            first_part += plan.parts();
            first_sample += plan.samples;
        }
        first_sample..first_sample
    }

    /// The part that holds a sample; the number of parts for a sample beyond the last.
    pub fn part_of(&self, sample_id: u64) -> u32 {
        let (mut first_part, mut first_sample) = (0, 0);
        for plan in self.plans() {
            if sample_id - first_sample < plan.samples {
                return first_part + ((sample_id - first_sample) / plan.part_samples) as u32;
            }
            first_part += plan.parts();
            first_sample += plan.samples;
        }
        first_part
    }

    /// The generation of a part, 0 for those that `cache.json` describes.
    pub fn generation_of(&self, part: u32) -> usize {
        let parts = |generation: &usize| self.generation_parts(*generation);
        (0..self.generations.len())
            .find(|generation| parts(generation).contains(&part))
            .unwrap_or(self.generations.len())
    }

    /// The parts of a generation.
    pub fn generation_parts(&self, generation: usize) -> Range<u32> {
        let first = self.plans().take(generation).map(|plan| plan.parts()).sum();
        first..first + self.plans().nth(generation).map_or(0, |plan| plan.parts())
    }

    /// The sample ids of a generation.
    pub fn generation_samples(&self, generation: usize) -> Range<u64> {
        let first = self.plans().take(generation).map(|plan| plan.samples).sum();
        first..first + self.plans().nth(generation).map_or(0, |plan| plan.samples)
    }

    /// The images of a generation.
    pub fn generation_dataset(&self, generation: usize) -> &DatasetIdentity {
        match generation {
            0 => &self.dataset,
            later => &self.generations[later - 1].dataset,
        }
    }

    /// The fingerprint that the files of a part carry: that of its generation.
    pub fn part_fingerprint(&self, part: u32) -> String {
        match self.generation_of(part) {
            0 => self.fingerprint(),
            later => self.generations[later - 1].fingerprint(),
        }
    }

    /// The fingerprint of the last generation.
    pub fn last_fingerprint(&self) -> String {
        self.generations.last().map_or_else(|| self.fingerprint(), Generation::fingerprint)
    }

    /// Names of the classes of the whole cache.
    pub fn all_label_names(&self) -> &[String] {
        self.generations.last().map_or(&self.label_names, |last| &last.label_names)
    }

    /// The generation that appends these images behind all that the cache has. `label_names` begin with the cache's.
    pub fn next_generation(&self, dataset: DatasetIdentity, label_names: Vec<String>) -> Generation {
        Generation {
            format_version: FORMAT_VERSION,
            generation: self.generations.len() as u32 + 1,
            after: self.last_fingerprint(),
            dataset,
            label_names,
        }
    }

    /// The plan of every generation, each numbered from 0.
    fn plans(&self) -> impl Iterator<Item = Plan> + '_ {
        let part_samples = self.plan.part_samples;
        let later = self.generations.iter().map(move |later| Plan { samples: later.dataset.samples, part_samples });
        std::iter::once(self.plan).chain(later)
    }

    /// Refuses a generation that cannot follow those that the identity has. `path` is named in the error.
    fn check_next(&self, path: &Path, next: &Generation) -> Result<()> {
        let rules = Rules { path };
        rules.version(next.format_version)?;
        check_place(path, "generation", &next.generation, &(self.generations.len() as u32 + 1))?;
        check_place(path, "fingerprint of the generation before", &next.after, &self.last_fingerprint())?;
        rules.filled("dataset.kind", &next.dataset.kind)?;
        rules.sha256("dataset.digest", &next.dataset.digest)?;
        rules.check("dataset.samples", next.dataset.samples, next.dataset.samples > 0, "at least 1")?;
        let before = self.all_label_names();
        let follows = match before.is_empty() {
            true => next.label_names.is_empty(),
            false => next.label_names.starts_with(before),
        };
        rules.check(
            "label_names",
            next.label_names.len(),
            follows,
            "the names of the generation before, and new ones",
        )?;
        let samples = self.samples().checked_add(next.dataset.samples);
        let parts = samples.map(|_| {
            let plan = Plan { samples: next.dataset.samples, part_samples: self.plan.part_samples };
            u64::from(self.parts()) + plan.samples.div_ceil(plan.part_samples)
        });
        let few = parts.is_some_and(|parts| parts <= Plan::MAX_PARTS);
        rules.check(
            "dataset.samples",
            next.dataset.samples,
            few,
            &format!("few enough for at most {} parts", Plan::MAX_PARTS),
        )
    }
}

/// Reads the generations of a cache into its identity.
///
/// # Errors
/// What is wrong with a record; [`Error::FileMissing`] if one is not there and a later one is.
pub(crate) fn read_generations(dir: &Path, identity: &mut CacheIdentity) -> Result<()> {
    let mut numbers = numbers(dir)?;
    while let Some(number) = numbers.pop_first() {
        let expected = identity.generations.len() as u32 + 1;
        let path = layout::generation_json(dir, expected);
        let record = if number == expected { json::read::<Generation>(&path)? } else { None };
        let generation = record.ok_or(Error::FileMissing { path: path.clone() })?;
        identity.check_next(&path, &generation)?;
        identity.generations.push(generation);
    }
    Ok(())
}

/// The numbers of the records that are there, readable or not.
fn numbers(dir: &Path) -> Result<BTreeSet<u32>> {
    let entries = crate::files::list(&layout::generations_dir(dir))?;
    Ok(entries.iter().filter_map(|entry| layout::generation_number(&entry.name)).collect())
}

/// Writes the record of the last generation of `identity`, which comes next in the cache or is there already. One that says
/// otherwise and has not a single committed part is what an interrupted build left, and is replaced.
///
/// # Errors
/// [`Error::GenerationChanged`] for a generation with parts that says otherwise; [`Error::IdentityValue`] for one that cannot follow.
pub fn add_generation(dir: &Path, identity: &CacheIdentity) -> Result<()> {
    let mut before = identity.clone();
    let Some(last) = before.generations.pop() else {
        return Ok(());
    };
    let path = layout::generation_json(dir, last.generation);
    before.check_next(&path, &last)?;
    if check_generation(dir, identity)? || json::write_new(&path, &last)? {
        return Ok(());
    }
    // Another builder was quicker, or an attempt without parts is in the way.
    if !check_generation(dir, identity)? {
        json::write(&path, &last)?;
    }
    Ok(())
}

/// What [`add_generation`] would refuse, without writing. True if the generation is there, false if it would be added or replaced.
pub fn check_generation(dir: &Path, identity: &CacheIdentity) -> Result<bool> {
    let Some(last) = identity.generations.last() else {
        return Ok(true);
    };
    let path: PathBuf = layout::generation_json(dir, last.generation);
    let Some(there) = json::read::<Generation>(&path)? else {
        return Ok(false);
    };
    if there == *last {
        return Ok(true);
    }
    let parts = identity.generation_parts(identity.generations.len());
    match crate::committed_parts(dir, &BTreeSet::new())?.range(parts.start..).next() {
        None => Ok(false),
        Some(_) => Err(Error::GenerationChanged { path, found: last.dataset.samples, expected: there.dataset.samples }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn grown(base: (u64, u64), added: &[u64]) -> CacheIdentity {
        let mut identity = testing::identity();
        identity.plan = Plan { samples: base.0, part_samples: base.1 };
        identity.dataset.samples = base.0;
        for &samples in added {
            let dataset = DatasetIdentity { samples, ..identity.dataset.clone() };
            let next = identity.next_generation(dataset, identity.all_label_names().to_vec());
            identity.check_next(Path::new("generations/x.json"), &next).unwrap();
            identity.generations.push(next);
        }
        identity
    }

    #[test]
    fn parts_cover_the_samples_of_all_generations_once() {
        for (base, added) in [((10, 4), &[][..]), ((10, 4), &[3]), ((8, 4), &[1, 9, 4]), ((0, 4), &[5])] {
            let identity = grown(base, added);
            let mut next = 0;
            for part in 0..identity.parts() {
                let range = identity.range(part);
                assert_eq!(range.start, next, "{base:?} {added:?}");
                assert!(!range.is_empty());
                for sample in range.clone() {
                    assert_eq!(identity.part_of(sample), part, "{base:?} {added:?} {sample}");
                }
                let generation = identity.generation_of(part);
                assert!(identity.generation_parts(generation).contains(&part));
                let of_generation = identity.generation_samples(generation);
                assert!(of_generation.start <= range.start && range.end <= of_generation.end);
                next = range.end;
            }
            assert_eq!(next, identity.samples());
            assert_eq!(identity.part_of(next), identity.parts());
            assert!(identity.range(identity.parts()).is_empty());
        }
    }

    #[test]
    fn each_generation_has_a_fingerprint_of_its_own() {
        let identity = grown((10, 4), &[3, 3]);
        let of_parts: Vec<_> = (0..identity.parts()).map(|part| identity.part_fingerprint(part)).collect();
        assert_eq!(of_parts[0], identity.fingerprint());
        assert_eq!(of_parts[0], of_parts[2]);
        // The same images, after others.
        assert_ne!(of_parts[3], of_parts[4]);
        assert_ne!(of_parts[0], of_parts[3]);
        assert_eq!(of_parts[4], identity.last_fingerprint());
    }

    #[test]
    fn a_generation_that_cannot_follow_is_refused() {
        let path = Path::new("generations/00001.json");
        let identity = grown((10, 4), &[]);
        let dataset = identity.dataset.clone();
        let good = || identity.next_generation(dataset.clone(), identity.label_names.clone());
        identity.check_next(path, &good()).unwrap();
        let other_names = match identity.label_names.is_empty() {
            true => vec!["new".to_owned()],
            false => vec!["new".to_owned(); identity.label_names.len()],
        };
        for bad in [
            Generation { generation: 2, ..good() },
            Generation { after: dataset.digest.clone(), ..good() },
            Generation { format_version: 2, ..good() },
            Generation { label_names: other_names, ..good() },
            Generation { dataset: DatasetIdentity { samples: 0, ..dataset.clone() }, ..good() },
            Generation { dataset: DatasetIdentity { samples: u64::MAX, ..dataset.clone() }, ..good() },
        ] {
            assert!(identity.check_next(path, &bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn records_are_read_in_order_and_a_gap_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let identity = grown((10, 4), &[3, 5]);
        let mut so_far = grown((10, 4), &[]);
        for generation in &identity.generations {
            so_far.generations.push(generation.clone());
            add_generation(dir.path(), &so_far).unwrap();
        }
        let mut read = grown((10, 4), &[]);
        read_generations(dir.path(), &mut read).unwrap();
        assert_eq!(read, identity);
        std::fs::remove_file(layout::generation_json(dir.path(), 1)).unwrap();
        let error = read_generations(dir.path(), &mut grown((10, 4), &[])).unwrap_err();
        assert!(matches!(error, Error::FileMissing { .. }), "{error}");
    }

    #[test]
    fn a_generation_without_a_part_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        add_generation(dir.path(), &grown((10, 4), &[3])).unwrap();
        let other = grown((10, 4), &[5]);
        assert!(!check_generation(dir.path(), &other).unwrap());
        add_generation(dir.path(), &other).unwrap();
        let mut read = grown((10, 4), &[]);
        read_generations(dir.path(), &mut read).unwrap();
        assert_eq!(read, other);
        // With a commit record of its first part, readable or not, it binds.
        crate::atomic::write(&layout::samples_commit(dir.path(), 3), b"{}").unwrap();
        let error = check_generation(dir.path(), &grown((10, 4), &[3])).unwrap_err();
        assert!(matches!(error, Error::GenerationChanged { found: 3, expected: 5, .. }), "{error}");
    }
}
