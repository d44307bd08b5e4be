#pragma once
/// Meta entries by a range of keys: what both stores offer beside store.h, for the few who keep many small counters there.

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/store.h"

namespace optod::store {

using MetaEntries = std::vector<std::pair<std::string, std::string>>;

class MetaRange {
 public:
  virtual ~MetaRange() = default;
  /// Committed entries with first <= key < end, by key (bytes).
  virtual absl::StatusOr<MetaEntries> ListMeta(const std::string& first, const std::string& end) = 0;
};

/// Of `store`; UNIMPLEMENTED when it has none.
absl::StatusOr<MetaEntries> ListMeta(Store& store, const std::string& first, const std::string& end);

}  // namespace optod::store
