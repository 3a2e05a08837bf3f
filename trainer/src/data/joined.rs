//! The caches of a run, each joined with its images: one data set, cache after cache.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;
use schemas::{Cache, CacheIdentity, TeacherId, TeacherIdentity, ViewIdentity, ViewPolicy};
use sha2::{Digest, Sha256};

use super::Problem;
use super::images::Images;
use super::join::{self, Samples};
use crate::recipe;

/// A cache with the images of its rows.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The cache.
    pub cache: Arc<Cache>,
    /// Where its images come from.
    pub images: Arc<Images>,
    /// What a run trains on of it.
    pub samples: Samples,
    /// Added to its sample ids, so that no two images of a run draw the same masks.
    pub first_sample_id: u64,
}

/// All caches of a run, at least one.
#[derive(Debug)]
pub(crate) struct JoinedCaches {
    members: Vec<Joined>,
    /// Index of the first image of each.
    starts: Vec<usize>,
}

impl JoinedCaches {
    /// These caches in this order.
    pub(crate) fn new(members: Vec<(Arc<Cache>, Arc<Images>, Samples)>) -> JoinedCaches {
        let (mut start, mut first_sample_id) = (0, 0);
        let (mut starts, mut joined) = (Vec::new(), Vec::new());
        for (cache, images, samples) in members {
            starts.push(start);
            start += samples.len();
            let of_cache = cache.identity().samples();
            joined.push(Joined { cache, images, samples, first_sample_id });
            first_sample_id += of_cache;
        }
        JoinedCaches { members: joined, starts }
    }

    /// Each cache.
    pub(crate) fn members(&self) -> &[Joined] {
        &self.members
    }

    /// How many images an epoch has.
    pub(crate) fn len(&self) -> usize {
        self.members.iter().map(|member| member.samples.len()).sum()
    }

    /// Views used per image, the same for all.
    pub(crate) fn views(&self) -> usize {
        self.members.first().map_or(1, |member| member.samples.views())
    }

    /// The cache that has image `idx` of the data set, its number, and the image's index in it.
    pub(crate) fn locate(&self, idx: usize) -> (usize, &Joined, usize) {
        let member = self.starts.partition_point(|&start| start <= idx) - 1;
        (member, &self.members[member], idx - self.starts[member])
    }

    /// Images of the data set that the caches do not have, in words. Where `shared` says that all caches have one data set, what one of them lacks
    /// another may have.
    pub(crate) fn not_trained_on(&self, shared: bool) -> Vec<String> {
        let others_lack = |at: &usize| self.members.iter().all(|of| of.samples.added().binary_search(at).is_ok());
        let asked = if shared { 1 } else { self.members.len() };
        let of_member = |member: &Joined| {
            let source = member.images.source()?;
            let added = member.samples.added().iter().filter(|at| !shared || others_lack(at));
            let (count, first) = join::listed(added.map(|&at| source.source().key(at)));
            let of = match (self.members.len(), shared) {
                (1, _) => "of --images are not in the cache".to_owned(),
                (_, true) => "of --images are in none of the caches".to_owned(),
                (_, false) => format!("that --images gives for {} are not in it", member.cache.dir().display()),
            };
            (count > 0).then(|| {
                format!(
                    "{count} of the images {of}, so they are not trained on ({}{}). They were added after it was built, were left out of it (--limit), or \
                     have changed",
                    first.join(", "),
                    if count > first.len() { ", ..." } else { "" }
                )
            })
        };
        self.members.iter().take(asked).filter_map(of_member).collect()
    }

    /// Equal only for the same training set.
    pub(crate) fn fingerprint(&self) -> String {
        match &self.members[..] {
            [only] => only.samples.fingerprint().to_owned(),
            several => {
                let mut digest = Sha256::new();
                several.iter().for_each(|member| digest.update(member.samples.fingerprint()));
                schemas::hex(&digest.finalize())
            }
        }
    }
}

/// Opens caches that are to be one data set, and refuses those that are unlike the first.
pub(crate) fn open(folders: &[PathBuf]) -> anyhow::Result<Vec<Arc<Cache>>> {
    let mut caches: Vec<Arc<Cache>> = Vec::new();
    for (i, folder) in folders.iter().enumerate() {
        let same = |other: &&PathBuf| {
            *other == folder
                || other
                    .canonicalize()
                    .ok()
                    .is_some_and(|other| folder.canonicalize().is_ok_and(|folder| folder == other))
        };
        ensure!(!folders[..i].iter().any(|other| same(&other)), "--cache {}: is given twice", folder.display());
        let cache = Cache::open(folder).map_err(Problem::from)?;
        if let Some(first) = caches.first() {
            let (one, other) = (first.identity(), cache.identity());
            for ((what, expected), (_, found)) in facts_of_images(one).into_iter().zip(facts_of_images(other)) {
                require_same(first, &cache, what, &expected, &found)?;
            }
        }
        caches.push(Arc::new(cache));
    }
    Ok(caches)
}

/// What decides the crops of a cache and their pixels, in words.
fn facts_of_images(identity: &CacheIdentity) -> [(&'static str, String); 6] {
    let ViewIdentity { policy, views, seed, filter } = &identity.views;
    let policy = match policy {
        ViewPolicy::Rrc { scale: [least, most], ratio: [narrow, wide], flip } => format!(
            "random resized crops (scale {least} to {most}, ratio {narrow} to {wide}, flipped with probability {flip})"
        ),
        ViewPolicy::Center => "the central square".to_owned(),
        ViewPolicy::Full => "the whole image".to_owned(),
    };
    [
        ("the number of views (--views)", views.to_string()),
        ("how crops are chosen (--view-policy)", policy),
        ("the seed of the crops (--seed)", seed.to_string()),
        ("the resampling filter", filter.clone()),
        ("the image code", identity.image_code.clone()),
        ("the depth window (--depth-window)", identity.depth_window.to_string()),
    ]
}

/// What all caches have of a teacher; `None` if the first does not have it.
///
/// # Errors
/// [`Problem::OtherCache`] if another cache does not have it, or has features that are not comparable.
pub(crate) fn teacher<'a>(caches: &'a [Arc<Cache>], id: &TeacherId) -> anyhow::Result<Option<&'a TeacherIdentity>> {
    let Some((first, others)) = caches.split_first() else {
        return Ok(None);
    };
    let Some(teacher) = first.teachers().get(id) else {
        return Ok(None);
    };
    for cache in others {
        let other = cache.teacher(id).map_err(Problem::from)?;
        let facts = |teacher: &TeacherIdentity| {
            let TeacherIdentity { weights_sha256, layer, grid, width, mean, std, activation, norm_eps, .. } = teacher;
            [
                ("weights", format!("SHA-256 {weights_sha256}")),
                ("layer", layer.clone()),
                ("grid", grid.to_string()),
                ("width", width.to_string()),
                ("codec", teacher.codec.to_string()),
                ("pixel normalization", format!("mean {mean:?} with std {std:?}")),
                ("network", format!("{activation} with epsilon {norm_eps:e}")),
            ]
        };
        for ((what, expected), (_, found)) in facts(teacher).into_iter().zip(facts(other)) {
            require_same(first, cache, &format!("the {what} of teacher {id}"), &expected, &found)?;
        }
        // Two calibrations: bytes of one would be read with the ranges of the other.
        if teacher.codec != other.codec {
            return Err(Problem::OtherCache {
                cache: cache.dir().into(),
                first: first.dir().into(),
                what: format!("the ranges of codec i8 of teacher {id}"),
                found: "those of others".to_owned(),
                expected: "those of its images".to_owned(),
            }
            .into());
        }
    }
    Ok(Some(teacher))
}

fn require_same(first: &Cache, cache: &Cache, what: &str, expected: &str, found: &str) -> Result<(), Problem> {
    if expected == found {
        return Ok(());
    }
    Err(Problem::OtherCache {
        cache: cache.dir().into(),
        first: first.dir().into(),
        what: what.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    })
}

/// Opens the images of every cache: `images` has none, where the caches carry them, one for all, or one for each cache.
pub(crate) fn open_images(caches: &[Arc<Cache>], images: &[String]) -> anyhow::Result<Vec<Arc<Images>>> {
    ensure!(
        images.len() <= 1 || images.len() == caches.len(),
        "--images is given {} times and --cache {}: give it once for each cache, in their order, or once for all",
        images.len(),
        caches.len()
    );
    let given = |i: usize| images.get(if images.len() == 1 { 0 } else { i }).map(String::as_str);
    caches.iter().enumerate().map(|(i, cache)| Ok(Arc::new(Images::open(cache, given(i))?))).collect()
}

/// Joins every cache with its images. `shared` says that `images` is one data set, opened for each cache.
pub(crate) fn join(
    caches: &[Arc<Cache>],
    images: Vec<Arc<Images>>,
    teachers: &[TeacherId],
    config: &recipe::Data,
    shared: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<JoinedCaches, Problem> {
    let members = caches.iter().zip(images).map(|(cache, images)| {
        let samples = join::join(cache, teachers, &images, config, progress)?;
        Ok((Arc::clone(cache), images, samples))
    });
    let joined = JoinedCaches::new(members.collect::<Result<_, Problem>>()?);
    joined.not_trained_on(shared).iter().for_each(|images| tracing::warn!("{images}"));
    Ok(joined)
}
