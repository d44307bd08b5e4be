#pragma once
/// Status macros and one-line constructors: errors are values everywhere in optod (absl::Status, absl::StatusOr).
/// Messages say field, value and rule: `hyperparameters.lr: -0.1 is negative; must be > 0`. They hold no path, stack or secret.

#include <sstream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define OPTOD_CONCAT_INNER(a, b) a##b
#define OPTOD_CONCAT(a, b) OPTOD_CONCAT_INNER(a, b)

/// Evaluates an absl::Status expression and returns it from the function when it is an error.
#define RETURN_IF_ERROR(expr)                         \
  do {                                                \
    absl::Status optod_status_ = (expr);              \
    if (!optod_status_.ok()) return optod_status_;    \
  } while (false)

/// ASSIGN_OR_RETURN(auto x, F()): assigns the value of an absl::StatusOr, or returns its error.
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_IMPL_(OPTOD_CONCAT(optod_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                           \
  if (!tmp.ok()) return tmp.status();          \
  lhs = std::move(tmp).value()

namespace optod {

/// Concatenates anything that an ostream prints. Exists because absl::StrCat in Debian's build does not take std::string_view.
template <typename... Args>
std::string Cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

template <typename... Args>
absl::Status InvalidArgument(const Args&... args) { return absl::InvalidArgumentError(Cat(args...)); }
template <typename... Args>
absl::Status FailedPrecondition(const Args&... args) { return absl::FailedPreconditionError(Cat(args...)); }
template <typename... Args>
absl::Status NotFound(const Args&... args) { return absl::NotFoundError(Cat(args...)); }
template <typename... Args>
absl::Status AlreadyExists(const Args&... args) { return absl::AlreadyExistsError(Cat(args...)); }
template <typename... Args>
absl::Status Aborted(const Args&... args) { return absl::AbortedError(Cat(args...)); }
template <typename... Args>
absl::Status ResourceExhausted(const Args&... args) { return absl::ResourceExhaustedError(Cat(args...)); }
template <typename... Args>
absl::Status Unavailable(const Args&... args) { return absl::UnavailableError(Cat(args...)); }
template <typename... Args>
absl::Status DataLoss(const Args&... args) { return absl::DataLossError(Cat(args...)); }
template <typename... Args>
absl::Status Internal(const Args&... args) { return absl::InternalError(Cat(args...)); }
template <typename... Args>
absl::Status Unimplemented(const Args&... args) { return absl::UnimplementedError(Cat(args...)); }

}  // namespace optod
