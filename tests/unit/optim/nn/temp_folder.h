#pragma once
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace optod::nn {

/// A folder that goes with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "optod-nn-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& text) const { std::ofstream(path_ + "/" + name, std::ios::binary) << text; }

 private:
  std::string path_;
};

}  // namespace optod::nn
