#include "server/services/status.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "base/reason.h"

namespace optod::services {
namespace {

constexpr bool Same(grpc::StatusCode g, absl::StatusCode a) { return static_cast<int>(g) == static_cast<int>(a); }
static_assert(Same(grpc::OK, absl::StatusCode::kOk));
static_assert(Same(grpc::CANCELLED, absl::StatusCode::kCancelled));
static_assert(Same(grpc::UNKNOWN, absl::StatusCode::kUnknown));
static_assert(Same(grpc::INVALID_ARGUMENT, absl::StatusCode::kInvalidArgument));
static_assert(Same(grpc::DEADLINE_EXCEEDED, absl::StatusCode::kDeadlineExceeded));
static_assert(Same(grpc::NOT_FOUND, absl::StatusCode::kNotFound));
static_assert(Same(grpc::ALREADY_EXISTS, absl::StatusCode::kAlreadyExists));
static_assert(Same(grpc::PERMISSION_DENIED, absl::StatusCode::kPermissionDenied));
static_assert(Same(grpc::UNAUTHENTICATED, absl::StatusCode::kUnauthenticated));
static_assert(Same(grpc::RESOURCE_EXHAUSTED, absl::StatusCode::kResourceExhausted));
static_assert(Same(grpc::FAILED_PRECONDITION, absl::StatusCode::kFailedPrecondition));
static_assert(Same(grpc::ABORTED, absl::StatusCode::kAborted));
static_assert(Same(grpc::OUT_OF_RANGE, absl::StatusCode::kOutOfRange));
static_assert(Same(grpc::UNIMPLEMENTED, absl::StatusCode::kUnimplemented));
static_assert(Same(grpc::INTERNAL, absl::StatusCode::kInternal));
static_assert(Same(grpc::UNAVAILABLE, absl::StatusCode::kUnavailable));
static_assert(Same(grpc::DATA_LOSS, absl::StatusCode::kDataLoss));

// Clients refuse more than 8 KiB of trailers, and a byte of the message may travel as three ("%0A").
constexpr size_t kMaxMessageBytes = 2000;
constexpr size_t kMaxMetadataBytes = 256;

/// At most `limit` bytes, not cutting a UTF-8 character in two.
std::string Cut(std::string text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text + "...";
}

/// Metadata values are printable ASCII; anything else would break the stream.
std::string Printable(std::string text) {
  for (char& c : text)
    if (c < 0x20 || c > 0x7e) c = '?';
  return Cut(std::move(text), kMaxMetadataBytes);
}

/// "layout.tensors[3].dtype" of "layout.tensors[3].dtype: F99 is unknown"; "" when the message does not begin with a
/// field path.
std::string LeadingField(const std::string& message) {
  size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.[]");
  bool is_field = end != std::string::npos && end > 0 && message[end] == ':' && message[0] >= 'a' && message[0] <= 'z';
  return is_field ? message.substr(0, end) : std::string();
}

}  // namespace

std::map<std::string, std::string> ErrorMetadata(const absl::Status& status) {
  std::map<std::string, std::string> metadata;
  if (status.ok()) return metadata;
  std::string reason = PayloadOf(status, kReasonUrl);
  metadata["optod-reason"] = Printable(reason.empty() ? absl::StatusCodeToString(status.code()) : reason);
  std::string field = PayloadOf(status, kFieldUrl);
  if (field.empty() && status.code() == absl::StatusCode::kInvalidArgument)
    field = LeadingField(std::string(status.message()));
  if (!field.empty()) metadata["optod-field"] = Printable(field);
  std::string retry = PayloadOf(status, kRetryAfterUrl);
  if (retry.empty() && status.code() == absl::StatusCode::kUnavailable) retry = "1000";
  if (!retry.empty()) metadata["retry-after-ms"] = Printable(retry);
  return metadata;
}

grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context) {
  if (status.ok()) return grpc::Status::OK;
  if (context != nullptr) {
    for (const auto& [key, value] : ErrorMetadata(status)) context->AddTrailingMetadata(key, value);
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      Cut(std::string(status.message()), kMaxMessageBytes));
}

}  // namespace optod::services
