use std::sync::Arc;

use models::losses::MimicLoss;
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

/// The statistics of CLS tokens are those of the cached rows, of both views of every image while there are few.
#[test]
fn class_tokens_are_measured_on_the_rows() {
    let world = World::with_cache(7);
    let joined = joined(&world);
    let id = TeacherId::new("clip").unwrap();
    let of = |norm, loss| of_cls(&joined, &id, (norm, loss), 5).unwrap();
    let l2 = ClsLoss::Mimic(MimicLoss::L2);
    assert_eq!(of(TargetNorm::Ln, l2), None);
    let found = of(TargetNorm::Standardize, l2).unwrap();

    let cache = &joined.members()[0].cache;
    let identity = cache.teacher(&id).unwrap();
    let width = identity.width as usize;
    let mut rows = Vec::new();
    for part in 0..cache.identity().parts() {
        for row in cache.teacher_part(&id, part).unwrap().iter() {
            let mut values = vec![0f32; width];
            identity.codec.cls().decode_into(&row.unwrap().cls, width, &mut values).unwrap();
            rows.push(values);
        }
    }
    assert_eq!(rows.len(), 14);
    let mean = |of: &dyn Fn(f64) -> f64, channel: usize| {
        rows.iter().map(|row| of(f64::from(row[channel]))).sum::<f64>() / rows.len() as f64
    };
    let means: Vec<f64> = (0..width).map(|channel| mean(&|x| x, channel)).collect();
    let variances: Vec<f64> = (0..width).map(|channel| mean(&|x| (x - means[channel]).powi(2), channel)).collect();
    close(&found.channels.mean, &means);
    close(&found.channels.variance, &variances);
    // Not those of patch tokens.
    let patches = of_teacher(&joined, &id, TargetNorm::Standardize, 5).unwrap().unwrap();
    assert!((patches.mean[0] - means[0]).abs() > 1e-3);

    let flat = Tensor::from_slice(&rows.concat()).reshape([14, width as i64]);
    let angle = of(TargetNorm::None, ClsLoss::Angle).unwrap();
    assert!((angle.dispersion - models::losses::angular_dispersion(&flat)).abs() < 1e-9);
    assert!(angle.dispersion > 0.0);
    let absent = of_cls(&joined, &TeacherId::new("dino").unwrap(), (TargetNorm::None, ClsLoss::Angle), 5);
    assert!(absent.unwrap_err().to_string().contains("add-teacher"));
}
