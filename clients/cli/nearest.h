#pragma once
/// "did you mean": the name of a list that is nearest to a misspelt one. Pure functions.

#include <string>
#include <vector>

namespace optod::cli {

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment distance), in bytes.
size_t EditDistance(const std::string& a, const std::string& b);

/// `; did you mean X?` for the nearest of `known` (at most a third of the letters wrong), else `; known: a, b, c` (at
/// most 20), else "".
std::string DidYouMean(const std::string& name, const std::vector<std::string>& known);

}  // namespace optod::cli
