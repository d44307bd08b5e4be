#pragma once
/// The files behind the parameters: their values at the start, copies of the folder with other values written in, and
/// the way back into the original files. Pure apart from the file system; one object may be used by several threads.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cli/optimize/optimize_file.h"

namespace optod::cli {

/// Text of every parameter by name: the whole file, the function's source, or the value's text.
using Values = std::map<std::string, std::string>;

struct TreeLimits {
  int64_t max_bytes = int64_t{256} << 20;
  int64_t max_files = 50'000;
};

/// One file that a set of values changes, relative to the folder.
struct FileChange {
  std::string path;
  std::string before, after;
};

class CandidateTree {
 public:
  /// Reads the files that the parameters name. `folder`: of the YAML file; `file_name`: the YAML file inside it, whose
  /// text is `file_text`. Errors name the parameter: NOT_FOUND (no such file or function), INVALID_ARGUMENT (ambiguous
  /// function, not UTF-8, larger than 1 MiB).
  static absl::StatusOr<CandidateTree> Open(const std::string& folder, const std::string& file_name,
                                            const std::string& file_text, const OptimizeFile& file,
                                            TreeLimits limits = {});

  const Values& start() const { return start_; }
  const std::string& folder() const { return folder_; }

  /// The files that `values` changes, sorted by path. Values of kind kValue change nothing here unless `with_inline`,
  /// which rewrites the scalar in the YAML file. INVALID_ARGUMENT: a value that cannot be written (a text that does not
  /// define the function, ...), naming the parameter.
  absl::StatusOr<std::vector<FileChange>> Changes(const Values& values, bool with_inline) const;

  /// Names of kValue parameters that differ from the start and have no single line in the YAML file to be written to.
  std::vector<std::string> NotWritable(const Values& values) const;

  /// Copies the folder to `target` (which must not exist) with `values` written in. Left out: .git and what
  /// `evaluate.exclude` names. Symbolic links stay links; sockets and devices are left out. RESOURCE_EXHAUSTED: larger
  /// than the limits, naming the largest entries.
  absl::Status Materialise(const Values& values, const std::string& target) const;

  /// Writes the changes into the folder itself, each file atomically and with its mode kept. FAILED_PRECONDITION when a
  /// file is no longer as it was read.
  absl::Status WriteBack(const Values& values) const;

 private:
  CandidateTree() = default;
  bool Excluded(const std::string& relative) const;

  std::string folder_, file_name_, file_text_;
  std::vector<ParameterEntry> parameters_;
  std::vector<std::string> exclude_;
  std::map<std::string, std::string> files_;  // by path: as read
  Values start_;
  TreeLimits limits_;
};

/// Shell pattern with * and ? (neither matches '/').
bool MatchesPattern(const std::string& pattern, const std::string& text);

}  // namespace optod::cli
