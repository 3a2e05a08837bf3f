//! What the attention of CLS takes. The peak is that of the process, in which nothing else runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use models::init::Init;
use models::layers::Attention;
use models::params::ParamStore;
use models::precision::Precision;
use tch::Device;

/// 16,000 tokens: the matrix of 2 heads would take 2 GB.
#[test]
fn the_attention_of_cls_never_needs_the_whole_matrix() {
    let store = ParamStore::new(Device::Cpu, 0);
    let attention = Attention::new(&store.root(), 16, 2, true);
    let x = Init::Normal { std: 1.0 }.tensor(&[1, 16_000, 16], 3, "x");
    let Some(before) = torch_ext::peak_rss() else {
        println!("skipped: the system does not tell how much memory was used");
        return;
    };
    let _no_grad = tch::no_grad_guard();
    let (_, row) = attention.forward_with_cls_attention(&x, None);
    assert_eq!(row.size(), [1, 2, 16_000]);
    for precision in [Precision::F32, Precision::Bf16] {
        let _guard = precision.guard(Device::Cpu);
        assert_eq!(attention.cls_attention(&x).size(), [1, 2, 16_000]);
    }
    let grown = torch_ext::peak_rss().unwrap() - before;
    assert!(grown < 500 << 20, "{} MB more", grown >> 20);
}
