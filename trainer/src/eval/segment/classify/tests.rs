use images::rng::{Purpose, Rng};
use schemas::ContentHash;

use super::*;

/// 40 training patches in clusters of classes 3, 7 and 20, and 16 others.
fn patches() -> (TrainPatches, Vec<[f32; 3]>) {
    let mut rng = Rng::new(11, Purpose::Select, &[]);
    let mut noise = move || rng.uniform_f32() - 0.5;
    let mut draw = |class: usize| std::array::from_fn(|i| if i == class { 1.0 } else { 0.0 } + noise());
    let train: Vec<[f32; 3]> = (0..40).map(|i| draw(i % 3)).collect();
    let test: Vec<[f32; 3]> = (0..16).map(|i| draw(i % 3)).collect();
    let patches = TrainPatches {
        features: Tensor::from_slice(train.as_flattened()).view([40, 3]),
        classes: (0..40).map(|i| [3, 7, 20][i % 3]).collect(),
        hashes: (0..40).map(|i| ContentHash([i / 4; 16])).collect(),
        offered: 40,
    };
    (patches, test)
}

/// The scores and classes of plain loops in f64.
#[test]
fn votes_of_neighbors_are_those_of_plain_loops() {
    let (patches, test) = patches();
    let classifier = PatchClassifier::knn(&patches, 5, Device::Cpu).unwrap();
    assert_eq!(classifier.classes(), [3, 7, 20]);
    let found = classifier.scores(&Tensor::from_slice(test.as_flattened()).view([16, 3])).unwrap();
    let found: Vec<f32> = found.flatten(0, -1).try_into().unwrap();

    let train: Vec<f32> = patches.features.flatten(0, -1).try_into().unwrap();
    let mut expected: Vec<[f64; 3]> = Vec::new();
    for row in &test {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut neighbors: Vec<(f64, u16)> = (train.chunks(3).zip(&patches.classes))
            .map(|(other, &class)| (dot(row, other) / (dot(row, row) * dot(other, other)).sqrt(), class))
            .collect();
        neighbors.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut votes = [0.0; 3];
        for (cosine, class) in &neighbors[..5] {
            votes[[3, 7, 20].iter().position(|c| c == class).unwrap()] += (cosine / 0.07).exp();
        }
        let sum: f64 = votes.iter().sum();
        expected.push(votes.map(|vote| vote / sum));
    }
    for (found, expected) in found.iter().zip(expected.as_flattened()) {
        assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
    }

    // Bilinear interpolation of 4 x 4 patches to 7 x 7 pixels, with pixel centers at halves.
    let scores: Vec<f32> = expected.as_flattened().iter().map(|&score| score as f32).collect();
    let pixels = classifier.pixels(&Tensor::from_slice(&scores).view([16, 3]), 7).unwrap();
    let taps = |at: usize| {
        let x = ((at as f64 + 0.5) * 4.0 / 7.0 - 0.5).max(0.0);
        let (low, share) = (x.floor() as usize, x.fract());
        [(low, 1.0 - share), ((low + 1).min(3), share)]
    };
    for y in 0..7 {
        for x in 0..7 {
            let score = |class: usize| -> f64 {
                let of = |(row, a): (usize, f64)| taps(x).map(|(column, b)| a * b * expected[row * 4 + column][class]);
                taps(y).map(|tap| of(tap).iter().sum::<f64>()).iter().sum()
            };
            // Between two patches of one class each there are ties, which rounding decides.
            let best = (0..3).map(score).fold(f64::MIN, f64::max);
            let found = [3, 7, 20].iter().position(|&class| class == pixels[y * 7 + x]).unwrap();
            assert!(score(found) > best - 1e-5, "pixel {x}, {y}: {} {best}", score(found));
        }
    }
}

/// Classes that are compared in several parts are compared as in one, and the first of equals is taken.
#[test]
fn the_best_class_of_a_pixel_is_found_part_by_part() {
    let mut rng = Rng::new(2, Purpose::Select, &[]);
    let scores: Vec<f32> = (0..9 * 7).map(|_| rng.range(4) as f32).collect();
    let scores = Tensor::from_slice(&scores).view([9, 7]);
    // 3 x 3 patches and 3 x 3 pixels: no interpolation.
    let found = best_of_pixels(&scores, 3).unwrap();
    let rows: Vec<Vec<f32>> = Vec::try_from(&scores).unwrap();
    for (row, found) in rows.iter().zip(&found) {
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(row.iter().position(|&score| score == best), Some(*found as usize), "{row:?}");
    }
    // A side of 5000 leaves two classes at once: corners are those of the corner patches.
    let large = best_of_pixels(&scores, 5000).unwrap();
    assert_eq!((large[0], large[4999], large[large.len() - 1]), (found[0], found[2], found[8]));
}

fn training(blrs: &[f64]) -> Training {
    Training { blrs: blrs.to_vec(), epochs: 30, warmup_epochs: 2.0, batch_size: 8, weight_decay: 0.0, seed: 1 }
}

#[test]
fn a_linear_layer_learns_the_classes_and_chooses_its_rate() {
    let (patches, test) = patches();
    let (classifier, choice) = PatchClassifier::linear(&patches, &training(&[1e-3, 300.0]), 0.3, Device::Cpu).unwrap();
    assert_eq!(choice.blr, 300.0, "{choice:?}");
    assert!(choice.held_out_patches > 0 && choice.held_out_patches % 4 == 0, "whole images are held out: {choice:?}");
    assert_eq!(choice.rates.len(), 2);
    let scores = classifier.scores(&Tensor::from_slice(test.as_flattened()).view([16, 3])).unwrap();
    let best: Vec<i64> = scores.argmax(1, false).try_into().unwrap();
    let right = best.iter().enumerate().filter(|&(i, &class)| class == (i % 3) as i64).count();
    assert!(right >= 12, "{right} of 16");

    let (_, one) = PatchClassifier::linear(&patches, &training(&[300.0]), 0.3, Device::Cpu).unwrap();
    assert_eq!((one.held_out_patches, one.rates.len()), (0, 0));
}

#[test]
fn too_few_patches_for_a_step_are_refused() {
    let (patches, _) = patches();
    let large = Training { batch_size: 41, ..training(&[1.0]) };
    let refused = PatchClassifier::linear(&patches, &large, 0.1, Device::Cpu).unwrap_err().to_string();
    assert!(refused.contains("40 training patches cannot fill one step of --probe-batch 41"), "{refused}");
}
