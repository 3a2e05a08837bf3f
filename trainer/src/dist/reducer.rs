//! The end of a step: the sum of gradients and losses over all processes, and what each says of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_ext::GradBuckets;

use super::world::World;
use crate::recipe::{BucketType, Dist};

/// What a process says of itself with every step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct RankFacts {
    /// How long the host has waited for data.
    pub waited: Duration,
    /// How long the device was idle in the steps since the last one that said so.
    pub idle: Duration,
    /// How long its host took until its own part of the step was done. [`Reducer::finish`] fills it in.
    pub busy: Duration,
    /// Peak memory so far, in bytes.
    pub peak_memory: u64,
    /// Into how many micro-batches it splits its part of a batch.
    pub micro_batches: usize,
    /// Whether a signal asks it to stop.
    pub stops: bool,
}

impl RankFacts {
    /// Numbers of a process.
    pub(crate) const LEN: usize = 6;

    fn to_numbers(self) -> [f32; RankFacts::LEN] {
        // In MiB, which f32 has to a byte up to 16 TiB.
        let memory = (self.peak_memory >> 20) as f32;
        let [waited, idle, busy] = [self.waited, self.idle, self.busy].map(|time| time.as_secs_f32());
        [waited, idle, busy, memory, self.micro_batches as f32, f32::from(u8::from(self.stops))]
    }

    /// From the numbers that a step gave. A loss that is NaN leaves them as they are, since each number is summed by itself.
    pub(crate) fn from_numbers(numbers: &[f32]) -> RankFacts {
        let time = |i: usize| Duration::try_from_secs_f32(numbers[i]).unwrap_or_default();
        RankFacts {
            waited: time(0),
            idle: time(1),
            busy: time(2),
            peak_memory: (numbers[3] as u64) << 20,
            micro_batches: numbers[4] as usize,
            stops: numbers[5] > 0.0,
        }
    }
}

/// What a step gave in all processes.
#[derive(Debug)]
pub(crate) struct Reduced {
    /// The means of the losses over all processes, by name.
    pub losses: Vec<(String, Tensor)>,
    /// The numbers of [`RankFacts`] of every process, in the order of ranks; absent for a process that is alone.
    pub ranks: Option<Tensor>,
}

/// Sums the gradients of all processes, while the last backward pass of a step still runs. For a process that is alone it does nothing.
#[derive(Debug)]
pub(crate) struct Reducer {
    rank: usize,
    world_size: usize,
    buckets: Option<GradBuckets>,
    overlaps: bool,
    device: Device,
    /// When the step began.
    began: Option<Instant>,
}

impl Reducer {
    /// For the gradients of `params`.
    ///
    /// # Errors
    /// If there is no memory for the buckets.
    pub(crate) fn new(world: &World, params: &BTreeMap<String, Tensor>, config: &Dist) -> anyhow::Result<Reducer> {
        let bucket_bytes = (config.bucket_mib << 20) as usize;
        let in_bf16 = config.bucket_type == BucketType::Bf16;
        let buckets = world
            .group()
            .map(|group| GradBuckets::new(Arc::clone(group), params.values(), bucket_bytes, in_bf16))
            .transpose()?;
        let device = params.values().next().map_or(Device::Cpu, Tensor::device);
        Ok(Reducer {
            rank: world.rank(),
            world_size: world.size(),
            buckets,
            overlaps: config.overlap,
            device,
            began: None,
        })
    }

    /// Begins a step, when its gradients have been removed.
    pub(crate) fn begin(&mut self) {
        self.began.get_or_insert_with(Instant::now);
        if let Some(buckets) = &mut self.buckets {
            buckets.begin();
        }
    }

    /// Announces that the next backward pass is the last of the step.
    pub(crate) fn last_pass(&mut self) {
        if let Some(buckets) = self.buckets.as_mut().filter(|_| self.overlaps) {
            buckets.arm();
        }
    }

    /// Ends a step: gradients become sums over all processes, and `losses`, this process's means, the means over all.
    ///
    /// # Errors
    /// If a process is gone or does not come in time.
    pub(crate) fn finish(&mut self, losses: Vec<(String, Tensor)>, facts: &RankFacts) -> anyhow::Result<Reduced> {
        let busy = self.began.take().map_or(Duration::ZERO, |began| began.elapsed());
        let Some(buckets) = &mut self.buckets else {
            return Ok(Reduced { losses, ranks: None });
        };
        let (names, own): (Vec<String>, Vec<Tensor>) = losses.into_iter().unzip();
        let own: Vec<Tensor> = own.iter().map(|loss| loss.to_kind(Kind::Float).view([1])).collect();
        let len = own.len() as i64;
        // Each process writes its place and zeros elsewhere, so that the sum is a list.
        let mut all = vec![0f32; self.world_size * RankFacts::LEN];
        all[self.rank * RankFacts::LEN..][..RankFacts::LEN].copy_from_slice(&RankFacts { busy, ..*facts }.to_numbers());
        let means = Tensor::cat(&own, 0) / self.world_size as f64;
        let mut values = Tensor::cat(&[means, Tensor::from_slice(&all).to_device(self.device)], 0);
        buckets.finish(&mut values)?;
        let losses = names.into_iter().zip(values.narrow(0, 0, len).unbind(0)).collect();
        Ok(Reduced { losses, ranks: Some(values.narrow(0, len, values.size()[0] - len)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_the_way_as_numbers() {
        let facts = RankFacts {
            waited: Duration::from_millis(250),
            idle: Duration::from_millis(125),
            busy: Duration::from_secs(3),
            peak_memory: 5 << 30,
            micro_batches: 4,
            stops: true,
        };
        assert_eq!(RankFacts::from_numbers(&facts.to_numbers()), facts);
        assert_eq!(RankFacts::from_numbers(&RankFacts::default().to_numbers()), RankFacts::default());
        assert_eq!(RankFacts::from_numbers(&[f32::NAN, -1.0, f32::INFINITY, 0.0, 1.0, 0.0]).waited, Duration::ZERO);
    }
}
