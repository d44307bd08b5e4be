#pragma once
// The few parts of Abseil that the tiers use, for a machine with a GPU and no Abseil (cuda/CMakeLists.txt puts this folder
// on the include path there, and there alone). tests/gpu/abseil_test.cc, which every build runs, says that what the
// project uses behaves as the real one does.

#include <ostream>
#include <string>
#include <string_view>

namespace absl {

/// Numbers as gRPC's.
enum class StatusCode : int {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};

inline const char* StatusCodeToString(StatusCode code) {
  static constexpr const char* kNames[] = {"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
                                           "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
                                           "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"};
  return kNames[static_cast<int>(code)];
}

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string_view message) : code_(code), message_(code == StatusCode::kOk ? "" : message) {}
  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  std::string_view message() const { return message_; }
  std::string ToString() const { return ok() ? "OK" : std::string(StatusCodeToString(code_)) + ": " + message_; }
  bool operator==(const Status&) const = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline std::ostream& operator<<(std::ostream& out, const Status& status) { return out << status.ToString(); }
inline Status OkStatus() { return {}; }

#define OPTOD_ABSL_CODE(Name)                                                                      \
  inline Status Name##Error(std::string_view message) { return {StatusCode::k##Name, message}; }   \
  inline bool Is##Name(const Status& status) { return status.code() == StatusCode::k##Name; }
OPTOD_ABSL_CODE(Cancelled)
OPTOD_ABSL_CODE(InvalidArgument)
OPTOD_ABSL_CODE(NotFound)
OPTOD_ABSL_CODE(AlreadyExists)
OPTOD_ABSL_CODE(ResourceExhausted)
OPTOD_ABSL_CODE(FailedPrecondition)
OPTOD_ABSL_CODE(Aborted)
OPTOD_ABSL_CODE(Unimplemented)
OPTOD_ABSL_CODE(Internal)
OPTOD_ABSL_CODE(Unavailable)
OPTOD_ABSL_CODE(DataLoss)
#undef OPTOD_ABSL_CODE

}  // namespace absl
