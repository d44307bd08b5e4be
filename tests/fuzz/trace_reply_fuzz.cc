// libFuzzer target of everything that reads a model's reply: JSON in both readings, tags, rewritten variables, choices,
// experts, JSON Schema, source and signature checks. Run: trace_reply_fuzz -max_len=4096
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "trace/optimizers/constraint_check.h"
#include "trace/optimizers/json_schema.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/multi.h"
#include "trace/optimizers/optoprime_v2.h"
#include "trace/optimizers/python_syntax.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply.h"
#include "trace/optimizers/textgrad.h"

namespace {

using namespace optod::trace;

const std::vector<ReplyParameter>& Parameters() {
  static const std::vector<ReplyParameter> parameters = [] {
    std::vector<ReplyParameter> all;
    for (const char* type : {"int", "float", "str", "bool", "list", "dict", "tuple", "set", "code", "other"}) {
      ReplyParameter p;
      p.py_name = std::string(type) + "0";
      p.name = std::string(type) + ":0";
      p.type_name = type;
      p.is_code = p.type_name == "code";
      p.text = p.is_code ? "def f(): pass" : "1";
      p.constraint.max_length = 100;
      all.push_back(p);
    }
    return all;
  }();
  return parameters;
}

void Check(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const int form : {0, 1, 2}) {
    const ReplyOutcome outcome =
        form == 2 ? ParseTaggedReply(text, Parameters()) : ParseReply(text, Parameters(), {.peer_compat = form == 1});
    bool applied = false;
    for (const KeyResult& key : outcome.keys) {
      applied = applied || key.outcome == KeyOutcome::kApplied;
      // What we call JSON must parse as JSON.
      if (key.new_json) Check(ParseJson(*key.new_json).has_value());
    }
    Check(applied == (outcome.kind == ReplyKind::kApplied));
  }
  for (const bool lenient : {false, true}) {
    if (const auto value = ParseJson(text, {.lenient = lenient})) {
      // Our own text is stable: what we write reads back as the same value.
      const auto json = ToJson(*value);
      if (json) Check(ToJson(*ParseJson(*json)) == json);
    }
  }
  if (ValidateJsonSchema(text).ok()) {
    for (const char* value : {"1", "\"a\"", "[1,[2]]", "{\"a\":{\"b\":null}}"})
      (void)CheckJsonSchema(text, *ParseJson(value));
  }
  (void)CheckPythonSource(text);
  (void)CheckSignature("def f(x, y=1)", text);
  (void)ImprovedVariable(text);
  if (const auto choice = ReadChoice(text, 3)) Check(*choice >= 1 && *choice <= 3);
  Check(ReadExperts(text, 5).size() <= 5);
  return 0;
}
