#include <array>
#include <functional>
#include <mutex>
#include <unordered_set>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"
#include "server/store/blob_names.h"
#include "server/store/blob_store.h"

namespace optod::store {
namespace {

class FileBlobStore final : public BlobStore {
 public:
  FileBlobStore(Fs& fs, std::string directory, Clock& clock)
      : fs_(fs), directory_(std::move(directory)), clock_(clock) {}

  absl::StatusOr<std::unique_ptr<BlobWriter>> Begin() override {
    PutRunning running(*this);
    const std::string folder = directory_ + "/incoming";
    RETURN_IF_ERROR(fs_.CreateDirectories(folder));
    ASSIGN_OR_RETURN(std::unique_ptr<StagedFile> file, fs_.Stage(folder));
    return std::make_unique<Writer>(*this, std::move(file));
  }

  absl::StatusOr<std::string> Put(std::span<const std::byte> data) override {
    // The name comes first: it says whether there is anything to write. The bytes are then written from where they are,
    // never copied.
    std::string name = Sha256Hex(data);
    PutRunning running(*this);
    RETURN_IF_ERROR(WriteIfAbsent(name, static_cast<int64_t>(data.size()),
                                  [&](const std::string& path) { return fs_.WriteFileAtomic(path, data); }));
    return name;
  }

  absl::StatusOr<std::string> Get(const std::string& name) override {
    if (!IsBlobName(name)) return InvalidArgument("blob name: must be 64 lower-case hex digits");
    auto data = fs_.ReadFile(PathOf(name));
    if (absl::IsNotFound(data.status())) return NotFound("blob ", name, " does not exist");
    RETURN_IF_ERROR(data.status());
    if (Sha256Hex(std::as_bytes(std::span(*data))) != name)
      return DataLoss("blob ", name, ": its bytes have changed; restore it from a backup");
    return data;
  }

  absl::StatusOr<int64_t> Size(const std::string& name) override {
    if (!IsBlobName(name)) return InvalidArgument("blob name: must be 64 lower-case hex digits");
    auto size = fs_.FileSize(PathOf(name));
    if (absl::IsNotFound(size.status())) return NotFound("blob ", name, " does not exist");
    return size;
  }

  bool Has(const std::string& name) override { return IsBlobName(name) && fs_.Exists(PathOf(name)); }

  absl::StatusOr<int64_t> Sweep(const std::vector<std::string>& live, int64_t min_age_ms,
                                int64_t now_unix_ms) override {
    const std::unordered_set<std::string> marked(live.begin(), live.end());
    {
      std::lock_guard lock(mutex_);
      recent_.Forget(now_unix_ms - min_age_ms);
    }
    int64_t freed = 0;
    RETURN_IF_ERROR(ForEachFile([&](const std::string& path, const std::string& name) -> absl::Status {
      if (marked.contains(name)) return absl::OkStatus();
      std::lock_guard lock(mutex_);  // a file at a time: puts wait for one removal at most
      const bool blob = IsBlobName(name);
      if (blob ? recent_.Has(name) : puts_running_ > 0) return absl::OkStatus();
      const int64_t size = fs_.FileSize(path).value_or(0);
      RETURN_IF_ERROR(fs_.Remove(path));
      freed += size;
      if (blob && bytes_ >= 0) bytes_ -= size;
      return absl::OkStatus();
    }));
    return freed;
  }

  int64_t BytesStored() override {
    std::lock_guard lock(mutex_);
    if (bytes_ < 0 && landing_ == 0) {  // counted once, when first asked: a start must not walk the tree
      int64_t bytes = 0;
      const absl::Status status = ForEachFile([&](const std::string& path, const std::string& name) {
        if (IsBlobName(name)) bytes += fs_.FileSize(path).value_or(0);
        return absl::OkStatus();
      });
      if (status.ok()) bytes_ = bytes;
    }
    return bytes_ < 0 ? 0 : bytes_;
  }

 private:
  std::string FolderOf(const std::string& name) const { return directory_ + "/" + name.substr(0, 2); }
  std::string PathOf(const std::string& name) const { return FolderOf(name) + "/" + name; }

  /// While one lives, Sweep leaves files alone that have no blob's name.
  class PutRunning {
   public:
    explicit PutRunning(FileBlobStore& store) : store_(store) { Add(1); }
    ~PutRunning() { Add(-1); }
    PutRunning(const PutRunning&) = delete;
    PutRunning& operator=(const PutRunning&) = delete;

   private:
    void Add(int n) {
      std::lock_guard lock(store_.mutex_);
      store_.puts_running_ += n;
    }
    FileBlobStore& store_;
  };

  /// Hashes and writes what comes; the name is known at the end.
  class Writer final : public BlobWriter {
   public:
    Writer(FileBlobStore& store, std::unique_ptr<StagedFile> file)
        : store_(store), running_(store), file_(std::move(file)) {}
    absl::Status Append(std::span<const std::byte> data) override {
      hasher_.Update(data);
      size_ += static_cast<int64_t>(data.size());
      return file_->Append(data);
    }
    absl::StatusOr<std::string> Finish() override {
      std::string name = hasher_.FinishHex();
      RETURN_IF_ERROR(
          store_.WriteIfAbsent(name, size_, [this](const std::string& path) { return file_->Commit(path); }));
      return name;
    }

   private:
    FileBlobStore& store_;
    PutRunning running_;
    std::unique_ptr<StagedFile> file_;
    Sha256 hasher_;
    int64_t size_ = 0;
  };

  /// Calls `write(path)` unless the blob is there already.
  absl::Status WriteIfAbsent(const std::string& name, int64_t size,
                             const std::function<absl::Status(const std::string& path)>& write) {
    {
      std::lock_guard lock(mutex_);
      recent_.Mark(name, clock_.NowUnixMs());  // before looking: from here on Sweep keeps it
      ++landing_;
    }
    const absl::StatusOr<bool> wrote = WriteLocked(name, size, write);
    std::lock_guard lock(mutex_);
    --landing_;
    if (wrote.ok() && *wrote && bytes_ >= 0) bytes_ += size;
    return wrote.status();
  }

  /// Whether it wrote.
  absl::StatusOr<bool> WriteLocked(const std::string& name, int64_t size,
                                   const std::function<absl::Status(const std::string& path)>& write) {
    std::lock_guard lock(
        writing_[std::hash<std::string>()(name) % writing_.size()]);  // the same blob twice at a time: written once
    const std::string path = PathOf(name);
    const auto there = fs_.FileSize(path);
    if (there.ok() && *there == size) return false;
    RETURN_IF_ERROR(fs_.CreateDirectories(FolderOf(name)));
    RETURN_IF_ERROR(write(path));
    return true;
  }

  absl::Status ForEachFile(const std::function<absl::Status(const std::string& path, const std::string& name)>& visit) {
    if (!fs_.Exists(directory_)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::vector<std::string> folders, fs_.ListDirectory(directory_));
    for (const std::string& folder : folders) {
      auto names = fs_.ListDirectory(directory_ + "/" + folder);
      if (!names.ok()) continue;  // not a folder: none of ours
      for (const std::string& name : *names) RETURN_IF_ERROR(visit(directory_ + "/" + folder + "/" + name, name));
    }
    return absl::OkStatus();
  }

  Fs& fs_;
  const std::string directory_;
  Clock& clock_;
  std::array<std::mutex, 64> writing_;
  std::mutex mutex_;  ///< guards the rest; may be taken while one of writing_ is held, never the other way round
  RecentPuts recent_;
  int puts_running_ = 0;  ///< temporaries that are no leftovers
  int landing_ = 0;       ///< puts whose file may be in place and is not counted yet
  int64_t bytes_ = -1;  ///< -1 = not counted yet
};

}  // namespace

std::unique_ptr<BlobStore> MakeFileBlobStore(Fs& fs, std::string directory, Clock& clock) {
  return std::make_unique<FileBlobStore>(fs, std::move(directory), clock);
}

}  // namespace optod::store
