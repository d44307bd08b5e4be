#pragma once
// Rows and folders for the tests of the store.

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <utility>

#include "server/store/store.h"

namespace optod::store {

/// A fresh folder, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    static std::atomic<int> count{0};
    path_ = std::filesystem::temp_directory_path() /
            ("optod_store_" + std::to_string(getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string File(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

template <typename... Mutations>
Batch BatchOf(Mutations... mutations) {
  Batch batch;
  (batch.mutations.push_back(std::move(mutations)), ...);
  return batch;
}

inline SessionRow MakeSession(int64_t uid, const std::string& user, const std::string& id) {
  SessionRow row;
  row.uid = uid;
  row.user = user;
  row.id = id;
  row.state = 1;
  row.spec = "spec of " + id;
  row.mutable_fields = std::string("fields\0with zero", 16);
  row.create_ms = 1000 + uid;
  return row;
}

inline VersionRow MakeVersion(int64_t uid, int64_t number, const std::string& blob = "") {
  VersionRow row;
  row.session_uid = uid;
  row.number = number;
  row.parent = number - 1;
  row.step = number;
  row.payload = "payload " + std::to_string(number);
  row.blob = blob;
  row.create_ms = 5000 + number;
  return row;
}

inline RequestRow MakeRequest(const std::string& user, const std::string& method, const std::string& id,
                              int64_t create_ms = 1) {
  RequestRow row;
  row.user = user;
  row.method = method;
  row.request_id = id;
  row.request_sha256 = std::string(32, '\1');
  row.response = "answer to " + id;
  row.create_ms = create_ms;
  return row;
}

inline EventRow MakeEvent(const std::string& user, const std::string& resource) {
  EventRow row;
  row.user = user;
  row.type = "test";
  row.resource = resource;
  row.detail_json = "{}";
  row.time_ms = 7;
  return row;
}

}  // namespace optod::store
