//! Checks the place of a picture, which may only replace another picture.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

/// The first bytes of every PNG.
const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// The file at `path`, with links followed.
///
/// # Errors
/// If its folder does not exist, if it lies in `cache`, or if it exists and is not a PNG: a picture is easily drawn again, but a file that
/// a mistyped name would replace may not be.
pub(super) fn place(path: &Path, cache: &Path) -> anyhow::Result<PathBuf> {
    let refuse = |why: &str| format!("--png {}: {why}", path.display());
    ensure!(path != Path::new("-"), refuse("a picture goes into a file and not to stdout; give its name"));
    let name = path.file_name().with_context(|| refuse("has no file name"))?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().with_context(|| refuse("its folder does not exist; make it first"))?;
    let place = match fs::symlink_metadata(path) {
        Ok(_) => path.canonicalize().with_context(|| refuse("is a broken link"))?,
        Err(_) => folder.join(name),
    };
    ensure!(!storage::is_url(path), refuse("a picture goes into a file of this machine"));
    let cache = match storage::is_url(cache) {
        true => cache.to_path_buf(),
        false => cache.canonicalize().with_context(|| format!("cannot find {}", cache.display()))?,
    };
    ensure!(!place.starts_with(&cache), refuse("lies in the cache, which inspect must not change; give another place"));
    let Ok(metadata) = fs::metadata(&place) else {
        return Ok(place);
    };
    if !metadata.is_file() {
        bail!(refuse("exists and is not a file; give another name"));
    }
    let mut start = [0; SIGNATURE.len()];
    let is_png = File::open(&place).and_then(|mut file| file.read_exact(&mut start)).is_ok_and(|()| start == SIGNATURE);
    ensure!(is_png || metadata.len() == 0, refuse("exists and is not a PNG; give another name, or remove it first"));
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, cache: &Path) -> String {
        format!("{:#}", place(path, cache).unwrap_err())
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the files are not the product's")]
    fn only_pictures_are_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (cache, png, photo) = (root.join("cache"), root.join("a.png"), root.join("b.jpg"));
        fs::create_dir_all(cache.join("samples")).unwrap();
        fs::write(&png, [&SIGNATURE[..], b"more"].concat()).unwrap();
        fs::write(&photo, b"\xff\xd8 a photo").unwrap();
        assert_eq!(place(&root.join("new.png"), &cache).unwrap(), root.join("new.png"));
        assert_eq!(place(&png, &cache).unwrap(), png);
        assert!(refused(&photo, &cache).contains("is not a PNG"));
        assert!(refused(&root, &cache).contains("is not a file"));
        assert!(refused(&cache.join("cache.json"), &cache).contains("lies in the cache"));
        assert!(refused(&cache.join("samples/x.png"), &cache).contains("lies in the cache"));
        assert!(refused(&root.join("none/x.png"), &cache).contains("make it first"));
        assert!(refused(Path::new("/dev/null"), &cache).contains("is not a file"));
        assert!(refused(Path::new("-"), &cache).contains("not to stdout"));
        #[cfg(unix)]
        {
            let link = root.join("link.png");
            std::os::unix::fs::symlink(&png, &link).unwrap();
            assert_eq!(place(&link, &cache).unwrap(), png);
            let into = root.join("into.png");
            std::os::unix::fs::symlink(cache.join("samples"), &into).unwrap();
            assert!(refused(&into, &cache).contains("lies in the cache"));
        }
    }
}
