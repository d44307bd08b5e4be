#pragma once
// As absl/status/status.h here.

#include <cstdlib>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"

namespace absl {

template <class T>
class [[nodiscard]] StatusOr {
 public:
  StatusOr(Status status) : status_(std::move(status)) {  // NOLINT: as Abseil's
    if (status_.ok()) status_ = InternalError("An OK status is not a valid constructor argument to StatusOr<T>");
  }
  template <class U = T>
    requires(std::is_constructible_v<T, U &&> && !std::is_same_v<std::remove_cvref_t<U>, StatusOr> &&
             !std::is_same_v<std::remove_cvref_t<U>, Status>)
  StatusOr(U&& value) : value_(std::forward<U>(value)) {}  // NOLINT: as Abseil's
  template <class U>
    requires(std::is_constructible_v<T, U &&> && !std::is_same_v<U, T>)
  StatusOr(StatusOr<U>&& other) : status_(other.status()) {  // NOLINT: as Abseil's
    if (other.ok()) value_.emplace(std::move(other).value());
  }

  bool ok() const { return status_.ok(); }
  Status status() const { return status_; }
  T& value() & { return Held(); }
  const T& value() const& { return const_cast<StatusOr*>(this)->Held(); }
  T&& value() && { return std::move(Held()); }
  T& operator*() & { return Held(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(Held()); }
  T* operator->() { return &Held(); }
  const T* operator->() const { return &value(); }

 private:
  T& Held() {
    if (!value_) std::abort();
    return *value_;
  }
  Status status_;
  std::optional<T> value_;
};

}  // namespace absl
