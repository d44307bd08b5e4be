#pragma once
/// What a run shows while it goes on: JSON events (one a line), one updating line on a terminal, or nothing. For one
/// thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace optod::cli {

struct ProgressEvent {
  /// "session", "evaluating", "evaluation", "proposing", "proposal", "step", "note".
  std::string kind;
  std::string session;  ///< "session"
  int step = 0;         ///< 0 = the start
  int64_t steps = 0;    ///< budget
  int candidate = 0;
  std::optional<int64_t> version;
  std::optional<double> score, best;
  std::string outcome;  ///< "proposal": applied, unchanged, stop, unparsable, empty, failed
  std::string text;     ///< failure, reason or note
  bool cached = false;
  int64_t tokens = 0;  ///< so far
  double seconds = 0;  ///< since the start of the run
};

class Progress {
 public:
  virtual ~Progress() = default;
  virtual void Show(const ProgressEvent& event) = 0;
  /// Clears an unfinished line.
  virtual void Done() {}
};

enum class ProgressStyle { kQuiet, kTerminal, kJson };
/// kJson writes to stdout, kTerminal to stderr.
std::unique_ptr<Progress> MakeProgress(ProgressStyle style);

/// One line for people, without a line end.
std::string ProgressLine(const ProgressEvent& event);
/// One JSON object.
std::string ProgressJson(const ProgressEvent& event);

}  // namespace optod::cli
