// Gradients of a group of processes, summed in flat buckets while the backward pass still runs.
//
// A bucket holds the gradients of a few parameters side by side. Parameters are put into buckets from the last to the first, which is
// roughly the order in which backward reaches them. When the last gradient of a bucket is there, its sum over the group begins; buckets
// begin in their order, because all processes must ask for the same operations in the same order.

#include "process_group.h"

#include "guarded.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

class GradBuckets {
 public:
  GradBuckets(ProcessGroup* group, std::vector<at::Tensor> params, int64_t bucket_bytes, at::ScalarType dtype)
      : group_(group), params_(std::move(params)), slots_(params_.size()) {
    const auto element = static_cast<int64_t>(at::elementSize(dtype));
    for (size_t i = params_.size(); i-- > 0;) {
      const auto numbers = params_[i].numel();
      if (buckets_.empty() || (buckets_.back().numbers + numbers) * element > bucket_bytes) buckets_.emplace_back();
      slots_[i] = Slot{buckets_.size() - 1, buckets_.back().numbers};
      buckets_.back().numbers += numbers;
      buckets_.back().params.push_back(i);
    }
    for (auto& bucket : buckets_) {
      const auto& of = params_[bucket.params.front()];
      bucket.flat = at::zeros({bucket.numbers}, of.options().dtype(dtype).requires_grad(false));
    }
    for (size_t i = 0; i < params_.size(); ++i) {
      slots_[i].view = view_of(i);
      torch::autograd::impl::set_post_acc_grad_hooks(params_[i], std::make_unique<Hook>(this, i));
    }
  }

  ~GradBuckets() {
    for (const auto& param : params_) torch::autograd::impl::set_post_acc_grad_hooks(param, nullptr);
    // The buckets must stay until nothing is written to them any more.
    for (auto& bucket : buckets_) {
      if (bucket.pending == nullptr) continue;
      try {
        bucket.pending->wait();
      } catch (...) {
        // Whoever ends a step early knows why.
      }
    }
  }

  // Nothing of the step has been summed yet.
  void begin() {
    started_ = 0;
    armed_ = false;
    for (auto& slot : slots_) slot.copied = false;
  }

  // The next backward pass gives the step's gradients. It may be the second one, if memory ran out within the first: what is summed by
  // then is the sum of the same gradients, and stays.
  void arm() {
    armed_ = knows_used_;
    failure_ = nullptr;
    for (size_t b = started_; b < buckets_.size(); ++b) {
      buckets_[b].waits_for = 0;
      for (const auto i : buckets_[b].params) buckets_[b].waits_for += slots_[i].used ? 1 : 0;
    }
    for (auto& slot : slots_) slot.copied = false;
  }

  // Sums what is not summed yet, and `values` too; then every gradient is that of the group.
  void finish(at::Tensor values) {
    at::NoGradGuard no_grad;
    armed_ = false;
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    for (size_t i = 0; i < params_.size(); ++i) {
      if (slots_[i].bucket < started_) continue;
      const auto& grad = params_[i].grad();
      slots_[i].used = grad.defined();
      if (slots_[i].copied) continue;
      if (grad.defined()) {
        slots_[i].view.copy_(grad);
      } else {
        slots_[i].view.zero_();
      }
    }
    knows_used_ = true;
    while (started_ < buckets_.size()) start();
    const auto summed_values = group_->all_reduce(std::move(values), Reduction::Sum);
    for (auto& bucket : buckets_) std::exchange(bucket.pending, nullptr)->wait();
    summed_values->wait();
    for (size_t i = 0; i < params_.size(); ++i) {
      if (!slots_[i].used) continue;
      auto& grad = params_[i].mutable_grad();
      if (slots_[i].view.scalar_type() == params_[i].scalar_type()) {
        grad = slots_[i].view;
      } else {
        grad = at::empty_like(params_[i]).copy_(slots_[i].view);
      }
    }
  }

 private:
  struct Bucket {
    int64_t numbers = 0;
    std::vector<size_t> params;
    at::Tensor flat;
    // Gradients that are not there yet.
    int64_t waits_for = 0;
    std::unique_ptr<Pending> pending;
  };

  struct Slot {
    size_t bucket = 0;
    int64_t offset = 0;
    // The parameter's place in its bucket, in the parameter's shape and memory order.
    at::Tensor view;
    // Whether the last step gave the parameter a gradient.
    bool used = false;
    // Whether this step's gradient is in the bucket.
    bool copied = false;
  };

  struct Hook final : torch::autograd::PostAccumulateGradHook {
    Hook(GradBuckets* of, size_t param) : of_(of), param_(param) {}
    void operator()(const at::Tensor&) override { of_->arrived(param_); }
    GradBuckets* of_;
    size_t param_;
  };

  at::Tensor view_of(size_t i) const {
    const auto& param = params_[i];
    const auto& flat = buckets_[slots_[i].bucket].flat;
    const bool is_dense = param.is_non_overlapping_and_dense();
    const auto view = is_dense ? flat.as_strided(param.sizes(), param.strides(), slots_[i].offset)
                               : flat.narrow(0, slots_[i].offset, param.numel()).view(param.sizes());
    // It becomes the parameter's gradient, and autograd knows it as a tensor of its own: `zero_grad` refuses views.
    return view.tensor_data();
  }

  // A gradient has been added up. An exception must not end the backward pass of this process alone before the others know.
  void arrived(size_t i) noexcept {
    if (!armed_ || failure_ != nullptr) return;
    try {
      at::NoGradGuard no_grad;
      auto& slot = slots_[i];
      if (params_[i].grad().data_ptr() == slot.view.data_ptr()) {
        throw std::runtime_error("the gradients of the step before must be removed, and not set to zero");
      }
      if (slot.bucket < started_) {
        // Summed before memory ran out, or a parameter without a gradient in the step before; the latter would lose it.
        if (!slot.used) throw std::runtime_error("a parameter has a gradient that it did not have in the step before");
        if (std::exchange(slot.copied, true)) throw std::runtime_error("a parameter got more gradient after its sum had begun");
        return;
      }
      slot.view.copy_(params_[i].grad());
      if (std::exchange(slot.copied, true) || !slot.used) return;
      --buckets_[slot.bucket].waits_for;
      while (started_ < buckets_.size() && buckets_[started_].waits_for == 0) {
        for (const auto other : buckets_[started_].params) {
          if (!slots_[other].used && !slots_[other].copied) slots_[other].view.zero_();
        }
        start();
      }
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void start() {
    auto& bucket = buckets_[started_];
    bucket.pending = group_->all_reduce(bucket.flat, Reduction::Sum);
    ++started_;
  }

  ProcessGroup* group_;
  std::vector<at::Tensor> params_;
  std::vector<Slot> slots_;
  std::vector<Bucket> buckets_;
  // Buckets whose sum has begun.
  size_t started_ = 0;
  bool armed_ = false;
  bool knows_used_ = false;
  std::exception_ptr failure_;
};

}  // namespace

extern "C" {

// Buckets of f32, or of bf16 if `in_bf16` is not 0. The group must outlive them.
int te_buckets_new(ProcessGroup* group, at::Tensor* const* params, int64_t len, int64_t bucket_bytes, int in_bf16, GradBuckets** out) {
  return guarded([&] { *out = new GradBuckets(group, list(params, len), bucket_bytes, in_bf16 != 0 ? at::kBFloat16 : at::kFloat); });
}

void te_buckets_begin(GradBuckets* buckets) { buckets->begin(); }

void te_buckets_arm(GradBuckets* buckets) { buckets->arm(); }

int te_buckets_finish(GradBuckets* buckets, const at::Tensor* values) {
  return guarded([&] { buckets->finish(*values); });
}

void te_buckets_free(GradBuckets* buckets) { delete buckets; }

}  // extern "C"
