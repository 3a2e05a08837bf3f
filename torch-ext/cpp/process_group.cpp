// The store by which processes meet, and groups of them on PyTorch's own engines: c10d's Gloo on CPUs, NCCL on GPUs.
//
// NCCL is called by its C interface, which is found in the library that libtorch's CUDA part has loaded. So no header of CUDA or NCCL is
// needed, one build serves machines with and without a GPU, and no thread of c10d watches over the group: the caller does.

#include "process_group.h"

#include "guarded.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Flags.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// The headers under stubs/ leave Gloo's own types incomplete. If the layout were another than that of the library, this would be another.
#if defined(__x86_64__)
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "stubs/gloo is written for libtorch 2.11.0");
#endif

C10_DECLARE_int(caffe2_log_level);

namespace {

using std::chrono::milliseconds;

// ---- Gloo ----------------------------------------------------------------------------------------------------------------

c10d::ReduceOp reduce_op(Reduction reduction) {
  switch (reduction) {
    case Reduction::Min:
      return c10d::ReduceOp::MIN;
    case Reduction::Max:
      return c10d::ReduceOp::MAX;
    default:
      return c10d::ReduceOp::SUM;
  }
}

class PendingGloo final : public Pending {
 public:
  explicit PendingGloo(c10::intrusive_ptr<c10d::Work> work) : work_(std::move(work)) {}
  // Gloo's operations have the group's timeout, so this ends.
  void wait() override { work_->wait(); }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
};

class Gloo final : public ProcessGroup {
 public:
  Gloo(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, const std::string& address, const std::string& interfaces,
       milliseconds timeout) {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    size_t start = 0;
    while (start < interfaces.size()) {
      const auto comma = std::min(interfaces.find(',', start), interfaces.size());
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interfaces.substr(start, comma - start)));
      start = comma + 1;
    }
    if (options->devices.empty()) options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    // Each operation occupies one thread until its peers are there.
    options->threads = 2 * static_cast<int>(options->devices.size());
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
  }

  std::unique_ptr<Pending> all_reduce(at::Tensor tensor, Reduction reduction) override {
    c10d::AllreduceOptions options;
    options.reduceOp = reduce_op(reduction);
    std::vector<at::Tensor> tensors{std::move(tensor)};
    return std::make_unique<PendingGloo>(group_->allreduce(tensors, options));
  }

  std::unique_ptr<Pending> broadcast(at::Tensor tensor, int root) override {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{std::move(tensor)};
    return std::make_unique<PendingGloo>(group_->broadcast(tensors, options));
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

// ---- NCCL ----------------------------------------------------------------------------------------------------------------

// As in <nccl.h> of NCCL 2: 128 bytes, passed by value.
struct NcclId {
  char bytes[128];
};
using NcclComm = void*;

// The functions that are used, of the library that libtorch's CUDA part needs and has therefore loaded.
class NcclLibrary {
 public:
  static const NcclLibrary& get() {
    static const NcclLibrary library;
    return library;
  }

  int (*get_unique_id)(NcclId*);
  int (*comm_init_rank)(NcclComm*, int size, NcclId, int rank);
  int (*comm_abort)(NcclComm);
  int (*comm_destroy)(NcclComm);
  int (*comm_get_async_error)(NcclComm, int* error);
  const char* (*get_error_string)(int error);
  const char* (*get_last_error)(NcclComm);
  int (*all_reduce)(const void*, void*, size_t count, int dtype, int op, NcclComm, void* stream);
  int (*broadcast)(const void*, void*, size_t count, int dtype, int root, NcclComm, void* stream);

  // Throws for a result other than success.
  void require(int result, NcclComm comm, const char* what) const {
    if (result == 0 || result == in_progress) return;
    const char* detail = get_last_error(comm);
    throw std::runtime_error(std::string(what) + ": " + get_error_string(result) + (detail && *detail ? std::string(": ") + detail : ""));
  }

  static constexpr int in_progress = 7;

 private:
  NcclLibrary() {
    void* library = dlopen("libnccl.so.2", RTLD_NOW);
    if (library == nullptr) throw std::runtime_error(std::string("NCCL cannot be opened: ") + dlerror());
    find(library, "ncclGetUniqueId", get_unique_id);
    find(library, "ncclCommInitRank", comm_init_rank);
    find(library, "ncclCommAbort", comm_abort);
    find(library, "ncclCommDestroy", comm_destroy);
    find(library, "ncclCommGetAsyncError", comm_get_async_error);
    find(library, "ncclGetErrorString", get_error_string);
    find(library, "ncclGetLastError", get_last_error);
    find(library, "ncclAllReduce", all_reduce);
    find(library, "ncclBroadcast", broadcast);
  }

  template <typename F>
  static void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (function == nullptr) throw std::runtime_error(std::string("libnccl.so.2 has no ") + name);
  }
};

// ncclDataType_t.
int nccl_type(at::ScalarType type) {
  switch (type) {
    case at::kByte:
      return 1;
    case at::kInt:
      return 2;
    case at::kLong:
      return 4;
    case at::kHalf:
      return 6;
    case at::kFloat:
      return 7;
    case at::kDouble:
      return 8;
    case at::kBFloat16:
      return 9;
    default:
      throw std::runtime_error("NCCL is not asked for tensors of this type");
  }
}

// ncclRedOp_t.
int nccl_op(Reduction reduction) {
  switch (reduction) {
    case Reduction::Min:
      return 3;
    case Reduction::Max:
      return 2;
    default:
      return 0;
  }
}

class PendingNccl final : public Pending {
 public:
  PendingNccl(std::unique_ptr<c10::Event> done, c10::DeviceIndex index) : done_(std::move(done)), index_(index) {}
  void wait() override { done_->block(at::accelerator::getCurrentStream(index_)); }

 private:
  std::unique_ptr<c10::Event> done_;
  c10::DeviceIndex index_;
};

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(const NcclId& id, int rank, int size, c10::DeviceIndex index)
      : nccl_(NcclLibrary::get()), index_(index), stream_(side_stream(index)) {
    const c10::impl::VirtualGuardImpl gpu(c10::kCUDA);
    const auto before = gpu.exchangeDevice(c10::Device(c10::kCUDA, index));
    const int result = nccl_.comm_init_rank(&comm_, size, id, rank);
    gpu.setDevice(before);
    nccl_.require(result, nullptr, "joining the group");
  }

  ~NcclGroup() override {
    if (comm_ != nullptr) nccl_.comm_destroy(comm_);
  }

  std::unique_ptr<Pending> all_reduce(at::Tensor tensor, Reduction reduction) override {
    return queue(tensor, "all-reduce", [&](void* stream) {
      return nccl_.all_reduce(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), nccl_type(tensor.scalar_type()), nccl_op(reduction), comm_,
                              stream);
    });
  }

  std::unique_ptr<Pending> broadcast(at::Tensor tensor, int root) override {
    return queue(tensor, "broadcast", [&](void* stream) {
      return nccl_.broadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), nccl_type(tensor.scalar_type()), root, comm_, stream);
    });
  }

  void check() override {
    if (comm_ == nullptr) return;
    int error = 0;
    nccl_.require(nccl_.comm_get_async_error(comm_, &error), comm_, "asking NCCL for errors");
    nccl_.require(error, comm_, "an operation of the group");
  }

  void abort() override {
    if (comm_ != nullptr) nccl_.comm_abort(comm_);
    comm_ = nullptr;
  }

 private:
  static c10::Stream side_stream(c10::DeviceIndex index) {
    const c10::impl::VirtualGuardImpl gpu(c10::kCUDA);
    return gpu.getStreamFromGlobalPool(c10::Device(c10::kCUDA, index), /*isHighPriority=*/true);
  }

  // On a stream of its own, after what is queued on the computing stream now.
  template <typename F>
  std::unique_ptr<Pending> queue(const at::Tensor& tensor, const char* what, F&& call) {
    if (comm_ == nullptr) throw std::runtime_error("the group has been ended");
    if (!tensor.is_contiguous() || tensor.device() != c10::Device(c10::kCUDA, index_)) {
      throw std::runtime_error("NCCL takes contiguous tensors on the group's GPU");
    }
    after(at::accelerator::getCurrentStream(index_), &stream_);
    nccl_.require(call(stream_.native_handle()), comm_, what);
    tensor.record_stream(stream_);
    return std::make_unique<PendingNccl>(after(stream_, nullptr), index_);
  }

  const NcclLibrary& nccl_;
  c10::DeviceIndex index_;
  c10::Stream stream_;
  NcclComm comm_ = nullptr;
};

}  // namespace

extern "C" {

// ---- the store ----------------------------------------------------------------------------------------------------------

using StoreHandle = c10::intrusive_ptr<c10d::Store>;

// Connects to the store at host:port, which this process keeps if `serves` is not 0. Keys get the prefix.
int te_store_open(const char* host, int port, int serves, int64_t timeout_ms, const char* prefix, StoreHandle** out) {
  return guarded([&] {
    // Errors only: what the store warns about comes back as an exception.
    FLAGS_caffe2_log_level = 2;
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = serves != 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    const auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    *out = new StoreHandle(c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), store));
  });
}

int te_store_set(const StoreHandle* store, const char* key, const uint8_t* bytes, int64_t len) {
  return guarded([&] { (*store)->set(std::string(key), std::vector<uint8_t>(bytes, bytes + len)); });
}

// Calls `take` with the value, unless there is none yet.
int te_store_get(const StoreHandle* store, const char* key, void* data, void (*take)(void* data, const uint8_t* bytes, int64_t len)) {
  return guarded([&] {
    if (!(*store)->check({key})) return;
    const auto value = (*store)->get(key);
    take(data, value.data(), static_cast<int64_t>(value.size()));
  });
}

int te_store_delete(const StoreHandle* store, const char* key) {
  return guarded([&] { (*store)->deleteKey(key); });
}

void te_store_free(StoreHandle* store) { delete store; }

// ---- groups -------------------------------------------------------------------------------------------------------------

// A group on CPUs. Peers are reached through the interfaces, a list with commas, or if it is empty, through the one that has the address.
int te_gloo(const StoreHandle* store, int rank, int size, const char* address, const char* interfaces, int64_t timeout_ms,
            ProcessGroup** out) {
  return guarded([&] { *out = new Gloo(*store, rank, size, address, interfaces, milliseconds(timeout_ms)); });
}

// The name of a new group on GPUs: 128 bytes, which every process must be told.
int te_nccl_id(uint8_t* id) {
  return guarded([&] {
    NcclId made;
    NcclLibrary::get().require(NcclLibrary::get().get_unique_id(&made), nullptr, "naming a group");
    std::memcpy(id, made.bytes, sizeof(made.bytes));
  });
}

// Blocks until every process of the group has called it.
int te_nccl(const uint8_t* id, int rank, int size, int64_t device_index, ProcessGroup** out) {
  return guarded([&] {
    NcclId name;
    std::memcpy(name.bytes, id, sizeof(name.bytes));
    *out = new NcclGroup(name, rank, size, static_cast<c10::DeviceIndex>(device_index));
  });
}

int te_group_all_reduce(ProcessGroup* group, const at::Tensor* tensor, int reduction) {
  return guarded([&] { group->all_reduce(*tensor, static_cast<Reduction>(reduction))->wait(); });
}

int te_group_broadcast(ProcessGroup* group, const at::Tensor* tensor, int root) {
  return guarded([&] { group->broadcast(*tensor, root)->wait(); });
}

int te_group_check(ProcessGroup* group) {
  return guarded([&] { group->check(); });
}

int te_group_abort(ProcessGroup* group) {
  return guarded([&] { group->abort(); });
}

void te_group_free(ProcessGroup* group) { delete group; }

}  // extern "C"
