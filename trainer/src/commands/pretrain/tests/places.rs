//! Images that traded names, rows or shards since the cache was built; images that changed, went or came.

use std::collections::BTreeSet;

use schemas::Cache;

use super::sources::{IMAGES, KINDS, Kind, pictures, write};
use super::*;
use crate::data::images::Images;
use crate::data::join::{self, Samples};
use crate::recipe::Missing;

/// A world whose images are a source of this kind, and its cache. With `lengths`, no two images have the same.
fn world(kind: Kind, lengths: bool) -> (World, Vec<Vec<u8>>) {
    let world = World::new(1);
    let mut images = pictures();
    if lengths {
        // What follows a bitmap's pixels is of no meaning.
        for (i, image) in images.iter_mut().enumerate() {
            image.extend(vec![0; i]);
        }
    }
    write(kind, &world.images_dir(), &images);
    world.build_cache();
    (world, images)
}

/// Joins, and reads the image of every sample: it is the one that the row says.
fn read_all(world: &World, missing: Missing) -> anyhow::Result<Samples> {
    let cache = Arc::new(Cache::open(&world.cache_dir())?);
    let images = Images::open(&cache, world.images_dir().to_str())?;
    let data = crate::recipe::Data { missing, ..Default::default() };
    let samples = join::join(&cache, &[], &images, &data, &|_, _| ())?;
    for idx in 0..samples.len() {
        let sample = samples.get(idx, 0).0;
        let bytes = images.read(sample, 0)?;
        assert_eq!(schemas::ContentHash::of(&bytes), sample.content_hash);
    }
    Ok(samples)
}

/// Permutations of the places.
fn orders() -> Vec<(&'static str, Vec<usize>)> {
    let made = |edit: &dyn Fn(&mut Vec<usize>)| {
        let mut order: Vec<usize> = (0..IMAGES).collect();
        edit(&mut order);
        order
    };
    vec![
        ("two swapped", made(&|i| i.swap(1, 20))),
        ("numbered anew", made(&|i| i.rotate_left(1))),
        ("reversed", made(&|i| i.reverse())),
        ("halves swapped", made(&|i| i.rotate_left(IMAGES / 2))),
    ]
}

#[test]
fn images_that_traded_places_are_joined_by_content() {
    for kind in KINDS {
        for lengths in [false, true] {
            let (world, images) = world(kind, lengths);
            let whole = tensors(&train(&world, "whole", &["--stop-after", "2"]));
            for (i, (what, order)) in orders().into_iter().enumerate() {
                let permuted: Vec<_> = order.iter().map(|&i| images[i].clone()).collect();
                write(kind, &world.images_dir(), &permuted);
                for missing in [Missing::Error, Missing::Skip] {
                    let samples =
                        read_all(&world, missing).unwrap_or_else(|e| panic!("{kind:?}, {lengths}, {what}: {e:#}"));
                    assert_eq!(samples.len(), IMAGES);
                    assert_eq!((samples.added().len(), samples.skipped().0), (0, 0), "{what}");
                }
                if i == 0 {
                    let run = train(&world, "permuted", &["--stop-after", "2"]);
                    assert!(tensors(&run) == whole, "{kind:?}, {lengths}, {what}");
                }
            }
        }
    }
}

/// One image is gone, wherever the others have moved to: it alone is named, with the truth about it, and skipped where that is wanted.
#[test]
fn an_image_has_changed_only_if_its_content_is_nowhere() {
    for kind in KINDS {
        for lengths in [false, true] {
            let (world, images) = world(kind, lengths);
            let source = images::ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
            let key = source.key(6).to_owned();
            let identity: Vec<usize> = (0..IMAGES).collect();
            for (what, order) in orders().into_iter().chain([("none", identity)]) {
                let mut changed = images.clone();
                let last = changed[6].len() - 30;
                changed[6][last] ^= 1;
                if lengths {
                    changed[6].push(0);
                }
                let permuted: Vec<_> = order.iter().map(|&i| changed[i].clone()).collect();
                write(kind, &world.images_dir(), &permuted);
                let refused = format!("{:#}", read_all(&world, Missing::Error).unwrap_err());
                assert!(
                    refused.contains(&key)
                        && refused.contains("data.missing=skip")
                        && (refused.contains("nowhere else")
                            || refused.contains("no other image of --images has them")),
                    "{kind:?}, {lengths}, {what}: {refused}"
                );
                let samples = read_all(&world, Missing::Skip).unwrap();
                assert_eq!(samples.len(), IMAGES - 1);
                assert_eq!(*samples.skipped(), (1, vec![key.clone()]), "{kind:?}, {what}");
            }
        }
    }
}

/// A length that differs shows before the first step, for files and members of shards; rows of a Parquet file have none of their own.
#[test]
fn a_changed_length_is_found_at_the_start() {
    for kind in KINDS {
        let (world, mut images) = world(kind, false);
        images[3].push(0);
        write(kind, &world.images_dir(), &images);
        let refused = error(&world, "run", &[]);
        assert!(
            matches!(refused.downcast_ref(), Some(Problem::MissingImages { count: 1, changed: (1, _), .. })),
            "{kind:?}: {refused:#}"
        );
        let run = train(&world, "run", &["--set", "data.missing=skip", "--stop-after", "1"]);
        assert_eq!(losses(&run).len(), 1);
    }
}

#[test]
fn images_that_came_later_are_named() {
    for kind in KINDS {
        let (world, mut images) = world(kind, false);
        assert_eq!(read_all(&world, Missing::Error).unwrap().added().len(), 0);
        let known: BTreeSet<String> = keys(&world).into_iter().collect();
        let mut new = pictures().split_off(IMAGES - 2);
        new.iter_mut().for_each(|image| {
            let last = image.len() - 1;
            image[last] ^= 1;
        });
        images.extend(new);
        write(kind, &world.images_dir(), &images);
        let expected: Vec<String> = keys(&world).into_iter().filter(|key| !known.contains(key)).collect();
        for missing in [Missing::Error, Missing::Skip] {
            let samples = read_all(&world, missing).unwrap();
            assert_eq!(samples.len(), IMAGES);
            let all = keys(&world);
            let added: Vec<&String> = samples.added().iter().map(|&at| &all[at]).collect();
            assert_eq!(added, expected.iter().collect::<Vec<_>>(), "{kind:?}");
        }
    }
}

fn keys(world: &World) -> Vec<String> {
    let source = images::ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
    (0..source.len()).map(|i| source.key(i).to_owned()).collect()
}
