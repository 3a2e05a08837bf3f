//! WebDataset shards: tar files in which the members of a sample have the same path up to the first dot of their name.
//!
//! A sample is a member whose extension is an image's, with the label in a member `.cls` if there is one; other members are passed
//! by. Headers are read once, when opening; images are read in place afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType, Header};

use super::files::ShardFiles;
use super::{Listing, Sample, Store, check_length, file_name, io_error, is_image_extension};
use crate::SourceError;

/// Unit of the format.
const BLOCK: u64 = 512;

/// Most bytes of a `.cls` member: more than any number with a line end has.
const MAX_LABEL_BYTES: u64 = 32;

pub(super) struct Shards {
    files: ShardFiles,
    /// For every sample of the source, where its image is.
    members: Vec<Member>,
}

struct Member {
    shard: u32,
    /// Position of the first byte.
    offset: u64,
    bytes: u64,
}

impl Shards {
    pub(super) fn read(&self, index: usize, key: &str) -> Result<Vec<u8>, SourceError> {
        let member = &self.members[index];
        let path = self.files.path(member.shard as usize);
        check_length(path, || key.to_owned(), member.bytes)?;
        let mut data = vec![0; member.bytes as usize];
        self.files
            .get(member.shard as usize)?
            .read_exact_at(&mut data, member.offset)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    truncated(path, format!("`{key}` ends past the end of the file"))
                }
                _ => io_error(path)(e),
            })?;
        Ok(data)
    }

    pub(super) fn place(&self, index: usize) -> String {
        let member = &self.members[index];
        format!(
            "{} at byte {}",
            self.files.path(member.shard as usize).display(),
            member.offset
        )
    }
}

pub(super) fn open(paths: Vec<PathBuf>) -> Result<Listing, SourceError> {
    let (mut samples, mut members) = (Vec::new(), Vec::new());
    for (shard, path) in paths.iter().enumerate() {
        let shard = u32::try_from(shard).expect("fewer than 2^32 shards");
        let name = file_name(path)?;
        for (key, offset, bytes, label) in Index::read(path)?.images() {
            samples.push(Sample {
                key: format!("{name}/{key}").into_boxed_str(),
                label,
                bytes,
            });
            members.push(Member {
                shard,
                offset,
                bytes,
            });
        }
    }
    Ok(Listing {
        samples,
        label_names: Vec::new(),
        store: Store::Tar(Shards {
            files: ShardFiles::new(paths),
            members,
        }),
    })
}

/// What the headers of one shard say.
#[derive(Default)]
struct Index {
    /// In order of position: key, position, length.
    images: Vec<(String, u64, u64)>,
    labels: BTreeMap<String, i32>,
}

impl Index {
    fn read(path: &Path) -> Result<Self, SourceError> {
        let file = File::open(path).map_err(io_error(path))?;
        let file_len = file.metadata().map_err(io_error(path))?.len();
        let mut start = [0; BLOCK as usize];
        if file.read_exact_at(&mut start, 0).is_ok() && !is_header(&start) {
            return Err(SourceError::CorruptTar {
                path: path.to_path_buf(),
                detail: "it does not begin with a header, so it is something else under that name"
                    .to_owned(),
            });
        }
        let mut index = Self::default();
        let mut end = 0;
        for entry in Archive::new(&file)
            .entries_with_seek()
            .map_err(|e| malformed(path, file_len, end, e))?
        {
            let entry = entry.map_err(|e| malformed(path, file_len, end, e))?;
            let (offset, bytes) = (entry.raw_file_position(), entry.size());
            let name = entry.path_bytes().into_owned();
            end = offset
                .checked_add(bytes)
                .filter(|&end| end <= file_len)
                .ok_or_else(|| {
                    truncated(
                        path,
                        format!(
                            "member `{}` ends past the file's {file_len} bytes",
                            String::from_utf8_lossy(&name)
                        ),
                    )
                })?;
            index.member(
                path,
                &file,
                entry.header().entry_type(),
                name,
                offset,
                bytes,
            )?;
        }
        // Two blocks of zeros end an archive. Without this check, a file cut off between two members would pass for a shorter one.
        let mut marker = [1; BLOCK as usize];
        let at = end.next_multiple_of(BLOCK);
        if file.read_exact_at(&mut marker, at).is_err() || marker.iter().any(|&byte| byte != 0) {
            return Err(truncated(
                path,
                format!("there is no end-of-archive mark at byte {at}"),
            ));
        }
        Ok(index)
    }

    fn member(
        &mut self,
        path: &Path,
        file: &File,
        kind: EntryType,
        name: Vec<u8>,
        offset: u64,
        bytes: u64,
    ) -> Result<(), SourceError> {
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let Some((key, extension)) = key_and_extension(&name) else {
            return Ok(());
        };
        let (is_image, is_label) = (
            std::str::from_utf8(extension).is_ok_and(is_image_extension),
            extension == b"cls",
        );
        if !(is_image || is_label) {
            return Ok(());
        }
        let member = String::from_utf8_lossy(&name);
        if !is_file {
            return Err(SourceError::CorruptTar {
                path: path.to_path_buf(),
                detail: format!("`{member}` is not a plain file"),
            });
        }
        let Ok(key) = std::str::from_utf8(key) else {
            return Err(SourceError::NotUtf8 {
                path: path.join(&*member),
            });
        };
        if is_image {
            self.images.push((key.to_owned(), offset, bytes));
            return Ok(());
        }
        let bad_label = |found: &[u8]| {
            let found = String::from_utf8_lossy(found).trim().to_owned();
            SourceError::BadLabel {
                path: path.to_path_buf(),
                member: member.to_string(),
                found,
            }
        };
        let mut text = vec![0; bytes.min(MAX_LABEL_BYTES) as usize];
        file.read_exact_at(&mut text, offset)
            .map_err(io_error(path))?;
        let label = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok());
        match label.filter(|&label| label >= 0 && bytes <= MAX_LABEL_BYTES) {
            Some(label) if self.labels.insert(key.to_owned(), label).is_none() => Ok(()),
            Some(_) => Err(SourceError::CorruptTar {
                path: path.to_path_buf(),
                detail: format!("there are two members `{member}`"),
            }),
            None => Err(bad_label(&text)),
        }
    }

    /// Key, position, length and label of every image, in order of position.
    fn images(mut self) -> impl Iterator<Item = (String, u64, u64, Option<i32>)> {
        self.images.into_iter().map(move |(key, offset, bytes)| {
            let label = self.labels.remove(&key);
            (key, offset, bytes, label)
        })
    }
}

/// WebDataset's rule: the path up to the first dot of the last component, and what follows that dot. `None` for hidden files and for
/// names without a dot.
fn key_and_extension(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let base = name
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    let dot = name[base..]
        .iter()
        .position(|&byte| byte == b'.')
        .filter(|&dot| dot > 0)?
        + base;
    Some((&name[..dot], &name[dot + 1..]))
}

/// Whether a block can begin an archive: its checksum is that of its bytes, with spaces in the checksum's place; or it is of zeros, as in
/// an archive of nothing.
fn is_header(block: &[u8; BLOCK as usize]) -> bool {
    let sum = |place: usize, byte: u8| match (148..156).contains(&place) {
        true => u32::from(b' '),
        false => u32::from(byte),
    };
    let expected: u32 = block.iter().enumerate().map(|(i, &b)| sum(i, b)).sum();
    let stated = Header::from_byte_slice(block).cksum();
    stated.is_ok_and(|stated| stated == expected) || block.iter().all(|&byte| byte == 0)
}

fn truncated(path: &Path, detail: String) -> SourceError {
    SourceError::TruncatedTar {
        path: path.to_path_buf(),
        detail,
    }
}

/// Sorts the `tar` crate's errors, most of which have no kind. Headers begin at whole blocks, so only a file that does not end at one can
/// end inside a header.
fn malformed(path: &Path, file_len: u64, after: u64, error: io::Error) -> SourceError {
    let path = path.to_path_buf();
    let detail = format!("after byte {after}: {error}");
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SourceError::TruncatedTar { path, detail },
        io::ErrorKind::Other if !file_len.is_multiple_of(BLOCK) => {
            SourceError::TruncatedTar { path, detail }
        }
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            SourceError::CorruptTar { path, detail }
        }
        _ => SourceError::Io {
            path,
            source: error,
        },
    }
}
