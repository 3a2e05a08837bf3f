use models::init::Init;

use super::*;

fn labeled(rows: &[&[f32]], labels: &[i64]) -> Labeled {
    let flat: Vec<f32> = rows.iter().flat_map(|row| row.iter().copied()).collect();
    let features = Tensor::from_slice(&flat).view([rows.len() as i64, rows[0].len() as i64]);
    Labeled { features, labels: labels.to_vec() }
}

/// Worked by hand. The query points along x. Cosines: class 0 has one neighbor at 1.0; class 1 has two at 0.8 and 0.96
/// (unit vectors (0.8, 0.6) and (0.96, 0.28)).
/// Votes: exp(1/0.07) = 1.60e6 against exp(0.96/0.07) + exp(0.8/0.07) = 9.02e5 + 9.2e4, so the single nearest wins.
/// With another neighbor at 0.96 class 1 has 1.90e6 and wins.
#[test]
fn votes_are_weighed_by_similarity() {
    let test = labeled(&[&[2.0, 0.0]], &[0]);
    let train = labeled(&[&[5.0, 0.0], &[0.96, 0.28], &[8.0, 6.0]], &[0, 1, 1]);
    assert_eq!(predict(&train, &test.features, 3, 2).unwrap(), [0]);
    let train = labeled(&[&[5.0, 0.0], &[0.96, 0.28], &[8.0, 6.0], &[0.96, -0.28]], &[0, 1, 1, 1]);
    assert_eq!(predict(&train, &test.features, 4, 2).unwrap(), [1]);
    assert_eq!(predict(&train, &test.features, 1, 2).unwrap(), [0], "only the nearest votes");
    assert_eq!(predict(&train, &test.features, 100, 2).unwrap(), [1], "more neighbors than images: all vote");
}

/// Against the definition, computed with plain loops in f64.
#[test]
fn agrees_with_brute_force() {
    let random = |shape: &[i64], name| Init::Normal { std: 1.0 }.tensor(shape, 5, name);
    let (n, m, d, classes, k) = (300i64, 290i64, 8i64, 7usize, 20usize);
    let label = |i: i64| (i * i + 3 * i) % classes as i64;
    let train = Labeled { features: random(&[n, d], "train"), labels: (0..n).map(label).collect() };
    let test = random(&[m, d], "test");
    let rows = |t: &Tensor| -> Vec<Vec<f64>> {
        let flat = Vec::<f64>::try_from(t.to_kind(Kind::Double).flatten(0, 1)).unwrap();
        flat.chunks(d as usize).map(|row| row.to_vec()).collect()
    };
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let train_rows = rows(&train.features);
    let expected: Vec<i64> = rows(&test)
        .iter()
        .map(|query| {
            let mut near: Vec<(f64, i64)> =
                train_rows.iter().zip(&train.labels).map(|(t, &l)| (cosine(query, t), l)).collect();
            near.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut scores = vec![0.0; classes];
            near[..k].iter().for_each(|&(s, l)| scores[l as usize] += (s / TEMPERATURE).exp());
            (0..classes).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as i64
        })
        .collect();
    assert_eq!(predict(&train, &test, k as u32, classes).unwrap(), expected);
}

#[test]
fn balanced_accuracy_weighs_classes_equally() {
    // Eight of class 0, all right; two of class 1, one right; class 2 does not occur.
    let labels = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    let predictions = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
    let found = accuracy(&predictions, &labels, 3).unwrap();
    assert!((found.top1 - 0.9).abs() < 1e-12 && (found.balanced - 0.75).abs() < 1e-12, "{found:?}");
}

#[test]
fn nothing_to_compare_is_an_error() {
    let empty = Labeled { features: Tensor::zeros([0, 2], (Kind::Float, tch::Device::Cpu)), labels: vec![] };
    let one = labeled(&[&[1.0, 0.0]], &[0]);
    assert!(knn(&empty, &one, 1, 1).is_err());
    assert!(knn(&one, &empty, 1, 1).is_err());
}
