// A group of processes that train together, and what they do in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

enum class Reduction : int { Sum = 0, Min = 1, Max = 2 };

// A collective operation on its way. Its tensor must not be touched before `wait`.
class Pending {
 public:
  virtual ~Pending() = default;
  // What is queued on the device from now on sees the result. On a CPU this blocks, and throws if a process of the group is gone.
  virtual void wait() = 0;
};

// Every process must ask for the same operations in the same order, on tensors of equal shape and type, contiguous, on the group's device.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  // In place.
  virtual std::unique_ptr<Pending> all_reduce(at::Tensor tensor, Reduction reduction) = 0;
  // In place: the tensor of `root` for all.
  virtual std::unique_ptr<Pending> broadcast(at::Tensor tensor, int root) = 0;
  // Throws if an operation on a GPU has failed, which no wait tells.
  virtual void check() {}
  // Ends what is on its way, so that a GPU that waits for a lost process goes on.
  virtual void abort() {}
};
