//! What the integration tests share: the repository's root, temporary folders, small images, closeness that says where it failed.

pub mod programs;

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

/// The interpreter that `scripts/python-env` made, if it has been run.
pub fn python() -> Option<String> {
    let output = std::process::Command::new(root().join("scripts/python-env"))
        .arg("--if-present")
        .output()
        .expect("the script starts");
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(path)
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

/// Writes `n` pictures of 96 x 80 pixels into class folders `a` and `b` below `dir`: a different colored wave each.
pub fn write_bmp_folders(dir: &Path, n: usize) {
    for i in 0..n {
        let folder = dir.join(if i % 2 == 0 { "a" } else { "b" });
        std::fs::create_dir_all(&folder).expect("a folder for pictures");
        let pixel = |x: usize, y: usize, c: usize| {
            let phase = (x * (i + 3) + y * (2 * i + 5)) as f64 * 0.02 + c as f64 + i as f64;
            (127.5 + 127.0 * phase.sin()) as u8
        };
        let picture = bmp(96, 80, pixel);
        #[allow(clippy::disallowed_methods, reason = "test pictures need no atomic publication")]
        std::fs::write(folder.join(format!("{i:03}.bmp")), picture).expect("writable");
    }
}

/// A 24-bit BMP file of `pixel(x, y, channel)`, channels in the order RGB.
pub fn bmp(width: usize, height: usize, pixel: impl Fn(usize, usize, usize) -> u8) -> Vec<u8> {
    let stride = (width * 3).next_multiple_of(4);
    let (header, data) = (54, stride * height);
    let mut file = Vec::with_capacity(header + data);
    let u32s =
        |file: &mut Vec<u8>, values: &[usize]| values.iter().for_each(|&v| file.extend((v as u32).to_le_bytes()));
    file.extend(b"BM");
    u32s(&mut file, &[header + data, 0, header, 40, width, height]);
    file.extend([1, 0, 24, 0]);
    u32s(&mut file, &[0, data, 2835, 2835, 0, 0]);
    for y in (0..height).rev() {
        let row = file.len();
        (0..width).for_each(|x| file.extend([2, 1, 0].map(|c| pixel(x, y, c))));
        file.resize(row + stride, 0);
    }
    file
}
