#pragma once
/// The rows behind registry.h, with the factories that the public table does not show. Internal to optim/rules.

#include <vector>

#include "optim/rules/factories.h"
#include "optim/rules/registry.h"

namespace optod::optim {

struct Row {
  RuleInfo info;
  RuleFactory factory = nullptr;  ///< first-order rows only
};

/// All rows of one family, in any order.
std::vector<Row> FirstOrderRows();
std::vector<Row> ZerothOrderRows();
std::vector<Row> TraceRows();

/// Hyperparameters in short: ranges of the kinds that occur.
HyperInfo Positive(const char* name, double value, const char* doc);     ///< (0, inf)
HyperInfo NonNegative(const char* name, double value, const char* doc);  ///< [0, inf)
HyperInfo Fraction(const char* name, double value, const char* doc);     ///< [0, 1)
HyperInfo Range(const char* name, double value, double min, double max, const char* doc);
HyperInfo Int(const char* name, int64_t value, int64_t min, int64_t max, const char* doc);
HyperInfo Flag(const char* name, bool value, const char* doc);
HyperInfo Choice(const char* name, const char* value, std::vector<std::string> choices, const char* doc);
HyperInfo Text(const char* name, const char* value, const char* doc);

}  // namespace optod::optim
