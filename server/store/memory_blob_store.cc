#include <map>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "base/sha256.h"
#include "base/status.h"
#include "server/store/blob_names.h"
#include "server/store/blob_store.h"

namespace optod::store {
namespace {

class CollectingWriter final : public BlobWriter {
 public:
  explicit CollectingWriter(BlobStore& store) : store_(store) {}
  absl::Status Append(std::span<const std::byte> data) override {
    bytes_.insert(bytes_.end(), data.begin(), data.end());
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Finish() override { return store_.Put(bytes_); }

 private:
  BlobStore& store_;
  std::vector<std::byte> bytes_;
};

class MemoryBlobStore final : public BlobStore {
 public:
  explicit MemoryBlobStore(Clock& clock) : clock_(clock) {}

  absl::StatusOr<std::string> Put(std::span<const std::byte> data) override {
    std::string name = Sha256Hex(data);
    std::lock_guard lock(mutex_);
    recent_.Mark(name, clock_.NowUnixMs());
    if (blobs_.try_emplace(name, reinterpret_cast<const char*>(data.data()), data.size()).second)
      bytes_ += static_cast<int64_t>(data.size());
    return name;
  }

  absl::StatusOr<std::string> Get(const std::string& name) override {
    if (!IsBlobName(name)) return InvalidArgument("blob name: must be 64 lower-case hex digits");
    std::lock_guard lock(mutex_);
    auto it = blobs_.find(name);
    if (it == blobs_.end()) return NotFound("blob ", name, " does not exist");
    return it->second;
  }

  absl::StatusOr<int64_t> Size(const std::string& name) override {
    if (!IsBlobName(name)) return InvalidArgument("blob name: must be 64 lower-case hex digits");
    std::lock_guard lock(mutex_);
    auto it = blobs_.find(name);
    if (it == blobs_.end()) return NotFound("blob ", name, " does not exist");
    return static_cast<int64_t>(it->second.size());
  }

  bool Has(const std::string& name) override {
    std::lock_guard lock(mutex_);
    return blobs_.contains(name);
  }

  absl::StatusOr<int64_t> Sweep(const std::vector<std::string>& live, int64_t min_age_ms,
                                int64_t now_unix_ms) override {
    const std::unordered_set<std::string> marked(live.begin(), live.end());
    std::lock_guard lock(mutex_);
    recent_.Forget(now_unix_ms - min_age_ms);
    int64_t freed = 0;
    std::erase_if(blobs_, [&](const auto& blob) {
      if (marked.contains(blob.first) || recent_.Has(blob.first)) return false;
      freed += static_cast<int64_t>(blob.second.size());
      return true;
    });
    bytes_ -= freed;
    return freed;
  }

  int64_t BytesStored() override {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  Clock& clock_;
  std::mutex mutex_;  ///< guards the rest
  std::map<std::string, std::string> blobs_;
  RecentPuts recent_;
  int64_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlobWriter>> BlobStore::Begin() { return std::make_unique<CollectingWriter>(*this); }

std::unique_ptr<BlobStore> MakeMemoryBlobStore(Clock& clock) { return std::make_unique<MemoryBlobStore>(clock); }

}  // namespace optod::store
