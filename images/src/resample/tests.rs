//! Properties of the resampler. That it equals Pillow is shown by tests/pillow.rs.

use proptest::prelude::*;

use super::*;

const FILTERS: [Filter; 3] = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

fn image(width: u32, height: u32, pixel: impl Fn(u32, u32, u32) -> u8) -> RgbImage {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            data.extend((0..3).map(|c| pixel(x, y, c)));
        }
    }
    RgbImage { width, height, data }
}

fn whole(img: &RgbImage) -> CropBox {
    CropBox { x: 0, y: 0, w: img.width, h: img.height }
}

/// The definition, one output byte at a time, with 64-bit sums: rows first or columns first as `columns_first` says.
fn by_definition(img: &RgbImage, crop: CropBox, out_w: u32, out_h: u32, filter: Filter) -> RgbImage {
    let cut = image(crop.w, crop.h, |x, y, c| img.data[(((crop.y + y) * img.width + crop.x + x) * 3 + c) as usize]);
    let at =
        |img: &RgbImage, x: usize, y: usize, c: u32| i64::from(img.data[(y * img.width as usize + x) * 3 + c as usize]);
    let sum = |taps: &Taps, i: u32, value: &dyn Fn(usize) -> i64| {
        let (start, weights) = taps.iter().nth(i as usize).unwrap();
        let weight = |[high, low]: [i16; 2]| i64::from(high) * (1 << LOW_BITS) + i64::from(low);
        let total: i64 = weights.iter().enumerate().map(|(k, &w)| weight(w) * value(start + k)).sum();
        ((total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8
    };
    let rows = |img: &RgbImage| match Taps::new(filter, crop.w, out_w) {
        taps if out_w != crop.w => image(out_w, img.height, |x, y, c| sum(&taps, x, &|k| at(img, k, y as usize, c))),
        _ => img.clone(),
    };
    let columns = |img: &RgbImage| match Taps::new(filter, crop.h, out_h) {
        taps if out_h != crop.h => image(img.width, out_h, |x, y, c| sum(&taps, y, &|k| at(img, x as usize, k, c))),
        _ => img.clone(),
    };
    if columns_first(crop, out_w, out_h) { rows(&columns(&cut)) } else { columns(&rows(&cut)) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_fast_loops_equal_the_definition(
        seed: u8, (width, height) in (1u32..80, 1u32..80), (x, y) in (0u32..80, 0u32..80), (w, h) in (1u32..80, 1u32..80),
        (out_w, out_h) in (1u32..70, 1u32..70), filter in prop::sample::select(FILTERS.to_vec()),
    ) {
        let img = image(width, height, |x, y, c| (x * 37 + y * 101 + c * 57).wrapping_mul(2 * u32::from(seed) + 1) as u8);
        let (x, y) = (x % width, y % height);
        let crop = CropBox { x, y, w: w.min(width - x), h: h.min(height - y) };
        prop_assert_eq!(resample(&img, crop, out_w, out_h, filter).unwrap(), by_definition(&img, crop, out_w, out_h, filter));
    }

    #[test]
    fn one_color_stays_that_color(color: [u8; 3], width in 1u32..90, height in 1u32..90, out_w in 1u32..90, out_h in 1u32..90) {
        let img = image(width, height, |_, _, c| color[c as usize]);
        for filter in FILTERS {
            let out = resample(&img, whole(&img), out_w, out_h, filter).unwrap();
            prop_assert_eq!(&out, &image(out_w, out_h, |_, _, c| color[c as usize]));
        }
    }

    /// Nothing outside the box is read.
    #[test]
    fn pixels_outside_the_box_do_not_matter(fill: u8, out in 1u32..40) {
        let crop = CropBox { x: 5, y: 7, w: 20, h: 13 };
        let inside = |x: u32, y: u32| (5..25).contains(&x) && (7..20).contains(&y);
        let with = |fill: u8| image(33, 29, move |x, y, c| if inside(x, y) { (x * 11 + y * 5 + c) as u8 } else { fill });
        for filter in FILTERS {
            prop_assert_eq!(
                resample(&with(fill), crop, out, out, filter).unwrap(),
                resample(&with(0), crop, out, out, filter).unwrap()
            );
        }
    }
}

#[test]
fn the_same_size_is_a_cut() {
    let img = image(9, 8, |x, y, c| (x * 20 + y * 3 + c) as u8);
    let crop = CropBox { x: 2, y: 3, w: 6, h: 4 };
    let out = resample(&img, crop, 6, 4, Filter::Bicubic).unwrap();
    assert_eq!(out, image(6, 4, |x, y, c| ((x + 2) * 20 + (y + 3) * 3 + c) as u8));
}

/// Thousands of pixels become one: the split sums pass 2^31 on the way, and the result is still the mean.
#[test]
fn a_very_long_row_keeps_its_mean() {
    let img = image(65_000, 2, |_, y, _| if y == 0 { 255 } else { 253 });
    for filter in FILTERS {
        assert_eq!(resample(&img, whole(&img), 1, 1, filter).unwrap().data, [254; 3], "{filter:?}");
    }
}

#[test]
fn weights_add_up_to_one() {
    for filter in FILTERS {
        for (in_len, out_len) in [(1, 1), (7, 3), (3, 7), (500, 224), (224, 500), (2, 300), (4000, 1)] {
            for (_, weights) in Taps::new(filter, in_len, out_len).iter() {
                let sum: i32 = weights.iter().map(|&[high, low]| (i32::from(high) << LOW_BITS) + i32::from(low)).sum();
                // Each weight is rounded by half a unit at most.
                assert!(
                    (sum - (1 << PRECISION_BITS)).unsigned_abs() as usize <= weights.len(),
                    "{filter:?} {in_len} {out_len}"
                );
            }
        }
    }
}

#[test]
fn impossible_boxes_and_sizes_are_refused() {
    let img = image(10, 6, |_, _, _| 0);
    let outside = |x, y, w, h| {
        let crop = CropBox { x, y, w, h };
        let refused = resample(&img, crop, 4, 4, Filter::Bicubic);
        assert_eq!(refused, Err(CropError::Outside { crop, width: 10, height: 6 }));
    };
    outside(0, 0, 11, 6);
    outside(0, 0, 10, 7);
    outside(10, 0, 1, 1);
    outside(0, 6, 1, 1);
    outside(3, 3, 0, 1);
    outside(3, 3, 1, 0);
    outside(u32::MAX, 0, 2, 1);
    for (width, height) in [(0, 4), (4, 0)] {
        let refused = resample(&img, whole(&img), width, height, Filter::Bicubic);
        assert_eq!(refused, Err(CropError::EmptyOutput { width, height }));
    }
}
