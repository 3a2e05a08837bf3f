//! Reading files from their beginning to their end, one after the other, as fast as a network allows: the next pieces, of the next files too,
//! are on their way while one is looked at.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::File;
use crate::place::is_url;

/// What is read at once.
const CHUNK: u64 = 8 << 20;

/// Chunks of the file that are on their way.
const CHUNKS_AHEAD: u64 = 4;

/// Files that are opened ahead, with the first chunk of each.
const FILES_AHEAD: usize = 4;

/// Files in order, each to be read through.
pub struct Scanner {
    paths: VecDeque<PathBuf>,
    opening: VecDeque<JoinHandle<io::Result<File>>>,
}

impl Scanner {
    /// A scanner of `paths`.
    pub fn new(paths: &[PathBuf]) -> Scanner {
        Scanner { paths: paths.iter().cloned().collect(), opening: VecDeque::new() }
    }
}

impl Iterator for Scanner {
    type Item = io::Result<Scan>;

    fn next(&mut self) -> Option<io::Result<Scan>> {
        while self.opening.len() <= FILES_AHEAD
            && let Some(path) = self.paths.front()
            && is_url(path)
        {
            let path = path.clone();
            self.paths.pop_front();
            self.opening.push_back(std::thread::spawn(move || {
                let file = File::open(&path)?;
                file.prefetch([(0, CHUNK.min(file.len()?) as usize)]);
                Ok(file)
            }));
        }
        let file = match self.opening.pop_front() {
            Some(opening) => {
                opening.join().unwrap_or_else(|_| Err(io::Error::other("a thread that opened a file has panicked")))
            }
            None => File::open(&self.paths.pop_front()?),
        };
        Some(file.map(Scan::new))
    }
}

/// A file that is read through. On a disk every read goes to the system; of an object, large pieces are fetched and kept for a while.
pub struct Scan {
    file: Arc<File>,
    position: Cell<u64>,
    /// Where the piece at hand begins, and its bytes.
    chunk: RefCell<(u64, Vec<u8>)>,
}

impl Scan {
    /// A scan from the beginning.
    pub fn new(file: File) -> Scan {
        Scan { file: Arc::new(file), position: Cell::new(0), chunk: RefCell::default() }
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// The system's.
    pub fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn is_empty(&self) -> io::Result<bool> {
        self.file.is_empty()
    }

    /// Fills `out` from a place in the file.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.file.is_remote() {
            return self.file.read_exact_at(out, offset);
        }
        let mut filled = 0;
        while filled < out.len() {
            match self.read_at(&mut out[filled..], offset + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.file.is_remote() {
            return self.file.read_at(out, offset);
        }
        let len = self.file.len()?;
        if offset >= len {
            return Ok(0);
        }
        let (start, chunk) = &mut *self.chunk.borrow_mut();
        let wanted = offset / CHUNK * CHUNK;
        if *start != wanted || chunk.is_empty() {
            let size = |start: u64| CHUNK.min(len - start) as usize;
            let next = (1..=CHUNKS_AHEAD).map(|i| wanted + i * CHUNK).take_while(|&start| start < len);
            self.file.prefetch(next.map(|start| (start, size(start))));
            chunk.clear();
            let mut bytes = vec![0; size(wanted)];
            self.file.read_exact_at(&mut bytes, wanted)?;
            (*start, *chunk) = (wanted, bytes);
        }
        let there = &chunk[(offset - wanted) as usize..];
        let count = there.len().min(out.len());
        out[..count].copy_from_slice(&there[..count]);
        Ok(count)
    }
}

impl Read for &Scan {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.read_at(out, self.position.get())?;
        self.position.set(self.position.get() + count as u64);
        Ok(count)
    }
}

impl Seek for &Scan {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.len()?.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.get().checked_add_signed(by),
        };
        let position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.position.set(position);
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_through_from_disk_and_from_buckets() {
        let bucket = crate::new_bucket();
        let long: Vec<u8> = (0..(2 * CHUNK + 777)).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
        let files = [long, b"short".to_vec(), Vec::new()];
        let urls: Vec<PathBuf> = (0..files.len()).map(|i| format!("{bucket}/f/{i}").into()).collect();
        for (url, bytes) in urls.iter().zip(&files) {
            crate::put(url, bytes).unwrap();
        }
        let mut local = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut local, &files[0]).unwrap();
        let paths = [urls, vec![local.path().to_path_buf()]].concat();
        let expected = [&files[..], &files[..1]].concat();
        for (scan, bytes) in Scanner::new(&paths).zip(&expected) {
            let scan = scan.unwrap();
            let mut found = Vec::new();
            (&scan).read_to_end(&mut found).unwrap();
            assert!(found == *bytes);
            if bytes.len() > CHUNK as usize {
                (&scan).seek(SeekFrom::Start(CHUNK - 2)).unwrap();
                let mut four = [0; 4];
                (&scan).read_exact(&mut four).unwrap();
                assert_eq!(four, bytes[CHUNK as usize - 2..][..4]);
                scan.read_exact_at(&mut four, 5).unwrap();
                assert_eq!(four, bytes[5..9]);
                assert!(scan.read_exact_at(&mut four, bytes.len() as u64 - 3).is_err());
            }
        }
        assert_eq!(Scanner::new(&paths).count(), 4);
    }
}
