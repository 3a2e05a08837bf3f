//! Running the teachers on a batch.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use models::precision::Precision;
use tch::{Device, Tensor};

use super::features::Features;
use super::gpu::{self, Lane};
use super::network::{Network, Pixels, stack, to_device};
use super::parallel::Stop;
use super::timing::{Stage, Timings};

/// Batches that a GPU may have ahead of it: as many threads more wait for it while the others decode and encode.
const GPU_BATCHES_AHEAD: usize = 3;

/// What forward passes are computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compute {
    pub device: Device,
    pub precision: Precision,
    /// Threads that decode and encode; on a CPU they also run the teachers.
    pub threads: usize,
    /// See [`Environment::pause_per_row`](crate::Environment::pause_per_row).
    pub pause_per_row: Duration,
}

/// What one thread runs the teachers with.
#[derive(Debug)]
pub(crate) enum Inference<'a> {
    /// On a CPU each thread computes its own batches.
    Here { networks: Vec<Network>, compute: Compute, timings: &'a Timings },
    /// On a GPU one thread computes the batches of all.
    Gpu(Lane),
}

impl Inference<'_> {
    /// The features of `rows` rows, at least one, of each of `teachers`, which are positions in the build's list.
    pub(crate) fn run(
        &self,
        teachers: &[usize],
        pixels: &Pixels,
        rows: usize,
        stop: &Stop,
    ) -> anyhow::Result<Vec<Features>> {
        match self {
            Inference::Gpu(lane) => lane.run(teachers, pixels, rows),
            Inference::Here { networks, compute, timings } => {
                let tensor = |images| to_device(&stack(images, Device::Cpu)?, Device::Cpu);
                let pixels = pixels.iter().map(|(&size, images)| Ok((size, tensor(images)?)));
                let pixels: BTreeMap<u32, Tensor> = pixels.collect::<anyhow::Result<_>>()?;
                let run = |&teacher: &usize| {
                    stop.check()?;
                    let network = &networks[teacher];
                    timings.time(Stage::Infer(network.id.clone()), || {
                        let mut features = Features::default();
                        features.push(&network.forward(network.images(&pixels)?, compute.precision)?, None)?;
                        thread::sleep(compute.pause_per_row * rows as u32);
                        Ok(features)
                    })
                };
                teachers.iter().map(run).collect()
            }
        }
    }
}

/// Calls `run` with what each thread of a build runs the teachers with, and has the GPU served meanwhile if there is one. Each thread
/// needs its own handles on the networks.
pub(crate) fn with_inference<R>(
    compute: Compute,
    networks: &dyn Fn() -> Vec<Network>,
    timings: &Timings,
    run: impl FnOnce(Vec<Inference<'_>>) -> R,
) -> R {
    let Compute { device, precision, threads, .. } = compute;
    if device == Device::Cpu {
        let here = |_| Inference::Here { networks: networks(), compute, timings };
        return run((0..threads).map(here).collect());
    }
    thread::scope(|scope| {
        let (lane, requests) = Lane::new(device);
        let networks = networks();
        scope.spawn(move || gpu::serve(&requests, device, &networks, precision, timings));
        let threads = threads + GPU_BATCHES_AHEAD;
        run(std::iter::repeat_n(lane, threads).map(Inference::Gpu).collect())
    })
}
