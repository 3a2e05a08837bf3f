//! The C functions of `cpp`, and the conversion of their failures to [`Error`].

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, Result};

/// A `c10::Event`, used only behind a pointer.
#[repr(C)]
pub(crate) struct CEvent {
    opaque: [u8; 0],
}

/// A handle on a `c10d::Store`, used only behind a pointer.
#[repr(C)]
pub(crate) struct CStore {
    opaque: [u8; 0],
}

/// A `ProcessGroup` of `cpp/process_group.h`, used only behind a pointer.
#[repr(C)]
pub(crate) struct CProcessGroup {
    opaque: [u8; 0],
}

/// The `GradBuckets` of `cpp/grad_buckets.cpp`, used only behind a pointer.
#[repr(C)]
pub(crate) struct CGradBuckets {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn te_last_error() -> *const c_char;
    pub(crate) fn te_fused_adamw(
        params: *const *const C_tensor,
        grads: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        steps: *const *const C_tensor,
        len: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        found_inf: *const C_tensor,
    ) -> c_int;
    pub(crate) fn te_ema_update(
        averages: *const *const C_tensor,
        params: *const *const C_tensor,
        len: i64,
        weight: *const C_tensor,
    ) -> c_int;
    pub(crate) fn te_closure_failed(message: *const c_char, len: i64);
    pub(crate) fn te_checkpoint(
        x: *const C_tensor,
        closure: *mut c_void,
        call: extern "C" fn(*mut c_void, *mut C_tensor) -> *mut C_tensor,
        free: extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_grad_norm(grads: *const *const C_tensor, len: i64, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn te_clip_grad_norm(
        grads: *const *const C_tensor,
        len: i64,
        max_norm: f64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_all_finite(tensors: *const *const C_tensor, len: i64, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn te_forget_grads(tensors: *const *const C_tensor, len: i64) -> c_int;
    pub(crate) fn te_gather_rows(
        x: *const C_tensor,
        index: *const C_tensor,
        inverse: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        least: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn te_sum_in_f32() -> c_int;
    pub(crate) fn te_allow_tf32(on: c_int) -> c_int;
    pub(crate) fn te_device_name(device_index: i64, name: *mut c_char, len: i64);
    pub(crate) fn te_set_deterministic(on: c_int) -> c_int;
    pub(crate) fn te_empty_cache() -> c_int;
    pub(crate) fn te_autocast_enter(device_type: c_int, was_enabled: *mut c_int, was_dtype: *mut c_int) -> c_int;
    pub(crate) fn te_autocast_pause(device_type: c_int, was_enabled: *mut c_int, was_dtype: *mut c_int) -> c_int;
    pub(crate) fn te_autocast_exit(device_type: c_int, was_enabled: c_int, was_dtype: c_int) -> c_int;
    pub(crate) fn te_load_cuda(path: *mut c_char, path_len: i64) -> c_int;
    pub(crate) fn te_device_memory(device_index: i64, allocated: *mut i64, reserved: *mut i64, peak: *mut i64)
    -> c_int;
    pub(crate) fn te_reset_peak_memory(device_index: i64) -> c_int;
    pub(crate) fn te_is_unshared(tensor: *const C_tensor) -> c_int;
    pub(crate) fn te_pinned_empty(size: *const i64, dims: i64, dtype: c_int, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn te_to_device(src: *const C_tensor, device_index: i64, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn te_to_host(src: *const C_tensor, out: *mut *mut C_tensor, copied: *mut *mut CEvent) -> c_int;
    pub(crate) fn te_event_record(device_index: i64, out: *mut *mut CEvent) -> c_int;
    pub(crate) fn te_event_query(event: *const CEvent, done: *mut c_int) -> c_int;
    pub(crate) fn te_event_elapsed(event: *const CEvent, later: *const CEvent, milliseconds: *mut f64) -> c_int;
    pub(crate) fn te_event_free(event: *mut CEvent);
    pub(crate) fn te_keep_freed_memory() -> c_int;
    pub(crate) fn te_num_threads() -> c_int;
    pub(crate) fn te_set_num_threads(threads: c_int) -> c_int;
    pub(crate) fn te_store_open(
        host: *const c_char,
        port: c_int,
        serves: c_int,
        timeout_ms: i64,
        prefix: *const c_char,
        out: *mut *mut CStore,
    ) -> c_int;
    pub(crate) fn te_store_set(store: *const CStore, key: *const c_char, bytes: *const u8, len: i64) -> c_int;
    pub(crate) fn te_store_get(
        store: *const CStore,
        key: *const c_char,
        data: *mut c_void,
        take: extern "C" fn(*mut c_void, *const u8, i64),
    ) -> c_int;
    pub(crate) fn te_store_delete(store: *const CStore, key: *const c_char) -> c_int;
    pub(crate) fn te_store_free(store: *mut CStore);
    pub(crate) fn te_gloo(
        store: *const CStore,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        interfaces: *const c_char,
        timeout_ms: i64,
        out: *mut *mut CProcessGroup,
    ) -> c_int;
    pub(crate) fn te_nccl_id(id: *mut u8) -> c_int;
    pub(crate) fn te_nccl(
        id: *const u8,
        rank: c_int,
        size: c_int,
        device_index: i64,
        out: *mut *mut CProcessGroup,
    ) -> c_int;
    pub(crate) fn te_group_all_reduce(group: *mut CProcessGroup, tensor: *const C_tensor, reduction: c_int) -> c_int;
    pub(crate) fn te_group_broadcast(group: *mut CProcessGroup, tensor: *const C_tensor, root: c_int) -> c_int;
    pub(crate) fn te_group_check(group: *mut CProcessGroup) -> c_int;
    pub(crate) fn te_group_abort(group: *mut CProcessGroup) -> c_int;
    pub(crate) fn te_group_free(group: *mut CProcessGroup);
    pub(crate) fn te_buckets_new(
        group: *mut CProcessGroup,
        params: *const *const C_tensor,
        len: i64,
        bucket_bytes: i64,
        in_bf16: c_int,
        out: *mut *mut CGradBuckets,
    ) -> c_int;
    pub(crate) fn te_buckets_begin(buckets: *mut CGradBuckets);
    pub(crate) fn te_buckets_arm(buckets: *mut CGradBuckets);
    pub(crate) fn te_buckets_finish(buckets: *mut CGradBuckets, values: *const C_tensor) -> c_int;
    pub(crate) fn te_buckets_free(buckets: *mut CGradBuckets);
}

/// The message of the last failing call on this thread.
pub(crate) fn last_error() -> String {
    // SAFETY: te_last_error gives a zero-terminated string that lives until this thread's next failing call; it is copied here.
    unsafe { CStr::from_ptr(te_last_error()) }.to_string_lossy().into_owned()
}

/// Turns a return code into a result.
pub(crate) fn check(operation: &'static str, code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Torch { operation, message: last_error() }) }
}

/// Turns a return code of a function that needs the other processes of a group into a result.
pub(crate) fn check_group(operation: &'static str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let message = last_error();
    // Gloo puts the place in its source in front.
    let plain = message.strip_prefix('[').and_then(|rest| Some(rest.split_once("] ")?.1));
    Err(Error::Group { operation, message: plain.unwrap_or(&message).to_owned() })
}

/// Calls a function that returns a new tensor through its argument.
pub(crate) fn new_tensor(operation: &'static str, call: impl FnOnce(*mut *mut C_tensor) -> c_int) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(operation, call(&mut out))?;
    // SAFETY: on success the function has stored a pointer to a tensor made with `new`, which the Tensor now owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The pointers of a list. Valid as long as the tensors are.
pub(crate) fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// (type, index) as the C++ side expects it.
///
/// # Panics
/// For MPS and Vulkan, which [`resolve_device`](crate::resolve_device) never returns.
pub(crate) fn device_parts(device: Device) -> (c_int, i64) {
    match device {
        Device::Cpu => (0, 0),
        Device::Cuda(index) => (1, index as i64),
        other => panic!("{other:?} is not a device of this project"),
    }
}
