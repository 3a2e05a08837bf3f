//! A folder in memory for the files of one input.

use std::path::Path;

use tempfile::TempDir;

/// A new folder in `/dev/shm`, or where the system keeps temporary files.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}

/// Writes a file and the folders above it.
pub fn write(path: &Path, bytes: &[u8]) {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above).expect("a folder");
    }
    std::fs::write(path, bytes).expect("a file");
}
