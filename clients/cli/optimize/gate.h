#pragma once
/// What a run is judged by. Pure functions.

#include <optional>
#include <string>

#include "clients/cli/optimize/optimize_file.h"

namespace optod::cli {

/// Whether score `a` is strictly better than `b`.
inline bool IsBetter(bool maximize, double a, double b) { return maximize ? a > b : a < b; }

struct GateResult {
  bool passed = false;
  std::string reason;  ///< one line for people: "best 0.95 >= 0.9, gain 0.2 >= 0"
};

/// Passed when there is a best score, it reaches min_score (from the side that the direction says), and it is at least
/// min_gain better than the start. A start without a score counts as infinitely bad. Without a gate a best score is
/// enough.
GateResult JudgeGate(const GateSection& gate, bool maximize, std::optional<double> start, std::optional<double> best);

/// Shortest text that reads back as the same double: 0.1, 12, 1e-09.
std::string NumberText(double value);

}  // namespace optod::cli
