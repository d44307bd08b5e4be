#pragma once
/// Compares what a replay of a trace golden file observed with what the file records. Knows nothing of how the nodes
/// were replayed: the library (trace_replay.h) and a live server fill the same JSON. Pure functions.
///
/// Observed workflow: {"nodes": [{"name", "py_name", "level"}], "subgraph": [[level, name]],
/// "parameters_with_feedback": [name],
///   "code_lines": [text], "documented_functions": {function: text}, and under "variables", "inputs", "others",
///   "outputs": {py_name: {"type", "text", "constraint": text|null, "hidden": bool}}}. Absent members are not compared.
/// Observed reply: {"raises": class (reference mode only), "warnings": count of dropped values, "updated": {py_name:
/// {"type",
///   "text", "json"}}, "fixes": [name]}: "updated" holds changed parameters only.

#include <nlohmann/json.hpp>
#include <string>

namespace optod {

/// Empty, or the first difference.
std::string CompareWorkflow(const nlohmann::json& golden, const nlohmann::json& observed);

/// `golden` is a case of a reply file: "updated", "no_update", "warnings", "raises". In reference mode all must agree;
/// in default mode "updated" must, unless "fixes" names a documented departure (ReasonOfFix).
std::string CompareReply(const nlohmann::json& golden, const nlohmann::json& observed, bool reference_mode);

/// The `reply_case` of a workflow as such a case: what changed between values_before and values_after.
nlohmann::json ReplyCaseOf(const nlohmann::json& workflow);

/// Why a departure from the recorded results is right; empty: not documented.
std::string ReasonOfFix(const std::string& fix);

/// Same source text up to layout: white space, quote style, trailing commas.
bool SameUpToLayout(const std::string& a, const std::string& b);

}  // namespace optod
