#pragma once
/// What the server and the model are told about an evaluation. Pure functions of the run (no time, no path), so that a
/// recorded conversation replays. All texts are valid UTF-8.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clients/cli/optimize/evaluator.h"
#include "optod/v1/trace.pb.h"

namespace optod::cli {

/// Score and direction, or why it failed; then the ends of the outputs.
std::string FeedbackText(const Evaluation& evaluation, bool maximize);

/// The run of the command as a node of the trace: inputs are the parameters, the value is the score and the end of the
/// output; an exception node when it failed. `nodes`: id of each parameter's node.
v1::Node EvaluationNode(const OptimizeFile& file, const std::map<std::string, int64_t>& nodes,
                        const Evaluation& evaluation);

/// Candidates that were tried from the present best and are no better: the last few are told to the model, so that it
/// does not propose them again.
class Tried {
 public:
  /// `best`: values of the present best; equal values are not remembered.
  void Add(const Values& values, const Values& best, const Evaluation& evaluation);
  void Clear() { lines_.clear(); }
  /// "" when there is none.
  std::string Text() const;

 private:
  std::vector<std::string> lines_;
};

}  // namespace optod::cli
