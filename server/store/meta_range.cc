#include "server/store/meta_range.h"

#include "base/status.h"

namespace optod::store {

absl::StatusOr<MetaEntries> ListMeta(Store& store, const std::string& first, const std::string& end) {
  auto* range = dynamic_cast<MetaRange*>(&store);
  if (range == nullptr) return Unimplemented("this store lists no meta entries");
  return range->ListMeta(first, end);
}

}  // namespace optod::store
