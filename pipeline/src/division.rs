//! How the parts of a cache are divided among the processes that build it.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The share of one of several workers: the i-th n-th of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of this worker, from 0.
    pub index: u32,
    /// How many workers there are, more than `index`.
    pub count: u32,
}

/// How the parts are divided: `leases` or `I/N`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Division {
    /// Each worker takes the next part that nobody has.
    #[default]
    Leases,
    /// Each worker has its share.
    Share(Share),
}

impl Share {
    /// A share, if there is such a worker.
    fn new(index: u32, count: u32) -> Option<Share> {
        (index < count).then_some(Share { index, count })
    }

    /// The worker's parts of `parts`: consecutive ones, so that it reads consecutive images. The shares of all workers cover the parts once and
    /// differ by one part at most.
    pub(crate) fn of(self, parts: u32) -> Range<u32> {
        let at = |index: u32| (u64::from(parts) * u64::from(index) / u64::from(self.count)) as u32;
        at(self.index)..at(self.index + 1)
    }

    /// The share that the scheduler states which has started this process as one of several, and where it states it. `var` gives a variable of
    /// the environment.
    ///
    /// Tasks are numbered from 0 everywhere but in Slurm's arrays, whose numbers begin and go on as the user has said. A Kubernetes job tells a
    /// pod its index only, so its manifest has to set `JOB_COMPLETIONS`.
    ///
    /// # Errors
    /// Variables that contradict each other, in words.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Option<(Share, String)>, String> {
        let number = |name: &str| -> Result<Option<u32>, String> {
            let Some(text) = var(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            text.parse().map(Some).map_err(|_| format!("{name} is {text:?} in the environment, and not a number; put it right, or give --worker I/N or --worker leases"))
        };
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        for (index_name, count_name) in [
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
            ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
            ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
            ("RANK", "WORLD_SIZE"),
        ] {
            let (Some(index), Some(count)) = (number(index_name)?, number(count_name)?) else {
                continue;
            };
            // An array like 0-3 has these tasks; one like 1,5,9 is divided by the order of its numbers only if they are evenly spaced.
            let index = match index_name {
                "SLURM_ARRAY_TASK_ID" => index.saturating_sub(first) / step,
                _ => index,
            };
            if count == 1 {
                continue;
            }
            let share = Share::new(index, count).ok_or_else(|| {
                format!(
                    "{index_name} and {count_name} in the environment say worker {index} of {count}, and workers are numbered from 0; give \
                     --worker I/N, or --worker leases"
                )
            })?;
            return Ok(Some((share, format!("{index_name} and {count_name}"))));
        }
        Ok(None)
    }
}

impl From<Division> for String {
    fn from(division: Division) -> String {
        match division {
            Division::Leases => "leases".to_owned(),
            Division::Share(share) => share.to_string(),
        }
    }
}

impl TryFrom<String> for Division {
    type Error = String;

    fn try_from(text: String) -> Result<Division, String> {
        text.parse()
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Division {
    type Err = String;

    /// `leases`, or `I/N`.
    fn from_str(text: &str) -> Result<Division, String> {
        if text == "leases" {
            return Ok(Division::Leases);
        }
        let share =
            text.split_once('/').and_then(|(index, count)| Share::new(index.parse().ok()?, count.parse().ok()?));
        share.map(Division::Share).ok_or_else(|| {
            "expected leases, or I/N for worker I of N, numbered from 0: 0/4, 1/4, 2/4 and 3/4 are four workers"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn shares_cover_all_parts_once_and_are_alike() {
        for (parts, count) in [(1, 1), (7, 3), (3, 7), (100_000, 1000), (u32::MAX, 3)] {
            let mut next = 0;
            for index in 0..count {
                let share = Share { index, count }.of(parts);
                assert_eq!(share.start, next);
                assert!((share.len() as i64 - i64::from(parts / count)).abs() <= 1);
                next = share.end;
            }
            assert_eq!(next, parts);
        }
    }

    #[test]
    fn a_division_is_read_as_typed() {
        assert_eq!("leases".parse(), Ok(Division::Leases));
        assert_eq!("2/4".parse(), Ok(Division::Share(Share { index: 2, count: 4 })));
        for bad in ["4/4", "1", "a/b", "/", "0/0", "-1/3", ""] {
            assert!(bad.parse::<Division>().unwrap_err().contains("numbered from 0"), "{bad}");
        }
    }

    #[test]
    fn schedulers_state_the_share() {
        let share = |vars: &[(&str, &str)]| {
            let vars: BTreeMap<_, _> = vars.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            Share::from_vars(|name| vars.get(name).cloned())
        };
        let found = |vars: &[(&str, &str)]| share(vars).unwrap().map(|(share, _)| (share.index, share.count));
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "8")]), Some((3, 8)));
        let from_one = [
            ("SLURM_ARRAY_TASK_ID", "8"),
            ("SLURM_ARRAY_TASK_COUNT", "8"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ];
        assert_eq!(found(&from_one), Some((7, 8)));
        let stepped = [
            ("SLURM_ARRAY_TASK_ID", "20"),
            ("SLURM_ARRAY_TASK_COUNT", "3"),
            ("SLURM_ARRAY_TASK_MIN", "0"),
            ("SLURM_ARRAY_TASK_STEP", "10"),
        ];
        assert_eq!(found(&stepped), Some((2, 3)));
        assert_eq!(found(&[("SLURM_PROCID", "1"), ("SLURM_NTASKS", "4")]), Some((1, 4)));
        assert_eq!(found(&[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "5")]), Some((0, 5)));
        assert_eq!(found(&[("JOB_COMPLETION_INDEX", "0")]), None);
        assert_eq!(found(&[("AWS_BATCH_JOB_ARRAY_INDEX", "4"), ("AWS_BATCH_JOB_ARRAY_SIZE", "5")]), Some((4, 5)));
        assert_eq!(found(&[("RANK", "1"), ("WORLD_SIZE", "2")]), Some((1, 2)));
        // A single task builds all parts.
        assert_eq!(found(&[("RANK", "0"), ("WORLD_SIZE", "1")]), None);
        assert!(share(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().contains("RANK and WORLD_SIZE"));
        assert!(share(&[("RANK", "x"), ("WORLD_SIZE", "2")]).unwrap_err().contains("RANK is \"x\""));
    }
}
