#pragma once
/// One-line descriptions of the built-in operators, shown where the client sent none. Stateless.

#include <string_view>

namespace optod::trace {

/// What the operator does with its arguments; empty: not a built-in.
std::string_view BuiltinOpText(std::string_view op);

}  // namespace optod::trace
