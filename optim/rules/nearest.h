#pragma once
/// The nearest of a list of names, for "did you mean". Pure.

#include <span>
#include <string>
#include <vector>

namespace optod::optim {

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (Damerau-Levenshtein, optimal
/// string alignment).
int EditDistance(const std::string& a, const std::string& b);
/// The name nearest to `wrong`; ties go to the one of the same length, then to the first. "" when none is near (more
/// than half of it would change).
std::string Nearest(const std::string& wrong, std::span<const std::string> names);

}  // namespace optod::optim
