//! What the fuzz targets do with their inputs: one module for each reader of outside bytes.
//!
//! An input is made into files, the files are read through the public functions that the programs call, and everything that can be asked of
//! the result is asked. Checksums that an input cannot have by chance (digests, CRCs, hashes of footers and rows) are computed here, so
//! that the code behind them is reached. `run` panics where a reader breaks a promise other than that of not panicking: a tensor larger
//! than its file, rows that come back as others.
//!
//! `files` of a module gives the files that an input stands for. `examples/keep.rs` writes them where the ordinary tests read them.

pub mod image;
pub mod parquet_source;
pub mod part_files;
pub mod part_rows;
pub mod records;
pub mod scratch;
pub mod seal;
pub mod tar_source;
pub mod weights;

mod caches;
mod sources;

use std::path::Path;

/// A fuzz target.
pub struct Target {
    /// Its name, that of the file in `fuzz_targets`.
    pub name: &'static str,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Writes the files that an input stands for into a folder.
    pub files: fn(&[u8], &Path),
}

/// All targets.
pub const TARGETS: [Target; 8] = [
    Target { name: "records", seeds: records::seeds, files: records::files },
    Target { name: "part_files", seeds: part_files::seeds, files: part_files::files },
    Target { name: "part_rows", seeds: part_rows::seeds, files: part_rows::files },
    Target { name: "tar_source", seeds: tar_source::seeds, files: tar_source::files },
    Target { name: "parquet_source", seeds: parquet_source::seeds, files: parquet_source::files },
    Target { name: "safetensors", seeds: weights::safetensors_seeds, files: weights::safetensors_files },
    Target { name: "torch_zip", seeds: weights::torch_seeds, files: weights::torch_files },
    Target { name: "image", seeds: image::seeds, files: image::files },
];

/// Lets the readers catch panics of the libraries that they call, and names each place of such a panic once.
///
/// libFuzzer's own hook ends the process at any panic. A panic that nobody catches still ends it: `fuzz_target!` sees it.
pub fn report_panics() {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    std::panic::set_hook(Box::new(|info| {
        let place =
            info.location().map_or_else(String::new, |location| format!("{}:{}", location.file(), location.line()));
        let mut seen = SEEN.lock().unwrap_or_else(|seen| seen.into_inner());
        if seen.insert(place) {
            eprintln!("panic: {info}");
        }
    }));
}
