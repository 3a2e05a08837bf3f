// What every C function here has in common: no exception leaves it, and its message waits for te_last_error().
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

// The message of the last failing call on this thread.
inline thread_local std::string last_error;

// Runs `body`: 0, or 1 after storing the message of an exception.
template <typename F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "an exception that is no std::exception";
  }
  return 1;
}

inline std::vector<at::Tensor> list(at::Tensor* const* tensors, int64_t len) {
  std::vector<at::Tensor> out;
  out.reserve(len);
  for (int64_t i = 0; i < len; ++i) out.push_back(*tensors[i]);
  return out;
}

// `second` does what is queued on it from now on only after what is queued on `first` now. The event marks that moment of `first`.
inline std::unique_ptr<c10::Event> after(const c10::Stream& first, const c10::Stream* second) {
  auto event = std::make_unique<c10::Event>(first.device_type(), c10::EventFlag::BACKEND_DEFAULT);
  event->record(first);
  if (second != nullptr) event->block(*second);
  return event;
}
