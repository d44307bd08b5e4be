#include "server/engine/numeric_family.h"

#include <condition_variable>
#include <mutex>

#include "base/status.h"

namespace optod::engine {

absl::StatusOr<NumericFamily*> AsNumeric(LiveSession& session) {
  if (auto* numeric = dynamic_cast<NumericFamily*>(session.family.get())) return numeric;
  return FailedPrecondition("session ", session.name().Full(), ": optimizer ", session.proto.optimizer().name(),
                            " has no tensors");
}

absl::StatusOr<v1::MemoryReport> MemoryOf(LiveSession& session) {
  ASSIGN_OR_RETURN(const NumericFamily* family, AsNumeric(session));
  v1::MemoryReport report;
  for (const optim::TensorSpec& spec : family->layout()->specs()) {
    v1::TensorMemory* tensor = report.add_tensors();
    tensor->set_name(spec.name);
    tensor->set_parameter_bytes(spec.bytes());
  }
  report.set_parameter_bytes(family->layout()->total_bytes());
  report.set_gradient_bytes(family->layout()->total_bytes());
  family->DescribeMemory(&report);
  return report;
}

absl::Status StoreInitial(Context& context, const v1::CreateSessionRequest& request, const Layout& layout,
                          v1::Session* session, store::VersionRow* version0) {
  session->set_has_values(false);
  if (request.initial().empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(auto flat, FlatFromTensors(layout, request.initial(), "initial"));
  session->set_has_values(true);
  if (request.validate_only()) return absl::OkStatus();
  ASSIGN_OR_RETURN(version0->blob, context.blobs->Put(flat->bytes()));
  return absl::OkStatus();
}

absl::Status AttachInitial(Context& context, LiveSession& session, const std::string& sha256, Effects* effects) {
  if (session.row.version_count > 1)
    return FailedPrecondition("session ", session.name().Full(), " has made ", session.row.version_count - 1,
                              " steps; initial parameters can be pushed before the first one only");
  WaitForStore(*context.store);
  ASSIGN_OR_RETURN(store::VersionRow row, context.store->GetVersion(session.row.uid, 0));
  row.blob = sha256;
  effects->mutations.push_back(store::UpdateVersion{std::move(row)});
  session.proto.set_has_values(true);
  ++session.row.etag;
  return absl::OkStatus();
}

void WaitForStore(store::Store& store) {
  std::mutex mutex;
  std::condition_variable ready;
  bool done = false;
  store.Barrier([&](absl::Status) {
    std::lock_guard lock(mutex);
    done = true;
    ready.notify_all();
  });
  std::unique_lock lock(mutex);
  ready.wait(lock, [&] { return done; });
}

}  // namespace optod::engine
