//! Images with segmentation masks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use images::{ClassMask, Decoder, ImageSource, RgbImage, draw_view};
use program::signals::{self, Interrupted};
use program::words::count;
use schemas::{ContentHash, ViewPolicy};

use crate::data::decode_ahead::decode_ahead;

/// Class numbers are below it: more than any set of segmentation data has, and few enough to count each.
pub(crate) const MAX_CLASSES: u16 = 4096;
/// The class of a pixel without one.
pub(crate) const IGNORED: u16 = u16::MAX;

/// The folder of images and that of masks.
const IMAGES: &str = "images";
const MASKS: &str = "masks";

/// A folder with `images/` and `masks/`: the mask of `images/a/b.jpg` is `masks/a/b.png`.
#[derive(Debug)]
pub(crate) struct MaskedImages {
    source: ImageSource,
    /// The mask's file of each image.
    masks: Vec<PathBuf>,
    ignored: BTreeSet<u16>,
}

/// The central square of an image and of its mask.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Its number in the set.
    pub index: usize,
    pub hash: ContentHash,
    /// The square at the sizes that were asked for.
    pub rendered: BTreeMap<u32, RgbImage>,
    /// The square's classes at the size of the file, [`IGNORED`] where a pixel has none.
    pub mask: ClassMask,
}

impl MaskedImages {
    /// Opens `DIR` or `DIR::PATTERN`, the value of `option`; the pattern selects paths below `images/`. `ignored` are the numbers in masks
    /// that are not classes.
    ///
    /// # Errors
    /// If a folder or the mask of an image is missing, or two images share a mask.
    pub(crate) fn open(
        option: &str,
        given: &str,
        ignored: &BTreeSet<u16>,
        decoder: Decoder,
    ) -> anyhow::Result<MaskedImages> {
        let (folder, pattern) = match given.split_once("::") {
            Some((folder, pattern)) => (folder, format!("::{pattern}")),
            None => (given, String::new()),
        };
        let root = Path::new(folder);
        for below in [IMAGES, MASKS] {
            ensure!(
                storage::is_url(root) || root.join(below).is_dir(),
                "{option} {given}: there is no folder {:?}; a segmentation set is a folder with {IMAGES}/ and {MASKS}/ (docs/evaluation.md)",
                root.join(below)
            );
        }
        let images = root.join(IMAGES);
        let images = images.to_str().with_context(|| format!("{option} {given}: is not UTF-8"))?;
        let source = ImageSource::open(&format!("{images}{pattern}")).with_context(|| {
            format!(
                "{option} {given}: a pattern after :: selects paths below {IMAGES}/, such as `{folder}::training/*`"
            )
        })?;
        ensure!(
            source.kind() == "folder",
            "{option} {given}: {IMAGES}/ has {} files; segmentation needs the images themselves, each with its mask in {MASKS}/",
            source.kind()
        );
        let source = source.decoded_by(decoder);
        let masks: Vec<PathBuf> = (0..source.len()).map(|i| root.join(MASKS).join(mask_of(source.key(i)))).collect();
        let mut owners = BTreeMap::new();
        for (i, mask) in masks.iter().enumerate() {
            if let Some(other) = owners.insert(mask, i) {
                let keys = [other, i].map(|i| source.key(i));
                anyhow::bail!(
                    "{option} {given}: images {keys:?} have one mask, {mask:?}; rename one of them, or remove it"
                );
            }
        }
        let found = storage::in_parallel(&masks, |mask| storage::exists(mask), storage::is_url(root));
        let mut missing = Vec::new();
        for (i, found) in found.into_iter().enumerate() {
            if !found.with_context(|| format!("{:?}: cannot be read", masks[i]))? {
                missing.push(i);
            }
        }
        if let Some(&first) = missing.first() {
            anyhow::bail!(
                "{option} {given}: {} of {} no mask; the first is {IMAGES}/{}, whose mask would be {:?}. Add the masks, or select the \
                 images that have one with a pattern after `::`",
                count(missing.len() as u64, "image"),
                format_args!("{} {}", source.len(), if missing.len() == 1 { "has" } else { "have" }),
                source.key(first),
                masks[first]
            );
        }
        Ok(MaskedImages { source, masks, ignored: ignored.clone() })
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.source.len()
    }

    /// Decodes all images at `sizes`, and those in `enlarged` also at another size, and passes them to `take` in order, in batches of at
    /// most `batch_size`. Returns the keys of the images that cannot be decoded, and what is wrong with them.
    ///
    /// # Errors
    /// The first error of `take`, a mask that cannot be used, and Ctrl-C.
    pub(crate) fn each(
        &self,
        sizes: &BTreeSet<u32>,
        enlarged: (&BTreeSet<usize>, u32),
        batch_size: u32,
        pool: &rayon::ThreadPool,
        mut take: impl FnMut(Vec<Sample>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let mut skipped = Vec::new();
        let decode = |i: usize| {
            let more = enlarged.0.contains(&i).then_some(enlarged.1);
            self.sample(i, sizes.iter().copied().chain(more))
        };
        let prefetch = |i: usize| {
            self.source.prefetch(i);
            storage::prefetch(&self.masks[i]);
        };
        decode_ahead(self.len(), batch_size as usize, pool, prefetch, decode, |decoded| {
            let mut samples = Vec::with_capacity(decoded.len());
            for sample in decoded {
                match sample? {
                    Ok(sample) => samples.push(sample),
                    Err(unusable) => skipped.push(unusable),
                }
            }
            if !samples.is_empty() {
                take(samples)?;
            }
            if signals::requested() {
                return Err(Interrupted.into());
            }
            Ok(())
        })?;
        Ok(skipped)
    }

    /// One image; `Ok(Err(..))` says why it cannot be decoded.
    fn sample(&self, index: usize, sizes: impl Iterator<Item = u32>) -> anyhow::Result<Result<Sample, String>> {
        let key = self.source.key(index);
        let unusable = |e: &dyn std::fmt::Display| Ok(Err(format!("{key}: {e}")));
        let bytes = match self.source.read(index) {
            Ok(bytes) => bytes,
            Err(e) if e.is_bad_record() => return unusable(&e),
            Err(e) => return Err(e.into()),
        };
        let image = match self.source.decode(index, &bytes) {
            Ok(image) => image,
            Err(e) => return unusable(&e),
        };
        let hash = ContentHash::of(&bytes);
        let mask = self.mask(index)?;
        ensure!(
            (mask.width, mask.height) == (image.width, image.height),
            "{:?}: the mask has {} x {} pixels, its image {IMAGES}/{key} has {} x {} once it is upright; a mask needs a class for each \
             pixel of its image",
            self.masks[index],
            mask.width,
            mask.height,
            image.width,
            image.height
        );
        let view = draw_view(&ViewPolicy::Center, 0, &hash, 0, image.width, image.height);
        let rendered = sizes.map(|size| Ok((size, images::render(&image, &view, size)?)));
        let rendered = rendered.collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        Ok(Ok(Sample { index, hash, rendered, mask: mask.crop(view.crop)? }))
    }

    /// The whole mask of an image, with [`IGNORED`] where a pixel has no class.
    fn mask(&self, index: usize) -> anyhow::Result<ClassMask> {
        let path = &self.masks[index];
        let bytes = storage::read(path).with_context(|| format!("{path:?}: cannot be read"))?;
        let mut mask = ClassMask::decode(&bytes).with_context(|| format!("{path:?}"))?;
        for class in &mut mask.data {
            if self.ignored.contains(class) {
                *class = IGNORED;
            } else {
                ensure!(
                    *class < MAX_CLASSES,
                    "{path:?}: has the number {class}, and classes are numbered from 0 to {}. If it marks pixels without a class, add it to \
                     --ignore-label; else number the classes anew",
                    MAX_CLASSES - 1
                );
            }
        }
        Ok(mask)
    }
}

/// The mask's path below its folder: that of the image, with another extension.
fn mask_of(key: &str) -> String {
    let name = key.rfind('/').map_or(0, |slash| slash + 1);
    let stem = key[name..].rfind('.').map_or(key, |dot| &key[..name + dot]);
    format!("{stem}.png")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_path_of_its_image() {
        assert_eq!(mask_of("a.jpg"), "a.png");
        assert_eq!(mask_of("training/a.b.JPEG"), "training/a.b.png");
        assert_eq!(mask_of("v1.0/a"), "v1.0/a.png");
    }
}
