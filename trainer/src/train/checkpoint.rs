//! Checkpoints: everything a resumed run needs, published whole or not at all.
//!
//! ```text
//! RUN/checkpoints/step-00001000/model.safetensors       parameters by their reference names; the recipe in the header
//!                               optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>, step.<name>
//!                               ema.safetensors         with optim.ema_decay: the averaged network, under the model's names
//!                               state.json              step, counters, what was trained on, digests of the other files
//! RUN/LAST                                              name of the newest checkpoint, written after it
//! ```
//!
//! The newest few are kept, and those of `run.keep_every`. A folder is written under a temporary name and renamed when its bytes are on
//! disk; `LAST` follows. Older checkpoints are removed only after that, so a kill at any moment leaves at least one that is whole.
//! Training continues meanwhile: see [`Writer`]. All randomness is keyed by the recipe's seed and by position, so `step` is also the state of
//! every random draw and of the data order.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use models::weights::{self, Weights};
use schemas::atomic::{self, AtomicDir, AtomicFile};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::recipe::Run;
use crate::train::metrics::Window;

#[cfg(test)]
mod tests;
mod writer;

pub(crate) use writer::Writer;

/// The pointer's name in a run folder.
pub(crate) const LAST: &str = "LAST";
/// The parameters of a checkpoint.
pub(crate) const MODEL: &str = "model.safetensors";
/// The key under which [`MODEL`]'s header holds the resolved recipe, so that the file alone can be evaluated.
pub(crate) const RECIPE_KEY: &str = "recipe";

/// The averaged network of a checkpoint whose recipe asks for one: averages of the parameters, and the buffers as they are. Its header is that of
/// [`MODEL`].
pub(crate) const EMA: &str = "ema.safetensors";

const OPTIMIZER: &str = "optimizer.safetensors";
pub(crate) const STATE: &str = "state.json";
pub(crate) const FOLDER: &str = "checkpoints";
const FORMAT_VERSION: u32 = 1;

/// The state of a run besides its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Format version of this file and the files beside it.
    pub format_version: u32,
    /// Updates done, skipped ones included; also the position in the data order.
    pub step: u64,
    /// Skipped steps in a row up to here.
    pub nonfinite_in_row: u32,
    /// Into how many micro-batches each batch is split since memory ran out; 1 if it has not.
    #[serde(rename = "parts", default = "one", skip_serializing_if = "is_one")]
    pub micro_batches: usize,
    /// Sums for the next metrics line.
    pub window: Window,
    /// Facts about what the run trains on, by name: a resume with another value is refused.
    pub data: BTreeMap<String, String>,
    /// SHA-256 of the other files.
    pub sha256: BTreeMap<String, String>,
}

fn one() -> usize {
    1
}

fn is_one(micro_batches: &usize) -> bool {
    *micro_batches == 1
}

impl State {
    /// A state before it is saved; saving adds the digests.
    pub(crate) fn new(
        step: u64,
        nonfinite_in_row: u32,
        micro_batches: usize,
        window: Window,
        data: BTreeMap<String, String>,
    ) -> State {
        State {
            format_version: FORMAT_VERSION,
            step,
            nonfinite_in_row,
            micro_batches,
            window,
            data,
            sha256: BTreeMap::new(),
        }
    }
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    state: State,
    /// SHA-256 of `state` as compact JSON.
    digest: String,
}

/// A checkpoint in memory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub state: State,
    /// Parameters and buffers by name.
    pub model: BTreeMap<String, Tensor>,
    /// The optimizer's state by name.
    pub optimizer: BTreeMap<String, Tensor>,
    /// The averaged network, by the names of `model`.
    pub ema: Option<BTreeMap<String, Tensor>>,
    /// The resolved recipe, as TOML.
    pub recipe: String,
}

/// Which checkpoints stay when a new one has been published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Number of most recent checkpoints to keep.
    pub newest: usize,
    /// Also keep every checkpoint whose step is a multiple of this.
    pub every: Option<u64>,
}

impl Keep {
    /// The checkpoints that `[run]` asks to keep.
    pub(crate) fn of(run: &Run) -> Keep {
        Keep { newest: run.keep_checkpoints, every: run.keep_every }
    }
}

/// Publishes a checkpoint, then `LAST`, then removes those that are not to be kept.
pub(crate) fn save(run: &Path, checkpoint: &Checkpoint, keep: Keep) -> anyhow::Result<PathBuf> {
    let name = folder_name(checkpoint.state.step);
    let folder = run.join(FOLDER).join(&name);
    // A folder of this step is there only if a resume went back behind it, so LAST names an older one.
    remove(&folder)?;
    atomic::remove_stale(&folder)?;
    let unfinished = AtomicDir::create(&folder)?;
    let mut state = checkpoint.state.clone();
    let header = Some((RECIPE_KEY, checkpoint.recipe.as_str()));
    let mut files = vec![(MODEL, &checkpoint.model, header), (OPTIMIZER, &checkpoint.optimizer, None)];
    files.extend(checkpoint.ema.as_ref().map(|ema| (EMA, ema, header)));
    for (file, tensors, header) in files {
        let file_out = AtomicFile::create(&unfinished.path().join(file))?;
        let mut out = HashingWriter { inner: BufWriter::new(file_out), sha256: Sha256::new() };
        weights::write(&mut out, tensors, header).with_context(|| {
            format!("{folder:?}: cannot be written; earlier checkpoints are kept, and the same command continues from the last")
        })?;
        let written = out.inner.into_inner().map_err(io::IntoInnerError::into_error);
        written.with_context(|| format!("{folder:?}: cannot be written"))?.publish()?;
        state.sha256.insert(file.to_owned(), schemas::hex(&out.sha256.finalize()));
    }
    let sealed = serde_json::to_vec_pretty(&Sealed { digest: digest(&state)?, state })?;
    atomic::write(&unfinished.path().join(STATE), &sealed)?;
    unfinished.publish()?;
    atomic::write(&run.join(LAST), format!("{name}\n").as_bytes())?;
    prune(run, checkpoint.state.step, keep)?;
    Ok(folder)
}

/// Loads the checkpoint that `LAST` names, or, if that is damaged or gone, the newest older one that is whole; `None` for a
/// run without any. `notice` is called for each one that is passed over.
pub(crate) fn load_last(run: &Path, notice: &mut dyn FnMut(String)) -> anyhow::Result<Option<Checkpoint>> {
    last_whole(run, load, notice)
}

/// The state of the checkpoint that [`load_last`] would load. Its files are hashed, and no tensor is kept.
pub(crate) fn check_last(run: &Path, notice: &mut dyn FnMut(String)) -> anyhow::Result<Option<State>> {
    last_whole(run, check, notice)
}

fn last_whole<T>(
    run: &Path,
    load: impl Fn(&Path) -> anyhow::Result<T>,
    notice: &mut dyn FnMut(String),
) -> anyhow::Result<Option<T>> {
    let mut candidates = steps(run)?;
    if candidates.is_empty() {
        return Ok(None);
    }
    let last = run.join(LAST);
    match fs::read_to_string(&last).map(|name| step_of(name.trim())) {
        Ok(Some(step)) => {
            if !candidates.contains(&step) {
                notice(format!("{last:?} names {}, which is gone", folder_name(step)));
            }
            candidates.retain(|&candidate| candidate <= step);
        }
        Ok(None) => notice(format!("{last:?} names no checkpoint; looking for the newest")),
        // Killed between the first checkpoint and the pointer to it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(anyhow!(e).context(format!("{last:?}: cannot be read"))),
    }
    for step in candidates.into_iter().rev() {
        let folder = folder(run, step);
        match load(&folder) {
            Ok(whole) => return Ok(Some(whole)),
            Err(e) => notice(format!("{e:#}; falling back to the checkpoint before it")),
        }
    }
    bail!("{:?}: no checkpoint is whole. Copy a good one back, or train again into another folder", run.join(FOLDER))
}

/// The folder of the checkpoint after `step` updates.
pub(crate) fn folder(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(folder_name(step))
}

/// The folder of the newest checkpoint, without reading it.
pub(crate) fn newest(run: &Path) -> anyhow::Result<Option<PathBuf>> {
    Ok(steps(run)?.last().map(|&step| folder(run, step)))
}

/// Reads and verifies a checkpoint's state, without its tensors.
pub(crate) fn read_state(folder: &Path) -> anyhow::Result<State> {
    let path = folder.join(STATE);
    let bytes = fs::read(&path).with_context(|| format!("{path:?}: cannot be read"))?;
    let Sealed { state, digest: expected } =
        serde_json::from_slice(&bytes).with_context(|| format!("{path:?}: is damaged, or of another version"))?;
    ensure!(digest(&state)? == expected, "{path:?}: is damaged (its content does not hash to its digest)");
    ensure!(
        state.format_version == FORMAT_VERSION,
        "{path:?}: format version {}, this program reads {FORMAT_VERSION}",
        state.format_version
    );
    Ok(state)
}

/// Loads and verifies one checkpoint.
pub(crate) fn load(folder: &Path) -> anyhow::Result<Checkpoint> {
    let state = read_state(folder)?;
    let read = |name: &str| -> anyhow::Result<Weights> {
        let path = folder.join(name);
        let weights = Weights::read(&path)?;
        let expected =
            state.sha256.get(name).with_context(|| format!("{:?}: lacks the digest of {name}", folder.join(STATE)))?;
        require_digest(&path, weights.sha256(), expected)?;
        Ok(weights)
    };
    let model = read(MODEL)?;
    let optimizer = tensors(&read(OPTIMIZER)?);
    // state.json is verified, so its digests also tell whether the file should be there.
    let ema = match state.sha256.contains_key(EMA) {
        true => Some(tensors(&read(EMA)?)),
        false => None,
    };
    Ok(Checkpoint {
        model: tensors(&model),
        recipe: model
            .metadata()
            .get(RECIPE_KEY)
            .with_context(|| format!("{:?}: its header holds no recipe", folder.join(MODEL)))?
            .clone(),
        optimizer,
        ema,
        state,
    })
}

/// Verifies one checkpoint by the digests of its files.
fn check(folder: &Path) -> anyhow::Result<State> {
    let state = read_state(folder)?;
    for (name, expected) in &state.sha256 {
        let path = folder.join(name);
        let mut hash = HashingWriter { inner: io::sink(), sha256: Sha256::new() };
        let read = fs::File::open(&path).and_then(|mut file| io::copy(&mut file, &mut hash));
        read.with_context(|| format!("{path:?}: cannot be read"))?;
        require_digest(&path, &schemas::hex(&hash.sha256.finalize()), expected)?;
    }
    Ok(state)
}

fn require_digest(path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(found == expected, "{path:?}: is damaged (SHA-256 {found}, {STATE} says {expected})");
    Ok(())
}

fn tensors(weights: &Weights) -> BTreeMap<String, Tensor> {
    let tensors = weights.tensors().iter();
    tensors.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// Steps of the published checkpoints, ascending.
fn steps(run: &Path) -> anyhow::Result<Vec<u64>> {
    let folder = run.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(anyhow!(e).context(format!("{folder:?}: cannot be read"))),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("{folder:?}: cannot be read"))?.file_name();
        steps.extend(name.to_str().and_then(step_of));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Removes the checkpoints up to `step` that are not to be kept, and all later ones, which are damaged if a resume went back to an earlier
/// one.
fn prune(run: &Path, step: u64, keep: Keep) -> anyhow::Result<()> {
    let (mut stale, later): (Vec<u64>, Vec<u64>) = steps(run)?.into_iter().partition(|&s| s <= step);
    stale.truncate(stale.len().saturating_sub(keep.newest));
    stale.retain(|step| keep.every.is_none_or(|every| !step.is_multiple_of(every)));
    for step in stale.into_iter().chain(later) {
        remove(&run.join(FOLDER).join(folder_name(step)))?;
    }
    Ok(())
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Removes a folder; the file that makes it a checkpoint goes first, so that a kill in between leaves none that looks whole.
fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        let state = folder.join(STATE);
        if state.exists() {
            fs::remove_file(&state).with_context(|| format!("{state:?}: cannot be removed"))?;
        }
        fs::remove_dir_all(folder).with_context(|| format!("{folder:?}: cannot be removed"))?;
    }
    Ok(())
}

fn digest(state: &State) -> anyhow::Result<String> {
    Ok(schemas::hex(&Sha256::digest(serde_json::to_vec(state)?)))
}

struct HashingWriter<W> {
    inner: W,
    sha256: Sha256,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sha256.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
