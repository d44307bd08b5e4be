#pragma once
/// Finds one function in the source of a Python file and replaces it, byte for byte exact everywhere else. Pure
/// functions.
///
/// The scanner knows logical lines: strings of every kind (also triple-quoted, raw, bytes, f), comments, brackets,
/// continued lines; and blocks by indentation. A function reaches from its first decorator to its last statement. It
/// does not run or import anything.
///
/// Its text is its source with the indentation of its `def` taken away (not inside strings that span lines) and without
/// the last line end.

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::cli {

struct FunctionPlace {
  std::string qualified_name;  ///< "solve", "Solver.solve", "outer.inner"
  size_t begin = 0, end = 0;   ///< bytes of the source, whole lines, without the last line's end
  int line = 0;                ///< 1-based line of `def`
  std::string indent;          ///< white space before `def`
};

/// All functions (def and async def), in order. INVALID_ARGUMENT: the file cannot be read as Python (unclosed string or
/// bracket).
absl::StatusOr<std::vector<FunctionPlace>> ListFunctions(const std::string& source);

/// The function `name`: a qualified name first (`solve` is the module's own), else the only function whose last part is
/// `name`. NOT_FOUND (with the nearest name), INVALID_ARGUMENT when there are several (with their lines).
absl::StatusOr<FunctionPlace> FindFunction(const std::string& source, const std::string& name);

/// Text of the function.
absl::StatusOr<std::string> GetFunction(const std::string& source, const std::string& name);

/// `source` with the function's text replaced. The replacement must define the function at its outermost level (more
/// statements before or after it are allowed: imports, helpers). INVALID_ARGUMENT otherwise. Line ends follow the
/// file's.
absl::StatusOr<std::string> ReplaceFunction(const std::string& source, const std::string& name,
                                            const std::string& text);

}  // namespace optod::cli
