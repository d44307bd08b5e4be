// Files of a sample-order study: any options text, study.txt, reference.bin and term file is refused or opened, and
// what is opened answers without leaving its buffers. The first byte chooses the file; study.txt gets its checksum put
// right, so that what lies behind it is reached; files are replaced, or patched at places that the input names.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "base/crc32c.h"
#include "base/status.h"
#include "optim/order/builtin_models.h"
#include "optim/order/study.h"

namespace {

using namespace optod;
using namespace optod::order;

/// Files by path.
class MapFs final : public Fs {
 public:
  std::map<std::string, std::string> files;

  absl::StatusOr<std::string> ReadFile(const std::string& path) override {
    const auto found = files.find(path);
    if (found == files.end()) return NotFound("no such file");
    return found->second;
  }
  absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int) override {
    files[path].assign(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  }
  absl::Status CreateDirectories(const std::string&, int) override { return absl::OkStatus(); }
  absl::Status Remove(const std::string& path) override {
    files.erase(path);
    return absl::OkStatus();
  }
  bool Exists(const std::string& path) override { return files.contains(path); }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    return static_cast<int64_t>(text.size());
  }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string&) override {
    return std::vector<std::string>();
  }
};

void Check(bool holds) {
  if (!holds) std::abort();
}

const std::map<std::string, std::string>& Whole() {
  static const auto* files = [] {
    auto fs = std::make_unique<MapFs>();
    auto model = MakeLogistic(*MakeSynthetic({.features = 3, .batches = 2, .rows = 2, .evaluation_rows = 2}));
    auto options = ParseStudyOptions("optimizer=adam\nlr=0.1\nthreads=1\nsegment_bytes=1\nstorage=fp16");
    auto study = Study::Create(*fs, "s", *options, *model);
    Check(study.ok() && (*study)->Precompute().ok());
    return new std::map<std::string, std::string>(fs->files);
  }();
  return *files;
}

void Options(const std::string& text) {
  const auto options = ParseStudyOptions(text);
  if (!options.ok()) return;
  const auto again = ParseStudyOptions(ToText(*options));
  Check(again.ok() && ToText(*again) == ToText(*options));
}

void Open(MapFs& fs) {
  auto study = Study::Open(fs, "s", nullptr);
  if (!study.ok() || (*study)->parameters() > 4096 || (*study)->positions() > 64) return;
  (void)(*study)->PredictCost();
  if (!(*study)->recorded()) return;
  (void)(*study)->terms().DecodeErrors();
  const Order order = (*study)->base_order();
  (void)(*study)->Estimate(std::span(&order, 1));
  (void)(*study)->Trust();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  MapFs fs;
  fs.files = Whole();
  const char* const names[] = {"s/reference.bin", "s/terms-00000-00000.bin", "s/terms-00001-00001.bin"};
  const auto name = [&](int at) {
    return data[0] / 8 % 4 == 3 ? std::string("s/runs/terms-00001-00001.bin") : std::string(names[at]);
  };
  switch (data[0] % 8) {
    case 0:
      Options(text);
      return 0;
    case 1: {
      const std::string body = "optod-order-study 1\n" + text + "\n";
      fs.files["s/study.txt"] = Cat(body, "@checksum=", Crc32c(body), "\n");
      break;
    }
    case 2:
      fs.files["s/study.txt"] = text;
      break;
    case 3:
    case 4:
      fs.files[name(data[0] % 8 - 3)] = text;
      break;
    default: {
      std::string& file = fs.files[name(data[0] % 8 - 5)];
      for (size_t i = 0; i + 2 < text.size(); i += 3) {
        const size_t at = (static_cast<uint8_t>(text[i]) << 8 | static_cast<uint8_t>(text[i + 1])) % file.size();
        file[at] = static_cast<char>(file[at] ^ text[i + 2]);
      }
    }
  }
  Open(fs);
  return 0;
}
