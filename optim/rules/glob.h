#pragma once
/// Names chosen by patterns, as hyperparameters write them: "*embed*,*lm_head*". Pure.

#include <string>
#include <string_view>

namespace optod::optim {

/// `*` stands for any run of characters, `?` for one; everything else for itself.
bool GlobMatch(std::string_view pattern, std::string_view name);
/// Whether any of the comma-separated patterns matches; an empty list matches nothing.
bool MatchesAny(std::string_view patterns, std::string_view name);

}  // namespace optod::optim
