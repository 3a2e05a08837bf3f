//! Buckets in memory, for tests of what uses this crate.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::memory::InMemory;

static BUCKETS: Mutex<Option<HashMap<String, Arc<dyn ObjectStore>>>> = Mutex::new(None);

/// Makes an empty bucket in the memory of this process, and returns its URL. A user cannot name one: its contents would be lost.
#[doc(hidden)]
pub fn new_bucket() -> String {
    let mut buckets = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let buckets = buckets.get_or_insert_default();
    let name = format!("bucket-{}", buckets.len());
    buckets.insert(name.clone(), Arc::new(InMemory::new()));
    format!("memory://{name}")
}

pub(crate) fn bucket(name: &str) -> io::Result<Arc<dyn ObjectStore>> {
    let buckets = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let unknown =
        || io::Error::new(io::ErrorKind::InvalidInput, "memory:// is not supported; s3, gs, az, http and https are");
    buckets.as_ref().and_then(|buckets| buckets.get(name)).cloned().ok_or_else(unknown)
}
