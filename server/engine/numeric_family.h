#pragma once
/// What first-order and zeroth-order sessions have in common for the calls that carry tensors
/// (services/tensor_streams.h). All methods run on the session's strand.

#include <memory>
#include <string>
#include <vector>

#include "optim/rules/tensor.h"
#include "server/engine/engine.h"
#include "server/engine/layout.h"
#include "server/engine/state_file.h"

namespace optod::engine {

class NumericFamily : public Family {
 public:
  explicit NumericFamily(const v1::TensorIndex& index) : layout_(std::make_shared<Layout>(index)) {}
  const std::shared_ptr<const Layout>& layout() const { return layout_; }
  /// Values of all tensors, flat, stored already as blob `sha256`. FAILED_PRECONDITION once a step has been made or
  /// when there are values already that differ.
  virtual absl::Status SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values, const std::string& sha256,
                                  Effects* effects) = 0;
  /// Parameters of a version; the buffer is shared and never changes. NOT_FOUND, FAILED_PRECONDITION (no values; cannot
  /// be rebuilt any more).
  virtual absl::StatusOr<std::shared_ptr<const TensorBuffer>> ParametersAt(LiveSession& session, int64_t version) = 0;
  /// Optimizer state of the head, sorted by name. FAILED_PRECONDITION without values.
  virtual absl::StatusOr<std::vector<optim::OwnedTensor>> State(LiveSession& session) = 0;
  /// What ExportState needs beside the session's own fields: values, state and counters at `version`; errors as
  /// ParametersAt.
  virtual absl::StatusOr<StateFile> Export(LiveSession& session, int64_t version) = 0;
  /// Goes on from a file's values, state and step as a new version, the child of the head; `note`: what made it. The file
  /// is of this session's optimizer and tensors. INVALID_ARGUMENT: its state does not fit (nothing changes);
  /// FAILED_PRECONDITION: no values yet, or the family cannot.
  virtual absl::Status TakeState(LiveSession& session, const StateFile& file, const std::string& note,
                                 Effects* effects) = 0;
  /// Fills in what the family knows: states, transient, resident. The tensors stand there with their names and sizes.
  virtual void DescribeMemory(v1::MemoryReport* report) const = 0;

 protected:
  std::shared_ptr<const Layout> layout_;
};

/// The numeric half of a session. FAILED_PRECONDITION for trace sessions.
absl::StatusOr<NumericFamily*> AsNumeric(LiveSession& session);

/// The report behind SessionService.DescribeMemory. FAILED_PRECONDITION for trace sessions.
absl::StatusOr<v1::MemoryReport> MemoryOf(LiveSession& session);

// ---- used by both families

/// CreateSessionRequest.initial as flat values stored in the blob store (unless only validated): fills version0->blob
/// and has_values.
absl::Status StoreInitial(Context& context, const v1::CreateSessionRequest& request, const Layout& layout,
                          v1::Session* session, store::VersionRow* version0);
/// The mutations of SetInitial: version 0 gets its blob.
absl::Status AttachInitial(Context& context, LiveSession& session, const std::string& sha256, Effects* effects);
/// Blocks until everything queued in the store is decided. Never on a gRPC thread.
void WaitForStore(store::Store& store);
/// Unary answers carry at most this much in tensors.
inline constexpr uint64_t kUnaryTensorBytes = 4u << 20;

}  // namespace optod::engine
