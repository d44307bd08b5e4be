#include "clients/cli/optimize/gate.h"

#include <charconv>
#include <cmath>

namespace optod::cli {

std::string NumberText(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value);
  return std::string(buffer, end.ptr);
}

static double RoundTo12(double value) { return std::round(value * 1e12) / 1e12; }

GateResult JudgeGate(const GateSection& gate, bool maximize, std::optional<double> start, std::optional<double> best) {
  if (!best) return {false, "no evaluation gave a score"};
  const char* reaches = maximize ? " >= " : " <= ";
  const char* misses = maximize ? " < " : " > ";
  GateResult result{true, "best " + NumberText(*best)};
  if (gate.min_score) {
    const bool ok = !IsBetter(maximize, *gate.min_score, *best);
    result.passed = result.passed && ok;
    result.reason += (ok ? reaches : misses) + NumberText(*gate.min_score);
  }
  if (gate.min_gain && start) {
    // Twelve digits: 0.7 - 0.6 is a gain of 0.1, whatever the last bits say.
    const double gain = RoundTo12(maximize ? *best - *start : *start - *best);
    const bool ok = gain >= *gate.min_gain;
    result.passed = result.passed && ok;
    result.reason += ", gain " + NumberText(gain) + (ok ? " >= " : " < ") + NumberText(*gate.min_gain);
  }
  if (gate.min_gain && !start) result.reason += ", the start has no score";
  return result;
}

}  // namespace optod::cli
