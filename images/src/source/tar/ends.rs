//! Finds where an archive begins and ends, and recognizes files that are not archives.

use std::io;
use std::ops::Range;
use std::path::Path;

use storage::Scan;
use tar::Header;

use crate::SourceError;

/// Block size of the format in bytes.
pub(super) const BLOCK: u64 = 512;

/// What follows the last readable member.
pub(super) enum Behind {
    /// No end-of-archive mark: the archive itself is damaged.
    NoMark,
    /// Only zeros.
    Zeros,
    /// After the mark, another archive.
    Archive,
    /// After the mark, other bytes and then members.
    Members { junk: Range<u64> },
    /// After the mark, other bytes up to the end.
    Junk { at: u64 },
}

impl Behind {
    pub(super) fn look(file: &Scan, file_len: u64, end: u64) -> io::Result<Self> {
        let mut at = end.next_multiple_of(BLOCK);
        let mut block = [1; BLOCK as usize];
        if at + BLOCK > file_len {
            return Ok(Behind::NoMark);
        }
        file.read_exact_at(&mut block, at)?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(Behind::NoMark);
        }
        let mut junk = None;
        while at < file_len {
            let bytes = BLOCK.min(file_len - at) as usize;
            file.read_exact_at(&mut block[..bytes], at)?;
            let is_zero = block[..bytes].iter().all(|&byte| byte == 0);
            let begins_member = !is_zero && bytes == block.len() && is_header(&block);
            match junk {
                None if begins_member => return Ok(Behind::Archive),
                Some(start) if begins_member => return Ok(Behind::Members { junk: start..at }),
                None if !is_zero => junk = Some(at),
                _ => {}
            }
            at += bytes as u64;
        }
        Ok(match junk {
            Some(at) => Behind::Junk { at },
            None => Behind::Zeros,
        })
    }
}

/// Advice for a compressed or other archive, by its first bytes.
pub(super) fn compression(start: &[u8]) -> &'static str {
    match start {
        [0x1F, 0x8B, ..] => ". It is compressed by gzip: decompress it, for images are read in place",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => ". It is compressed by zstd: decompress it, for images are read in place",
        [b'B', b'Z', b'h', ..] => ". It is compressed by bzip2: decompress it, for images are read in place",
        [0xFD, b'7', b'z', b'X', b'Z', ..] => ". It is compressed by xz: decompress it, for images are read in place",
        [b'P', b'K', ..] => ". It is a zip archive: unpack it, or pack it as a tar",
        _ => "",
    }
}

/// Whether a block can begin an archive: its checksum matches its bytes, with spaces in the checksum's place, or it is all zeros, as in
/// an empty archive.
pub(super) fn is_header(block: &[u8; BLOCK as usize]) -> bool {
    let sum = |place: usize, byte: u8| match (148..156).contains(&place) {
        true => u32::from(b' '),
        false => u32::from(byte),
    };
    let expected: u32 = block.iter().enumerate().map(|(i, &b)| sum(i, b)).sum();
    let stated = Header::from_byte_slice(block).cksum();
    stated.is_ok_and(|stated| stated == expected) || block.iter().all(|&byte| byte == 0)
}

pub(super) fn truncated(path: &Path, detail: String) -> SourceError {
    SourceError::TruncatedTar { path: path.to_path_buf(), detail }
}

/// Classifies the `tar` crate's errors, most of which have no kind. Headers begin at whole blocks, so only a file that does not end at a
/// block can end inside a header.
pub(super) fn malformed(path: &Path, file_len: u64, after: u64, error: io::Error) -> SourceError {
    let path = path.to_path_buf();
    let detail = format!("after byte {after}: {error}");
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SourceError::TruncatedTar { path, detail },
        io::ErrorKind::Other if !file_len.is_multiple_of(BLOCK) => SourceError::TruncatedTar { path, detail },
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            SourceError::CorruptTar { path, detail }
        }
        _ => SourceError::Io { path, source: error },
    }
}
