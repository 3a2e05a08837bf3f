use tch::Device;

use super::*;
use crate::init::Init;

fn uniform(n: i64, num_patches: i64, name: &str) -> Tensor {
    let symmetric = Init::Uniform { bound: 0.5 }.tensor(&[n, num_patches], 5, name);
    (symmetric.to_kind(Kind::Double) + 0.5).clamp(0.0, 1.0 - 1e-9)
}

fn rows(ids: &Tensor) -> Vec<Vec<i64>> {
    (0..ids.size()[0]).map(|i| Vec::try_from(ids.get(i)).unwrap()).collect()
}

#[test]
fn the_share_kept_is_rounded_down_as_in_python() {
    assert_eq!(len_keep(196, 0.75), 49);
    assert_eq!(len_keep(16, 0.75), 4);
    assert_eq!(len_keep(9, 0.6), 3);
    assert_eq!(len_keep(196, 0.0), 196);
}

#[test]
fn a_mask_is_a_permutation_and_its_inverse() {
    let masking = random_masking(&uniform(6, 20, "noise"), 5);
    let masks: Vec<Vec<f32>> = (0..6).map(|i| Vec::try_from(masking.mask.get(i)).unwrap()).collect();
    for ((keep, restore), mask) in rows(&masking.ids_keep).iter().zip(rows(&masking.ids_restore)).zip(masks) {
        let mut sorted = restore.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..20));
        for (place, patch) in keep.iter().enumerate() {
            assert_eq!(restore[*patch as usize], place as i64);
        }
        for (patch, removed) in mask.into_iter().enumerate() {
            assert_eq!(removed == 1.0, !keep.contains(&(patch as i64)));
            assert_eq!(removed == 0.0, restore[patch] < 5);
        }
    }
}

#[test]
fn the_smallest_are_kept_in_their_order_and_ties_in_that_of_position() {
    let noise = Tensor::from_slice(&[0.5, 0.1, 0.5, 0.0, 0.5, 0.9]).unsqueeze(0);
    assert_eq!(rows(&random_masking(&noise, 4).ids_keep), [[3, 1, 0, 2]]);
    assert_eq!(rows(&random_masking(&noise.zeros_like(), 3).ids_keep), [[0, 1, 2]]);
    // All kept: nothing is removed, and the order is still that of the noise.
    let all = random_masking(&noise, 6);
    assert_eq!(all.mask.sum(None).double_value(&[]), 0.0);
    assert_eq!(rows(&all.ids_restore), [[2, 1, 3, 0, 4, 5]]);
}

/// How often each patch is among the first `len_keep` of `n` draws.
fn frequencies(weights: &[f32], n: i64, len_keep: i64) -> Vec<f64> {
    let num_patches = weights.len() as i64;
    let attention = Tensor::from_slice(weights).unsqueeze(0).expand([n, num_patches], false);
    let noise = focused_noise(&attention, &uniform(n, num_patches, "draws"), FocusKind::Multinomial);
    let seen: Tensor = 1.0 - random_masking(&noise, len_keep).mask;
    Vec::try_from(seen.mean_dim(0, false, Kind::Double)).unwrap()
}

fn check(found: &[f64], expected: &[f64], n: i64) {
    for (found, expected) in found.iter().zip(expected) {
        let error = 5.0 * (expected * (1.0 - expected) / n as f64).sqrt();
        assert!((found - expected).abs() <= error, "{found}, not {expected} ± {error}");
    }
}

#[test]
fn multinomial_draws_in_proportion_to_attention() {
    let n = 100_000;
    check(&frequencies(&[1.0, 2.0, 3.0, 4.0], n, 1), &[0.1, 0.2, 0.3, 0.4], n);
    // The scale is nothing: f16 attention over 196 patches is small.
    check(&frequencies(&[1e-7, 2e-7, 3e-7, 4e-7], n, 1), &[0.1, 0.2, 0.3, 0.4], n);
    // Two without replacement: P(i) = w_i + Σ_j w_j · w_i / (1 - w_j).
    let w = [0.1, 0.2, 0.3, 0.4];
    let two = |i: usize| w[i] + (0..4).filter(|j| *j != i).map(|j| w[j] * w[i] / (1.0 - w[j])).sum::<f64>();
    check(&frequencies(&[1.0, 2.0, 3.0, 4.0], n, 2), &[two(0), two(1), two(2), two(3)], n);
}

#[test]
fn weights_that_say_nothing_come_last_and_are_equal() {
    let n = 20_000;
    let found = frequencies(&[0.0, f32::NAN, 1.0, 1e-30, f32::INFINITY, -1.0], n, 3);
    check(&found, &[0.25, 0.25, 1.0, 1.0, 0.25, 0.25], n);
    check(&frequencies(&[0.0; 4], n, 1), &[0.25; 4], n);
    check(&frequencies(&[f32::NAN; 4], n, 1), &[0.25; 4], n);
}

#[test]
fn the_ends_of_the_uniform_numbers_are_harmless() {
    let uniform = Tensor::from_slice(&[0.0, 1.0, 0.0, 0.5]).unsqueeze(0);
    let attention = Tensor::from_slice(&[1.0, 1.0, 0.0, 1e-300]).unsqueeze(0);
    let noise = focused_noise(&attention, &uniform, FocusKind::Multinomial);
    assert!(bool::try_from(noise.isfinite().all()).unwrap());
    assert_eq!(rows(&random_masking(&noise, 4).ids_keep), [[1, 0, 3, 2]]);
}

#[test]
fn topk_keeps_the_most_attended_whatever_the_draw() {
    let attention = Tensor::from_slice(&[0.1f32, f32::NAN, 0.4, 0.0, 0.2, 0.4]).unsqueeze(0).to_kind(Kind::Half);
    for name in ["one", "two"] {
        let noise = focused_noise(&attention, &uniform(1, 6, name), FocusKind::TopK);
        assert_eq!(rows(&random_masking(&noise, 5).ids_keep), [[2, 5, 4, 0, 1]]);
    }
}

#[test]
fn a_mask_depends_on_its_own_row() {
    let noise = uniform(4, 12, "noise");
    let attention = uniform(4, 12, "attention");
    let together = focused_noise(&attention, &noise, FocusKind::Multinomial);
    let alone = focused_noise(&attention.narrow(0, 2, 1), &noise.narrow(0, 2, 1), FocusKind::Multinomial);
    let ids = |noise: &Tensor| random_masking(noise, 3).ids_keep;
    assert_eq!(ids(&together).narrow(0, 2, 1), ids(&alone));
    assert_eq!(together.device(), Device::Cpu);
}

#[test]
fn blocks_remove_the_number_asked_for_in_pieces_that_hang_together() {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // How many of the neighbors of removed patches are removed, over many masks.
    let (grid_h, grid_w) = (14usize, 12usize);
    for num_removed in [0, 3, 40, 126, 168] {
        let (mut same, mut pairs, mut place) = (0.0, 0.0, vec![0u32; grid_h * grid_w]);
        for _ in 0..200 {
            let noise = block_noise([grid_h, grid_w], num_removed, &mut uniform);
            let removed: Vec<bool> = noise.iter().map(|&v| v >= 1.0).collect();
            assert_eq!(removed.iter().filter(|r| **r).count(), num_removed);
            assert!(noise.iter().all(|v| (0.0..2.0).contains(v)));
            for y in 0..grid_h {
                for x in 0..grid_w {
                    place[y * grid_w + x] += u32::from(removed[y * grid_w + x]);
                    if x + 1 < grid_w && removed[y * grid_w + x] {
                        pairs += 1.0;
                        same += f64::from(u8::from(removed[y * grid_w + x + 1]));
                    }
                }
            }
        }
        let share = num_removed as f64 / (grid_h * grid_w) as f64;
        if num_removed == 40 {
            assert!(same / pairs > share + 0.4, "{} of neighbors", same / pairs);
        }
        if num_removed >= 40 {
            assert!(place.iter().all(|&n| n > 0), "{num_removed}: a patch is never removed");
        }
    }
}
