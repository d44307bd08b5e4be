// Bytes as the file of `optoctl optimize` and as a Python source: every input must end in a value or an error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/optimize/python_function.h"
#include "clients/cli/optimize/score.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)optod::cli::ParseOptimizeFile(text, "f.yaml");
  (void)optod::cli::ExtractScore({optod::cli::ScoreRule::Kind::kJson, "a.b"}, text, 0);
  const auto functions = optod::cli::ListFunctions(text);
  if (!functions.ok() || functions->empty()) return 0;
  const auto& name = functions->front().qualified_name;
  if (const auto function = optod::cli::GetFunction(text, name); function.ok())
    (void)optod::cli::ReplaceFunction(text, name, *function);
  return 0;
}
