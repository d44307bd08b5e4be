// Bytes as a workflow file, a data set, an expression, the answer of a sandbox, and a stream of
// a model: every input must end in a value or an error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "trace/llm/chat_stream.h"
#include "trace/workflow/python_call.h"
#include "trace/workflow/workflow.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace optod::trace;
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)ParseWorkflowText(text, "f.yaml", {"a", "b"});
  (void)ParseRows(text, "f.jsonl");
  if (const auto expression = Expression::Parse(text); expression.ok())
    (void)expression->Evaluate([](const std::string&) -> const std::string* {
      static const std::string value = "{\"x\":[1]}";
      return &value;
    });
  (void)ReadPythonResult(text);
  ChatStream stream;
  (void)stream.Feed(text.substr(0, size / 2));
  (void)stream.Feed(text.substr(size / 2));
  (void)stream.Finish("f", {});
  return 0;
}
