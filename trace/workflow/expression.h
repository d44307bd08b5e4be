#pragma once
/// Values with holes: any JSON whose texts may hold `{{name}}` or `{{name.field.0}}`. A text that is one hole and
/// nothing else becomes the value itself; elsewhere the value's text is put in (a text as it is, anything else as
/// JSON). `\{{` is a plain `{{`. Pure; thread-safe for reading.

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::trace {

class Expression {
 public:
  Expression();  ///< null
  ~Expression();
  Expression(const Expression&);
  Expression& operator=(const Expression&);
  Expression(Expression&&) noexcept;
  Expression& operator=(Expression&&) noexcept;

  /// INVALID_ARGUMENT (no position in front): `{{` without `}}`, or a hole that is no path of names. `json` must be
  /// JSON.
  static absl::StatusOr<Expression> Parse(const std::string& json);

  /// The first parts of the paths in the holes, sorted.
  const std::set<std::string>& names() const;

  /// JSON text of a name's value, or nullopt: it has none.
  using Lookup = std::function<const std::string*(const std::string& name)>;
  /// JSON text. NOT_FOUND `{{answer.label}}: has no member label`.
  absl::StatusOr<std::string> Evaluate(const Lookup& lookup) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A JSON text as people read it: a text without quotes, anything else as it is.
std::string PlainText(const std::string& json);
/// A text as JSON.
std::string JsonOfText(const std::string& text);
/// false, null, 0, "", [], {} are not.
bool IsTruthy(const std::string& json);

}  // namespace optod::trace
