#pragma once
/// Asks the machine's own Python whether a text is Python source: `ast.parse` in a child process without environment,
/// site packages or more than 1 GiB of memory and 10 s of time. The text is parsed, never run. Thread-safe.

#include <string>
#include <string_view>

namespace optod::engine {

/// Empty when it parses (or when this machine has no python3: then only the light check of trace/optimizers stands);
/// else the reason with its line.
std::string CheckWithPython(std::string_view source);

}  // namespace optod::engine
