use std::sync::Arc;

use schemas::Cache;

use super::*;
use crate::data::images::Images;
use crate::data::join;
use crate::recipe::{Experiment, Recipe};
use crate::testing::{RECIPE, World};

fn joined(world: &World) -> JoinedCaches {
    let cache = Arc::new(Cache::open(&world.cache_dir()).unwrap());
    let images = world.images_dir();
    let images = Images::open(&cache, images.to_str()).unwrap();
    let recipe = Recipe::parse(RECIPE, "test", &[]).unwrap();
    let samples = join::join(&cache, &[], &images, &recipe.data, &|_, _| {}).unwrap();
    JoinedCaches::new(vec![(cache, Arc::new(images), samples)])
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "channel {i}: {a}, not {b}");
    }
}

/// The commits' sums and the rows themselves, two ways to the same numbers while the cache is small.
#[test]
fn commits_and_rows_agree() {
    let world = World::with_cache(7);
    let joined = joined(&world);
    let id = TeacherId::new("clip").unwrap();
    let stats = |norm| of_teacher(&joined, &id, norm, 5).unwrap();
    let sums = stats(TargetNorm::Standardize).unwrap();
    let rows = stats(TargetNorm::PhiS).unwrap();
    close(&rows.mean, &sums.mean);
    close(&rows.variance, &sums.variance);
    let covariance = rows.covariance.unwrap();
    let diagonal: Vec<f64> = covariance.iter().copied().step_by(sums.mean.len() + 1).collect();
    close(&diagonal, &sums.variance);
    assert_eq!(sums.covariance, None);
    assert_eq!(stats(TargetNorm::Ln), None);
}

#[test]
fn a_teacher_that_is_not_cached_has_no_statistics() {
    let world = World::with_cache(5);
    let joined = joined(&world);
    let id = TeacherId::new("dino").unwrap();
    let error = of_teacher(&joined, &id, TargetNorm::Standardize, 0).unwrap_err();
    assert!(error.to_string().contains("add-teacher"), "{error}");
    assert_eq!(of_teacher(&joined, &id, TargetNorm::None, 0).unwrap(), None);
}
