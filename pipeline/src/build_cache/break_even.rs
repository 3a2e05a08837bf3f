//! When a cache pays: what it costs to build and to read, beside teachers that run inside the training loop.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::build::Build;
use super::space::{free_bytes, row_bytes};

/// Written to measure a disk: more than its own buffers hold, and a fraction of a second on most.
const WRITTEN: usize = 64 << 20;

/// A disk with less room than this is not written to for a measurement.
const ROOM: u64 = 16 * WRITTEN as u64;

/// What an image costs with a cache and without.
#[derive(Debug, Serialize)]
pub(crate) struct BreakEven {
    /// Bytes per second, until they have reached the disk.
    disk_bytes_per_second: f64,
    /// Seconds of the teachers for one view: what an image costs in every epoch without a cache.
    online_seconds_per_image: f64,
    /// Seconds to build the rows of all views and write them, once.
    cached_seconds_per_image: f64,
    /// Bytes that training reads of an image in every epoch: a row of each teacher.
    read_bytes_per_image: u64,
    /// Seconds for that, at the disk's rate.
    read_seconds_per_image: f64,
    /// Epochs from which on the cache has cost less; `None` if reading takes as long as the teachers.
    epochs: Option<f64>,
}

impl BreakEven {
    /// From the teachers' seconds for all views of an image, and a measurement of the disk; where that cannot be measured, why.
    pub(crate) fn measure(build: &Build, teachers_seconds: f64) -> Result<Result<BreakEven, String>> {
        let views = f64::from(build.identity.views.views);
        let row: u64 = build.identities().into_iter().map(row_bytes).sum();
        Ok(disk_rate(&build.recipe.cache.out)?.map(|rate| BreakEven::of(teachers_seconds, views, row, rate)))
    }

    /// `teachers` are the seconds of all views of an image; `row` the bytes of one view.
    fn of(teachers: f64, views: f64, row: u64, rate: f64) -> BreakEven {
        let read = row as f64 / rate;
        let (online, cached) = (teachers / views, teachers + views * read);
        BreakEven {
            disk_bytes_per_second: rate,
            online_seconds_per_image: online,
            cached_seconds_per_image: cached,
            read_bytes_per_image: row,
            read_seconds_per_image: read,
            epochs: (online > read).then(|| cached / (online - read)),
        }
    }

    /// As a line for people.
    pub(crate) fn text(&self) -> String {
        let milliseconds = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
        let online = format!(
            "teachers in the training loop take {} per image and epoch",
            milliseconds(self.online_seconds_per_image)
        );
        let read = format!(
            "{} to read {} at {}/s",
            milliseconds(self.read_seconds_per_image),
            DecimalBytes(self.read_bytes_per_image),
            DecimalBytes(self.disk_bytes_per_second as u64)
        );
        match self.epochs {
            Some(epochs) => format!(
                "the cache pays from epoch {} on: {online}; the cache {} once, and {read} per epoch",
                epochs.ceil().max(1.0),
                milliseconds(self.cached_seconds_per_image)
            ),
            None => format!("the cache never pays on this disk: {online}, and it takes {read}"),
        }
    }
}

/// Bytes per second that the disk of `out` takes, measured by writing and flushing a file that has no name any more; or why it is not measured.
fn disk_rate(out: &Path) -> Result<Result<f64, String>> {
    if storage::is_url(out) {
        let bucket = out.display();
        return Ok(Err(format!("how fast {bucket} is read depends on the network, which is not measured")));
    }
    let free = free_bytes(out)?;
    if free < ROOM {
        let (free, room) = (DecimalBytes(free), DecimalBytes(ROOM));
        return Ok(Err(format!("the disk is not measured, because {free} are free and measuring wants {room}")));
    }
    let here = std::path::absolute(out)?;
    let folder = here.ancestors().find(|path| path.is_dir()).context("the file system has a root")?;
    let path = folder.join(format!(".disk-rate.{}.tmp", std::process::id()));
    // Not of zeros, which some file systems do not write.
    let mut bytes = vec![0; WRITTEN];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let write = || -> std::io::Result<f64> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        // A process that is killed from here on leaves nothing.
        fs::remove_file(&path)?;
        let began = Instant::now();
        file.write_all(&bytes)?;
        file.sync_all()?;
        Ok(began.elapsed().as_secs_f64())
    };
    // A folder that may not be written to is refused with its own words when the build begins.
    Ok(match write() {
        Ok(seconds) => Ok(WRITTEN as f64 / seconds.max(1e-6)),
        Err(error) => Err(format!("the disk of {} cannot be measured: {error}", folder.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_pays_when_its_views_have_been_seen_as_often_as_they_cost() {
        // A disk without end: two views cost two epochs.
        let free = BreakEven::of(0.1, 2.0, 600_000, 1e15);
        assert!((free.epochs.unwrap() - 2.0).abs() < 1e-6);
        // 600 kB at 60 MB/s take 10 ms: 50 ms online, (100 + 20) ms once.
        let slow = BreakEven::of(0.1, 2.0, 600_000, 60e6);
        assert!((slow.epochs.unwrap() - 0.12 / 0.04).abs() < 1e-9);
        assert!(slow.text().starts_with("the cache pays from epoch 3 on: "), "{}", slow.text());
        let slower = BreakEven::of(0.1, 2.0, 600_000, 10e6);
        assert_eq!(slower.epochs, None);
        assert!(slower.text().contains("never pays"));
    }

    #[test]
    fn a_bucket_is_not_measured_and_it_is_said_why() {
        let why = disk_rate(Path::new("s3://bucket/cache")).unwrap().unwrap_err();
        assert!(why.contains("s3://bucket/cache") && why.contains("network"), "{why}");
    }

    #[test]
    fn measuring_a_disk_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        // In the nearest folder that is there.
        let rate = disk_rate(&dir.path().join("not/there/yet")).unwrap();
        match rate {
            Ok(rate) => assert!(rate > 0.0),
            Err(why) => assert!(why.contains("are free"), "{why}"),
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
