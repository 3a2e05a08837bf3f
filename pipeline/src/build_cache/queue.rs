//! The parts that this process builds, one after the other, and what is known of the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender, unbounded};
use program::{signals, words::count};
use schemas::Cache;

use super::build::Build;
use super::saved::SavedBatches;
use super::space::DiskWatch;
use super::workers::{Claims, Leases, Parts, Worker};
use super::worklist::{Outputs, PartWork};
use crate::division::{Division, Share};

/// How often a worker that waits looks whether others have finished or ended, at most. In a folder of many parts, where a look takes long, it looks
/// a tenth of its time.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const SHARE_OF_LOOKS: u32 = 10;

/// A cache's parts as this build wants them.
pub(crate) struct WantedParts<'a> {
    pub build: &'a Build,
    pub cache: &'a Cache,
}

impl Parts for WantedParts<'_> {
    type Work = PartWork;

    fn open(&self) -> Result<BTreeSet<u32>> {
        let committed = schemas::committed_parts(self.cache.dir(), &self.build.wanted())?;
        Ok((0..self.build.identity.parts()).filter(|part| !committed.contains(part)).collect())
    }

    fn work(&self, part: u32) -> Result<Option<PartWork>> {
        let state = self.cache.part_state(part)?;
        let has = Outputs { samples: state.samples.is_some(), teachers: state.teachers.into_keys().collect() };
        Ok(self.build.work_of_part(part, &has))
    }
}

/// The parts that this process builds.
pub(crate) struct Queue<'a> {
    parts: &'a WantedParts<'a>,
    disk: DiskWatch,
    /// Why no further part is begun. What is in work is finished first.
    problem: Option<anyhow::Error>,
    division: Divided<'a>,
    saved: SavedBatches,
    /// Files that begun parts still lack.
    lacking: BTreeMap<u32, usize>,
    /// Every part that this process has begun.
    begun: Vec<PartWork>,
    /// A part for each file that is committed.
    committed: (Sender<u32>, Receiver<u32>),
    told_of_others: bool,
}

enum Divided<'a> {
    Leases { claims: Box<Claims<'a, Leases, WantedParts<'a>>>, leases: &'a Leases, worker: Worker },
    Share { share: Share, left: VecDeque<u32> },
}

/// What a worker that has nothing to do finds after waiting for the others.
pub(crate) enum Waited {
    /// Every part is finished.
    AllDone,
    /// A part that another worker had and does not finish.
    Part(PartWork),
    Interrupted,
}

impl<'a> Queue<'a> {
    /// Divides `parts` as asked. Announces this worker where others have to know of it.
    pub(crate) fn new(
        parts: &'a WantedParts<'a>,
        leases: &'a Leases,
        division: Division,
        disk: DiskWatch,
    ) -> Result<Queue<'a>> {
        let division = match division {
            Division::Share(share) => Divided::Share { share, left: parts.build.shared_parts(share).collect() },
            Division::Leases => {
                let patience = parts.build.recipe.run.patience();
                leases.clear_ended()?;
                let worker = leases.announce()?;
                let mut claims = Claims::new(leases, parts, worker.id().clone(), patience);
                claims.look()?;
                Divided::Leases { claims: Box::new(claims), leases, worker }
            }
        };
        Ok(Queue {
            parts,
            disk,
            problem: None,
            division,
            saved: SavedBatches::new(parts.cache.dir(), &parts.build.identity),
            lacking: BTreeMap::new(),
            begun: Vec::new(),
            committed: unbounded(),
            told_of_others: false,
        })
    }

    /// The next part to build; `None` if there is none that nobody does.
    pub(crate) fn next(&mut self) -> Result<Option<PartWork>> {
        let work = match &mut self.division {
            Divided::Leases { claims, .. } => claims.claim()?,
            Divided::Share { left, .. } => loop {
                match left.pop_front() {
                    None => break None,
                    Some(part) => match self.parts.work(part)? {
                        None => continue,
                        work => break work,
                    },
                }
            },
        };
        let Some(work) = work else {
            return Ok(None);
        };
        if let Err(full) = self.disk.check(self.lacking.len()) {
            self.problem = Some(full);
            if let Divided::Leases { claims, .. } = &mut self.division {
                claims.done(work.part)?;
            }
            return Ok(None);
        }
        self.begin(work.clone());
        Ok(Some(work))
    }

    fn begin(&mut self, work: PartWork) {
        let files = usize::from(work.missing.samples) + work.missing.teachers.len();
        self.lacking.insert(work.part, files);
        self.begun.push(work);
    }

    /// Where the number of a part goes for each of its files that is committed.
    pub(crate) fn committed(&self) -> Sender<u32> {
        self.committed.0.clone()
    }

    /// Gives back the leases of parts that are finished by now, and removes what was saved of them.
    pub(crate) fn settle(&mut self) -> Result<()> {
        for part in self.committed.1.try_iter().collect::<Vec<_>>() {
            let left = self.lacking.get_mut(&part).map_or(0, |left| {
                *left -= 1;
                *left
            });
            if left == 0 {
                self.lacking.remove(&part);
                self.saved.remove(part)?;
                if let Divided::Leases { claims, .. } = &mut self.division {
                    claims.done(part)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the parts of the other workers are finished, or one of them can be taken over.
    ///
    /// # Errors
    /// What kept this process from beginning another part.
    pub(crate) fn wait(&mut self) -> Result<Waited> {
        loop {
            if let Some(problem) = self.problem.take() {
                return Err(problem);
            }
            let began = Instant::now();
            let open = match &mut self.division {
                Divided::Leases { claims, .. } => claims.look()?,
                Divided::Share { .. } => 0,
            };
            if open == 0 {
                return Ok(Waited::AllDone);
            }
            if let Some(work) = self.next()? {
                return Ok(Waited::Part(work));
            }
            if self.problem.is_some() {
                continue;
            }
            if let Divided::Leases { leases, worker, .. } = &self.division
                && !std::mem::replace(&mut self.told_of_others, true)
            {
                let others = leases.living(Some(worker.id()))?;
                let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
                tracing::info!("waiting for {} that others build{others}", count(open as u64, "part"));
            }
            if signals::requested() {
                return Ok(Waited::Interrupted);
            }
            thread::sleep(LOOK_EVERY.max(SHARE_OF_LOOKS * began.elapsed()));
        }
    }

    /// Every part that this process has begun.
    pub(crate) fn begun(&self) -> &[PartWork] {
        &self.begun
    }

    pub(crate) fn saved(&self) -> &SavedBatches {
        &self.saved
    }

    /// The parts that are this process's to build or see built.
    pub(crate) fn range(&self) -> Range<u32> {
        let parts = self.parts.build.identity.parts();
        match &self.division {
            Divided::Leases { .. } => 0..parts,
            Divided::Share { share, .. } => share.of(parts),
        }
    }
}

impl Drop for Queue<'_> {
    /// Gives back what this process has begun and not finished.
    fn drop(&mut self) {
        if let Divided::Leases { claims, leases, .. } = &mut self.division
            && let Err(error) = claims.give_up().and_then(|()| leases.clear_ended())
        {
            tracing::warn!("others may have to wait for parts that this worker had begun: {error:#}");
        }
    }
}
