//! What a student knows while it is pretrained: k-NN on labeled images, and a linear probe if asked for.
//!
//! Nothing of training depends on it: it draws nothing, and the student is copied. It stands on whole epochs, so that runs can be compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, ensure};
use images::{Decoder, ImageSource};
use models::precision::Precision;
use program::words::count;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};
use tracing::{info, warn};

use super::features::{self, Extraction, Images, Model, Views};
use super::heads::{self, Training};
use super::knn::{Labeled, knn};
use super::probe::{self, Split, probe};
use super::sets::images_fact;
use super::test_set::EVALUATIONS;
use crate::data::classes::{Classes, Matching, Numbering, Set};
use crate::dist::World;
use crate::train::itstime::itstime;
use crate::train::metrics::StepLog;

/// Neighbors that vote, as by default in `trainer knn`.
const K: u32 = 20;
/// Images of a forward pass, as by default in `trainer knn`.
const BATCH_SIZE: u32 = 64;
/// The probe's learning rates, as by default in `trainer linprobe`.
const BLRS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Its share of held-out images, as there.
const HELD_OUT: f64 = 0.1;
/// Its largest batch, as there; a smaller set of images is at least four batches.
const PROBE_BATCH: usize = 1024;

/// Which images, and when.
#[derive(Debug, Clone)]
pub(crate) struct WatchConfig {
    /// Labeled images that vote.
    pub train: String,
    /// Labeled images to classify.
    pub test: String,
    /// How their classes are matched.
    pub matching: Matching,
    /// Whether a linear probe is trained as well.
    pub linprobe: bool,
    pub schedule: EvalSchedule,
    pub precision: Precision,
    pub device: Device,
}

/// When a student is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EvalSchedule {
    /// Epochs between two evaluations; `None` = only at the end.
    pub every: Option<u64>,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
}

impl EvalSchedule {
    /// Whether this many steps end an epoch that is evaluated.
    pub(crate) fn due(&self, steps_done: u64) -> bool {
        itstime(steps_done, self.steps_per_epoch)
            && (itstime(steps_done / self.steps_per_epoch, self.every) || steps_done == self.total_steps)
    }
}

/// What a student knew after some step: one line of `evaluations.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub step: u64,
    pub epoch: u64,
    /// The images that voted, as `--eval-train` named them.
    pub train: String,
    /// The images that were classified, as `--eval-test` named them.
    pub test: String,
    pub train_images: usize,
    pub test_images: usize,
    /// Shares of test images that were classified correctly, 0 to 1: `knn.cls`, `knn.mean`, `linprobe.cls`, `linprobe.mean`.
    #[serde(flatten)]
    pub top1: BTreeMap<String, f64>,
}

impl Watched {
    /// The figure by which the best evaluation is chosen: the higher of the k-NN accuracies.
    pub(crate) fn score(&self) -> f64 {
        self.top1.iter().filter(|(name, _)| name.starts_with("knn.")).fold(0.0, |best, (_, &top1)| best.max(top1))
    }

    /// The figures for TensorBoard, by tag.
    pub(crate) fn scalars(&self) -> Vec<(String, f64)> {
        self.top1.iter().map(|(name, &top1)| (format!("eval/{name}"), top1)).collect()
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}:", self.epoch)?;
        for (name, top1) in &self.top1 {
            write!(f, "  {name} {:.2}%", 100.0 * top1)?;
        }
        Ok(())
    }
}

/// Labeled images that a student is evaluated on while it is trained.
#[derive(Debug)]
pub(crate) struct Watch {
    config: WatchConfig,
    train: ImageSource,
    test: ImageSource,
    classes: Classes,
    pool: rayon::ThreadPool,
    record: Option<Record>,
}

/// The evaluations of a run so far.
#[derive(Debug)]
struct Record {
    log: StepLog,
    /// Step of the last one.
    last: u64,
    best: Option<f64>,
}

impl Watch {
    /// Opens the images, which `decoder` decodes on `threads` threads, and on rank 0 the evaluations of `run` up to step `start`.
    ///
    /// # Errors
    /// If the images cannot be used, or have no common classes.
    pub(crate) fn open(
        config: WatchConfig,
        decoder: Decoder,
        threads: usize,
        run: Option<&Path>,
        start: u64,
    ) -> anyhow::Result<Watch> {
        let open = |option: &str, source: &str| {
            let source = ImageSource::open(source).with_context(|| format!("{option} {source}"))?;
            anyhow::Ok(source.decoded_by(decoder))
        };
        let (train, test) = (open("--eval-train", &config.train)?, open("--eval-test", &config.test)?);
        let set = |option, source| Set { option, source };
        let (train_set, test_set) = (set("--eval-train", &train), set("--eval-test", &test));
        let classes = Classes::of(&train_set, &test_set, config.matching, Numbering::InUse)?;
        let record = |run: &Path| {
            let log = StepLog::open(run, EVALUATIONS, start)?;
            let before = read(run)?;
            let same = before.iter().filter(|line| (&line.train, &line.test) == (&config.train, &config.test));
            let best = same.map(Watched::score).reduce(f64::max);
            anyhow::Ok(Record { log, last: before.last().map_or(0, |line| line.step), best })
        };
        let record = run.map(record).transpose()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        Ok(Watch { config, train, test, classes, pool, record })
    }

    /// What the images are, for processes that must have the same.
    pub(crate) fn images(&self) -> [String; 2] {
        [images_fact(&self.train), images_fact(&self.test)]
    }

    /// Whether an evaluation after this many steps is missing, as rank 0 knows.
    pub(crate) fn is_missing(&self, steps_done: u64) -> bool {
        let due = |record: &Record| steps_done > record.last && self.config.schedule.due(steps_done);
        self.record.as_ref().is_some_and(due)
    }

    /// The features of training and test images by `student`. The processes of `world` share the images; rank 0 gets all, and the others none.
    ///
    /// # Errors
    /// If no image can be read; [`Interrupted`](program::signals::Interrupted) at a signal that any process gets.
    pub(crate) fn features(&self, student: &Model, world: &World) -> anyhow::Result<[Images; 2]> {
        let extraction = Extraction {
            views: Views::CENTER,
            kinds: Vec::new(),
            max_bytes: u64::MAX,
            batch_size: BATCH_SIZE,
            precision: self.config.precision,
        };
        let extract = |option: &str, source: &ImageSource| {
            let models = std::slice::from_ref(student);
            let images =
                features::extract_range(models, source, 0..source.len(), &extraction, &self.pool, world, &mut |_| ())?;
            if let Some(first) = images.skipped.first() {
                let skipped = count(images.skipped.len() as u64, "image");
                warn!("{option}: {skipped} cannot be used, the first is {first}");
            }
            ensure!(!world.is_main() || !images.idxs.is_empty(), "{option}: holds no image that can be used");
            Ok(images)
        };
        Ok([extract("--eval-train", &self.train)?, extract("--eval-test", &self.test)?])
    }

    /// Evaluates the student of these features as it is after `steps_done` steps, and notes the result: for rank 0. Returns it, and whether it is
    /// the best so far on these images.
    ///
    /// # Errors
    /// If no test image is of a class of the training images, or the result cannot be noted.
    pub(crate) fn evaluate(&mut self, features: &[Images; 2], steps_done: u64) -> anyhow::Result<(Watched, bool)> {
        let [train, test] = features;
        let train_labels = self.classes.of_train(&self.train, train.idxs.iter().copied())?;
        let test_labels = self.classes.of_test(&self.test, test.idxs.iter().copied())?;
        let mut top1 = BTreeMap::new();
        for (kind, features) in &train.features[0] {
            let test_features = &test.features[0][kind];
            let labeled =
                |features: &Tensor, labels: &[i64]| Labeled { features: features.get(0), labels: labels.into() };
            let (voting, asked) = (labeled(features, &train_labels), labeled(test_features, &test_labels));
            top1.insert(format!("knn.{kind}"), knn(&voting, &asked, K, self.classes.len())?.top1);
            if self.config.linprobe {
                let sets = probe::Sets { train: (features, &train_labels), test: (test_features, &test_labels) };
                top1.insert(format!("linprobe.{kind}"), self.linprobe(&sets, train)?);
            }
        }
        let watched = Watched {
            step: steps_done,
            epoch: steps_done / self.config.schedule.steps_per_epoch,
            train: self.config.train.clone(),
            test: self.config.test.clone(),
            train_images: train.idxs.len(),
            test_images: test.idxs.len(),
            top1,
        };
        info!("{watched}");
        let record = self.record.as_mut().context("rank 0 keeps the record")?;
        record.log.append(&watched)?;
        record.last = steps_done;
        let is_best = record.best.is_none_or(|best| watched.score() > best);
        if is_best {
            record.best = Some(watched.score());
        }
        Ok((watched, is_best))
    }

    /// The top-1 accuracy of a linear probe on one kind of feature, as `trainer linprobe --views 0` trains it.
    fn linprobe(&self, sets: &probe::Sets, train: &Images) -> anyhow::Result<f64> {
        let images = train.idxs.len();
        let split = Split::of(&train.hashes, 0, HELD_OUT);
        let training = Training {
            blrs: BLRS.to_vec(),
            epochs: 90,
            warmup_epochs: 10.0,
            batch_size: PROBE_BATCH.min(images / 4).max(1),
            weight_decay: 0.0,
            seed: 0,
        };
        heads::require_a_step(split.kept.len(), training.batch_size)?;
        Ok(probe(sets, &split, self.classes.len(), &training, self.config.device)?.test.top1)
    }

    /// Makes all evaluations durable; called before a checkpoint that counts on them.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.record.as_ref().map_or(Ok(()), |record| record.log.sync())
    }
}

/// The evaluations of a run of pretraining so far.
fn read(run: &Path) -> anyhow::Result<Vec<Watched>> {
    let path = run.join(EVALUATIONS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path:?}: cannot be read"))?;
    let parse = |(i, line)| serde_json::from_str(line).with_context(|| format!("{path:?}, line {}", i + 1));
    text.lines().enumerate().map(parse).collect()
}
