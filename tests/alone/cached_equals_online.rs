//! The proof that a cache is right: the same run, once from the cache and once with the teacher inside the loop, gives the same losses.
//!
//! In a process of its own, for it sets libtorch's number of threads.

use tests::programs::{build, losses, pretrain, teacher};

/// Tolerance 1e-5 relative. The f32 cache holds what the teacher computed, bit for bit; what may differ are the last bits of the teacher's
/// matrix products, whose kernels depend on the batch's size (16 views in the build, 8 in the loop), 2^-24 each. libtorch gets one thread
/// here, as each lane of the build has, since the order of a sum depends on the number of threads too. Over 20 AdamW steps a difference
/// grows, but stays far below what any mistake in the join, the crop or the normalization makes.
#[test]
fn cached_equals_online() {
    torch_ext::set_num_threads(1).expect("libtorch takes a thread count");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (images, cache) = build(dir.path());
    let (cached, online) = (dir.path().join("cached"), dir.path().join("online"));
    pretrain(&cache, &images, &cached, &[]).expect("the cached run");
    let clip = format!("clip={}", teacher("clip-tiny").display());
    let dino = format!("dino={}", teacher("dino-tiny").display());
    pretrain(&cache, &images, &online, &["--online-teacher", &clip, "--online-teacher", &dino])
        .expect("the online run");

    let (cached, online) = (losses(&cached), losses(&online));
    assert_eq!(cached.len(), 20, "40 pictures in batches of 8, 4 epochs");
    assert_eq!(online.len(), 20);
    let mut worst = 0f64;
    for (step, (a, b)) in cached.iter().zip(&online).enumerate() {
        assert_eq!(a.len(), 5, "loss, rec, two mimic losses and the gradient's norm");
        for ((name, a), (_, b)) in a.iter().zip(b) {
            let difference = (a - b).abs() / b.abs();
            worst = worst.max(difference);
            assert!(difference < 1e-5, "step {}: {name} is {a} cached and {b} online", step + 1);
        }
    }
    let first: f64 = cached[0].iter().find(|(name, _)| name == "loss").expect("logged").1;
    let last: f64 = cached[19].iter().find(|(name, _)| name == "loss").expect("logged").1;
    assert!(last < first, "the loss did not fall: {first} to {last}");
    println!("largest relative difference over 20 steps: {worst:.1e}");
}
