//! Writing objects: whole, new ones alone, or in place of a known version.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::{Error, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

use crate::error::{explain, may_pass};
use crate::place::{Place, Remote};
use crate::retry::{patiently, repeated, runtime};

/// Larger files are uploaded in parts of at least this many bytes.
const PART: u64 = 16 << 20;

/// S3 takes 10,000 parts.
const MAX_PARTS: u64 = 9_000;

/// Parts on their way at once.
const IN_FLIGHT: usize = 4;

/// A version of an object, to be replaced by another.
#[derive(Debug, Clone)]
pub struct Version(UpdateVersion);

fn remote(url: &Path) -> io::Result<Remote> {
    match Place::of(url)? {
        Place::Remote(place) if place.key.as_ref().is_empty() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "the URL names a bucket and no object in it"))
        }
        Place::Remote(place) => Ok(place),
        Place::Local(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a URL")),
    }
}

/// Writes a small object, in place of an older one of that name.
///
/// # Errors
/// What keeps it from being written.
pub fn put(url: &Path, bytes: &[u8]) -> io::Result<()> {
    let place = remote(url)?;
    let payload = PutPayload::from(bytes.to_vec());
    patiently(|| place.store.put(&place.key, payload.clone())).map(drop).map_err(explain)
}

/// Writes a small object unless there is one of that name; false if there is, whatever it holds. Of all that write the same name at once, one
/// succeeds.
///
/// An answer may be lost after the object was written, so that the second attempt finds it there. Bytes that no other writer writes, such as a
/// worker's name, tell its own object from another's.
///
/// # Errors
/// What keeps it from being written.
pub fn put_new(url: &Path, bytes: &[u8]) -> io::Result<bool> {
    let place = remote(url)?;
    let payload = PutPayload::from(bytes.to_vec());
    let mut attempts = 0;
    let result = patiently(|| {
        attempts += 1;
        place.store.put_opts(&place.key, payload.clone(), PutMode::Create.into())
    });
    match result {
        Ok(_) => Ok(true),
        // The client repeats requests too, so that the number of attempts does not say whose object it is.
        Err(Error::AlreadyExists { .. }) => match place.get() {
            Ok((found, _)) => Ok(found == bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        },
        Err(error) => Err(explain(error)),
    }
}

/// An object's bytes and its version; `None` if there is none.
///
/// # Errors
/// What keeps it from being read.
pub fn read_versioned(url: &Path) -> io::Result<Option<(Vec<u8>, Version)>> {
    let place = remote(url)?;
    match place.get() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => {
            let (bytes, meta) = found?;
            Ok(Some((bytes.into(), Version(UpdateVersion { e_tag: meta.e_tag, version: meta.version }))))
        }
    }
}

/// Writes a small object in place of a version of it; false if it has another version by now, or is gone.
///
/// # Errors
/// What keeps it from being written.
pub fn replace(url: &Path, bytes: &[u8], version: &Version) -> io::Result<bool> {
    let place = remote(url)?;
    let payload = PutPayload::from(bytes.to_vec());
    let put = || place.store.put_opts(&place.key, payload.clone(), PutMode::Update(version.0.clone()).into());
    match patiently(put) {
        Ok(_) => Ok(true),
        Err(Error::NotFound { .. }) => Ok(false),
        // As for a new object: it may be what a first attempt has written.
        Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => match place.get() {
            Ok((found, _)) => Ok(found == bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        },
        Err(error) => Err(explain(error)),
    }
}

/// Uploads a file from its beginning, in place of an older object of that name. The object appears when all of it is there; an upload that ends
/// early leaves parts that nobody sees, which the bucket's lifecycle rules remove.
///
/// # Errors
/// What keeps it from being read or written.
pub fn upload(file: &mut std::fs::File, url: &Path) -> io::Result<()> {
    let place = remote(url)?;
    let len = file.seek(SeekFrom::End(0))?;
    if len <= PART {
        let bytes = read_part(file, 0, len)?;
        return patiently(|| place.store.put(&place.key, PutPayload::from(bytes.clone()))).map(drop).map_err(explain);
    }
    let part = PART.max(len.div_ceil(MAX_PARTS).next_multiple_of(1 << 20));
    let mut attempt = 0;
    loop {
        attempt += 1;
        match runtime().block_on(upload_parts(file, &place, len, part)) {
            // The store has forgotten the upload, or has finished it and its answer was lost.
            Err(Failed::Store(Error::NotFound { .. })) if attempt < 3 => {}
            Err(Failed::Store(error)) if attempt < 3 && may_pass(&error) => {}
            Err(Failed::Store(error)) => return Err(explain(error)),
            Err(Failed::File(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

enum Failed {
    Store(Error),
    File(io::Error),
}

async fn upload_parts(file: &mut std::fs::File, place: &Remote, len: u64, part: u64) -> Result<(), Failed> {
    let mut upload = repeated(|| place.store.put_multipart(&place.key)).await.map_err(Failed::Store)?;
    let sent: Result<(), Failed> = async {
        let mut in_flight = FuturesUnordered::new();
        for start in (0..len).step_by(part as usize) {
            if in_flight.len() == IN_FLIGHT {
                in_flight.try_next().await.map_err(Failed::Store)?;
            }
            let bytes = read_part(file, start, part.min(len - start)).map_err(Failed::File)?;
            in_flight.push(upload.put_part(bytes.into()));
        }
        while in_flight.try_next().await.map_err(Failed::Store)?.is_some() {}
        upload.complete().await.map(drop).map_err(Failed::Store)
    }
    .await;
    if sent.is_err() {
        // The first failure is the one to report.
        let _ = upload.abort().await;
    }
    sent
}

fn read_part(file: &mut std::fs::File, start: u64, len: u64) -> io::Result<Bytes> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; len as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

/// Removes a file or an object that may be gone already.
///
/// # Errors
/// What keeps it from being removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let result = match Place::of(path)? {
        Place::Local(path) => std::fs::remove_file(path),
        Place::Remote(place) => patiently(|| place.store.delete(&place.key)).map_err(explain),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a folder with all that it holds, which may be gone already.
///
/// # Errors
/// What keeps it from being removed.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    let place = match Place::of(folder)? {
        Place::Remote(place) => place,
        Place::Local(folder) => {
            return match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            };
        }
    };
    for object in crate::list::walk(&place.url)? {
        remove(&object.path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn conditional_writes_let_one_writer_win() {
        let url = PathBuf::from(crate::new_bucket()).join("lease");
        assert!(read_versioned(&url).unwrap().is_none());
        assert!(put_new(&url, b"a").unwrap() && !put_new(&url, b"b").unwrap());
        // As after an answer that was lost.
        assert!(put_new(&url, b"a").unwrap());
        let (bytes, version) = read_versioned(&url).unwrap().unwrap();
        assert_eq!(bytes, b"a");
        assert!(replace(&url, b"c", &version).unwrap() && !replace(&url, b"d", &version).unwrap());
        assert!(replace(&url, b"c", &version).unwrap(), "it is there already");
        assert_eq!(crate::read(&url).unwrap(), b"c");
        remove(&url).unwrap();
        remove(&url).unwrap();
        assert!(!replace(&url, b"e", &version).unwrap() && !crate::exists(&url).unwrap());
    }

    #[test]
    fn large_files_are_uploaded_in_parts_and_read_by_ranges() {
        let url = PathBuf::from(crate::new_bucket()).join("a/large");
        let bytes: Vec<u8> = (0..2 * PART + 12_345).map(|i| ((i * 2_654_435_761) >> 17) as u8).collect();
        let mut file = crate::temporary().unwrap();
        file.write_all(&bytes).unwrap();
        upload(&mut file, &url).unwrap();
        let file = crate::open(&url).unwrap();
        assert_eq!((file.len().unwrap(), file.is_remote()), (bytes.len() as u64, true));
        let mut out = vec![0; 70_000];
        file.prefetch([(PART - 7, out.len()), (5, 10)]);
        for offset in [PART - 7, 0, bytes.len() as u64 - 70_000] {
            file.read_exact_at(&mut out, offset).unwrap();
            assert!(out == bytes[offset as usize..][..70_000], "at {offset}");
        }
        assert_eq!(
            file.read_exact_at(&mut out, bytes.len() as u64 - 1).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(file.read_at(&mut out, bytes.len() as u64 - 1).unwrap(), 1);
        assert_eq!(file.read_at(&mut out, bytes.len() as u64).unwrap(), 0);
        assert!(file.read_again_at(&mut out, 3).unwrap() && out == bytes[3..70_003]);

        let folder = crate::parent_url(&url).unwrap();
        put(&folder.join("b/small"), b"x").unwrap();
        let mut names: Vec<_> =
            crate::list(&folder).unwrap().into_iter().map(|entry| (entry.name, entry.is_dir)).collect();
        names.sort();
        assert_eq!(names, [("b".to_owned(), true), ("large".to_owned(), false)]);
        let keys: Vec<_> = crate::walk(&folder).unwrap().into_iter().map(|listed| listed.key).collect();
        assert_eq!(keys, ["b/small", "large"]);
        remove_tree(&folder).unwrap();
        assert_eq!(crate::list(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(crate::open(&url).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
