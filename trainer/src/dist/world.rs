//! The processes that train together: how they meet, what they tell each other, and who is missing when something fails.
//!
//! Small things go through the store, which rank 0 or torchrun's agent keeps; tensors go through the process group. Everything is asked for in the same
//! order by all, because all of them run the same loop and decide by what all of them know.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure};
use models::params::Tensors;
use program::exit::SaidElsewhere;
use program::signals;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{HostCopy, ProcessGroup, Reduction};

use super::lost::{LostRank, named};
use super::meeting::{Meeting, PATIENCE, local_address, open_store};
use super::place::Place;
use super::share::{Cut, Share};
use super::store::Store;

#[cfg(test)]
pub(crate) mod tests;

/// How long a process that has lost the others waits for what they say about it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a process has ended, as it tells the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Ending {
    Fine,
    /// It has lost another one.
    Lost,
    /// By an error of its own.
    Failed(String),
}

/// The processes that train together; a process that is alone has nobody to ask.
#[derive(Debug)]
pub(crate) struct World {
    others: Option<Others>,
    /// Steps done, for messages; `None` outside of training.
    step: Cell<Option<u64>>,
}

#[derive(Debug)]
struct Others {
    place: Place,
    store: Store,
    connected: OnceCell<Connected>,
    /// Number of the next exchange through the store.
    round: Cell<u64>,
}

/// The tensors' way to the others.
#[derive(Debug)]
struct Connected {
    device: Device,
    group: Arc<ProcessGroup>,
    timeout: Duration,
}

/// Meets the others, if `place` says that there are any, works, and leaves.
///
/// # Errors
/// Those of `work`; [`LostRank`] if another process is gone, naming it and what it said last.
pub(crate) fn in_world<T>(place: Option<&Place>, work: impl FnOnce(&World) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let Some(place) = place else {
        return work(&World::alone());
    };
    let world = World::meet(place)?;
    let outcome = work(&world);
    world.leave(outcome)
}

impl World {
    /// A process that is alone.
    pub(crate) fn alone() -> World {
        World { others: None, step: Cell::new(None) }
    }

    /// Waits until all processes are there.
    fn meet(place: &Place) -> anyhow::Result<World> {
        let store = open_store(place)?;
        Meeting { place, store: &store, deadline: Instant::now() + PATIENCE }.wait_for_all()?;
        let others = Others { place: place.clone(), store, connected: OnceCell::new(), round: Cell::new(0) };
        Ok(World { others: Some(others), step: Cell::new(None) })
    }

    /// Prepares the exchange of tensors on `device`. `timeout` is how long to wait for another process from here on.
    ///
    /// # Errors
    /// If they cannot reach each other.
    pub(crate) fn connect(&self, device: Device, timeout: Duration) -> anyhow::Result<()> {
        let Some(others) = &self.others else {
            return Ok(());
        };
        let Place { rank, world_size, .. } = others.place;
        let group = match device {
            Device::Cuda(index) => {
                let id = self.lead(|| Ok(ProcessGroup::nccl_id()?.to_vec()))?;
                let id = id.try_into().map_err(|_| anyhow!("the name of the group of GPUs is damaged"))?;
                ProcessGroup::nccl(&id, rank, world_size, index)?
            }
            _ => {
                let address = local_address(&others.place.master)?.to_string();
                let interfaces = &others.place.interfaces;
                ProcessGroup::gloo(others.store.inner(), rank, world_size, &address, interfaces, timeout)?
            }
        };
        others.store.set_limit(timeout);
        let connected = Connected { device, group: Arc::new(group), timeout };
        ensure!(others.connected.set(connected).is_ok(), "the processes are connected already");
        Ok(())
    }

    fn connected(&self) -> Option<&Connected> {
        self.others.as_ref().and_then(|others| others.connected.get())
    }

    /// Number of this process, from 0.
    pub(crate) fn rank(&self) -> usize {
        self.others.as_ref().map_or(0, |others| others.place.rank)
    }

    /// How many processes there are.
    pub(crate) fn size(&self) -> usize {
        self.others.as_ref().map_or(1, |others| others.place.world_size)
    }

    /// How many there are on this machine.
    pub(crate) fn local_size(&self) -> usize {
        self.others.as_ref().map_or(1, |others| others.place.local_world_size)
    }

    /// Whether this is rank 0, which alone owns the run folder.
    pub(crate) fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// The process group, unless this process is alone.
    pub(crate) fn group(&self) -> Option<&Arc<ProcessGroup>> {
        self.connected().map(|connected| &connected.group)
    }

    /// What this process takes of every step.
    ///
    /// # Errors
    /// If the recipe's batches cannot be divided evenly.
    pub(crate) fn share(&self, batch_size: usize, accum_iter: usize, cut: Cut) -> anyhow::Result<Share> {
        Share::of(self.rank(), self.size(), batch_size, accum_iter, cut)
    }

    /// This process's share of `len` things that are looked at once.
    pub(crate) fn range(&self, len: usize) -> Range<usize> {
        let bound = |rank: usize| (len as u128 * rank as u128 / self.size() as u128) as usize;
        bound(self.rank())..bound(self.rank() + 1)
    }

    /// Sets the number of steps done, for messages about lost processes.
    pub(crate) fn set_step(&self, done: u64) {
        self.step.set(Some(done));
    }

    /// Runs `work` on rank 0 and gives its result to all. It may take as long as it likes.
    ///
    /// # Errors
    /// Those of `work` on rank 0, and [`LostRank`] on the others if it fails.
    pub(crate) fn lead<T: Serialize + DeserializeOwned>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let Some(others) = &self.others else {
            return work();
        };
        let key = others.next_key("lead");
        if self.is_main() {
            let result = work()?;
            others.store.set(&key, &serde_json::to_vec(&result)?)?;
            return Ok(result);
        }
        let told = self.wait_for(others, &key, 0, None)?;
        Ok(serde_json::from_slice(&told)?)
    }

    /// What every process has to say, by rank: for rank 0, and nothing for the others.
    ///
    /// # Errors
    /// [`LostRank`] if one does not answer.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> anyhow::Result<Vec<T>> {
        let Some(others) = &self.others else {
            return Ok(vec![own]);
        };
        let key = others.next_key("gather");
        if !self.is_main() {
            others.store.set(&format!("{key}/{}", self.rank()), &serde_json::to_vec(&own)?)?;
            return Ok(Vec::new());
        }
        let mut all = vec![own];
        for rank in 1..self.size() {
            let key = format!("{key}/{rank}");
            let limit = others.connected.get().map_or(PATIENCE, |connected| connected.timeout);
            let told = self.wait_for(others, &key, rank, Some(limit))?;
            others.store.delete(&key)?;
            all.push(serde_json::from_slice(&told)?);
        }
        Ok(all)
    }

    /// Refuses to work together if a process has other facts than rank 0, by name, or is another program.
    ///
    /// # Errors
    /// The first difference, with both values: the same error for all.
    pub(crate) fn agree(&self, facts: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let mut own = facts.clone();
        own.insert("the program".to_owned(), format!("{} with {}", env!("CARGO_PKG_VERSION"), torch_ext::RUNTIME));
        let of_ranks = self.gather(own.clone())?;
        let difference = self.lead(|| {
            let differs = |(rank, of_rank)| Some((rank, difference(of_rank, &own)?));
            Ok(of_ranks.iter().enumerate().find_map(differs))
        })?;
        if let Some((rank, difference)) = difference {
            bail!(
                "rank {rank} differs from rank 0 in {difference}. All processes need the same recipe, data and programs"
            );
        }
        Ok(())
    }

    /// Replaces tensors by those of rank 0.
    ///
    /// # Errors
    /// [`LostRank`], later, if a process is gone.
    pub(crate) fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> anyhow::Result<()> {
        let Some(connected) = self.connected() else {
            return Ok(());
        };
        let _no_grad = tch::no_grad_guard();
        for tensor in tensors {
            let mut flat = tensor.to_device(connected.device).contiguous();
            connected.group.broadcast(&mut flat, 0)?;
            tensor.shallow_clone().copy_(&flat);
        }
        Ok(())
    }

    /// The sum over all processes of numbers that each has.
    ///
    /// # Errors
    /// [`LostRank`], later, if a process is gone.
    pub(crate) fn sum(&self, numbers: &[f64]) -> anyhow::Result<Vec<f64>> {
        let Some(connected) = self.connected() else {
            return Ok(numbers.to_vec());
        };
        let mut tensor = Tensor::from_slice(numbers).to_device(connected.device);
        connected.group.all_reduce(&mut tensor, Reduction::Sum)?;
        Ok(Vec::<f64>::try_from(self.on_host(&tensor)?)?)
    }

    /// The rows of every process, by rank, on the CPU: for rank 0, and nothing for the others. `own` is `[n, ..]`, `counts` says how many rows each
    /// process has, and all else of their shape and type is the same for all.
    ///
    /// # Errors
    /// [`LostRank`], later, if a process is gone.
    pub(crate) fn gather_rows(&self, own: &Tensor, counts: &[usize]) -> anyhow::Result<Vec<Tensor>> {
        let Some(connected) = self.connected() else {
            return Ok(vec![own.shallow_clone()]);
        };
        let _no_grad = tch::no_grad_guard();
        let mut of_ranks = Vec::new();
        for (rank, &count) in counts.iter().enumerate() {
            let mut shape = own.size();
            shape[0] = count as i64;
            let mut rows = match rank == self.rank() {
                true => own.to_device(connected.device).contiguous(),
                false => Tensor::empty(shape, (own.kind(), connected.device)),
            };
            if count > 0 {
                connected.group.broadcast(&mut rows, rank)?;
            }
            if self.is_main() {
                of_ranks.push(self.on_host(&rows)?);
            }
        }
        Ok(of_ranks)
    }

    /// Refuses to go on if the tensors of the processes are not the same to the bit.
    ///
    /// # Errors
    /// The first that differs, by name.
    pub(crate) fn require_equal(&self, tensors: &Tensors) -> anyhow::Result<()> {
        let Some(connected) = self.connected() else {
            return Ok(());
        };
        let _no_grad = tch::no_grad_guard();
        let sums: Vec<Tensor> = tensors.values().map(bit_sum).collect();
        let own = Tensor::stack(&sums, 0).to_device(connected.device);
        let (mut least, mut greatest) = (own.copy(), own);
        connected.group.all_reduce(&mut least, Reduction::Min)?;
        connected.group.all_reduce(&mut greatest, Reduction::Max)?;
        let differs = Vec::<bool>::try_from(self.on_host(&least.not_equal_tensor(&greatest))?)?;
        if let Some((name, _)) = tensors.keys().zip(differs).find(|(_, differs)| *differs) {
            bail!(
                "{name} is not the same in all {} processes, and nothing is saved. One of them has computed something else: a GPU may be \
                 damaged, or the programs or libraries differ",
                self.size()
            );
        }
        Ok(())
    }

    /// A copy on the host of what comes of an exchange, which a GPU may wait for without end.
    fn on_host(&self, tensor: &Tensor) -> anyhow::Result<Tensor> {
        let began = Instant::now();
        let mut copy = HostCopy::start(tensor)?;
        Ok(copy.wait_with(|| self.check(began))?.shallow_clone())
    }

    /// Whether work that waits for the others since `began` on a GPU can still be done.
    ///
    /// # Errors
    /// If it has failed, or takes longer than the timeout.
    pub(crate) fn check(&self, began: Instant) -> anyhow::Result<()> {
        let Some(connected) = self.connected() else {
            return Ok(());
        };
        connected.group.check()?;
        if began.elapsed() > connected.timeout {
            return Err(torch_ext::Error::Group {
                operation: "waiting for the others",
                message: format!("timed out after {} s (dist.timeout)", connected.timeout.as_secs()),
            }
            .into());
        }
        Ok(())
    }

    /// Waits for a value that process `from` gives; without a limit, as long as that process has not ended.
    fn wait_for(&self, others: &Others, key: &str, from: usize, limit: Option<Duration>) -> anyhow::Result<Vec<u8>> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(value) = others.store.get(key)? {
                return Ok(value);
            }
            if let Some(ending) = others.ending(from)? {
                // It may have given the value just before.
                if let Some(value) = others.store.get(key)? {
                    return Ok(value);
                }
                return Err(self.lost(&has_ended(from, &ending)).into());
            }
            if limit.is_some_and(|limit| began.elapsed() > limit) {
                let seconds = began.elapsed().as_secs();
                return Err(self.lost(&format!("rank {from} has not answered for {seconds} s (dist.timeout)")).into());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn lost(&self, why: &str) -> LostRank {
        LostRank { rank: self.rank(), step: self.step.get(), why: why.to_owned() }
    }

    /// Ends the work in common: tells the others how, and finds out who is missing if that is why.
    fn leave<T>(&self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(others) = &self.others else {
            return outcome;
        };
        let is_fine = outcome.is_ok();
        let outcome =
            outcome.inspect(|_| drop(others.report(&Ending::Fine))).map_err(|error| self.explain(others, error));
        others.close(if is_fine { PATIENCE } else { LAST_WORDS });
        outcome
    }

    /// Tells the others by what error this process ends, and asks who is missing if that is why.
    fn explain(&self, others: &Others, error: anyhow::Error) -> anyhow::Error {
        others.store.set_limit(LAST_WORDS);
        let is_lost = error.is::<LostRank>();
        if !is_lost && !error.chain().any(|cause| matches!(cause.downcast_ref(), Some(torch_ext::Error::Group { .. })))
        {
            let own = Ending::Failed(format!("{error:#}"));
            let told = others.report(&own).is_ok();
            let is_known = told && !self.is_main() && others.wait_for_ending(0, LAST_WORDS).as_ref() == Some(&own);
            return if is_known { error.context(SaidElsewhere) } else { error };
        }
        // What a GPU waits for will not come.
        let _ = self.group().map(|group| group.abort());
        let _ = others.report(&Ending::Lost);
        let endings = others.wait_for_endings(LAST_WORDS);
        if is_lost {
            return error;
        }
        // What this process has told itself is there, unless the store is not.
        let is_reached = endings[self.rank()].is_some();
        let failed = endings.iter().enumerate().find_map(|(rank, ending)| match ending {
            Some(ending @ (Ending::Failed(_) | Ending::Fine)) => Some(has_ended(rank, ending)),
            _ => None,
        });
        let missing = || {
            let missing: Vec<usize> = (0..self.size()).filter(|&rank| endings[rank].is_none()).collect();
            match missing.as_slice() {
                // Its word may come too late if it waits for a longer time.
                [] => format!("the processes have lost each other: {error:#}"),
                _ if !is_reached && others.place.agent_store => format!("the launcher is gone or cut off: {error:#}"),
                _ if !is_reached => format!("rank 0 is gone or cut off: {error:#}"),
                [rank] => format!("rank {rank} does not answer: {error:#}"),
                missing => format!("{} do not answer: {error:#}", named(missing)),
            }
        };
        self.lost(&failed.unwrap_or_else(missing)).into()
    }
}

impl Others {
    fn next_key(&self, what: &str) -> String {
        let round = self.round.replace(self.round.get() + 1);
        format!("{what}/{round}")
    }

    /// Whether this process keeps the store.
    fn keeps_store(&self) -> bool {
        self.place.rank == 0 && !self.place.agent_store
    }

    fn report(&self, ending: &Ending) -> anyhow::Result<()> {
        Ok(self.store.set(&format!("end/{}", self.place.rank), &serde_json::to_vec(ending)?)?)
    }

    fn ending(&self, rank: usize) -> anyhow::Result<Option<Ending>> {
        let told = self.store.get(&format!("end/{rank}"))?;
        told.map(|told| Ok(serde_json::from_slice(&told)?)).transpose()
    }

    /// How a process has ended, if it tells so within `limit`.
    fn wait_for_ending(&self, rank: usize, limit: Duration) -> Option<Ending> {
        let began = Instant::now();
        loop {
            let ending = self.ending(rank).ok()?;
            if ending.is_some() || began.elapsed() > limit || signals::requested() {
                return ending;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Leaves the store; who keeps it stays until nobody needs it any more, or for `limit`.
    fn close(&self, limit: Duration) {
        let left = |rank: usize| format!("left/{rank}");
        if !self.keeps_store() {
            let _ = self.store.set(&left(self.place.rank), b"");
            return;
        }
        let began = Instant::now();
        for rank in 1..self.place.world_size {
            // After a signal the others leave too, but may not have read yet that all stop.
            let limit = || if signals::requested() { limit.min(LAST_WORDS) } else { limit };
            while matches!(self.store.get(&left(rank)), Ok(None)) && began.elapsed() < limit() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// How the processes have ended, as far as they have told within `limit`.
    fn wait_for_endings(&self, limit: Duration) -> Vec<Option<Ending>> {
        let began = Instant::now();
        loop {
            let endings: Vec<anyhow::Result<Option<Ending>>> =
                (0..self.place.world_size).map(|rank| self.ending(rank)).collect();
            let is_lost = endings.iter().any(Result::is_err);
            let endings: Vec<Option<Ending>> = endings.into_iter().map(Result::unwrap_or_default).collect();
            let is_whole = endings.iter().all(Option::is_some);
            if is_whole || is_lost || began.elapsed() > limit || signals::requested() {
                return endings;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The first fact that differs, with both values.
fn difference(own: &BTreeMap<String, String>, of_main: &BTreeMap<String, String>) -> Option<String> {
    let text = |value: Option<&String>| value.map_or("absent".to_owned(), Clone::clone);
    let name = own.keys().chain(of_main.keys()).find(|&name| own.get(name) != of_main.get(name))?;
    Some(format!("{name}: {}, rank 0 has {}", text(own.get(name)), text(of_main.get(name))))
}

fn has_ended(rank: usize, ending: &Ending) -> String {
    match ending {
        Ending::Fine => format!("rank {rank} has ended before the others"),
        Ending::Lost => format!("rank {rank} has lost another process"),
        Ending::Failed(message) => format!("rank {rank} has ended: {message}"),
    }
}

/// A number that two tensors of other bits do not share, but by an accident as rare as of a 32-bit hash.
fn bit_sum(tensor: &Tensor) -> Tensor {
    let tensor = tensor.detach().contiguous().view([-1]);
    let bits = match tensor.kind() {
        Kind::Float => tensor.view_dtype(Kind::Int),
        Kind::BFloat16 | Kind::Half => tensor.view_dtype(Kind::Int16),
        Kind::Double => tensor.view_dtype(Kind::Int64),
        _ => tensor,
    };
    bits.sum(Kind::Int64)
}
