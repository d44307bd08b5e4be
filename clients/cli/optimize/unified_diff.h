#pragma once
/// Unified diffs (as `diff -u` prints them), made here so that nothing else is needed. Pure functions.
/// The differences are a shortest edit script (Myers, "An O(ND) Difference Algorithm and Its Variations", 1986); texts
/// that are very different (more than 2,000 lines changed) become one hunk that replaces the whole middle.

#include <string>

namespace optod::cli {

/// "--- a/PATH", "+++ b/PATH", hunks with three lines of context; applies with `git apply` and `patch -p1`. "" when the
/// texts are equal. A text without a line end at its end is marked as such.
std::string UnifiedDiff(const std::string& path, const std::string& before, const std::string& after);

/// Only the hunks' lines (" ", "-", "+"), without headers: for showing a changed value to people.
std::string DiffLines(const std::string& before, const std::string& after);

}  // namespace optod::cli
