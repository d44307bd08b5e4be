#pragma once
// As absl/status/status.h here.

#include <cstddef>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

namespace absl {

template <class Signature>
class AnyInvocable;

/// A function that may be moved only.
template <class R, class... Args>
class AnyInvocable<R(Args...)> {
 public:
  AnyInvocable() = default;
  AnyInvocable(std::nullptr_t) {}  // NOLINT: as Abseil's
  template <class F>
    requires(std::is_invocable_r_v<R, F&, Args...> && !std::is_same_v<std::remove_cvref_t<F>, AnyInvocable>)
  AnyInvocable(F&& f) : held_(std::make_unique<Held<std::decay_t<F>>>(std::forward<F>(f))) {}  // NOLINT: as Abseil's
  explicit operator bool() const { return held_ != nullptr; }
  R operator()(Args... args) { return held_->Call(std::forward<Args>(args)...); }

 private:
  struct Base {
    virtual ~Base() = default;
    virtual R Call(Args... args) = 0;
  };
  template <class F>
  struct Held final : Base {
    explicit Held(F&& f) : function(std::move(f)) {}
    explicit Held(const F& f) : function(f) {}
    R Call(Args... args) override { return std::invoke(function, std::forward<Args>(args)...); }
    F function;
  };
  std::unique_ptr<Base> held_;
};

}  // namespace absl
