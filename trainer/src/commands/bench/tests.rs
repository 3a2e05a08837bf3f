use super::*;
use crate::recipe::Experiment;

fn recipe(settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse("[optim]\nbatch_size = 4\n[schedule]\nepochs = 2\n", "test", &settings).unwrap()
}

/// Worked by hand for ViT-B/16 with MAE's decoder, forward, in GFLOP: patches 0.058, encoder 8.493 + 0.092 (attention), decoder
/// 0.039 + 9.916 + 0.636 + 0.155.
#[test]
fn vit_base_costs_what_it_does_on_paper() {
    let found = flop_per_image(&recipe(&[]), &BTreeMap::new()) / 1e9;
    let by_hand = 3.0 * (0.0578 + 8.4935 + 0.0922 + 0.0393 + 9.9153 + 0.6359 + 0.1549);
    assert!((found - by_hand).abs() < 0.05, "{found}, by hand {by_hand}");
    let head = BTreeMap::from([("clip".to_owned(), 768)]);
    let with_head = flop_per_image(&recipe(&[]), &head) / 1e9;
    assert!((with_head - found - 3.0 * 0.0578).abs() < 0.001, "{with_head}");
    let mimic_only = flop_per_image(&recipe(&["loss.w_rec=0", "mimic.teachers=[\"clip\"]"]), &head) / 1e9;
    assert!((mimic_only - 3.0 * (8.4935 + 0.0922 + 2.0 * 0.0578)).abs() < 0.05, "without a decoder {mimic_only}");
}
