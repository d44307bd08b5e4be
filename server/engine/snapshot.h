#pragma once
/// What a first-order session needs to go on from a version, as one blob: parameters and optimizer state as a
/// safetensors file.
///
///   tensors "params/<name>" in layout order from offset 0, then "state/<name>" (tensor_file.h)
///   __metadata__ {"format": "optod-snapshot", "version", "step"}
///
/// Version 0 of a session that was given parameters has the flat parameter buffer alone as its blob (so that its hash
/// is that of what was pushed): exactly total_bytes long, which a snapshot never is. Pure functions.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"
#include "server/engine/layout.h"
#include "server/engine/tensor_buffer.h"
#include "server/engine/tensor_file.h"

namespace optod::engine {

/// `flat` holds layout.total_bytes(). RESOURCE_EXHAUSTED when there is no memory for the file.
absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeSnapshot(const Layout& layout, const std::byte* flat,
                                                             const std::vector<optim::OwnedTensor>& state,
                                                             int64_t version, int64_t step);

/// The same tensors with other metadata.
absl::StatusOr<std::shared_ptr<TensorBuffer>> EncodeTensors(const Layout& layout, const std::byte* flat,
                                                            const std::vector<optim::OwnedTensor>& state,
                                                            const TensorMetadata& metadata);

struct Snapshot {
  std::shared_ptr<TensorBuffer> params;
  std::vector<optim::OwnedTensor> state;  ///< sorted by name; empty for a flat buffer
  bool has_state = false;
};
/// Reads either form. DATA_LOSS when the bytes are neither.
absl::StatusOr<Snapshot> DecodeSnapshot(const Layout& layout, const std::string& blob);

}  // namespace optod::engine
