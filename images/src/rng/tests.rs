use super::*;

/// The known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds).
#[test]
fn philox_gives_the_published_answers() {
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32_10(counter, key), expected);
    }
}

/// The first block of a stream, put together from the two published algorithms by hand.
#[test]
fn a_stream_is_philox_of_the_hashed_name() {
    let mut name = Vec::new();
    for word in [Purpose::Mask as u64, 7, 9] {
        name.extend_from_slice(&word.to_le_bytes());
    }
    let name = xxhash_rust::xxh3::xxh3_128(&name).to_le_bytes();
    let word = |i: usize| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]);
    let seed = 0x0123_4567_89ab_cdef;
    let block = philox4x32_10([0, word(0), word(4), word(8)], [0x89ab_cdef, 0x0123_4567]);

    let mut rng = Rng::new(seed, Purpose::Mask, &[7, 9]);
    assert_eq!(rng.next_u64(), u64::from(block[0]) | u64::from(block[1]) << 32);
    assert_eq!(rng.next_u64(), u64::from(block[2]) | u64::from(block[3]) << 32);
    let next = philox4x32_10([1, word(0), word(4), word(8)], [0x89ab_cdef, 0x0123_4567]);
    assert_eq!(rng.next_u64(), u64::from(next[0]) | u64::from(next[1]) << 32);
}

#[test]
fn seed_purpose_and_every_word_of_the_key_matter() {
    let first = |seed, purpose, key: &[u64]| Rng::new(seed, purpose, key).next_u64();
    let base = first(1, Purpose::View, &[2, 3]);
    assert_eq!(base, first(1, Purpose::View, &[2, 3]));
    let others = [
        first(2, Purpose::View, &[2, 3]),
        first(1 + (1 << 32), Purpose::View, &[2, 3]),
        first(1, Purpose::Mask, &[2, 3]),
        first(1, Purpose::View, &[3, 2]),
        first(1, Purpose::View, &[2]),
        first(1, Purpose::View, &[2, 3, 0]),
    ];
    assert!(others.iter().all(|&other| other != base));
}

/// Mean, variance and a chi-square over 64 bins, for draws along one stream and for the first draw of many streams.
#[test]
fn draws_are_uniform_along_and_across_streams() {
    const DRAWS: usize = 1 << 18;
    let mut rng = Rng::new(11, Purpose::Order, &[]);
    check_uniform((0..DRAWS).map(|_| rng.uniform_f64()));
    check_uniform((0..DRAWS).map(|i| Rng::new(11, Purpose::Order, &[i as u64]).uniform_f64()));
    check_uniform((0..DRAWS).map(|seed| f64::from(Rng::new(seed as u64, Purpose::Order, &[]).uniform_f32())));
}

fn check_uniform(draws: impl ExactSizeIterator<Item = f64>) {
    let n = draws.len() as f64;
    let (mut sum, mut squares, mut bins) = (0.0, 0.0, [0u32; 64]);
    for x in draws {
        assert!((0.0..1.0).contains(&x));
        sum += x;
        squares += x * x;
        bins[(x * 64.0) as usize] += 1;
    }
    // Five standard deviations of the mean of n uniform numbers, and of their squares.
    assert!((sum / n - 0.5).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
    assert!((squares / n - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / n).sqrt());
    // 63 degrees of freedom: 120 is passed by chance once in 50,000.
    let expected = n / 64.0;
    let chi_square: f64 = bins.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(chi_square < 120.0, "chi-square {chi_square}");
}

#[test]
fn range_reaches_every_value_equally_often() {
    let mut rng = Rng::new(3, Purpose::View, &[]);
    let mut counts = [0u32; 7];
    for _ in 0..70_000 {
        counts[rng.range(7) as usize] += 1;
    }
    assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    assert_eq!(rng.range(1), 0);
    // With 3/4 of 2^64, plain multiplication would hit the multiples of 3 twice as often.
    let n = 3 << 62;
    let multiples = (0..30_000).filter(|_| rng.range(n).is_multiple_of(3)).count();
    assert!((9_500..10_500).contains(&multiples), "{multiples}");
}

#[test]
fn shuffle_is_a_permutation_and_uses_the_whole_range() {
    let mut items: Vec<u32> = (0..1000).collect();
    Rng::new(5, Purpose::Order, &[0]).shuffle(&mut items);
    let moved = items.iter().enumerate().filter(|(i, item)| *i as u32 != **item).count();
    assert!(moved > 980, "{moved}");
    items.sort_unstable();
    assert!(items.into_iter().eq(0..1000));
}
