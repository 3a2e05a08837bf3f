//! Where a path leads: to a local file, or to an object of a store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::error::explain;
use crate::retry::patiently;
use crate::stores::stores;

/// Whether a path is a URL.
pub fn is_url(path: &Path) -> bool {
    split(path).is_some()
}

/// A URL without its last component; `None` for a local path and for a bucket.
pub fn parent_url(path: &Path) -> Option<PathBuf> {
    let (_, rest) = split(path)?;
    let rest = rest.trim_end_matches('/');
    let text = path.to_str()?.trim_end_matches('/');
    let last = rest.rsplit_once('/')?.1;
    Some(PathBuf::from(&text[..text.len() - last.len() - 1]))
}

/// Scheme and the rest of a URL.
pub(crate) fn split(path: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = path.to_str()?.split_once("://")?;
    let is_scheme = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (is_scheme && scheme.starts_with(|first: char| first.is_ascii_alphabetic())).then_some((scheme, rest))
}

pub(crate) enum Place<'a> {
    Local(&'a Path),
    Remote(Remote),
}

/// An object, or the beginning of the names of objects.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// As the user wrote it.
    pub(crate) url: PathBuf,
    /// Without the key, and without a slash at the end.
    pub(crate) bucket: String,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) key: Key,
}

impl<'a> Place<'a> {
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a URL that cannot be one of a store, or whose store cannot be opened as it is set up.
    pub(crate) fn of(path: &'a Path) -> io::Result<Place<'a>> {
        let Some((scheme, rest)) = split(path) else {
            return Ok(Place::Local(path));
        };
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(invalid(format!("the URL names no bucket; write {scheme}://BUCKET/NAME")));
        }
        if bucket.contains('@') {
            return Err(invalid(
                "a URL carries no user and password; docs/object-storage.md says where they go".to_owned(),
            ));
        }
        if scheme.starts_with("http") && key.contains(['?', '#']) {
            return Err(invalid("URLs with a query, as signed ones have, are not supported".to_owned()));
        }
        let key = Key::parse(key.trim_end_matches('/'))
            .map_err(|error| invalid(format!("not a name in a bucket: {error}")))?;
        let store = stores().open(scheme, bucket)?;
        Ok(Place::Remote(Remote { url: path.to_path_buf(), bucket: format!("{scheme}://{bucket}"), store, key }))
    }
}

impl Remote {
    pub(crate) fn head(&self) -> io::Result<ObjectMeta> {
        if self.key.as_ref().is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        patiently(|| self.store.head(&self.key)).map_err(explain)
    }

    /// All bytes, and what is known of the object they are of.
    pub(crate) fn get(&self) -> io::Result<(Bytes, ObjectMeta)> {
        if self.key.as_ref().is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let get = || async {
            let result = self.store.get_opts(&self.key, GetOptions::default()).await?;
            let meta = result.meta.clone();
            Ok((result.bytes().await?, meta))
        };
        patiently(get).map_err(explain)
    }

    /// The URL of an object of the same bucket.
    pub(crate) fn url_of(&self, key: &Key) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.bucket, key.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_url_if_it_begins_with_a_scheme() {
        for url in ["s3://b/k", "http://127.0.0.1:9/x", "az://c", "abc+d.e-f://x"] {
            assert!(is_url(Path::new(url)), "{url}");
        }
        for path in ["/s3://b", "a/b://c", "s3:/b/k", "C:\\x", "://b", "9p://x", "s3 x://b", "label=http:/x"] {
            assert!(!is_url(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn the_folder_of_a_url_keeps_its_scheme() {
        assert_eq!(parent_url(Path::new("s3://b/a/c/")), Some("s3://b/a".into()));
        assert_eq!(parent_url(Path::new("s3://b/a")), Some("s3://b".into()));
        assert_eq!(parent_url(Path::new("s3://b")), None);
        assert_eq!(parent_url(Path::new("/s3/b")), None);
        // What callers rely on.
        assert_eq!(Path::new("s3://b/a").join("c").to_str(), Some("s3://b/a/c"));
        assert_eq!(Path::new("s3://b/a/c").parent(), Some(Path::new("s3://b/a")));
        assert_eq!(Path::new("s3://b/a/c").parent().unwrap().to_str(), Some("s3://b/a"));
        assert_eq!(Path::new("s3://b/a").with_file_name("c").to_str(), Some("s3://b/c"));
    }

    #[test]
    fn urls_that_lead_nowhere_are_refused() {
        let refusal = |url: &str| match Place::of(Path::new(url)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{url} was taken"),
        };
        assert!(refusal("s3:///k").contains("s3://BUCKET/NAME"));
        assert!(refusal("http://user:secret@host/x").contains("docs/object-storage.md"));
        assert!(!refusal("http://user:secret@host/x").contains("secret"));
        assert!(refusal("https://host/x.tar?sig=1").contains("query"));
        assert!(refusal("s3://b/a//c").contains("not a name"));
        assert!(refusal("ftp://host/x").contains("ftp"));
        assert!(refusal("memory://unknown/x").contains("memory"));
    }
}
