#include "server/services/artifact_service.h"

#include <algorithm>
#include <span>
#include <string>

#include "base/reason.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optod/v1/artifact.grpc.pb.h"
#include "server/services/pages.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using grpc::CallbackServerContext;

constexpr size_t kPieceBytes = 1 << 20;

bool IsSha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

void FillArtifact(const store::ArtifactRow& row, v1::Artifact* artifact) {
  artifact->set_name("users/" + row.user + "/artifacts/" + row.sha256);
  artifact->set_sha256(row.sha256);
  artifact->set_size_bytes(row.size_bytes);
  artifact->set_display_name(row.display_name);
  artifact->set_media_type(row.media_type);
  artifact->mutable_create_time()->set_seconds(row.create_ms / 1000);
  artifact->mutable_create_time()->set_nanos(static_cast<int32_t>(row.create_ms % 1000) * 1'000'000);
}

/// users/U/artifacts/HASH, artifacts/HASH or HASH (of the caller).
absl::StatusOr<std::pair<std::string, std::string>> ParseName(const std::string& name, const Caller& caller) {
  std::string user = caller.user, sha256 = name;
  if (size_t at = name.find("artifacts/"); at != std::string::npos) {
    sha256 = name.substr(at + 10);
    if (at > 0) {
      if (name[at - 1] != '/') return InvalidArgument("name: \"", name, "\" is not users/USER/artifacts/SHA256");
      ASSIGN_OR_RETURN(user, auth::ResolveUser(name.substr(0, at - 1), caller, "name"));
    }
  }
  if (!IsSha256(sha256)) return InvalidArgument("name: \"", name, "\" is not users/USER/artifacts/SHA256");
  return std::pair(user, sha256);
}

absl::StatusOr<store::ArtifactRow> FindRow(store::Store& store, const std::string& name, const Caller& caller) {
  ASSIGN_OR_RETURN(auto parsed, ParseName(name, caller));
  absl::StatusOr<store::ArtifactRow> row = store.GetArtifact(parsed.first, parsed.second);
  if (absl::IsNotFound(row.status())) return NotFound("name: no artifact ", parsed.second);
  return row;
}

store::AppendEvent Event(const store::ArtifactRow& row, const char* type, int64_t now_ms) {
  return {store::EventRow{row.user, 0, type, "users/" + row.user + "/artifacts/" + row.sha256, "{}", now_ms}};
}

ByteBudget::Share TakeShare(const ArtifactParts& parts, int64_t bytes, absl::Status* status) {
  ByteBudget::Share share = parts.budget->Take(bytes);
  if (!share) {
    *status = WithRetryAfterMs(
        WithReason(ResourceExhausted("size_bytes: no memory for another ", bytes, " bytes in transfer now"),
                   "TRANSFERS_BUSY"),
        1000);
  }
  return share;
}

/// States: reading header -> reading data ... -> storing (on the pool) -> finished.
class Upload final : public grpc::ServerReadReactor<v1::WriteArtifactRequest> {
 public:
  Upload(const ArtifactParts& parts, CallbackServerContext* context, v1::Artifact* response)
      : parts_(parts), context_(context), response_(response) {
    absl::StatusOr<Caller> caller = parts_.authenticator->Authenticate(*context);
    absl::Status status = caller.ok() ? auth::RequireWriter(*caller) : caller.status();
    if (!status.ok()) {
      End(status);
      return;
    }
    caller_ = *std::move(caller);
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      parts_.pool->Post([this] { End(StoreAll()); });
      return;
    }
    absl::Status status = Take();
    if (!status.ok()) return End(status);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) { Finish(ToGrpc(status, context_)); }

  absl::Status Take() {
    if (request_.has_header()) {
      if (has_header_) return InvalidArgument("header: sent twice");
      has_header_ = true;
      return TakeHeader(request_.header());
    }
    if (!has_header_) return InvalidArgument("header: must be the first message");
    int64_t total = static_cast<int64_t>(data_.size() + request_.data().size());
    if (total > size_bytes_) return InvalidArgument("size_bytes: ", size_bytes_, " announced, more sent");
    data_ += request_.data();
    return absl::OkStatus();
  }

  absl::Status TakeHeader(const v1::WriteArtifactHeader& header) {
    ASSIGN_OR_RETURN(row_.user, auth::ResolveUser(header.parent(), caller_, "parent"));
    if (header.size_bytes() < 0) return InvalidArgument("size_bytes: ", header.size_bytes(), " is negative");
    if (header.size_bytes() > parts_.max_artifact_bytes) {
      return WithReason(
          InvalidArgument("size_bytes: ", header.size_bytes(), " is over the limit of ", parts_.max_artifact_bytes),
          "ARTIFACT_TOO_LARGE");
    }
    if (!header.sha256().empty() && !IsSha256(header.sha256()))
      return InvalidArgument("sha256: must be 64 lower-case hex digits");
    if (header.display_name().size() > 1024) return InvalidArgument("display_name: over 1024 bytes");
    if (header.media_type().size() > 256) return InvalidArgument("media_type: over 256 bytes");
    size_bytes_ = header.size_bytes();
    absl::Status status;
    share_ = TakeShare(parts_, size_bytes_, &status);
    expected_sha256_ = header.sha256();
    row_.display_name = header.display_name();
    row_.media_type = header.media_type().empty() ? "application/octet-stream" : header.media_type();
    return status;
  }

  absl::Status StoreAll() {
    if (context_->IsCancelled()) return absl::CancelledError("cancelled");  // a stream that broke is not a half-close
    if (!has_header_) return InvalidArgument("header: must be the first message");
    if (static_cast<int64_t>(data_.size()) != size_bytes_) {
      return InvalidArgument("size_bytes: ", size_bytes_, " announced, ", data_.size(), " sent");
    }
    if (!expected_sha256_.empty()) {
      std::string got = Sha256Hex(std::string_view(data_));
      if (got != expected_sha256_) return WithReason(DataLoss("sha256: the bytes have ", got), "CHECKSUM_MISMATCH");
    }
    ASSIGN_OR_RETURN(row_.sha256, parts_.blobs->Put(std::as_bytes(std::span(data_))));
    absl::StatusOr<store::ArtifactRow> before = parts_.store->GetArtifact(row_.user, row_.sha256);
    if (before.ok()) {
      FillArtifact(*before, response_);
      return absl::OkStatus();
    }
    row_.size_bytes = size_bytes_;
    row_.create_ms = parts_.clock->NowUnixMs();
    RETURN_IF_ERROR(parts_.store->CommitAndWait(
        {{store::PutArtifact{row_}, Event(row_, "artifact.created", row_.create_ms)}, nullptr}));
    FillArtifact(row_, response_);
    return absl::OkStatus();
  }

  const ArtifactParts& parts_;
  CallbackServerContext* const context_;
  v1::Artifact* const response_;
  Caller caller_;
  v1::WriteArtifactRequest request_;
  bool has_header_ = false;
  int64_t size_bytes_ = 0;
  std::string expected_sha256_, data_;
  ByteBudget::Share share_;
  store::ArtifactRow row_;
};

/// States: loading (on the pool) -> writing pieces -> finished.
class Download final : public grpc::ServerWriteReactor<v1::ReadArtifactResponse> {
 public:
  Download(const ArtifactParts& parts, CallbackServerContext* context, const v1::ReadArtifactRequest& request)
      : parts_(parts), context_(context) {
    absl::StatusOr<Caller> caller = parts_.authenticator->Authenticate(*context);
    if (!caller.ok()) {
      End(caller.status());
      return;
    }
    parts_.pool->Post([this, caller = *std::move(caller), request] {
      absl::Status status = Load(caller, request);
      status.ok() ? WriteNext() : End(status);
    });
  }
  void OnWriteDone(bool ok) override { ok ? WriteNext() : End(absl::CancelledError("the reader is gone")); }
  void OnDone() override { delete this; }

 private:
  void End(const absl::Status& status) { Finish(ToGrpc(status, context_)); }

  absl::Status Load(const Caller& caller, const v1::ReadArtifactRequest& request) {
    ASSIGN_OR_RETURN(store::ArtifactRow row, FindRow(*parts_.store, request.name(), caller));
    if (request.limit() < 0) return InvalidArgument("limit: ", request.limit(), " is negative");
    if (request.offset() < 0 || request.offset() > row.size_bytes) {
      return absl::OutOfRangeError(Cat("offset: ", request.offset(), " is outside 0..", row.size_bytes));
    }
    absl::Status status;
    share_ = TakeShare(parts_, row.size_bytes, &status);
    RETURN_IF_ERROR(status);
    ASSIGN_OR_RETURN(data_, parts_.blobs->Get(row.sha256));
    next_ = static_cast<size_t>(request.offset());
    end_ = data_.size();
    if (request.limit() > 0) end_ = std::min(end_, next_ + static_cast<size_t>(request.limit()));
    return absl::OkStatus();
  }

  void WriteNext() {
    if (next_ >= end_) return End(absl::OkStatus());
    size_t size = std::min(kPieceBytes, end_ - next_);
    response_.set_data(data_.data() + next_, size);
    next_ += size;
    StartWrite(&response_);
  }

  const ArtifactParts& parts_;
  CallbackServerContext* const context_;
  ByteBudget::Share share_;
  std::string data_;
  size_t next_ = 0, end_ = 0;
  v1::ReadArtifactResponse response_;
};

class ArtifactService final : public v1::ArtifactService::CallbackService {
 public:
  explicit ArtifactService(ArtifactParts parts) : parts_(parts) {}

  grpc::ServerReadReactor<v1::WriteArtifactRequest>* WriteArtifact(CallbackServerContext* context,
                                                                   v1::Artifact* response) override {
    return new Upload(parts_, context, response);
  }
  grpc::ServerWriteReactor<v1::ReadArtifactResponse>* ReadArtifact(CallbackServerContext* context,
                                                                   const v1::ReadArtifactRequest* request) override {
    return new Download(parts_, context, *request);
  }
  grpc::ServerUnaryReactor* GetArtifact(CallbackServerContext* context, const v1::GetArtifactRequest* request,
                                        v1::Artifact* response) override {
    return RunOnPool(context, *parts_.authenticator, *parts_.pool,
                     [this, request, response](const Caller& caller) -> absl::Status {
                       ASSIGN_OR_RETURN(store::ArtifactRow row, FindRow(*parts_.store, request->name(), caller));
                       FillArtifact(row, response);
                       return absl::OkStatus();
                     });
  }
  grpc::ServerUnaryReactor* ListArtifacts(CallbackServerContext* context, const v1::ListArtifactsRequest* request,
                                          v1::ListArtifactsResponse* response) override {
    return RunOnPool(context, *parts_.authenticator, *parts_.pool,
                     [this, request, response](const Caller& caller) { return List(caller, *request, response); });
  }
  grpc::ServerUnaryReactor* DeleteArtifact(CallbackServerContext* context, const v1::DeleteArtifactRequest* request,
                                           v1::DeleteArtifactResponse*) override {
    return RunOnPool(
        context, *parts_.authenticator, *parts_.pool, [this, request](const Caller& caller) -> absl::Status {
          RETURN_IF_ERROR(auth::RequireWriter(caller));
          ASSIGN_OR_RETURN(store::ArtifactRow row, FindRow(*parts_.store, request->name(), caller));
          // The row goes; the bytes go with the next sweep unless something else points to them.
          return parts_.store->CommitAndWait(
              {{store::DeleteArtifact{row.user, row.sha256}, Event(row, "artifact.deleted", parts_.clock->NowUnixMs())},
               nullptr});
        });
  }

 private:
  /// Newest first; a page ends with (time, hash) of its last row.
  absl::Status List(const Caller& caller, const v1::ListArtifactsRequest& request,
                    v1::ListArtifactsResponse* response) {
    ASSIGN_OR_RETURN(std::string user, auth::ResolveUser(request.parent(), caller, "parent"));
    ASSIGN_OR_RETURN(int64_t size, PageSize(request.page_size()));
    const std::string scope = "artifacts/" + user;
    ASSIGN_OR_RETURN(PageStart start, ParsePageToken(scope, request.page_token()));
    ASSIGN_OR_RETURN(std::vector<store::ArtifactRow> rows,
                     parts_.store->ListArtifacts(user, start.number, size + 1, start.text));
    size_t count = std::min(rows.size(), static_cast<size_t>(size));
    for (size_t i = 0; i < count; ++i) FillArtifact(rows[i], response->add_artifacts());
    if (count < rows.size())
      response->set_next_page_token(MakePageToken(scope, {rows[count - 1].create_ms, rows[count - 1].sha256}));
    return absl::OkStatus();
  }

  ArtifactParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeArtifactService(ArtifactParts parts) {
  return std::make_unique<ArtifactService>(parts);
}

}  // namespace optod::services
