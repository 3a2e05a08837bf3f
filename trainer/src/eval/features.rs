//! One vector per image from a student, a teacher, or the pixels themselves. Every patch is seen; nothing is masked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, ensure};
use images::{ImageSource, RgbImage, draw_view};
use models::precision::Precision;
use program::signals::{self, Interrupted};
use schemas::{ContentHash, ViewPolicy};
use tch::{Device, Kind, Tensor};
use tracing::info;

use crate::data::Problem;
use crate::data::batch::stack;
use crate::data::decode_ahead::decode_ahead;
use crate::dist::World;

mod imported;
mod model;
mod together;

use together::{Part, Together, Turns};

pub(crate) use model::{Fusion, Model};

const GIB: f64 = (1u64 << 30) as f64;

/// The values of each kind of feature, f32, on the CPU.
pub(crate) type ByKind = BTreeMap<String, Tensor>;

/// Features of those images of a source that can be used.
#[derive(Debug)]
pub(crate) struct Images {
    /// Features of each model, in the order in which the models were given: `[V, N, D]`.
    pub features: Vec<ByKind>,
    /// Index of each image in the source.
    pub idxs: Vec<usize>,
    pub hashes: Vec<ContentHash>,
    /// Keys of the other images, and what is wrong with them.
    pub skipped: Vec<String>,
}

/// Which parts of an image are seen.
#[derive(Debug, Clone)]
pub(crate) struct Views {
    /// How a view is drawn.
    pub policy: ViewPolicy,
    /// Seed of the views; each also depends on the image's content and the view's number.
    pub seed: u64,
    /// Number of views, `V`, at least 1.
    pub count: u16,
}

impl Views {
    /// The central square, once.
    pub(crate) const CENTER: Views = Views { policy: ViewPolicy::Center, seed: 0, count: 1 };
}

/// Settings of [`extract`].
#[derive(Debug, Clone)]
pub(crate) struct Extraction {
    /// Which parts of an image are seen; each view has features of its own.
    pub views: Views,
    /// The kinds of feature that are kept, see [`require_kinds`]; all when empty.
    pub kinds: Vec<String>,
    /// Limit on the bytes of features.
    pub max_bytes: u64,
    /// Images per forward pass.
    pub batch_size: u32,
    /// Precision of the networks.
    pub precision: Precision,
}

/// Refuses kinds of feature, as `--features` names them, of which a model has none. All are had by all when there are none.
pub(crate) fn require_kinds(models: &[Model], kinds: &[String]) -> anyhow::Result<()> {
    for model in models {
        let has: Vec<String> = model.kinds().into_iter().chain(model.further_kinds()).collect();
        ensure!(
            kinds.is_empty() || kinds.iter().any(|kind| has.contains(kind)),
            "--features {}: {} has no such features; it has {}",
            kinds.join(","),
            model.describe(),
            has.join(", ")
        );
    }
    Ok(())
}

/// Computes the features of every image of `source` that can be read, by each of `models`. `pool` decodes one batch ahead; an image is
/// decoded once, whatever the number of models and views. The processes of `world` share the images; rank 0 gets all features, and the others
/// none.
///
/// # Errors
/// If no image can be read, the features exceed `max_bytes`, or another process is gone;
/// [`Interrupted`](program::signals::Interrupted) at a signal that any process gets.
pub(crate) fn extract(
    models: &[Model],
    source: &ImageSource,
    extraction: &Extraction,
    pool: &rayon::ThreadPool,
    world: &World,
) -> anyhow::Result<Images> {
    let (len, mut before) = (source.len(), 0);
    let mut tell = |done: usize| {
        if done * 10 / len != before * 10 / len {
            info!("features of {done} of {len} images");
        }
        before = done;
    };
    let images = extract_range(models, source, 0..len, extraction, pool, world, &mut tell)?;
    if world.is_main() && images.idxs.is_empty() {
        let first = images.skipped.first().map(|e| format!("; the first: {e}"));
        return Err(Problem::NoImages { why: first.unwrap_or_default() }.into());
    }
    Ok(images)
}

/// [`extract`] for a range of the images, which may be without one that can be read. `tell` is called with the number of images done.
pub(crate) fn extract_range(
    models: &[Model],
    source: &ImageSource,
    range: Range<usize>,
    extraction: &Extraction,
    pool: &rayon::ThreadPool,
    world: &World,
    tell: &mut dyn FnMut(usize),
) -> anyhow::Result<Images> {
    let views = &extraction.views;
    let batch_size = extraction.batch_size as usize;
    let (first, len) = (range.start, range.len());
    let sizes: BTreeSet<u32> = models.iter().map(Model::input_size).collect();
    let together = Together::new(models, extraction, world)?;
    let mut images = Images { features: vec![], idxs: vec![], hashes: vec![], skipped: vec![] };
    let mut room = Room::default();
    let turns = Turns::of(world, batch_size, len);
    let (mut done, mut skipped) = (0, Vec::new());
    let decode = |i: usize| {
        let image = first + turns.image(i)?;
        Some((image, read_views(source, image, views, &sizes)))
    };
    let prefetch = |i: usize| turns.image(i).into_iter().for_each(|image| source.prefetch(first + image));
    decode_ahead(turns.count() * batch_size, batch_size, pool, prefetch, decode, |decoded| {
        let mut own = Part { images: Vec::new(), features: Vec::new() };
        let mut rendered = Vec::with_capacity(decoded.len());
        for (i, result) in decoded.into_iter().flatten() {
            match result {
                Ok((hash, imgs)) => {
                    own.images.push((i, hash));
                    rendered.push(imgs);
                }
                Err(e) => skipped.push((i, format!("{}: {e:#}", source.key(i)))),
            }
        }
        for view in 0..usize::from(if rendered.is_empty() { 0 } else { views.count }) {
            own.features.push(features_of_view(models, &rendered, view, &sizes, extraction)?);
        }
        let (parts, stops) = together.gather(own, signals::requested())?;
        for part in parts.into_iter().filter(|part| !part.images.is_empty()) {
            let first_row = images.idxs.len();
            for (view, features) in part.features.iter().enumerate() {
                room.put(features, len, view, first_row, extraction)?;
            }
            for (i, hash) in part.images {
                images.idxs.push(i);
                images.hashes.push(hash);
            }
        }
        done += 1;
        tell(turns.done(done));
        if stops {
            // The signal of one process is that of all: they end with the same status.
            signals::request();
            return Err(Interrupted.into());
        }
        Ok(())
    })?;
    images.features = room.finish(images.idxs.len());
    let mut skipped = world.gather(skipped)?.concat();
    skipped.sort();
    images.skipped = skipped.into_iter().map(|(_, why)| why).collect();
    Ok(images)
}

/// The features of one view of a batch by each model.
fn features_of_view(
    models: &[Model],
    rendered: &[Rendered],
    view: usize,
    sizes: &BTreeSet<u32>,
    extraction: &Extraction,
) -> anyhow::Result<Vec<ByKind>> {
    let mut batches = BTreeMap::new();
    for &size in sizes {
        batches.insert(size, stack(rendered.iter().map(|imgs| &imgs[&size][view]), size)?);
    }
    let mut features = Vec::with_capacity(models.len());
    for model in models {
        features.push(model.kept(&batches[&model.input_size()], extraction.precision, &extraction.kinds)?);
    }
    Ok(features)
}

/// The features of all images, allocated once when their widths are known: joining parts at the end would need twice the memory.
#[derive(Default)]
struct Room(Vec<ByKind>);

impl Room {
    /// Writes the features `[n, D]` of the images from `first_row` on, by model and kind, in a view.
    fn put(
        &mut self,
        features: &[ByKind],
        images: usize,
        view: usize,
        first_row: usize,
        extraction: &Extraction,
    ) -> anyhow::Result<()> {
        if self.0.is_empty() {
            let views = i64::from(extraction.views.count);
            let width: i64 = features.iter().flat_map(BTreeMap::values).map(|t| t.size()[1]).sum();
            let bytes = images as u128 * u128::from(views as u64) * width as u128 * size_of::<f32>() as u128;
            ensure!(
                bytes <= u128::from(extraction.max_bytes),
                "{images} images x {views} views x {width} numbers are {:.1} GiB of features, more than the {:.1} GiB allowed: use \
                 fewer views, one kind of feature or one model at a time, or raise the limit (--feature-gib)",
                bytes as f64 / GIB,
                extraction.max_bytes as f64 / GIB
            );
            let allocate = |t: &Tensor| Tensor::empty([views, images as i64, t.size()[1]], (Kind::Float, Device::Cpu));
            self.0 = features
                .iter()
                .map(|of_model| of_model.iter().map(|(kind, t)| (kind.clone(), allocate(t))).collect())
                .collect();
        }
        for (room, features) in self.0.iter_mut().zip(features) {
            for (kind, t) in features {
                let n = t.size()[0];
                room.get(kind)
                    .context("a model has the same kinds of feature for every image")?
                    .get(view as i64)
                    .narrow(0, first_row as i64, n)
                    .copy_(t);
            }
        }
        Ok(())
    }

    /// `[V, N, D]` of the `used` images.
    fn finish(self, used: usize) -> Vec<ByKind> {
        let cut = |(kind, t): (String, Tensor)| (kind, t.narrow(1, 0, used as i64));
        self.0.into_iter().map(|of_model| of_model.into_iter().map(cut).collect()).collect()
    }
}

/// One image's views at every size that a model wants.
type Rendered = BTreeMap<u32, Vec<RgbImage>>;

fn read_views(
    source: &ImageSource,
    i: usize,
    views: &Views,
    sizes: &BTreeSet<u32>,
) -> anyhow::Result<(ContentHash, Rendered)> {
    let bytes = source.read(i)?;
    let hash = ContentHash::of(&bytes);
    let img = source.decode(i, &bytes)?;
    let render = |size: u32| -> anyhow::Result<(u32, Vec<RgbImage>)> {
        let views = (0..views.count).map(|index| {
            let view = draw_view(&views.policy, views.seed, &hash, index, img.width, img.height);
            images::render(&img, &view, size)
        });
        Ok((size, views.collect::<Result<_, _>>()?))
    };
    let rendered = sizes.iter().map(|&size| render(size)).collect::<anyhow::Result<_>>()?;
    Ok((hash, rendered))
}
