use super::*;
use crate::rng::Purpose;

fn rng(i: u64) -> Rng {
    Rng::new(3, Purpose::Erase, &[i])
}

#[test]
fn boxes_lie_inside_and_have_the_areas_and_shapes_asked_for() {
    let erasing = RandomErasing::with_prob(0.25);
    let n = 20_000;
    let boxes: Vec<EraseBox> = (0..n).filter_map(|i| erasing.draw(&mut rng(i), 224, 224)).collect();
    // Binomial with 1/4: five standard deviations are 306.
    assert!(boxes.len().abs_diff(5_000) < 306, "{} boxes", boxes.len());
    let mut area = 0.0;
    for b in &boxes {
        assert!(b.x + b.w <= 224 && b.y + b.h <= 224, "{b:?}");
        let (share, aspect) = (f64::from(b.w * b.h) / (224.0 * 224.0), f64::from(b.h) / f64::from(b.w));
        // Sides are rounded: about 17 pixels is the shortest.
        assert!((0.019..0.344).contains(&share), "{b:?}");
        assert!((0.29..3.45).contains(&aspect), "{b:?}");
        area += share;
    }
    // Uniform on [0.02, 1/3] has mean 0.1767; a box that does not fit is drawn again, which favors small ones a little.
    let mean = area / boxes.len() as f64;
    assert!((0.170..0.182).contains(&mean), "mean share {mean}");
    let center = boxes.iter().map(|b| f64::from(b.x) + f64::from(b.w) / 2.0).sum::<f64>();
    assert!((center / boxes.len() as f64 - 112.0).abs() < 4.0);
}

#[test]
fn only_the_box_becomes_standard_normal() {
    let (width, height) = (60, 50);
    let erased = EraseBox { x: 7, y: 3, w: 40, h: 30 };
    let mut img = vec![9.0; 3 * width * height];
    erased.erase(&mut rng(0), &mut img, width as u32);
    let mut again = vec![9.0; 3 * width * height];
    erased.erase(&mut rng(0), &mut again, width as u32);
    assert_eq!(img, again);
    let mut noise = Vec::new();
    for (i, &value) in img.iter().enumerate() {
        let (x, y) = (i % width, i / width % height);
        if (7..47).contains(&x) && (3..33).contains(&y) {
            noise.push(f64::from(value));
        } else {
            assert_eq!(value, 9.0, "pixel ({x}, {y}) is outside of the box");
        }
    }
    let n = noise.len() as f64;
    assert_eq!(n, 3600.0);
    let mean = noise.iter().sum::<f64>() / n;
    let var = noise.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    // Five standard errors: 1 / 60 and sqrt(2) / 60.
    assert!(mean.abs() < 0.084 && (var - 1.0).abs() < 0.118, "{mean}, {var}");
}

#[test]
fn tiny_and_narrow_images_and_odd_boxes_are_survived() {
    for (width, height) in [(1, 1), (1, 100_000), (100_000, 1), (2, 2), (3, 5)] {
        for i in 0..200 {
            let mut rng = rng(i);
            let drawn = RandomErasing::with_prob(1.0).draw(&mut rng, width, height);
            if let Some(b) = drawn {
                assert!(b.x + b.w <= width && b.y + b.h <= height, "{b:?}");
                let mut img = vec![0.0; 3 * (width * height) as usize];
                b.erase(&mut rng, &mut img, width);
            }
        }
    }
    let outside = EraseBox { x: u32::MAX, y: 1, w: u32::MAX, h: u32::MAX };
    let mut img = [1.0; 12];
    outside.erase(&mut rng(0), &mut img, 2);
    assert_eq!(img, [1.0; 12]);
    outside.erase(&mut rng(0), &mut [], 0);
}
