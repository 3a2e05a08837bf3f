//! The crops of views, from the images packed in the cache or from a source that holds them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use image::RgbImage;
use images::{Decoder, ImageSource};
use indicatif::{ProgressBar, ProgressStyle};
use program::{signals, terminal};
use schemas::{Cache, ContentHash, Pack, SampleRow};

use super::rows::Chosen;

/// What each chosen view shows, `size` x `size` pixels: crop, resampling and flip as in training. An image packed in the cache
/// is preferred, since the crop's box is in its pixels; the others are looked for in `source` by the hash of their bytes.
pub(super) fn crops(
    cache: &Cache,
    chosen: &[Chosen],
    source: Option<&str>,
    size: u32,
) -> anyhow::Result<Vec<RgbImage>> {
    let identity = cache.identity();
    let decoder = Decoder::of_cache(&identity.image_code, identity.depth_window).unwrap_or_else(|| {
        tracing::warn!(
            cache = identity.image_code,
            ours = images::IMAGE_CODE,
            "the cache was built by another image code: the crops may differ from those of its features"
        );
        Decoder::new(identity.depth_window)
    });
    let packed = packed_images(cache, chosen)?;
    let wanted: BTreeMap<ContentHash, &SampleRow> = chosen
        .iter()
        .map(|chosen| &chosen.sample)
        .filter(|sample| !packed.contains_key(&sample.sample_id))
        .map(|sample| (sample.content_hash, sample))
        .collect();
    let found = match source {
        _ if wanted.is_empty() => BTreeMap::new(),
        Some(spec) => find(spec, &wanted)?,
        None => bail!(
            "{}: the cache packs no images, and crops need pixels: give the images it was built from by --images SRC",
            cache.dir().display()
        ),
    };
    chosen
        .iter()
        .map(|Chosen { sample, .. }| {
            let packed = packed.get(&sample.sample_id);
            let bytes = packed.or_else(|| found.get(&sample.content_hash));
            let bytes = bytes.context("every wanted image was found")?;
            let name = || format!("the image of sample {} ({:?})", sample.sample_id, sample.key);
            let image = decoder.decode(bytes).with_context(name)?;
            if (image.width, image.height) != (sample.width, sample.height) {
                bail!(
                    "{} decodes to {} x {} pixels, its row says {} x {}: run `pipeline verify`",
                    name(),
                    image.width,
                    image.height,
                    sample.width,
                    sample.height
                );
            }
            let crop = images::render(&image, &sample.view, size).with_context(name)?;
            RgbImage::from_raw(crop.width, crop.height, crop.data).with_context(name)
        })
        .collect()
}

/// The images that the cache packs with the chosen samples, by sample. An image is packed once, with the first of its rows.
fn packed_images(cache: &Cache, chosen: &[Chosen]) -> anyhow::Result<BTreeMap<u64, Vec<u8>>> {
    let mut packed = BTreeMap::new();
    if cache.identity().pack == Pack::None {
        return Ok(packed);
    }
    let mut by_part: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for chosen in chosen {
        let ids = by_part.entry(chosen.part).or_default();
        ids.insert(chosen.sample.sample_id);
    }
    for (part, ids) in by_part {
        let part = cache.samples_part(part)?;
        for (row, sample) in part.rows().iter().enumerate() {
            if ids.contains(&sample.sample_id)
                && let Some(bytes) = part.read_image(row)?
            {
                packed.insert(sample.sample_id, bytes);
            }
        }
    }
    Ok(packed)
}

/// The bytes of the wanted images. An image has nearly always kept its key or its place, so these are tried first; for what is
/// then missing, the whole source is read.
fn find(spec: &str, wanted: &BTreeMap<ContentHash, &SampleRow>) -> anyhow::Result<BTreeMap<ContentHash, Vec<u8>>> {
    let source = ImageSource::open(spec)?;
    let mut found = BTreeMap::new();
    for (hash, sample) in wanted {
        let by_place = usize::try_from(sample.sample_id).ok().filter(|&i| i < source.len());
        for index in source.find(&sample.key).into_iter().chain(by_place) {
            if let Ok(bytes) = source.read(index)
                && ContentHash::of(&bytes) == *hash
            {
                found.insert(*hash, bytes);
                break;
            }
        }
    }
    if found.len() < wanted.len() {
        search(&source, wanted, &mut found)?;
    }
    if let Some((hash, sample)) = wanted.iter().find(|(hash, _)| !found.contains_key(hash)) {
        bail!(
            "{spec} holds no image with the content {hash}, which sample {} ({:?}) has: give the images that the cache was built from",
            sample.sample_id,
            sample.key
        );
    }
    Ok(found)
}

/// Reads the source from its beginning until every wanted image is found.
fn search(
    source: &ImageSource,
    wanted: &BTreeMap<ContentHash, &SampleRow>,
    found: &mut BTreeMap<ContentHash, Vec<u8>>,
) -> anyhow::Result<()> {
    tracing::info!(
        missing = wanted.len() - found.len(),
        of = source.len(),
        "images have other names and places than in the cache: searching the source by content"
    );
    let bar = terminal::bars().add(ProgressBar::new(source.len() as u64));
    bar.set_style(
        ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} images read, ETA {eta}")
            .expect("a constant template"),
    );
    for index in 0..source.len() {
        if found.len() == wanted.len() {
            break;
        }
        if signals::requested() {
            bail!("interrupted while searching the source for images");
        }
        match source.read(index) {
            Ok(bytes) => {
                let hash = ContentHash::of(&bytes);
                if wanted.contains_key(&hash) {
                    found.insert(hash, bytes);
                }
            }
            // It may be any of the images that the cache rejected.
            Err(e) if e.is_bad_record() => {}
            Err(e) => return Err(e.into()),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}
