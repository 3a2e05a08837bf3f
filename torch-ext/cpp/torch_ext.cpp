// Parts of libtorch that tch lacks, as plain C functions over libtorch's C++ interface.
//
// Conventions. Every function that can fail returns 0, or 1 after storing a message that te_last_error() returns on the same
// thread: no exception leaves this file. Tensors cross as at::Tensor*, the pointer that tch's Tensor wraps; a returned one is
// new and owned by the caller. Lists are arrays of such pointers with a length. Devices cross as (type, index) with type 0 for
// the CPU and 1 for CUDA. No CUDA header is included: calls that concern the GPU go through libtorch's device-neutral interface,
// so this one file serves machines with and without a GPU.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adamw.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/version.h>

#include "guarded.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

static_assert(std::string_view(TORCH_VERSION) == "2.11.0", "torch-ext is written for libtorch 2.11.0, as tch 0.24 is; run scripts/setup");

namespace {

c10::Device device_of(int type, int64_t index) {
  if (type == 0) return c10::Device(c10::kCPU);
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

// The norm of all tensors as if they were one vector, without waiting for the device.
at::Tensor total_norm(const std::vector<at::Tensor>& tensors, const at::Scalar& order) {
  if (tensors.empty()) return at::zeros({}, at::kFloat);
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(tensors, order)), order);
}

// ---- gradient checkpointing: what autograd calls back --------------------------------------------------------------------

thread_local std::string closure_error;

// Takes the input and returns a new tensor, or null after te_closure_failed if the closure panicked.
using ClosureCall = at::Tensor* (*)(void* closure, at::Tensor* input);
using ClosureFree = void (*)(void* closure);

// A Rust closure from tensor to tensor. The graph owns it.
struct Closure : torch::CustomClassHolder {
  Closure(void* data, ClosureCall call, ClosureFree free) : data_(data), call_(call), free_(free) {}
  ~Closure() override { free_(data_); }

  at::Tensor operator()(const at::Tensor& x) const {
    std::unique_ptr<at::Tensor> out(call_(data_, new at::Tensor(x)));
    if (!out) throw std::runtime_error(closure_error);
    return *out;
  }

 private:
  void* data_;
  ClosureCall call_;
  ClosureFree free_;
};

// Sets autocast to a given state, including its cache of cast weights, until the end of the block.
class AutocastState {
 public:
  AutocastState(c10::DeviceType type, bool enabled, at::ScalarType dtype, bool cache)
      : type_(type),
        enabled_(at::autocast::is_autocast_enabled(type)),
        dtype_(at::autocast::get_autocast_dtype(type)),
        cache_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_enabled(type, enabled);
    at::autocast::set_autocast_dtype(type, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
    at::autocast::increment_nesting();
  }
  AutocastState(const AutocastState&) = delete;
  AutocastState& operator=(const AutocastState&) = delete;
  ~AutocastState() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type_, enabled_);
    at::autocast::set_autocast_dtype(type_, dtype_);
    at::autocast::set_autocast_cache_enabled(cache_);
  }

 private:
  c10::DeviceType type_;
  bool enabled_;
  at::ScalarType dtype_;
  bool cache_;
};

// Keeps only the input; backward calls the closure again, with gradients, and differentiates this second call.
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const c10::intrusive_ptr<Closure>& closure) {
    const auto type = x.device().type();
    const bool enabled = at::autocast::is_autocast_enabled(type);
    const auto dtype = at::autocast::get_autocast_dtype(type);
    ctx->saved_data["enabled"] = enabled;
    ctx->saved_data["dtype"] = static_cast<int64_t>(dtype);
    ctx->saved_data["closure"] = at::IValue::make_capsule(closure);
    ctx->save_for_backward({x});
    // Casts made here carry no gradient and must not be cached for later code that needs one.
    AutocastState state(type, enabled, dtype, /*cache=*/false);
    return (*closure)(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto capsule = ctx->saved_data["closure"].toCapsule();
    const auto& closure = static_cast<const Closure&>(*capsule);
    const auto x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    at::Tensor y;
    {
      at::AutoGradMode grad_mode(true);
      AutocastState state(x.device().type(), ctx->saved_data["enabled"].toBool(),
                          static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt()), /*cache=*/true);
      y = closure(x);
    }
    // Into x and into every leaf that the closure holds.
    torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), at::Tensor()};
  }
};

// Rows of x by index, with a row of zeros after the last.
at::Tensor rows_or_zero(const at::Tensor& x, const at::Tensor& index) {
  return at::cat({x, at::zeros({1, x.size(1)}, x.options())}, 0).index_select(0, index);
}

// x [M, D] -> [P, D] by index [P] with values 0..M, M for a row of zeros. The caller also gives the inverse: inverse [S, M] has, for each
// row of x, the up to S places where it went, P for unused entries. So the gradient is S gathers summed in f32 in a fixed order.
// PyTorch's own gradient adds each place to its row with atomics: in bf16 each is rounded, in an order that differs from run to run.
struct Gather : torch::autograd::Function<Gather> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& index, const at::Tensor& inverse) {
    ctx->save_for_backward({inverse});
    return rows_or_zero(x, index);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto inverse = ctx->get_saved_variables()[0];
    const auto padded = at::cat({grads[0], at::zeros({1, grads[0].size(1)}, grads[0].options())}, 0);
    auto sum = padded.index_select(0, inverse[0]).to(at::kFloat);
    for (int64_t slot = 1; slot < inverse.size(0); ++slot) sum.add_(padded.index_select(0, inverse[slot]));
    return {sum.to(grads[0].scalar_type()), at::Tensor(), at::Tensor()};
  }
};

// ---- f32 matmuls on a CPU -------------------------------------------------------------------------------------------------

// x [.., in], W [out, in] and b [out] or nothing, all f32 on a CPU -> x W^T + b [.., out]. W may be the view of a transposed matrix.
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                                c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// oneDNN's linear operator, which libtorch registers for its compiler. Empty if libtorch was built without oneDNN, and if at::linear is
// already that operator, as on processors other than x86.
const std::optional<c10::TypedOperatorHandle<OneDnnLinear>>& one_dnn_linear() {
  static const auto found = [] {
    std::optional<c10::TypedOperatorHandle<OneDnnLinear>> typed;
#if defined(__x86_64__)
    if (const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""})) typed = handle->typed<OneDnnLinear>();
#endif
    return typed;
  }();
  return found;
}

at::Tensor one_dnn(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return one_dnn_linear()->call(x, weight, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

// x W^T + b. at::mm computes the weight's gradient, for which MKL is as fast.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
    ctx->save_for_backward({x, weight});
    ctx->saved_data["bias"] = bias.has_value();
    return one_dnn(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx, torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const auto grad = grads[0].contiguous();
    const auto rows = grad.reshape({-1, weight.size(0)});
    at::Tensor of_x, of_weight, of_bias;
    if (ctx->needs_input_grad(0)) of_x = one_dnn(grad, weight.t(), std::nullopt);
    if (ctx->needs_input_grad(1)) of_weight = rows.t().mm(x.reshape({-1, weight.size(1)}));
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) of_bias = rows.sum(0);
    return {of_x, of_weight, of_bias};
  }
};

// Decides by shape and type, never by the number of rows, so that the bits of a row depend on the other rows no more than in any matmul.
// In smaller matmuls the calls cost more than oneDNN saves.
bool takes_one_dnn(const at::Tensor& x, const at::Tensor& weight, int64_t least) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && weight.dim() == 2 &&
         std::min(weight.size(0), weight.size(1)) >= least && x.dim() >= 2 && x.size(-1) == weight.size(1) && x.numel() > 0 &&
         !at::autocast::is_autocast_enabled(c10::kCPU) && one_dnn_linear().has_value();
}

// ---- copies beside computing ----------------------------------------------------------------------------------------------

// The stream for copies to a GPU, or for those from it: the device has a copy engine for each.
c10::Stream copy_stream(c10::DeviceIndex index, bool to_host) {
  static std::mutex mutex;
  static std::map<std::pair<c10::DeviceIndex, bool>, c10::Stream> streams;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = streams.find({index, to_host});
  if (found != streams.end()) return found->second;
  const c10::impl::VirtualGuardImpl gpu(c10::kCUDA);
  return streams.emplace(std::pair(index, to_host), gpu.getStreamFromGlobalPool(c10::Device(c10::kCUDA, index))).first->second;
}

at::Tensor pinned_empty(at::IntArrayRef size, at::ScalarType dtype) {
  return at::empty(size, at::TensorOptions().dtype(dtype).pinned_memory(true));
}

}  // namespace

extern "C" {

// jemalloc, with which the programs are linked, reads this before main, and the environment's MALLOC_CONF after it. Without this setting
// blocks over 8 MiB come from an arena of their own, whose pages return to the system at once.
extern const char* const malloc_conf;
const char* const malloc_conf = "oversize_threshold:0";

// A function of jemalloc; null in a program with another allocator.
int mallctl(const char* name, void* old, size_t* old_len, void* given, size_t given_len) __attribute__((weak));

const char* te_last_error() { return last_error.c_str(); }

// ---- optimizer ----------------------------------------------------------------------------------------------------------

// One AdamW step. `steps` are f32 scalars beside their parameters, counted up here. `found_inf` may be null; if it holds 1
// the step changes nothing, which the device decides.
int te_fused_adamw(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                   at::Tensor* const* exp_avg_sqs, at::Tensor* const* steps, int64_t len, double lr, double beta1, double beta2,
                   double weight_decay, double eps, const at::Tensor* found_inf) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    if (len == 0) return;
    auto step_list = list(steps, len);
    std::optional<at::Tensor> skip;
    if (found_inf != nullptr) skip = *found_inf;
    at::_foreach_add_(step_list, 1);
    at::_fused_adamw_(list(params, len), list(grads, len), list(exp_avgs, len), list(exp_avg_sqs, len), {}, step_list, lr, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, skip);
    if (skip) at::_foreach_sub_(step_list, std::vector<at::Tensor>(len, *skip));
  });
}

// Moves each average towards its parameter: average += weight * (param - average). The weight is a scalar tensor on the device, which
// the host does not read. Processes a few at a time, so that the differences never need as much memory as the parameters.
int te_ema_update(at::Tensor* const* averages, at::Tensor* const* params, int64_t len, const at::Tensor* weight) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    constexpr int64_t most_numbers = int64_t{1} << 24;
    for (int64_t start = 0, end = 0; start < len; start = end) {
      int64_t numbers = 0;
      while (end < len && (end == start || numbers + averages[end]->numel() <= most_numbers)) numbers += averages[end++]->numel();
      auto some_averages = list(averages + start, end - start);
      auto differences = at::_foreach_sub(list(params + start, end - start), some_averages);
      at::_foreach_mul_(differences, *weight);
      at::_foreach_add_(some_averages, differences);
    }
  });
}

// ---- gradients ----------------------------------------------------------------------------------------------------------

int te_grad_norm(at::Tensor* const* grads, int64_t len, at::Tensor** out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    *out = new at::Tensor(total_norm(list(grads, len), 2));
  });
}

int te_clip_grad_norm(at::Tensor* const* grads, int64_t len, double max_norm, at::Tensor** out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto tensors = list(grads, len);
    auto norm = total_norm(tensors, 2);
    if (!tensors.empty()) at::_foreach_mul_(tensors, at::clamp_max(max_norm / (norm + 1e-6), 1.0));
    *out = new at::Tensor(norm);
  });
}

int te_all_finite(at::Tensor* const* tensors, int64_t len, at::Tensor** out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // The largest magnitude, unlike a sum of squares, is infinite or NaN only if an element is.
    *out = new at::Tensor(at::isfinite(total_norm(list(tensors, len), std::numeric_limits<double>::infinity())));
  });
}

// Removes the gradients of the tensors.
int te_forget_grads(at::Tensor* const* tensors, int64_t len) {
  return guarded([&] {
    for (auto& tensor : list(tensors, len)) tensor.mutable_grad().reset();
  });
}

// ---- gradient checkpointing ---------------------------------------------------------------------------------------------

// Stores the message of a closure that panics, before it returns null, for this thread.
void te_closure_failed(const char* message, int64_t len) { closure_error.assign(message, static_cast<size_t>(len)); }

// Calls the closure on x without keeping intermediate results; see Checkpoint. Takes ownership of the closure, which may be
// called and freed on any thread, but never by two at once.
int te_checkpoint(const at::Tensor* x, void* data, ClosureCall call, ClosureFree free, at::Tensor** out) {
  return guarded([&] {
    const auto closure = c10::make_intrusive<Closure>(data, call, free);
    const bool kept_otherwise = at::GradMode::is_enabled() && x->requires_grad();
    *out = new at::Tensor(kept_otherwise ? Checkpoint::apply(*x, closure) : (*closure)(*x));
  });
}

// ---- gathering --------------------------------------------------------------------------------------------------------

// Rows of x by index, where the index one past the last row means a row of zeros; see Gather.
int te_gather_rows(const at::Tensor* x, const at::Tensor* index, const at::Tensor* inverse, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(Gather::apply(*x, *index, *inverse)); });
}

// ---- linear layers -------------------------------------------------------------------------------------------------------

// x W^T + b; `bias` may be null. `least` is the smallest number of inputs and outputs for oneDNN.
int te_linear(const at::Tensor* x, const at::Tensor* weight, const at::Tensor* bias, int64_t least, at::Tensor** out) {
  return guarded([&] {
    std::optional<at::Tensor> given;
    if (bias != nullptr) given = *bias;
    *out = new at::Tensor(takes_one_dnn(*x, *weight, least) ? Linear::apply(*x, *weight, given) : at::linear(*x, *weight, given));
  });
}

// ---- autocast -----------------------------------------------------------------------------------------------------------

// Turns bf16 autocast on for a device type on this thread; the last two arguments get the state to restore.
int te_autocast_enter(int device_type, int* was_enabled, int* was_dtype) {
  return guarded([&] {
    const auto type = device_of(device_type, 0).type();
    *was_enabled = at::autocast::is_autocast_enabled(type);
    *was_dtype = static_cast<int>(at::autocast::get_autocast_dtype(type));
    at::autocast::set_autocast_dtype(type, at::kBFloat16);
    at::autocast::set_autocast_enabled(type, true);
    at::autocast::increment_nesting();
  });
}

// Turns autocast off for a device type on this thread; undone by te_autocast_exit as well.
int te_autocast_pause(int device_type, int* was_enabled, int* was_dtype) {
  return guarded([&] {
    const auto type = device_of(device_type, 0).type();
    *was_enabled = at::autocast::is_autocast_enabled(type);
    *was_dtype = static_cast<int>(at::autocast::get_autocast_dtype(type));
    at::autocast::set_autocast_enabled(type, false);
    at::autocast::increment_nesting();
  });
}

int te_autocast_exit(int device_type, int was_enabled, int was_dtype) {
  return guarded([&] {
    const auto type = device_of(device_type, 0).type();
    // Weights cast to bf16 are cached until here; an optimizer step makes them stale.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type, was_enabled != 0);
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(was_dtype));
  });
}

// ---- the CUDA library ---------------------------------------------------------------------------------------------------

// Opens libtorch_cuda.so, which registers itself, from the folder that libtorch_cpu.so was loaded from. `path` gets the path that
// was tried, cut at `path_len`.
int te_load_cuda(char* path, int64_t path_len) {
  return guarded([&] {
    Dl_info cpu_library;
    const auto symbol = reinterpret_cast<void*>(&at::get_num_threads);
    TORCH_CHECK(dladdr(symbol, &cpu_library) != 0 && cpu_library.dli_fname != nullptr, "cannot tell where libtorch_cpu.so is");
    const std::string cpu_path = cpu_library.dli_fname;
    const auto slash = cpu_path.rfind('/');
    const auto folder = slash == std::string::npos ? std::string() : cpu_path.substr(0, slash + 1);
    const auto cuda_path = folder + "libtorch_cuda.so";
    std::snprintf(path, path_len, "%s", cuda_path.c_str());
    if (dlopen(cuda_path.c_str(), RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());
  });
}

// Sets whether f32 matmuls and convolutions on a GPU are f32 or TF32. libtorch's defaults are TF32 for cuDNN's convolutions, and for every
// matmul if TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as in NVIDIA's containers.
int te_allow_tf32(int on) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuDNN(on != 0);
    at::globalContext().setAllowTF32CuBLAS(on != 0);
  });
}

// Makes bf16 matmuls on a GPU sum in f32 to the end. By default libtorch lets cuBLAS split a long sum and add the parts in bf16.
int te_sum_in_f32() {
  return guarded([] { at::globalContext().setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false); });
}

// Allows only deterministic operations; others fail. cuBLAS reads its part from the environment when it is first used.
int te_set_deterministic(int on) {
  return guarded([&] {
    if (on != 0) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(on != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicCuDNN(on != 0);
    // Filling uninitialized memory would only help programs that read it.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

// The name of a GPU, cut at `len`; empty if the driver has none. The CUDA library has loaded the driver's library.
void te_device_name(int64_t device_index, char* name, int64_t len) {
  name[0] = '\0';
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (driver == nullptr) return;
  // As declared in <cuda.h>; both count the GPUs that CUDA_VISIBLE_DEVICES shows.
  const auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto get_name = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  int device = 0;
  const bool named = get != nullptr && get_name != nullptr && get(&device, static_cast<int>(device_index)) == 0 &&
                     get_name(name, static_cast<int>(len), device) == 0;
  if (!named) name[0] = '\0';
  dlclose(driver);
}

// ---- memory -------------------------------------------------------------------------------------------------------------

// Returns unused memory of the GPU's allocator to the driver.
int te_empty_cache() {
  return guarded([&] {
    if (at::hasCUDA()) at::accelerator::emptyCache();
  });
}

// Bytes in use by tensors, bytes held by the allocator, and peak bytes in use by tensors.
int te_device_memory(int64_t device_index, int64_t* allocated, int64_t* reserved, int64_t* peak) {
  return guarded([&] {
    // The allocator has no figures before the device is first used.
    at::globalContext().lazyInitDevice(c10::kCUDA);
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device_index));
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *allocated = stats.allocated_bytes[aggregate].current;
    *reserved = stats.reserved_bytes[aggregate].current;
    *peak = stats.allocated_bytes[aggregate].peak;
  });
}

int te_reset_peak_memory(int64_t device_index) {
  return guarded([&] {
    at::globalContext().lazyInitDevice(c10::kCUDA);
    at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device_index));
  });
}

// 1 if there is no other handle on the tensor or its storage.
int te_is_unshared(const at::Tensor* tensor) {
  return tensor->use_count() == 1 && tensor->has_storage() && tensor->storage().use_count() == 1;
}

// ---- copies and events --------------------------------------------------------------------------------------------------

// An uninitialized CPU tensor in page-locked memory.
int te_pinned_empty(const int64_t* size, int64_t dims, int dtype, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(pinned_empty(at::IntArrayRef(size, dims), static_cast<at::ScalarType>(dtype))); });
}

// A copy on a GPU of a CPU tensor. It begins at once, whatever the GPU computes, and what is queued later waits for it.
int te_to_device(const at::Tensor* src, int64_t device_index, at::Tensor** out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto index = static_cast<c10::DeviceIndex>(device_index);
    const auto computes = at::accelerator::getCurrentStream(index);
    const auto copies = copy_stream(index, /*to_host=*/false);
    at::Tensor dst;
    {
      c10::StreamGuard guard(copies);
      dst = at::empty(src->sizes(), src->options().device(copies.device()));
      dst.copy_(*src, /*non_blocking=*/true);
    }
    after(copies, &computes);
    // Its memory belongs to the copying stream and must not be given to the next copy before the computing stream has used it.
    dst.record_stream(computes);
    *out = new at::Tensor(std::move(dst));
  });
}

// A copy in page-locked memory of a tensor on a GPU, as it is after the work queued so far, and the event after which it is there. The GPU
// computes what is queued later without waiting for the copy.
int te_to_host(const at::Tensor* src, at::Tensor** out, c10::Event** copied) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto index = src->device().index();
    const auto computes = at::accelerator::getCurrentStream(index);
    const auto copies = copy_stream(index, /*to_host=*/true);
    // The copy itself needs no memory of the device then.
    const auto values = src->contiguous();
    auto dst = pinned_empty(values.sizes(), values.scalar_type());
    after(computes, &copies);
    {
      c10::StreamGuard guard(copies);
      dst.copy_(values, /*non_blocking=*/true);
    }
    values.record_stream(copies);
    *copied = after(copies, nullptr).release();
    *out = new at::Tensor(std::move(dst));
  });
}

// Marks the work queued so far on a GPU's current stream. The event records its time: the backend's default does, PyTorch's does not.
int te_event_record(int64_t device_index, c10::Event** out) {
  return guarded([&] {
    *out = after(at::accelerator::getCurrentStream(static_cast<c10::DeviceIndex>(device_index)), nullptr).release();
  });
}

// 1 in `done` if the marked work is finished.
int te_event_query(const c10::Event* event, int* done) {
  return guarded([&] { *done = event->query(); });
}

// Milliseconds from `event` to `later` on the device's clock; both must be finished.
int te_event_elapsed(const c10::Event* event, const c10::Event* later, double* milliseconds) {
  return guarded([&] { *milliseconds = event->elapsedTime(*later); });
}

void te_event_free(c10::Event* event) { delete event; }

// ---- threads ------------------------------------------------------------------------------------------------------------

int te_keep_freed_memory() {
  if (mallctl == nullptr) return 0;
  unsigned arena = 0;
  size_t len = sizeof(arena);
  if (mallctl("thread.arena", &arena, &len, nullptr, 0) != 0) return 0;
  ssize_t never = -1;
  const std::string name = "arena." + std::to_string(arena) + ".dirty_decay_ms";
  return mallctl(name.c_str(), nullptr, nullptr, &never, sizeof(never)) == 0;
}

int te_num_threads() { return at::get_num_threads(); }

int te_set_num_threads(int threads) {
  return guarded([&] { at::set_num_threads(threads); });
}

}  // extern "C"
