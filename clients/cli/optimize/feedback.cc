#include "clients/cli/optimize/feedback.h"

#include <algorithm>

#include "base/status.h"
#include "clients/cli/optimize/gate.h"

namespace optod::cli {
namespace {

constexpr size_t kShownOutput = 300;  // bytes of the output in the node
constexpr size_t kShownValue = 200;   // bytes of a rejected value
constexpr size_t kMaxTried = 3;

bool IsInsideCharacter(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

std::string Head(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && IsInsideCharacter(text[bytes])) --bytes;
  return text.substr(0, bytes) + "...";
}

std::string Tail(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t at = text.size() - bytes;
  while (at < text.size() && IsInsideCharacter(text[at])) ++at;
  return "..." + text.substr(at);
}

}  // namespace

std::string FeedbackText(const Evaluation& evaluation, bool maximize) {
  std::string text;
  if (evaluation.score)
    text = Cat("Score: ", NumberText(*evaluation.score), maximize ? " (higher is better).\n" : " (lower is better).\n");
  else
    text = Cat("The evaluation failed: ", evaluation.failure, ".\n");
  const auto add = [&](const char* title, const std::string& output) {
    if (!output.empty()) text += Cat(title, "\n", output, output.back() == '\n' ? "" : "\n");
  };
  add("Output:", evaluation.out);
  add("Error output:", evaluation.err);
  return text;
}

v1::Node EvaluationNode(const OptimizeFile& file, const std::map<std::string, int64_t>& nodes,
                        const Evaluation& evaluation) {
  v1::Node node;
  node.set_kind(evaluation.score ? v1::Node::MESSAGE : v1::Node::EXCEPTION);
  node.set_op("evaluate");
  node.set_base("evaluate");
  node.set_description(Cat("Runs ", file.workflow ? "the workflow" : "`" + file.evaluate.command + "`", " with the parameters and measures the score."));
  for (const ParameterEntry& entry : file.parameters) {
    v1::NodeInput& input = *node.add_inputs();
    input.set_argument(entry.name);
    input.set_node(nodes.at(entry.name));
  }
  node.set_type("str");
  node.set_text(evaluation.score
                    ? Cat("score = ", NumberText(*evaluation.score), "\n", Tail(evaluation.out, kShownOutput))
                    : Cat("failed: ", evaluation.failure, "\n", Tail(evaluation.err, kShownOutput)));
  return node;
}

void Tried::Add(const Values& values, const Values& best, const Evaluation& evaluation) {
  std::string line = "-";
  for (const auto& [name, value] : values)
    if (value != best.at(name)) line += Cat(" ", name, " = ", Head(value, kShownValue));
  if (line == "-") return;
  line += evaluation.score ? Cat(" (score ", NumberText(*evaluation.score), ")")
                           : Cat(" (failed: ", evaluation.failure, ")");
  if (std::find(lines_.begin(), lines_.end(), line) != lines_.end()) return;
  lines_.push_back(line);
  if (lines_.size() > kMaxTried) lines_.erase(lines_.begin());
}

std::string Tried::Text() const {
  std::string text = lines_.empty() ? "" : "Tried from here and not better:\n";
  for (const std::string& line : lines_) text += line + "\n";
  return text;
}

}  // namespace optod::cli
