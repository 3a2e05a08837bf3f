//! What is still to be built: a pure function of the plan and of what is committed.

use std::collections::BTreeSet;

use schemas::TeacherId;

/// What a part has, or what it lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outputs {
    pub samples: bool,
    /// Feature files, by teacher.
    pub teachers: BTreeSet<TeacherId>,
}

/// One part that lacks something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartWork {
    pub part: u32,
    /// What it lacks of what is wanted.
    pub missing: Outputs,
}

/// The parts that lack their samples or the features of a `wanted` teacher, in order.
///
/// `committed` says of every part what it has. Teachers that are not wanted now are left alone.
pub(crate) fn worklist(wanted: &BTreeSet<TeacherId>, committed: &[Outputs]) -> Vec<PartWork> {
    (0u32..).zip(committed).filter_map(|(part, has)| work_of_part(wanted, part, has)).collect()
}

/// What a part lacks of what is wanted, if anything.
pub(crate) fn work_of_part(wanted: &BTreeSet<TeacherId>, part: u32, has: &Outputs) -> Option<PartWork> {
    let teachers: BTreeSet<_> = wanted.difference(&has.teachers).cloned().collect();
    let lacks = !has.samples || !teachers.is_empty();
    lacks.then_some(PartWork { part, missing: Outputs { samples: !has.samples, teachers } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> BTreeSet<TeacherId> {
        names.iter().map(|name| TeacherId::new(*name).expect("a valid id")).collect()
    }

    fn has(samples: bool, teachers: &[&str]) -> Outputs {
        Outputs { samples, teachers: ids(teachers) }
    }

    #[test]
    fn an_empty_cache_lacks_everything() {
        let work = worklist(&ids(&["clip", "dino"]), &[Outputs::default(), Outputs::default()]);
        let all = has(true, &["clip", "dino"]);
        assert_eq!(work, [PartWork { part: 0, missing: all.clone() }, PartWork { part: 1, missing: all }]);
    }

    #[test]
    fn a_finished_cache_lacks_nothing_even_with_more_teachers_than_wanted() {
        assert_eq!(worklist(&ids(&["clip"]), &[has(true, &["clip", "dino"])]), []);
    }

    #[test]
    fn only_what_is_missing_is_listed() {
        let state = [has(true, &["clip"]), has(true, &["clip", "dino"]), has(false, &["clip", "dino"]), has(true, &[])];
        let work = worklist(&ids(&["clip", "dino"]), &state);
        assert_eq!(
            work,
            [
                PartWork { part: 0, missing: has(false, &["dino"]) },
                PartWork { part: 2, missing: has(true, &[]) },
                PartWork { part: 3, missing: has(false, &["clip", "dino"]) },
            ]
        );
    }
}
