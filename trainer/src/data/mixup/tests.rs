use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::path::Path;

use images::rng::Purpose;

use super::*;
use crate::testing::relative_l2;

const MAE: Mixup = Mixup { mixup_alpha: 0.8, cutmix_alpha: 1.0, prob: 1.0, switch_prob: 0.5, label_smoothing: 0.1 };

fn rng(i: u64) -> Rng {
    Rng::new(5, Purpose::Mixup, &[i])
}

/// See `tests/golden/mixup/README.md`.
#[test]
fn batches_are_mixed_as_timm_mixes_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/mixup/mixup.safetensors");
    let golden: BTreeMap<String, Tensor> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
    let (mut mixes, mut cuts) = (0, 0);
    for i in 0..10 {
        let stored = |name: &str| &golden[&format!("{i}/{name}")];
        let [lambda, corrected] = Vec::<f64>::try_from(stored("lambda")).unwrap()[..] else {
            panic!("two numbers are stored")
        };
        let bounds = Vec::<i64>::try_from(stored("box")).unwrap();
        let bounds: Vec<u32> = bounds.iter().filter_map(|&x| x.try_into().ok()).collect();
        let drawn = match bounds[..] {
            [top, bottom, left, right] => {
                cuts += 1;
                Drawn::Cut { rows: [top, bottom], columns: [left, right], lambda: corrected }
            }
            _ if lambda < 1.0 => {
                mixes += 1;
                Drawn::Mix { lambda }
            }
            _ => Drawn::Plain,
        };
        let before = golden["imgs"].copy();
        let (imgs, targets) = MAE.mix(&golden["imgs"], &golden["labels"], 7, &drawn);
        assert!(golden["imgs"].equal(&before), "the input was changed");
        // The same few operations in f32; their order may differ.
        assert!(relative_l2(&imgs, stored("imgs")) < 1e-6, "images of case {i}");
        assert!(relative_l2(&targets, stored("targets")) < 1e-6, "targets of case {i}");
    }
    assert_eq!((mixes, cuts), (3, 6));
}

/// Kolmogorov and Smirnov's distance between draws and a distribution function.
fn distance(a: f64, cdf: impl Fn(f64) -> f64) -> f64 {
    let n = 20_000;
    let mut drawn: Vec<f64> = (0..n).map(|i| beta(&mut rng(i), a)).collect();
    drawn.sort_by(f64::total_cmp);
    let n = n as f64;
    let gap = |(i, &x): (usize, &f64)| {
        let expected = cdf(x);
        (expected - i as f64 / n).abs().max((expected - (i + 1) as f64 / n).abs())
    };
    drawn.iter().enumerate().map(gap).fold(0.0, f64::max)
}

#[test]
fn beta_has_its_distribution() {
    // Where the distribution function is elementary. A right sampler stays below 1.95 / sqrt(20,000) in 999 of 1,000 cases.
    assert!(distance(0.5, |x| 2.0 / PI * x.sqrt().asin()) < 0.0138);
    assert!(distance(1.0, |x| x) < 0.0138);
    assert!(distance(2.0, |x| x * x * (3.0 - 2.0 * x)) < 0.0138);
    for a in [0.001, 0.1, 0.8, 30.0] {
        let n = 20_000;
        let drawn: Vec<f64> = (0..n).map(|i| beta(&mut rng(i), a)).collect();
        assert!(drawn.iter().all(|x| (0.0..=1.0).contains(x)));
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let var = drawn.iter().map(|x| (x - 0.5).powi(2)).sum::<f64>() / n as f64;
        let expected = 1.0 / (4.0 * (2.0 * a + 1.0));
        // Five standard errors of the mean; those of the variance are at most sqrt(2 / n), relatively.
        assert!((mean - 0.5).abs() < 5.0 * (expected / n as f64).sqrt(), "{a}: {mean}");
        assert!((var / expected - 1.0).abs() < 0.05, "{a}: {var} for {expected}");
    }
}

#[test]
fn boxes_lie_inside_and_lambda_is_the_area_that_is_left() {
    let cutmix = Mixup { mixup_alpha: 0.0, ..MAE };
    for (height, width) in [(1, 1), (1, 50), (50, 1), (2, 3), (224, 224), (u32::MAX, u32::MAX)] {
        for i in 0..500 {
            let drawn = cutmix.draw(&mut rng(i), height, width);
            assert_eq!(drawn, cutmix.draw(&mut rng(i), height, width));
            let Drawn::Cut { rows: [top, bottom], columns: [left, right], lambda } = drawn else { panic!("{drawn:?}") };
            assert!(top <= bottom && bottom <= height && left <= right && right <= width);
            let cut = f64::from(bottom - top) * f64::from(right - left);
            let share = cut / (f64::from(height) * f64::from(width));
            assert!((lambda + share - 1.0).abs() < 1e-12, "{drawn:?}");
        }
    }
}

#[test]
fn probabilities_decide_what_is_done() {
    let half = Mixup { prob: 0.5, ..MAE };
    let n = 10_000;
    let (mut plain, mut cuts) = (0_usize, 0_usize);
    for i in 0..n {
        match half.draw(&mut rng(i), 32, 32) {
            Drawn::Plain => plain += 1,
            Drawn::Cut { .. } => cuts += 1,
            Drawn::Mix { .. } => {}
        }
    }
    // Binomial: five standard deviations are 250 and 217.
    assert!(plain.abs_diff(5_000) < 250, "{plain} plain");
    assert!(cuts.abs_diff(2_500) < 217, "{cuts} cut");
    let off = Mixup { mixup_alpha: 0.0, cutmix_alpha: 0.0, ..MAE };
    let only_mixup = Mixup { cutmix_alpha: 0.0, switch_prob: 1.0, ..MAE };
    for i in 0..100 {
        assert_eq!(off.draw(&mut rng(i), 32, 32), Drawn::Plain);
        assert!(matches!(only_mixup.draw(&mut rng(i), 32, 32), Drawn::Mix { .. }));
    }
}
