//! What the integration tests share: the repository's root, temporary folders, small images, closeness that says where it failed.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The repository's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests crate lies one folder below the root")
        .to_path_buf()
}

/// Says on the terminal that a test, or a part of one, was skipped and why. The test harness swallows what passing tests print,
/// so this writes to standard error directly.
pub fn skipped(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
}

/// Relative L2 distance `|a - b| / |b|` of two equally long slices; 0 for two zero vectors.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let distance = squares(&mut a.iter().zip(b).map(|(&x, &y)| f64::from(x) - f64::from(y)));
    let norm = squares(&mut b.iter().map(|&y| f64::from(y)));
    if distance == 0.0 { 0.0 } else { distance / norm }
}

/// Every file below `dir` with its bytes, sorted by path relative to `dir`.
pub fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(base: &Path, dir: &Path, out: &mut Vec<(String, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).expect("readable folder") {
            let path = entry.expect("readable entry").path();
            if path.is_dir() {
                walk(base, &path, out);
            } else {
                let name = path.strip_prefix(base).expect("below base").display().to_string();
                out.push((name, std::fs::read(&path).expect("readable file")));
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, dir, &mut out);
    out.sort();
    out
}
