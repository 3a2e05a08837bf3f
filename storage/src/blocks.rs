//! Blocks of objects on a local disk, read through it: what was fetched once is not fetched again, up to a limit.
//!
//! ```text
//! FOLDER/blocks-v1/lock                 held while room is made
//! FOLDER/blocks-v1/3f/3f09..a1          an object: a table, then its blocks at their places; what is not there is a hole
//! ```
//!
//! The table has 16 bytes for each block: its hash, 0 for none, and when it was last read. A block is believed if its bytes have its hash. So
//! any number of processes may read and write one folder without asking each other, and may be killed anywhere: what is torn, half removed or
//! damaged does not have its hash, and is fetched again. The longest unread blocks make room for new ones; their space is given back by
//! holes in the file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, fallocate};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::settings::CacheFolder;

/// Bytes of a block. A row of features is four to five of them.
pub(crate) const BLOCK: u64 = 64 << 10;

/// In front of the table: the object's length.
const HEADER: u64 = 8;

/// Bytes of the table for each block.
const ENTRY: u64 = 16;

/// When the folder is full, an eighth of it is cleared.
const CLEARED: u64 = 8;

/// The least limit, below which nothing stays long enough to be of use.
const LEAST: u64 = 16 << 20;

/// A folder of blocks.
#[derive(Debug)]
pub struct BlockCache(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    limit: u64,
    /// What it holds, as far as this process knows.
    used: AtomicU64,
    /// What this process has written since it last looked.
    written: AtomicU64,
    /// The disk refused a block, which is said once.
    told: AtomicBool,
}

/// The blocks of an object.
#[derive(Debug)]
pub(crate) struct Blocks {
    file: File,
    /// Bytes of the object.
    len: u64,
    folder: Arc<Folder>,
}

impl BlockCache {
    /// Makes the folder if it is not there, and makes room if it holds more than the limit.
    ///
    /// # Errors
    /// A limit of less than 16 MiB; a folder that cannot be made or written.
    pub fn open(settings: &CacheFolder) -> io::Result<BlockCache> {
        if settings.limit < LEAST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a cache folder takes a limit of at least 16 MiB"));
        }
        let root = settings.folder.join("blocks-v1");
        fs::create_dir_all(&root)?;
        OpenOptions::new().create(true).append(true).open(root.join("lock"))?;
        let folder = Folder {
            root,
            limit: settings.limit,
            used: AtomicU64::new(0),
            written: AtomicU64::new(0),
            told: AtomicBool::new(false),
        };
        folder.look()?;
        Ok(BlockCache(Arc::new(folder)))
    }

    /// The blocks of an object of this length and version; `None` where the folder cannot be used: everything is then fetched each time.
    pub(crate) fn object(&self, url: &Path, len: u64, tag: &str) -> Option<Blocks> {
        match self.open_object(url, len, tag) {
            Ok(file) => Some(Blocks { file, len, folder: self.0.clone() }),
            Err(error) => {
                self.0.tell(&error);
                None
            }
        }
    }

    fn open_object(&self, url: &Path, len: u64, tag: &str) -> io::Result<File> {
        let id = format!("{}\0{len}\0{tag}", url.display());
        let name = format!("{:032x}", xxh3_128(id.as_bytes()));
        let folder = self.0.root.join(&name[..2]);
        fs::create_dir_all(&folder)?;
        loop {
            let path = folder.join(&name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            // Held as long as the object is read: a file that is in use is emptied and not removed.
            file.lock_shared()?;
            if file.metadata()?.nlink() > 0 {
                let size = table_bytes(len) + len;
                if file.metadata()?.len() != size {
                    file.set_len(size)?;
                }
                file.write_all_at(&len.to_le_bytes(), 0)?;
                return Ok(file);
            }
        }
    }
}

impl Blocks {
    fn place(&self, block: u64) -> (u64, usize) {
        (table_bytes(self.len) + block * BLOCK, (self.len - block * BLOCK).min(BLOCK) as usize)
    }

    /// Fills `out` with a block; false if it is not here.
    pub(crate) fn get(&self, block: u64, out: &mut [u8]) -> bool {
        let mut entry = [0; 8];
        if self.file.read_exact_at(&mut entry, entry_at(block)).is_err() || entry == [0; 8] {
            return false;
        }
        if self.file.read_exact_at(out, self.place(block).0).is_err() || entry != hash(block, out) {
            return false;
        }
        // A time that is not noted makes the block look older than it is.
        let _ = self.file.write_all_at(&now().to_le_bytes(), entry_at(block) + 8);
        true
    }

    /// Whether all blocks of a range seem to be here. Their contents are looked at when they are read.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        let (first, end) = (range.start / BLOCK, range.end.div_ceil(BLOCK));
        let mut entries = vec![0; ((end - first) * ENTRY) as usize];
        let read = self.file.read_exact_at(&mut entries, entry_at(first));
        read.is_ok() && entries.chunks_exact(ENTRY as usize).all(|entry| entry[..8] != [0; 8])
    }

    /// Keeps a block. A disk that has no room keeps none.
    pub(crate) fn put(&self, block: u64, bytes: &[u8]) {
        let (offset, _) = self.place(block);
        let mut entry = [0; ENTRY as usize];
        entry[..8].copy_from_slice(&hash(block, bytes));
        entry[8..].copy_from_slice(&now().to_le_bytes());
        let written = self.file.write_all_at(bytes, offset);
        if let Err(error) = written.and_then(|()| self.file.write_all_at(&entry, entry_at(block))) {
            self.forget_block(block);
            return self.folder.tell(&error);
        }
        self.folder.add(BLOCK);
    }

    /// Drops the blocks of a range.
    pub(crate) fn forget(&self, range: &Range<u64>) {
        (range.start / BLOCK..range.end.div_ceil(BLOCK)).for_each(|block| self.forget_block(block));
    }

    fn forget_block(&self, block: u64) {
        // Where this fails, so does writing the block anew, and the caller's next attempt shows it.
        let _ = self.file.write_all_at(&[0; 8], entry_at(block));
    }
}

impl Folder {
    fn tell(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}: cannot keep blocks: {error}; what is read is fetched each time", self.root.display());
        }
    }

    fn add(&self, bytes: u64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Other processes write too.
        if (used > self.limit || written > self.limit / (2 * CLEARED))
            && let Err(error) = self.look()
        {
            self.tell(&error);
        }
    }

    /// Looks what the folder holds, and makes room if that is too much.
    fn look(&self) -> io::Result<()> {
        self.written.store(0, Ordering::Relaxed);
        let lock = File::open(self.root.join("lock"))?;
        if lock.try_lock().is_err() {
            // Another thread or process is at it.
            return Ok(());
        }
        let objects = self.objects()?;
        let mut used: u64 = objects.iter().map(|(_, bytes)| bytes).sum();
        if used > self.limit {
            used = used.saturating_sub(make_room(&objects, used - (self.limit - self.limit / CLEARED))?);
        }
        self.used.store(used, Ordering::Relaxed);
        Ok(())
    }

    /// The file of each object, and the bytes that it takes on the disk.
    fn objects(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(&self.root)? {
            let Ok(entries) = fs::read_dir(folder?.path()) else { continue };
            for entry in entries {
                let entry = entry?;
                // Another process may have removed it.
                if let Ok(file) = entry.metadata() {
                    found.push((entry.path(), file.blocks() * 512));
                }
            }
        }
        Ok(found)
    }
}

/// Gives back at least `wanted` bytes of these files, if there are as many, and returns how many.
fn make_room(objects: &[(PathBuf, u64)], wanted: u64) -> io::Result<u64> {
    // When each block was last read, and where it is.
    let mut blocks: Vec<(u64, usize, u64)> = Vec::new();
    let mut left = vec![0u64; objects.len()];
    for (i, (path, _)) in objects.iter().enumerate() {
        let Ok(file) = File::open(path) else { continue };
        let Some(len) = object_len(&file, file.metadata()?.len()) else { continue };
        let mut table = vec![0; (len.div_ceil(BLOCK) * ENTRY) as usize];
        if file.read_exact_at(&mut table, HEADER).is_err() {
            continue;
        }
        for (block, entry) in (0..).zip(table.as_chunks::<{ ENTRY as usize }>().0) {
            let [hash, read] = [0, 8].map(|at| entry[at..at + 8].try_into().map_or(0, u64::from_le_bytes));
            if hash != 0 {
                blocks.push((read, i, block));
                left[i] += 1;
            }
        }
    }
    blocks.sort_unstable();
    blocks.truncate(usize::try_from(wanted.div_ceil(BLOCK)).unwrap_or(usize::MAX));
    blocks.sort_unstable_by_key(|&(_, i, block)| (i, block));
    let mut freed = 0;
    for of_object in blocks.chunk_by(|a, b| a.1 == b.1) {
        let i = of_object[0].1;
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&objects[i].0) else { continue };
        let size = file.metadata()?.len();
        let Some(len) = object_len(&file, size) else { continue };
        for &(_, _, block) in of_object {
            let offset = table_bytes(len) + block * BLOCK;
            file.write_all_at(&[0; 8], entry_at(block))?;
            let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, holes, offset, BLOCK.min(size - offset))?;
            freed += BLOCK.min(size - offset);
            left[i] -= 1;
        }
    }
    for ((path, bytes), _) in objects.iter().zip(left).filter(|(_, left)| *left == 0) {
        let Ok(file) = File::open(path) else { continue };
        // Nobody reads it, and nothing is left of it but its table.
        if file.try_lock().is_ok() {
            fs::remove_file(path)?;
            freed += (*bytes).min(BLOCK);
        }
    }
    Ok(freed)
}

/// Bytes of the table of an object, in whole pages, so that blocks are too.
fn table_bytes(len: u64) -> u64 {
    (HEADER + len.div_ceil(BLOCK) * ENTRY).next_multiple_of(4096)
}

/// The length of the object whose blocks a file of `size` bytes holds, if the file is sound.
fn object_len(file: &File, size: u64) -> Option<u64> {
    let mut len = [0; HEADER as usize];
    file.read_exact_at(&mut len, 0).ok()?;
    let len = u64::from_le_bytes(len);
    (len <= size && table_bytes(len) + len == size).then_some(len)
}

fn entry_at(block: u64) -> u64 {
    HEADER + block * ENTRY
}

fn hash(block: u64, bytes: &[u8]) -> [u8; 8] {
    // 0 stands for none.
    xxh3_64_with_seed(bytes, block).max(1).to_le_bytes()
}

/// Microseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path, limit: u64) -> BlockCache {
        BlockCache::open(&CacheFolder { folder: dir.to_path_buf(), limit }).unwrap()
    }

    fn bytes(block: u64, len: usize) -> Vec<u8> {
        (0..len).map(|i| (i as u64 * 31 + block * 7) as u8).collect()
    }

    #[test]
    fn blocks_come_back_for_the_same_version_alone_and_damage_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (url, len) = (Path::new("s3://b/k"), 2 * BLOCK + 100);
        let one = cache(dir.path(), 1 << 30);
        let blocks = one.object(url, len, "v1").unwrap();
        let mut out = vec![0; 100];
        assert!(!blocks.get(2, &mut out) && !blocks.has(&(0..len)));
        (0..3).for_each(|block| blocks.put(block, &bytes(block, blocks.place(block).1)));
        assert!(blocks.get(2, &mut out) && out == bytes(2, 100) && blocks.has(&(0..len)));
        // Another process, and other versions.
        let other = cache(dir.path(), 1 << 30);
        let again = other.object(url, len, "v1").unwrap();
        assert!(again.get(2, &mut out) && out == bytes(2, 100));
        assert!(!other.object(url, len, "v2").unwrap().has(&(0..1)));
        assert!(!other.object(Path::new("s3://b/l"), len, "v1").unwrap().has(&(0..1)));
        // A damaged byte, a block at another's place, and a table that lost its hash.
        again.file.write_all_at(b"?", again.place(2).0 + 50).unwrap();
        assert!(!blocks.get(2, &mut out));
        let mut whole = vec![0; BLOCK as usize];
        blocks.file.write_all_at(&bytes(1, BLOCK as usize), blocks.place(0).0).unwrap();
        assert!(!blocks.get(0, &mut whole) && blocks.get(1, &mut whole));
        blocks.forget(&(BLOCK..BLOCK + 1));
        assert!(!blocks.has(&(BLOCK..len)) && !again.get(1, &mut whole));
    }

    #[test]
    fn the_longest_unread_blocks_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let count = 2 * LEAST / BLOCK;
        let cache = cache(dir.path(), LEAST);
        let blocks = cache.object(Path::new("s3://b/k"), count * BLOCK, "v").unwrap();
        let mut out = vec![0; BLOCK as usize];
        for block in 0..count {
            blocks.put(block, &bytes(block, BLOCK as usize));
            // The first block is read all the time.
            assert!(blocks.get(0, &mut out), "block 0 is gone at {block}");
        }
        let there: Vec<u64> = (0..count).filter(|&block| blocks.get(block, &mut out)).collect();
        assert!(
            there.len() as u64 >= count / 4 && (there.len() as u64) <= count * 9 / 16,
            "{} of {count}",
            there.len()
        );
        assert!(there.windows(2).skip(1).all(|pair| pair[0] + 1 == pair[1]) && there.last() == Some(&(count - 1)));
        let on_disk = blocks.file.metadata().unwrap().blocks() * 512;
        assert!(on_disk <= LEAST * 9 / 8, "{on_disk} bytes on the disk");
    }

    #[test]
    fn objects_that_nobody_reads_are_removed_when_nothing_is_left_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), LEAST);
        drop(cache.object(Path::new("s3://b/old"), 4 * BLOCK, "v").unwrap());
        let blocks = cache.object(Path::new("s3://b/new"), 2 * LEAST, "v").unwrap();
        (0..2 * LEAST / BLOCK).for_each(|block| blocks.put(block, &bytes(block, BLOCK as usize)));
        assert_eq!(cache.0.objects().unwrap().len(), 1);
        assert!(BlockCache::open(&CacheFolder { folder: dir.path().into(), limit: LEAST - 1 }).is_err());
    }

    /// Any number of processes may use a folder: here threads with a view of their own, one of which makes room all the time.
    #[test]
    fn readers_never_see_a_block_that_is_not_the_objects() {
        let dir = tempfile::tempdir().unwrap();
        let count = 2 * LEAST / BLOCK;
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let cache = cache(dir.path(), LEAST);
                scope.spawn(move || {
                    let blocks = cache.object(Path::new("s3://b/k"), count * BLOCK, "v").unwrap();
                    let mut out = vec![0; BLOCK as usize];
                    for i in 0..2 * count {
                        let block = (i * 37 + thread * 11) % count;
                        match blocks.get(block, &mut out) {
                            true => assert!(out == bytes(block, BLOCK as usize), "block {block}"),
                            false => blocks.put(block, &bytes(block, BLOCK as usize)),
                        }
                    }
                });
            }
        });
    }
}
