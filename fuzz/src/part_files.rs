//! Part files: any bytes in the place of a samples file or a teacher's, declared by a commit record that holds.
//!
//! | bytes of an input | |
//! |---|---|
//! | 1 | which cache (bit 0: with packed images and `i8`), and which of its files (bit 1) |
//! | 2 | added to the length of what the commit record calls the footer, signed |
//! | the rest | the file |

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use parquet::file::metadata::ParquetMetaDataReader;
use schemas::{Codec, Pack};
use serde_json::Value;
use tempfile::TempDir;

use crate::{caches, scratch, seal};

struct Sound {
    folder: TempDir,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

static SOUND: LazyLock<[Sound; 2]> = LazyLock::new(|| {
    [(Pack::None, Codec::F16), (Pack::Original, caches::affine())].map(|(pack, codec)| {
        let folder = scratch::folder();
        caches::build(folder.path(), &caches::identity(2, pack), &caches::teacher(codec));
        Sound { files: caches::files(folder.path()), folder }
    })
});

const FOLDERS: [&str; 2] = ["samples", "teachers/clip"];

/// The sound cache, and the files that differ from its.
fn changed(input: &[u8]) -> Option<(&'static Sound, [(PathBuf, Vec<u8>); 2])> {
    let (&[which, low, high], file) = input.split_first_chunk()?;
    let (sound, folder) = (&SOUND[usize::from(which & 1)], FOLDERS[usize::from(which >> 1 & 1)]);
    let name = Path::new(folder).join("part-00000.parquet");
    let commit = Path::new(folder).join("part-00000.commit.json");
    // Rows are counted as the footer has them, or the reader would stop at their number.
    let rows = catch_unwind(AssertUnwindSafe(|| {
        let footer = file.len().checked_sub(8)?;
        let length = u32::from_le_bytes(file[footer..footer + 4].try_into().ok()?) as usize;
        let metadata = ParquetMetaDataReader::decode_metadata(&file[footer.checked_sub(length)?..footer]).ok()?;
        Some(metadata.row_groups().iter().fold(0i64, |sum, group| sum.saturating_add(group.num_rows())))
    }));
    let commit_bytes = seal::with_fields(&sound.files[&commit], |fields| {
        let stamp = &mut fields["file"];
        let shift = i64::from(i16::from_le_bytes([low, high]));
        let footer = stamp["footer_bytes"].as_i64().unwrap_or(0).saturating_add(shift).clamp(0, file.len() as i64);
        stamp["footer_bytes"] = footer.into();
        stamp["footer_sha256"] = seal::sha256(&file[file.len() - footer as usize..]).into();
        stamp["bytes"] = file.len().into();
        stamp["sha256"] = seal::sha256(file).into();
        if let Ok(Some(rows)) = rows {
            stamp["rows"] = Value::from(rows.unsigned_abs());
        }
    });
    Some((sound, [(name, file.to_vec()), (commit, commit_bytes)]))
}

pub fn files(input: &[u8], dir: &Path) {
    let Some((sound, changed)) = changed(input) else {
        return;
    };
    sound.files.iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
    changed.iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
}

pub fn run(input: &[u8]) {
    let Some((sound, changed)) = changed(input) else {
        return;
    };
    let dir = sound.folder.path();
    changed.iter().for_each(|(name, bytes)| scratch::write(&dir.join(name), bytes));
    caches::read(dir, input);
    changed.iter().for_each(|(name, _)| scratch::write(&dir.join(name), &sound.files[name]));
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for which in 0..4u8 {
        let file = &SOUND[usize::from(which & 1)].files
            [&Path::new(FOLDERS[usize::from(which >> 1)]).join("part-00000.parquet")];
        seeds.push([&[which, 0, 0][..], file].concat());
    }
    seeds
}
