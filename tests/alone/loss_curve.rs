//! The loss curve of a small pretraining on the CPU is the one that is kept, bit for bit: whatever changes a number of the method, of the
//! data path or of the optimizer changes this curve.
//!
//! In a process of its own, for it sets libtorch's number of threads.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tests::programs::{build, losses, pretrain};
use tests::{root, skipped};

/// The kept curve and the processor it was computed on.
#[derive(Debug, Serialize, Deserialize)]
struct Curve {
    /// Model name of the processor. libtorch chooses its kernels by it.
    processor: String,
    /// Every logged value of each step, by name.
    steps: Vec<Vec<(String, f64)>>,
}

fn golden() -> PathBuf {
    root().join("tests/golden/losses/pretrain_tiny_cpu.json")
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

fn curve(dir: &Path) -> Curve {
    let (images, cache) = build(dir);
    let run = dir.join("run");
    pretrain(&cache, &images, &run, &[]).expect("a run");
    Curve { processor: processor(), steps: losses(&run) }
}

/// Equal on the processor the curve was computed on. On another one libtorch's kernels add in another order: differences of 2^-24 grow over
/// 20 steps of AdamW, and stay below 1e-3.
///
/// Where a change is meant to alter numbers, delete the file, run this test twice, and say in the commit what moved and why.
#[test]
fn the_loss_curve_is_the_one_that_is_kept() {
    torch_ext::set_num_threads(1).expect("libtorch takes a thread count");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let found = curve(dir.path());
    assert_eq!(found.steps.len(), 20, "40 pictures in batches of 8, 4 epochs");
    let Ok(kept) = std::fs::read(golden()) else {
        let text = serde_json::to_string_pretty(&found).expect("JSON") + "\n";
        schemas::atomic::write(&golden(), text.as_bytes()).expect("a golden file");
        panic!("{}: written; run again", golden().display());
    };
    let kept: Curve = serde_json::from_slice(&kept).expect("the golden file is JSON");
    let same_processor = kept.processor == found.processor && found.processor != "unknown";
    if !same_processor {
        skipped("the loss curve bit for bit", &format!("it was computed on {:?}; compared to 1e-3", kept.processor));
    }
    for (step, (kept, found)) in kept.steps.iter().zip(&found.steps).enumerate() {
        assert_eq!(kept.len(), found.len(), "step {}: other values are logged", step + 1);
        for ((name, kept), (found_name, found)) in kept.iter().zip(found) {
            assert_eq!(name, found_name, "step {}", step + 1);
            let difference = (kept - found).abs() / kept.abs();
            let tolerance = if same_processor { 0.0 } else { 1e-3 };
            assert!(difference <= tolerance, "step {}: {name} was {kept} and is {found}", step + 1);
        }
    }
}
