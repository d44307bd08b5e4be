#include "golden_replay/trace_compare.h"

#include <cctype>
#include <set>

#include "trace/optimizers/reply.h"

namespace optod {
namespace {

using nlohmann::json;

struct FixRow {
  std::string_view fix, reason;
};

// Every departure that a reply may take from the recorded results, and why.
constexpr FixRow kFixes[] = {
    {trace::kFixThink, "private reasoning is no part of the answer; braces or TERMINATE in it mean nothing"},
    {trace::kFixScan, "objects are found by balanced braces, so prose with braces and several objects do no harm"},
    {trace::kFixLenientJson, "a raw line break or trailing comma does not hide a clear suggestion"},
    {trace::kFixBool, "the text False is false; other words are refused instead of being true"},
    {trace::kFixContainer,
     "text is not split into characters, an object not into its keys: a list must come as a list"},
    {trace::kFixPlainText, "text parameters are not source: prose with the letters def in it is accepted as it is"},
    {trace::kFixNull, "null is no value: it is refused instead of becoming the text None, or false, or an exception"},
    {trace::kFixTyped, "a value of the wrong kind is a typed failure of its key, not an exception of the whole step"},
    {trace::kFixKeyColon, "a key may be written with the node's name, base:index"},
    {trace::kFixCodeRule, "source must parse and define the same function; a fence around it is taken off"},
    {trace::kFixConstraint, "declared constraints are enforced"},
    {trace::kFixTerminateValue, "a value may hold the word TERMINATE when the current one does"},
};

std::string Difference(const std::string& what, const json& got, const json& want) {
  return what + ": got " + got.dump() + ", want " + want.dump();
}

std::string CompareNodes(const json& golden, const json& observed) {
  const json& want = golden.at("nodes");
  const json& got = observed.at("nodes");
  if (got.size() != want.size()) return Difference("number of nodes", got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    for (const char* field : {"name", "py_name", "level"}) {
      if (got[i].at(field) != want[i].at(field)) {
        return Difference("nodes[" + std::to_string(i) + "]." + field, got[i].at(field), want[i].at(field));
      }
    }
  }
  return {};
}

// Sorted by (level, name): the order that the file uses.
std::string CompareSubgraph(const json& golden, const json& observed) {
  std::set<json> got(observed.at("subgraph").begin(), observed.at("subgraph").end());
  std::set<json> want(golden.at("subgraph").begin(), golden.at("subgraph").end());
  for (const json& node : want) {
    if (!got.contains(node)) return "subgraph: " + node.dump() + " is missing";
  }
  for (const json& node : got) {
    if (!want.contains(node)) return "subgraph: " + node.dump() + " is too many";
  }
  return {};
}

// The file lists every parameter that feedback reached; the server reports those of the optimizer.
std::string CompareReached(const json& golden, const json& observed) {
  const std::set<json> own(golden.at("optimizer_parameters").begin(), golden.at("optimizer_parameters").end());
  std::set<json> want;
  for (const json& name : golden.at("parameters_with_feedback")) {
    if (own.contains(name)) want.insert(name);
  }
  const std::set<json> got(observed.at("parameters_with_feedback").begin(),
                           observed.at("parameters_with_feedback").end());
  return got == want ? std::string() : Difference("parameters_with_feedback", json(got), json(want));
}

std::string CompareDocumentation(const json& golden, const json& observed) {
  const json& want = golden.at("documented_functions");
  const json& got = observed.at("documented_functions");
  for (const auto& [function, text] : want.items()) {
    if (!got.contains(function)) return "documented_functions: " + function + " is missing";
    if (!text.is_null() && got.at(function) != text) {
      return Difference("documented_functions." + function, got.at(function), text);
    }
  }
  for (const auto& [function, text] : got.items()) {
    if (!want.contains(function)) return "documented_functions: " + function + " is too many";
  }
  return {};
}

// Parameters that act only inside traceable bodies: the file leaves them out of the variables, the server lists and
// marks them.
std::set<std::string> HiddenOf(const json& golden) {
  std::set<std::string> hidden, own;
  for (const json& name : golden.at("optimizer_parameters")) own.insert(name.get<std::string>());
  std::map<std::string, std::string> py_names;
  for (const json& node : golden.at("nodes")) py_names[node.at("name")] = node.at("py_name");
  for (const json& node : golden.at("nodes")) {
    for (const json& name : node.value("hidden_parameters", json::array())) {
      if (own.contains(name)) hidden.insert(py_names[name]);
    }
  }
  return hidden;
}

std::string CompareValues(const json& golden, const json& observed, const char* section) {
  const json& want = golden.at(section);
  const json& got = observed.at(section);
  const std::set<std::string> hidden = HiddenOf(golden);
  for (const auto& [name, value] : want.items()) {
    const std::string path = std::string(section) + "." + name;
    if (!got.contains(name)) return path + " is missing";
    for (const char* field : {"type", "text", "constraint"}) {
      if (value.contains(field) && got.at(name).at(field) != value.at(field)) {
        return Difference(path + "." + field, got.at(name).at(field), value.at(field));
      }
    }
  }
  for (const auto& [name, value] : got.items()) {
    const bool documented = value.value("hidden", false) && hidden.contains(name);
    if (!want.contains(name) && !documented) return std::string(section) + "." + name + " is too many";
  }
  return {};
}

bool SameValue(const json& got, const json& want) {
  if (got.value("type", "") != want.value("type", "")) return false;
  const std::string a = got.value("text", ""), b = want.value("text", "");
  // What holds `def` went through a source formatter when it was recorded.
  if (b.find("def") != std::string::npos) return SameUpToLayout(a, b);
  return a == b && (!want.contains("json") || got.value("json", json()) == want.at("json"));
}

std::string CompareUpdated(const json& want, const json& got) {
  for (const auto& [name, value] : want.items()) {
    if (!got.contains(name)) return "updated." + name + " is missing, want " + value.dump();
    if (!SameValue(got.at(name), value)) return Difference("updated." + name, got.at(name), value);
  }
  for (const auto& [name, value] : got.items()) {
    if (!want.contains(name)) return Difference("updated." + name, value, nullptr);
  }
  return {};
}

}  // namespace

std::string ReasonOfFix(const std::string& fix) {
  for (const FixRow& row : kFixes) {
    if (row.fix == fix) return std::string(row.reason);
  }
  return {};
}

bool SameUpToLayout(const std::string& a, const std::string& b) {
  auto normal = [](const std::string& text) {
    std::string out;
    for (char c : text) {
      if (std::isspace(static_cast<unsigned char>(c))) continue;
      const bool closes = c == ')' || c == ']' || c == '}';
      if (closes && !out.empty() && out.back() == ',') out.pop_back();
      out += c == '\'' ? '"' : c;
    }
    return out;
  };
  return normal(a) == normal(b);
}

std::string CompareWorkflow(const json& golden, const json& observed) {
  std::string difference;
  auto run = [&](const char* member, auto compare) {
    if (difference.empty() && observed.contains(member)) difference = compare(golden, observed);
  };
  run("nodes", CompareNodes);
  run("subgraph", CompareSubgraph);
  run("parameters_with_feedback", CompareReached);
  run("code_lines", [](const json& want, const json& got) {
    if (got.at("code_lines") == want.at("code_lines")) return std::string();
    return Difference("code_lines", got.at("code_lines"), want.at("code_lines"));
  });
  run("documented_functions", CompareDocumentation);
  for (const char* section : {"variables", "inputs", "others", "outputs"}) {
    run(section, [&](const json& want, const json& got) { return CompareValues(want, got, section); });
  }
  return difference;
}

std::string CompareReply(const json& golden, const json& observed, bool reference_mode) {
  const bool raises = golden.contains("raises") && !golden.at("raises").is_null();
  const json want = golden.value("updated", json::object());
  const json& got = observed.at("updated");
  if (reference_mode) {
    const json raised = observed.value("raises", json());
    if (raises) {
      return raised == golden.at("raises") ? std::string() : Difference("raises", raised, golden.at("raises"));
    }
    if (!raised.is_null()) return Difference("raises", raised, nullptr);
    if (std::string difference = CompareUpdated(want, got); !difference.empty()) return difference;
    const json warnings = observed.value("warnings", json(0));
    if (golden.contains("warnings") && warnings != golden.at("warnings")) {
      return Difference("warnings", warnings, golden.at("warnings"));
    }
    if (golden.contains("no_update") && golden.at("no_update") != got.empty()) {
      return Difference("no_update", got.empty(), golden.at("no_update"));
    }
    return {};
  }
  std::string difference = CompareUpdated(raises ? json::object() : want, got);
  if (difference.empty()) return difference;
  for (const json& fix : observed.value("fixes", json::array())) {
    if (!ReasonOfFix(fix).empty()) return {};
  }
  return difference;
}

json ReplyCaseOf(const json& workflow) {
  json out = {{"updated", json::object()}};
  const json& reply_case = workflow.at("reply_case");
  out["reply"] = reply_case.at("reply");
  for (const auto& [name, after] : reply_case.at("values_after").items()) {
    if (reply_case.at("values_before").at(name).at("text") != after.at("text")) out["updated"][name] = after;
  }
  return out;
}

}  // namespace optod
