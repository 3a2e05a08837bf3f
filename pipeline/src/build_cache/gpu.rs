//! A GPU's side of a build: one thread that uploads pixels, runs the teachers and converts their features to what is stored.
//!
//! The threads that decode and encode ask it for a batch's features and wait. It keeps two batches in flight: while the device computes one, the
//! features of the one before are copied back, beside the computing. What comes back is in page-locked memory, which libtorch's allocator
//! hands out again when its rows are encoded.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use models::precision::Precision;
use tch::{Device, Tensor};
use torch_ext::OutOfMemory;

use super::features::Features;
use super::network::{Network, Pixels, stack, to_device};
use super::parallel::guarded;
use super::timing::{Stage, Timings};

/// Batches that the device has at a time: one that it computes and one whose features are being copied.
const IN_FLIGHT: usize = 2;

/// Where a thread asks for features.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    device: Device,
    requests: Sender<Request>,
}

/// A batch to be computed.
#[derive(Debug)]
struct Request {
    /// By position in the build's list.
    teachers: Vec<usize>,
    /// By the side of the squares: u8 `[N, S, S, 3]`, page-locked.
    pixels: BTreeMap<u32, Tensor>,
    rows: usize,
    reply: Sender<anyhow::Result<Vec<Features>>>,
}

impl Lane {
    /// A lane, and what [`serve`] is to be called with on a thread of its own. It ends when all clones of the lane are gone.
    pub(crate) fn new(device: Device) -> (Lane, Requests) {
        let (requests, received) = bounded(IN_FLIGHT);
        (Lane { device, requests }, Requests(received))
    }

    pub(crate) fn run(&self, teachers: &[usize], pixels: &Pixels, rows: usize) -> anyhow::Result<Vec<Features>> {
        let stacked = pixels.iter().map(|(&size, images)| Ok((size, stack(images, self.device)?)));
        let pixels = stacked.collect::<anyhow::Result<_>>()?;
        let (reply, answer) = bounded(1);
        let ended = || anyhow!("the GPU's thread ended early, which is a bug");
        self.requests.send(Request { teachers: teachers.to_vec(), pixels, rows, reply }).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

/// The other end of a [`Lane`].
#[derive(Debug)]
pub(crate) struct Requests(Receiver<Request>);

/// A batch whose work is queued on the device.
struct Launched {
    teachers: Vec<usize>,
    features: Vec<Features>,
    reply: Sender<anyhow::Result<Vec<Features>>>,
}

/// Answers requests until every sender is gone.
pub(crate) fn serve(
    requests: &Requests,
    device: Device,
    networks: &[Network],
    precision: Precision,
    timings: &Timings,
) {
    // How many rows of each teacher fit into memory at a time, as far as is known.
    let mut at_once = vec![usize::MAX; networks.len()];
    let mut in_flight: VecDeque<Launched> = VecDeque::new();
    loop {
        let request = if in_flight.is_empty() {
            requests.0.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            requests.0.try_recv()
        };
        match request {
            Ok(Request { teachers, pixels, rows, reply }) => {
                let launch = || launch(device, networks, precision, &teachers, &pixels, rows, &mut at_once, timings);
                match guarded(launch) {
                    Ok(features) => in_flight.push_back(Launched { teachers, features, reply }),
                    // The thread that asked may have ended with the build.
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Err(TryRecvError::Disconnected) if in_flight.is_empty() => return,
            Err(_) => answer(in_flight.pop_front(), networks, timings),
        }
        if in_flight.len() == IN_FLIGHT {
            answer(in_flight.pop_front(), networks, timings);
        }
    }
}

/// Waits for a batch and hands it to the thread that asked.
fn answer(launched: Option<Launched>, networks: &[Network], timings: &Timings) {
    let Some(Launched { teachers, mut features, reply }) = launched else {
        return;
    };
    let began = Instant::now();
    let waited = features.iter_mut().try_for_each(Features::wait);
    // The device's time cannot be told apart by teacher without waiting for each.
    let share = began.elapsed() / teachers.len().max(1) as u32;
    teachers.iter().for_each(|&teacher| timings.add(Stage::Infer(networks[teacher].id.clone()), share));
    let _ = reply.send(waited.map(|()| features).map_err(anyhow::Error::from));
}

#[allow(clippy::too_many_arguments, reason = "a batch, and what it is computed with")]
fn launch(
    device: Device,
    networks: &[Network],
    precision: Precision,
    teachers: &[usize],
    pixels: &BTreeMap<u32, Tensor>,
    rows: usize,
    at_once: &mut [usize],
    timings: &Timings,
) -> anyhow::Result<Vec<Features>> {
    let uploaded = pixels.iter().map(|(&size, host)| Ok((size, to_device(host, device)?)));
    let uploaded: BTreeMap<u32, Tensor> = uploaded.collect::<anyhow::Result<_>>()?;
    let mut features = Vec::with_capacity(teachers.len());
    for &teacher in teachers {
        let network = &networks[teacher];
        let pixels = network.images(&uploaded)?;
        let mut computed = Features::default();
        timings.time(Stage::Infer(network.id.clone()), || {
            in_parts(rows, &mut at_once[teacher], |rows| {
                let pixels = pixels.narrow(0, rows.start as i64, rows.len() as i64);
                let output = network.forward(&pixels, precision)?;
                computed.push(&output, network.stored)
            })
            .with_context(|| format!("teacher {}", network.id))
        })?;
        features.push(computed);
    }
    Ok(features)
}

/// Calls `pass` on up to `at_once` of `n` rows at a time, in order, and on half as many from where memory runs out.
fn in_parts(
    n: usize,
    at_once: &mut usize,
    mut pass: impl FnMut(Range<usize>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut done = 0;
    while done < n {
        let rows = done..n.min(done.saturating_add(*at_once));
        match torch_ext::attempt(|| pass(rows.clone()))? {
            Ok(()) => done = rows.end,
            Err(OutOfMemory(message)) => {
                ensure!(
                    rows.len() > 1,
                    "out of memory for one image at a time: {message}. Take a device with more memory, or --precision bf16"
                );
                // Blocks cut for more rows would otherwise be held beside those for fewer.
                torch_ext::empty_cache()?;
                *at_once = rows.len().div_ceil(2);
                tracing::warn!(
                    "out of memory for {} rows at a time: {message}. From here on batches are taken in parts of {at_once} rows, whose features may \
                     differ in their last bits; a smaller --batch-size says so in the cache",
                    rows.len()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
