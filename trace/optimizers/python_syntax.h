#pragma once
/// A light check of Python source: tokens, brackets, indentation, block headers and word order, without a grammar. It
/// refuses prose and cut or unbalanced code, and lets pass what it cannot judge. Pure functions, linear in the text.

#include <string>
#include <string_view>
#include <vector>

namespace optod::trace {

/// Empty when `source` may be a Python module, else the reason with its line: `line 3: '(' is never closed`.
std::string CheckPythonSource(std::string_view source);

/// Tokens of the source as they are written, without comments and line ends, up to the first error.
std::vector<std::string_view> PythonTokens(std::string_view source);

/// Name after the first `def` that is a token of its own; empty: none.
std::string FirstFunctionName(std::string_view source);
/// Whether some `def` of the source defines `name`.
bool DefinesFunction(std::string_view source, std::string_view name);

}  // namespace optod::trace
