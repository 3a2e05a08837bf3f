use proptest::prelude::*;

use super::*;

fn rrc(scale: [f64; 2], ratio: [f64; 2]) -> ViewPolicy {
    ViewPolicy::Rrc { scale, ratio, flip: 0.5 }
}

fn inside(crop: CropBox, width: u32, height: u32) -> bool {
    crop.w >= 1 && crop.h >= 1 && crop.x + crop.w <= width && crop.y + crop.h <= height
}

fn range(low: f64, high: f64) -> impl Strategy<Value = [f64; 2]> {
    (low..high, low..high).prop_map(|(a, b)| [a.min(b), a.max(b)])
}

proptest! {
    #[test]
    fn the_box_is_always_inside(
        seed: u64, hash: [u8; 16], index: u16, width in 1u32..70_000, height in 1u32..70_000,
        scale in range(1e-4, 1.0), ratio in range(0.01, 20.0),
    ) {
        for policy in [rrc(scale, ratio), ViewPolicy::rrc(), ViewPolicy::Center, ViewPolicy::Full] {
            let view = draw_view(&policy, seed, &ContentHash(hash), index, width, height);
            prop_assert!(inside(view.crop, width, height), "{policy:?} {view:?}");
            prop_assert_eq!(view, draw_view(&policy, seed, &ContentHash(hash), index, width, height));
            prop_assert_eq!(view.index, index);
        }
    }

    /// On an image whose own ratio is allowed nothing but rounding to whole pixels moves area and ratio out of their ranges.
    #[test]
    fn area_and_ratio_are_in_their_ranges(seed: u64, hash: [u8; 16], width in 300u32..2000, height in 300u32..2000) {
        prop_assume!(f64::from(width) / f64::from(height) < 4.0 / 3.0 && f64::from(height) / f64::from(width) < 4.0 / 3.0);
        let crop = draw_view(&ViewPolicy::rrc(), seed, &ContentHash(hash), 0, width, height).crop;
        let (w, h) = (f64::from(crop.w), f64::from(crop.h));
        let slack = 1.0 + 0.5 / w + 0.5 / h + 1e-3;
        let area = w * h / (f64::from(width) * f64::from(height));
        prop_assert!(area >= 0.2 / slack && area <= 1.0, "{area}");
        prop_assert!(w / h >= 0.75 / slack && w / h <= 4.0 / 3.0 * slack, "{}", w / h);
    }

    /// Sizes, scales and ratios that make no sense give some box inside the image, and no panic.
    #[test]
    fn no_policy_panics(seed: u64, width in 1u32..20, height in 1u32..20, numbers: [f64; 5]) {
        let policy = ViewPolicy::Rrc { scale: [numbers[0], numbers[1]], ratio: [numbers[2], numbers[3]], flip: numbers[4] };
        let view = draw_view(&policy, seed, &ContentHash([0; 16]), 0, width, height);
        prop_assert!(inside(view.crop, width, height), "{view:?}");
    }
}

/// Area uniform, ratio log-uniform, position uniform, half flipped: over many images of one square size, where all tries fit but
/// those of a wide or high box of nearly full area.
#[test]
fn crops_are_distributed_as_stated() {
    let n = 20_000u32;
    let views: Vec<_> = (0..n)
        .map(|i| draw_view(&rrc([0.2, 0.5], [0.75, 4.0 / 3.0]), 1, &ContentHash::of(&i.to_le_bytes()), 0, 1000, 1000))
        .collect();
    let mean = |f: &dyn Fn(&View) -> f64| views.iter().map(f).sum::<f64>() / f64::from(n);
    let area = |v: &View| f64::from(v.crop.w) * f64::from(v.crop.h) / 1e6;
    // Five standard errors: the area's deviation is 0.3 / sqrt(12), the log ratio's ln(16/9) / sqrt(12).
    assert!((mean(&area) - 0.35).abs() < 5.0 * 0.0866 / 141.4);
    assert!(mean(&|v| (f64::from(v.crop.w) / f64::from(v.crop.h)).ln()).abs() < 5.0 * 0.166 / 141.4);
    let place = |v: &View| f64::from(v.crop.x) / f64::from(1000 - v.crop.w);
    assert!((mean(&place) - 0.5).abs() < 5.0 * 0.29 / 141.4);
    assert!((mean(&|v| f64::from(u8::from(v.flip))) - 0.5).abs() < 5.0 * 0.5 / 141.4);
    let lower_half = views.iter().filter(|v| area(v) < 0.35).count();
    assert!((9_600..10_400).contains(&lower_half), "{lower_half}");
}

#[test]
fn an_image_too_long_for_every_try_falls_back_to_the_center() {
    let draw = |width, height| draw_view(&ViewPolicy::rrc(), 0, &ContentHash([7; 16]), 0, width, height).crop;
    assert_eq!(draw(10, 1000), CropBox { x: 0, y: 493, w: 10, h: 13 });
    assert_eq!(draw(1000, 10), CropBox { x: 493, y: 0, w: 13, h: 10 });
    assert_eq!(draw(1, 1), CropBox { x: 0, y: 0, w: 1, h: 1 });
}

#[test]
fn center_is_the_largest_square_and_full_is_everything() {
    let draw = |policy| draw_view(&policy, 9, &ContentHash([1; 16]), 3, 501, 375);
    let center = View { index: 3, crop: CropBox { x: 63, y: 0, w: 375, h: 375 }, flip: false };
    assert_eq!(draw(ViewPolicy::Center), center);
    assert_eq!(draw(ViewPolicy::Full), View { index: 3, crop: CropBox { x: 0, y: 0, w: 501, h: 375 }, flip: false });
}

#[test]
fn seed_content_and_index_all_move_the_box() {
    let draw = |seed, hash, index| draw_view(&ViewPolicy::rrc(), seed, &ContentHash(hash), index, 4000, 3000).crop;
    let base = draw(1, [2; 16], 3);
    let mut last_byte = [2; 16];
    last_byte[15] = 3;
    assert!([draw(2, [2; 16], 3), draw(1, last_byte, 3), draw(1, [2; 16], 4)].iter().all(|other| *other != base));
}
