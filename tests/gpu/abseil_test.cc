// What the tiers use of Abseil, on whichever there is: the real one in the whole build, tests/gpu/absl on a machine
// without it. Needs no GPU.
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "base/status.h"
#include "tests/gpu/testing.h"

namespace optod::cuda {
namespace {

using namespace testing;

TEST(HostStatuses) {
  const struct {
    absl::Status status;
    absl::StatusCode code;
    const char* text;
  } rows[] = {
      {InvalidArgument("slots: ", 3), absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT: slots: 3"},
      {ResourceExhausted("full"), absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED: full"},
      {FailedPrecondition("no GPU"), absl::StatusCode::kFailedPrecondition, "FAILED_PRECONDITION: no GPU"},
      {DataLoss("torn"), absl::StatusCode::kDataLoss, "DATA_LOSS: torn"},
      {Internal("x"), absl::StatusCode::kInternal, "INTERNAL: x"},
      {Unavailable("busy"), absl::StatusCode::kUnavailable, "UNAVAILABLE: busy"},
      {Unimplemented("y"), absl::StatusCode::kUnimplemented, "UNIMPLEMENTED: y"},
      {absl::AbortedError("z"), absl::StatusCode::kAborted, "ABORTED: z"},
      {absl::CancelledError("stopped"), absl::StatusCode::kCancelled, "CANCELLED: stopped"},
      {absl::OkStatus(), absl::StatusCode::kOk, "OK"},
      {absl::Status(absl::StatusCode::kNotFound, "gone"), absl::StatusCode::kNotFound, "NOT_FOUND: gone"},
      {absl::Status(absl::StatusCode::kPermissionDenied, "no"), absl::StatusCode::kPermissionDenied,
       "PERMISSION_DENIED: no"},
  };
  for (const auto& row : rows) {
    EXPECT(row.status.code() == row.code && static_cast<int>(row.code) == static_cast<int>(row.status.code()))
        << row.text;
    EXPECT(row.status.ToString() == row.text) << row.text << row.status.ToString();
    EXPECT(row.status.ok() == (row.code == absl::StatusCode::kOk)) << row.text;
  }
  EXPECT(static_cast<int>(absl::StatusCode::kDataLoss) == 15 && static_cast<int>(absl::StatusCode::kAborted) == 10);
  EXPECT(absl::IsAborted(rows[7].status) && !absl::IsAborted(rows[0].status));
}

absl::StatusOr<std::unique_ptr<std::string>> Half(int x) {
  if (x % 2 != 0) return InvalidArgument("odd");
  return std::make_unique<std::string>(std::to_string(x / 2));
}
absl::StatusOr<std::string> Quarter(int x) {
  ASSIGN_OR_RETURN(const std::unique_ptr<std::string> half, Half(x));
  RETURN_IF_ERROR(Half(std::stoi(*half)).status());
  return *half + "/2";
}
TEST(HostStatusOrs) {
  EXPECT(Quarter(8).ok() && *Quarter(8) == "4/2" && Quarter(8)->size() == 3);
  EXPECT(Quarter(7).status().ToString() == "INVALID_ARGUMENT: odd");
  EXPECT(Quarter(6).status().code() == absl::StatusCode::kInvalidArgument);
  absl::StatusOr<std::vector<double>> list = std::vector<double>{1, 2};
  EXPECT(list.ok() && list.value()[1] == 2);
  list = absl::InternalError("gone");
  EXPECT(!list.ok() && list.status().message() == "gone");
}

TEST(HostFunctions) {
  absl::AnyInvocable<int(int)> add = [held = std::make_unique<int>(40)](int x) { return ++*held + x; };
  EXPECT(static_cast<bool>(add) && add(1) == 42 && add(1) == 43);
  absl::AnyInvocable<int(int)> moved = std::move(add);
  EXPECT(moved(0) == 43);
  const std::shared_ptr<int> counted = std::make_shared<int>(0);
  absl::AnyInvocable<absl::Status()> run = [counted] { return absl::OkStatus(); };
  EXPECT(run().ok() && counted.use_count() == 2);
  run = nullptr;
  EXPECT(!run && counted.use_count() == 1);
}

}  // namespace
}  // namespace optod::cuda
