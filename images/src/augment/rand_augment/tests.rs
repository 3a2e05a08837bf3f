use super::*;
use crate::rng::Purpose;

const MEAN: [f64; 3] = [0.485, 0.456, 0.406];

fn parse(policy: &str) -> Result<RandAugment, PolicyError> {
    RandAugment::parse(policy, MEAN, Interpolation::Bicubic)
}

#[test]
fn a_policy_is_read_as_timm_reads_it() {
    let policy = parse("rand-m9-mstd0.5-inc1").unwrap();
    assert_eq!(
        policy,
        RandAugment {
            magnitude: 9.0,
            magnitude_std: 0.5,
            layers: 2,
            prob: 0.5,
            interpolation: Interpolation::Bicubic,
            fill: [124, 116, 104],
        }
    );
    let policy = parse("rand-inc1-n3-p0.25").unwrap();
    assert_eq!((policy.magnitude, policy.layers, policy.prob), (10.0, 3, 0.25));
}

#[test]
fn what_is_not_supported_is_named() {
    for (policy, word) in [
        ("", "start with `rand`"),
        ("original-mstd0.5", "start with `rand`"),
        ("rand-m9-mstd0.5", "add `inc1`"),
        ("rand-m9-inc0", "add `inc1`"),
        ("rand-m11-inc1", "from 0 to 10"),
        ("rand-m9.5-inc1", "from 0 to 10"),
        ("rand-m9-m9-inc1", "given twice"),
        ("rand-mstd101-inc1", "from 0 to 100"),
        ("rand-p1.5-inc1", "from 0 to 1"),
        ("rand-n0-inc1", "from 1 to 100"),
        ("rand-n99999999999-inc1", "from 1 to 100"),
        ("rand-mmax20-inc1", "`mmax20` is not supported"),
        ("rand-tweights-inc1", "`tweights` is not supported"),
        ("rand--inc1", "`` is not supported"),
        ("rand-mé9-inc1", "is not supported"),
    ] {
        let error = parse(policy).unwrap_err().to_string();
        assert!(error.contains(word), "{policy}: {error}");
    }
}

#[test]
fn draws_have_the_policys_distribution() {
    let policy = parse("rand-m9-mstd0.5-inc1").unwrap();
    let n = 30_000;
    let (mut used, mut left, mut degrees) = (0, 0, Vec::new());
    for i in 0..n {
        let draw = || policy.draw(&mut Rng::new(1, Purpose::Augment, &[i]));
        let ops = draw();
        assert_eq!(ops, draw());
        used += ops.len();
        for op in ops {
            if let Op::Rotate(angle) = op {
                left += usize::from(angle > 0.0);
                degrees.push(angle.abs());
            }
        }
    }
    // Binomial: 60,000 draws with 1/2, then about 2,000 with 1/2; bounds are five standard deviations.
    assert!(used.abs_diff(30_000) < 613, "{used} operations");
    let rotations = degrees.len();
    assert!(rotations.abs_diff(2_000) < 220, "{rotations} rotations");
    assert!(left.abs_diff(rotations / 2) < 112, "{left} of {rotations}");
    // N(9, 0.5) clamped at 10, two standard deviations up: the mean falls by 0.5 * 0.0085.
    let mean = degrees.iter().sum::<f64>() / rotations as f64 / 3.0;
    assert!((mean - 8.9958).abs() < 0.06, "mean magnitude {mean}");
    assert!(degrees.iter().all(|&angle| angle <= 30.0));
    let at_the_bound = degrees.iter().filter(|&&angle| angle == 30.0).count();
    assert!(at_the_bound.abs_diff(rotations * 228 / 10_000) < 34);
}

#[test]
fn images_of_any_shape_survive_every_operation() {
    for (width, height) in [(1, 1), (1, 7), (7, 1), (2, 2), (3, 2), (5000, 1), (1, 5000)] {
        let img = RgbImage { width, height, data: (0..width * height * 3).map(|i| (i * 37) as u8).collect() };
        for kind in OpKind::ALL {
            for magnitude in [0.0, 9.0, 10.0, f64::INFINITY, f64::NAN] {
                for negate in [false, true] {
                    for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
                        let op = kind.at(magnitude, negate);
                        let out = op.apply(&img, interpolation, [1, 2, 3]);
                        assert_eq!((out.width, out.height), (width, height));
                        assert_eq!(out.data.len(), img.data.len());
                    }
                }
            }
        }
    }
}
