#pragma once
/// Outcome of replaying one golden file.

#include <string>
#include <vector>

namespace optod {

struct CaseResult {
  std::string name;  ///< the file's stem
  bool passed = false;
  std::string first_difference;  ///< "step 3 params.w[7]: got 0.25, want 0.5", or why it could not be replayed; empty
                                 ///< when passed
};

}  // namespace optod
