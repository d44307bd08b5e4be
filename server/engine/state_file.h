#pragma once
/// StateFile of session.proto: a numeric session at one version as a safetensors file, out and in again.
///
///   SessionService.ExportState ─► ExportState ─► EncodeStateFile         ImportState ◄─ DecodeStateFile ◄─ bytes from outside
///                                                     │ NumericFamily::Export, AdoptState
///
/// What the families add is in first_order_replay.cc and zeroth_order_replay.cc.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/engine/engine.h"
#include "server/engine/layout.h"
#include "server/engine/tensor_buffer.h"

namespace optod::engine {

struct StateFile {
  v1::OptimizerSpec optimizer;
  v1::TensorIndex layout;
  std::shared_ptr<const TensorBuffer> params;  ///< flat, in the order of `layout`
  std::vector<optim::OwnedTensor> state;       ///< sorted by name
  int64_t step = 0;       ///< VersionRow::step
  int64_t rule_step = 0;  ///< Version::rule_step
  uint32_t first_direction = 0, next_direction = 1;  ///< of Session, for a session that starts here
  std::string session;  ///< where it comes from
  int64_t version = 0;
};

/// RESOURCE_EXHAUSTED when there is no memory for the file.
absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeStateFile(const StateFile& file);
/// Accepts any bytes. INVALID_ARGUMENT naming the key or the tensor: not of this format, layout and tensors differ
/// (missing, extra, shape, dtype), counters out of range. The optimizer's own rules are not checked here.
absl::StatusOr<StateFile> DecodeStateFile(std::span<const std::byte> bytes);
/// INVALID_ARGUMENT naming the first tensor and element that is NaN or Inf.
absl::Status CheckFinite(const StateFile& file);

/// A session at a version (absent = the head). FAILED_PRECONDITION: trace session, no values, cannot be rebuilt.
void ExportState(Engine& engine, const Caller& caller, const v1::ExportStateRequest& request, Done<StateFile> done);
/// Makes a session of a file, or has header.session go on from it; `sha256` is the file's, in hex. Errors:
/// SessionService.ImportState. Work is done on the engine's pool.
void ImportState(Engine& engine, const Caller& caller, v1::ImportStateHeader header, std::shared_ptr<TensorBuffer> file,
                 std::string sha256, Done<v1::Session> done);

/// What version 0 of an imported session is stored with; `blob` is a snapshot (snapshot.h).
struct Adopted {
  std::string blob;
  v1::Version initial;
};
/// Checks the state against the optimizer and stores it. The optimizer has passed CheckOptimizer. INVALID_ARGUMENT
/// naming the tensor.
absl::StatusOr<Adopted> AdoptFirstOrder(Context& context, const StateFile& file);
absl::StatusOr<Adopted> AdoptZerothOrder(Context& context, const StateFile& file);

}  // namespace optod::engine
