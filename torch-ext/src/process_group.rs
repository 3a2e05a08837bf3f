//! Processes that train together: a store by which they meet, and operations on the tensors of all of them.
//!
//! Both are PyTorch's own: c10d's `TCPStore`, which torchrun's ranks use too, Gloo on CPUs, and NCCL on GPUs.

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::ffi;

/// Small values by name, which one process keeps for all.
pub struct Store {
    store: NonNull<ffi::CStore>,
}

// SAFETY: a TCPStore belongs to no thread and holds a lock during each request.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store at `host:port`, and keeps it if `serves`. Every name gets `prefix`.
    ///
    /// # Errors
    /// [`Error::Group`] if the port is in use, or no process keeps the store within `timeout`.
    pub fn open(host: &str, port: u16, serves: bool, timeout: Duration, prefix: &str) -> Result<Store> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut store = std::ptr::null_mut();
        // SAFETY: the strings are zero-terminated and live through the call; the last pointer is to a live local variable.
        let code = unsafe {
            let milliseconds = milliseconds(timeout);
            ffi::te_store_open(host.as_ptr(), port.into(), serves.into(), milliseconds, prefix.as_ptr(), &mut store)
        };
        ffi::check_group("opening the store", code)?;
        Ok(Store { store: NonNull::new(store).expect("a store on success") })
    }

    /// Sets the value of a name. Others see it a moment later.
    ///
    /// # Errors
    /// [`Error::Group`] if the process that keeps the store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: the store lives; key and value do through the call.
        let code = unsafe { ffi::te_store_set(self.store.as_ptr(), key.as_ptr(), value.as_ptr(), value.len() as i64) };
        ffi::check_group("writing to the store", code)
    }

    /// The value of a name, if it has been set. Does not wait.
    ///
    /// # Errors
    /// [`Error::Group`] if the process that keeps the store is gone.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        extern "C" fn take(out: *mut c_void, bytes: *const u8, len: i64) {
            // SAFETY: `out` is the local variable below, which nobody else uses meanwhile.
            let out = unsafe { &mut *out.cast::<Option<Vec<u8>>>() };
            *out = Some(match usize::try_from(len) {
                // SAFETY: the pointer is to `len` bytes that live through this call.
                Ok(len) if len > 0 => unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec(),
                _ => Vec::new(),
            });
        }
        let key = c_string(key)?;
        let mut value: Option<Vec<u8>> = None;
        // SAFETY: the store lives, the key does through the call, and `take` is called with the pointer to `value` only within it.
        let code =
            unsafe { ffi::te_store_get(self.store.as_ptr(), key.as_ptr(), (&raw mut value).cast::<c_void>(), take) };
        ffi::check_group("reading from the store", code)?;
        Ok(value)
    }

    /// Removes a name, if it is there.
    ///
    /// # Errors
    /// [`Error::Group`] if the process that keeps the store is gone.
    pub fn delete(&self, key: &str) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: the store lives; the key does through the call.
        let code = unsafe { ffi::te_store_delete(self.store.as_ptr(), key.as_ptr()) };
        ffi::check_group("writing to the store", code)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: it came from te_store_open and is freed only here. Groups hold handles of their own.
        unsafe { ffi::te_store_free(self.store.as_ptr()) };
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

/// How the values of all processes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The least.
    Min,
    /// The greatest.
    Max,
}

/// A group of processes. Each must ask for the same operations in the same order, on tensors of equal shape and type.
pub struct ProcessGroup {
    group: NonNull<ffi::CProcessGroup>,
}

// SAFETY: neither engine belongs to a thread.
unsafe impl Send for ProcessGroup {}
// SAFETY: Gloo's operations may be asked for by any thread; those of NCCL only put work into a queue. The order of requests is up to callers.
unsafe impl Sync for ProcessGroup {}

impl ProcessGroup {
    /// A group on CPUs, by Gloo. This process is number `rank` of `size`. The others reach it through `interfaces` (names with commas between
    /// them), or if that is empty, through the interface with the local `address`. An operation fails after `timeout`.
    ///
    /// # Errors
    /// [`Error::Group`] if the others do not come, or there is no such address or interface.
    pub fn gloo(
        store: &Store,
        rank: usize,
        size: usize,
        address: &str,
        interfaces: &str,
        timeout: Duration,
    ) -> Result<ProcessGroup> {
        let (address, interfaces) = (c_string(address)?, c_string(interfaces)?);
        let mut group = std::ptr::null_mut();
        // SAFETY: the strings are zero-terminated and live through the call, like the store; the last pointer is to a live local variable.
        let code = unsafe {
            ffi::te_gloo(
                store.store.as_ptr(),
                rank as c_int,
                size as c_int,
                address.as_ptr(),
                interfaces.as_ptr(),
                milliseconds(timeout),
                &mut group,
            )
        };
        ffi::check_group("joining the group", code)?;
        Ok(ProcessGroup { group: NonNull::new(group).expect("a group on success") })
    }

    /// The name of a new group on GPUs, which every process of it must be told.
    ///
    /// # Errors
    /// [`Error::Group`] if NCCL is not there.
    pub fn nccl_id() -> Result<[u8; 128]> {
        let mut id = [0; 128];
        // SAFETY: the pointer is to 128 bytes of a live local variable.
        ffi::check_group("naming the group", unsafe { ffi::te_nccl_id(id.as_mut_ptr()) })?;
        Ok(id)
    }

    /// The group `id` on GPUs, by NCCL. This process is number `rank` of `size` and computes on GPU `index`. Waits for all of them.
    ///
    /// # Errors
    /// [`Error::Group`] if NCCL cannot connect them.
    pub fn nccl(id: &[u8; 128], rank: usize, size: usize, index: usize) -> Result<ProcessGroup> {
        let mut group = std::ptr::null_mut();
        // SAFETY: the first pointer is to 128 bytes, the last to a live local variable.
        let code = unsafe { ffi::te_nccl(id.as_ptr(), rank as c_int, size as c_int, index as i64, &mut group) };
        ffi::check_group("joining the group", code)?;
        Ok(ProcessGroup { group: NonNull::new(group).expect("a group on success") })
    }

    /// Replaces a contiguous tensor by the reduction over all processes. On a GPU what is queued later sees it.
    ///
    /// # Errors
    /// [`Error::Group`] if a process is gone or does not come in time.
    pub fn all_reduce(&self, tensor: &mut Tensor, reduction: Reduction) -> Result<()> {
        let reduction = match reduction {
            Reduction::Sum => 0,
            Reduction::Min => 1,
            Reduction::Max => 2,
        };
        // SAFETY: group and tensor live; the tensor is exclusively borrowed, and on a GPU the allocator knows the stream that uses it.
        let code = unsafe { ffi::te_group_all_reduce(self.group.as_ptr(), tensor.as_ptr(), reduction) };
        ffi::check_group("all-reduce", code)
    }

    /// Replaces a contiguous tensor by that of process `root`. On a GPU what is queued later sees it.
    ///
    /// # Errors
    /// [`Error::Group`] if a process is gone or does not come in time.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        // SAFETY: as for all_reduce.
        let code = unsafe { ffi::te_group_broadcast(self.group.as_ptr(), tensor.as_ptr(), root as c_int) };
        ffi::check_group("broadcast", code)
    }

    /// Whether the operations on a GPU so far are well, as far as is known now.
    ///
    /// # Errors
    /// [`Error::Group`] if one has failed.
    pub fn check(&self) -> Result<()> {
        // SAFETY: the group lives.
        ffi::check_group("an operation of the group", unsafe { ffi::te_group_check(self.group.as_ptr()) })
    }

    /// Ends what a GPU waits for in vain. The group is of no use afterwards.
    ///
    /// # Errors
    /// [`Error::Group`] if NCCL cannot.
    pub fn abort(&self) -> Result<()> {
        // SAFETY: the group lives.
        ffi::check_group("ending the group", unsafe { ffi::te_group_abort(self.group.as_ptr()) })
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::CProcessGroup {
        self.group.as_ptr()
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: it came from the C++ side and is freed only here.
        unsafe { ffi::te_group_free(self.group.as_ptr()) };
    }
}

impl fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessGroup")
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|e| Error::Group { operation: "naming a process or value", message: format!("{text:?}: {e}") })
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
