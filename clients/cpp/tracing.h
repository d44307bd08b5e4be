#pragma once
/// Tracing for C++ programs: values become nodes, operators and bundled functions record what was done, and a language
/// model proposes better parameters from the feedback on the result.
///
///   ASSIGN_OR_RETURN(auto tracer, Tracer::Create(*client, {.optimizer = "optoprime"}));
///   auto rate = tracer->Parameter(0.5, "rate", {.description = "share that is kept", .min = 0, .max = 1});
///   auto keep = tracer->Bundle("keep", "how many of n items are kept", {"n", "rate"}, [](int64_t n, double r) { return
///   int64_t(n * r); }); auto kept = keep(tracer->Constant<int64_t>(40), rate); RETURN_IF_ERROR(tracer->Backward(kept,
///   "should be 30")); ASSIGN_OR_RETURN(auto step, tracer->Step());           // rate.value() is the new value now
///
/// Types: bool, integers, float, double, std::string, and std::vector of these. A node is a cheap handle; a parameter's
/// handles share its value. Errors. Recording never fails at the call: nodes go to the server in batches, and the first
/// error of a batch is returned by the next Flush, Backward or Step. A function that throws std::exception or returns a
/// failed StatusOr makes an exception node: ok() is false, error() is its text, and a call that gets a failed node is
/// not made but hands it on, so that the feedback can be given to it. A Tracer and its nodes are for one thread.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/cpp/client.h"
#include "clients/cpp/trace_recorder.h"

namespace optod::client {

class Tracer;

// ---- how values are shown

/// As Python's repr() writes it: shortest text that reads back, `1.0`, `1e-05`, `nan`.
std::string FloatText(double value);
/// A JSON string with quotes.
std::string JsonText(const std::string& value);

template <typename T, typename = void>
struct Shown;  // of a type that can stand in a node

template <>
struct Shown<bool> {
  static std::string Type() { return "bool"; }
  static std::string Text(bool v) { return v ? "True" : "False"; }
  static std::string Json(bool v) { return v ? "true" : "false"; }
  static std::optional<bool> From(const v1::Value& v) { return v.has_flag() ? std::optional(v.flag()) : std::nullopt; }
};
template <typename T>
struct Shown<T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>>> {
  static std::string Type() { return "int"; }
  static std::string Text(T v) { return std::to_string(v); }
  static std::string Json(T v) { return std::to_string(v); }
  static std::optional<T> From(const v1::Value& v) {
    return v.has_integer() ? std::optional(static_cast<T>(v.integer())) : std::nullopt;
  }
};
template <typename T>
struct Shown<T, std::enable_if_t<std::is_floating_point_v<T>>> {
  static std::string Type() { return "float"; }
  static std::string Text(T v) { return FloatText(v); }
  static std::string Json(T v) { return v - v == 0 ? FloatText(v) : std::string(); }  // nan and inf have none
  static std::optional<T> From(const v1::Value& v) {
    return v.has_number() ? std::optional(static_cast<T>(v.number())) : std::nullopt;
  }
};
template <>
struct Shown<std::string> {
  static std::string Type() { return "str"; }
  static std::string Text(const std::string& v) { return v; }
  static std::string Json(const std::string& v) { return JsonText(v); }
  static std::optional<std::string> From(const v1::Value& v) {
    return v.has_text() ? std::optional(v.text()) : std::nullopt;
  }
};
/// Lists are inputs and results; they are no parameters.
template <typename T>
struct Shown<std::vector<T>> {
  static std::string Type() { return "list"; }
  static std::string Text(const std::vector<T>& v) {
    std::string out = "[";
    for (size_t i = 0; i < v.size(); ++i)
      out += (i ? ", " : "") + (std::is_same_v<T, std::string> ? Shown<T>::Json(v[i]) : Shown<T>::Text(v[i]));
    return out + "]";
  }
  static std::string Json(const std::vector<T>& v) {
    std::string out = "[";
    for (size_t i = 0; i < v.size(); ++i) {
      const std::string item = Shown<T>::Json(v[i]);
      if (item.empty()) return {};
      out += (i ? "," : "") + item;
    }
    return out + "]";
  }
};

// ---- nodes

/// A recorded value.
template <typename T>
class Node {
 public:
  const T& value() const { return *value_; }
  /// False: the operation that should have made it failed; value() is T().
  bool ok() const { return error_ == nullptr; }
  const std::string& error() const {
    static const std::string none;
    return error_ ? *error_ : none;
  }
  Tracer& tracer() const { return *tracer_; }
  TraceRecorder::Ref ref() const { return ref_; }

 private:
  friend class Tracer;
  Tracer* tracer_ = nullptr;
  TraceRecorder::Ref ref_;
  std::shared_ptr<T> value_ = std::make_shared<T>();
  std::shared_ptr<const std::string> error_;
};

template <typename T>
struct IsNode : std::false_type {};
template <typename T>
struct IsNode<Node<T>> : std::true_type {};

/// What the model is told about a parameter and what is enforced (protos: ParameterSpec).
struct ParameterOptions {
  std::string description{};           ///< told
  std::string constraint{};            ///< told
  std::optional<double> min{}, max{};  ///< enforced
  std::vector<std::string> choices{};  ///< enforced
  std::string pattern{};               ///< enforced
  int64_t max_length = 0;              ///< enforced; 0 = 1,000,000
};

struct TracerOptions {
  std::string optimizer = "optoprime";
  std::map<std::string, v1::HyperValue> hyperparameters{};
  std::string objective{};  ///< what the model is asked to do; "" = the optimizer's own sentence
  std::string llm{};        ///< the server's endpoint; "" = default
  uint64_t seed = 0;
  std::string session_id{};  ///< "" = the server picks one
};

/// What a step did.
struct TraceStep {
  v1::ProposeResponse response;
  bool changed = false;  ///< the parameters have new values
};

class Tracer {
 public:
  /// A new session on the server.
  static absl::StatusOr<std::unique_ptr<Tracer>> Create(Client& client, const TracerOptions& options);
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  const std::string& session() const { return session_; }
  Client& client() { return client_; }
  /// The first error of recording; sticky.
  const absl::Status& status() const { return status_; }

  template <typename T>
  Node<T> Constant(T value, const std::string& name = "") {
    v1::Node node = Describe(Shown<T>::Type(), Shown<T>::Text(value), Shown<T>::Json(value));
    node.set_base(name);
    node.set_kind(v1::Node::NODE);
    return Finish<T>(std::move(value), std::move(node), {});
  }
  Node<std::string> Constant(const char* value, const std::string& name = "") {
    return Constant(std::string(value), name);
  }

  /// A value that the optimizer may change. `name`: [A-Za-z_][A-Za-z0-9_]*.
  template <typename T>
  Node<T> Parameter(T value, const std::string& name, const ParameterOptions& options = {}) {
    v1::Node node = Describe(Shown<T>::Type(), Shown<T>::Text(value), Shown<T>::Json(value));
    node.set_base(name);
    auto slot = std::make_shared<T>(std::move(value));
    Node<T> out;
    out.tracer_ = this;
    out.value_ = slot;
    out.ref_ = RecordParameter(std::move(node), options, [slot](const v1::Value& v) {
      auto read = Shown<T>::From(v);
      if (read) *slot = *std::move(read);
      return read.has_value();
    });
    return out;
  }
  Node<std::string> Parameter(const char* value, const std::string& name, const ParameterOptions& options = {}) {
    return Parameter(std::string(value), name, options);
  }

  /// `function` as a recorded operation. `arguments` names its inputs, one each. Calls take nodes or plain values
  /// (which become constants) and give Node<R>; R or absl::StatusOr<R> is what the function returns.
  template <typename F>
  auto Bundle(const std::string& name, const std::string& description, std::vector<std::string> arguments, F function) {
    return
        [this, name, description, arguments = std::move(arguments), function = std::move(function)](auto&&... inputs) {
          return Call(name, description, arguments, function, Lift(std::forward<decltype(inputs)>(inputs))...);
        };
  }

  /// One operation on nodes. What operators and bundles come to.
  template <typename F, typename... Ts>
  auto Call(const std::string& name, const std::string& description, const std::vector<std::string>& arguments,
            const F& function, const Node<Ts>&... inputs) {
    using Raw = std::invoke_result_t<const F&, const Ts&...>;
    using R = typename Unwrapped<Raw>::type;
    std::optional<Node<R>> failed;
    (HandOn<R>(inputs, &failed), ...);
    if (failed) return *std::move(failed);
    std::vector<std::pair<std::string, TraceRecorder::Ref>> refs;
    size_t i = 0;
    ((refs.emplace_back(i < arguments.size() ? arguments[i] : "args_" + std::to_string(i), inputs.ref()), ++i), ...);
    absl::StatusOr<R> result = Run<R>(function, inputs.value()...);
    v1::Node node =
        result.ok()
            ? Describe(Shown<R>::Type(), Shown<R>::Text(*result), Shown<R>::Json(*result))
            : Describe("str", "(" + ErrorName(result.status()) + ") " + std::string(result.status().message()), "");
    node.set_base((result.ok() ? "" : "exception_") + name);
    node.set_kind(result.ok() ? v1::Node::MESSAGE : v1::Node::EXCEPTION);
    node.set_op(name);
    node.set_function(name);
    node.set_description(description);
    const std::string text = node.text();
    Node<R> out = Finish<R>(result.ok() ? *std::move(result) : R(), std::move(node), refs);
    if (!result.ok()) out.error_ = std::make_shared<const std::string>(text);
    return out;
  }

  // ---- learning

  /// Sends what is pending.
  absl::Status Flush();
  /// Feedback on a node, in words; `score` counts for the current version.
  template <typename T>
  absl::Status Backward(const Node<T>& output, const std::string& feedback,
                        std::optional<double> score = std::nullopt) {
    return BackwardRef(output.ref(), feedback, score);
  }
  absl::Status ZeroFeedback();
  /// Asks the model for new values and sets them. `candidates` 0 = the optimizer's own number.
  absl::StatusOr<TraceStep> Step(int candidates = 0);
  /// Takes the values of a version (a rollback on the server included).
  absl::Status GoTo(int64_t version);

 private:
  template <typename T>
  struct Unwrapped {
    using type = std::decay_t<T>;
  };
  template <typename T>
  struct Unwrapped<absl::StatusOr<T>> {
    using type = T;
  };
  struct ParameterSlot {
    std::string key;  // as versions name it
    std::function<bool(const v1::Value&)> set;
  };

  Tracer(Client& client, std::string session)
      : client_(client), session_(session), recorder_(client, std::move(session)) {}

  static v1::Node Describe(std::string type, std::string text, std::string json);
  static std::string ErrorName(const absl::Status& status);
  TraceRecorder::Ref Record(v1::Node node, const std::vector<std::pair<std::string, TraceRecorder::Ref>>& inputs);
  TraceRecorder::Ref RecordParameter(v1::Node node, const ParameterOptions& options,
                                     std::function<bool(const v1::Value&)> set);
  absl::Status BackwardRef(TraceRecorder::Ref output, const std::string& feedback, std::optional<double> score);
  absl::Status Load(int64_t version);

  template <typename T>
  Node<T> Finish(T value, v1::Node node, const std::vector<std::pair<std::string, TraceRecorder::Ref>>& inputs) {
    Node<T> out;
    out.tracer_ = this;
    *out.value_ = std::move(value);
    out.ref_ = Record(std::move(node), inputs);
    return out;
  }
  template <typename T>
  auto Lift(T&& input) {
    using D = std::decay_t<T>;
    if constexpr (IsNode<D>::value) {
      return std::forward<T>(input);
    } else if constexpr (std::is_convertible_v<D, std::string> && !std::is_arithmetic_v<D>) {
      return Constant(std::string(std::forward<T>(input)));
    } else {
      return Constant(D(std::forward<T>(input)));
    }
  }
  template <typename R, typename T>
  void HandOn(const Node<T>& input, std::optional<Node<R>>* failed) {
    if (input.ok() || *failed) return;
    Node<R> out;
    out.tracer_ = this;
    out.ref_ = input.ref_;
    out.error_ = input.error_;
    *failed = std::move(out);
  }
  template <typename R, typename F, typename... Ts>
  static absl::StatusOr<R> Run(const F& function, const Ts&... values) {
    try {
      return function(values...);
    } catch (const std::exception& error) {
      return absl::UnknownError(error.what());
    }
  }

  Client& client_;
  const std::string session_;
  TraceRecorder recorder_;
  absl::Status status_;
  std::vector<ParameterSlot> parameters_;
};

// ---- operators: a node with a node, or with a plain value on either side

namespace tracing_internal {
template <typename T, typename F>
auto Binary(const char* name, const Node<T>& a, const Node<T>& b, const F& f) {
  static const std::vector<std::string> names = {"x", "y"};
  return a.tracer().Call(name, "", names, f, a, b);
}
template <typename T>
using Plain = std::common_type_t<T>;  // not deduced
}  // namespace tracing_internal

#define OPTOD_TRACED(symbol, name)                                                                  \
  template <typename T>                                                                             \
  auto operator symbol(const Node<T>& a, const Node<T>& b) {                                        \
    return tracing_internal::Binary(                                                                \
        std::is_same_v<T, std::string> && std::string_view(#symbol) == "+" ? "concat" : name, a, b, \
        [](const T& x, const T& y) { return x symbol y; });                                         \
  }                                                                                                 \
  template <typename T>                                                                             \
  auto operator symbol(const Node<T>& a, const tracing_internal::Plain<T>& b) {                     \
    return a symbol a.tracer().template Constant<T>(b);                                             \
  }                                                                                                 \
  template <typename T>                                                                             \
  auto operator symbol(const tracing_internal::Plain<T>& a, const Node<T>& b) {                     \
    return b.tracer().template Constant<T>(a) symbol b;                                             \
  }
OPTOD_TRACED(+, "add")
OPTOD_TRACED(-, "subtract")
OPTOD_TRACED(*, "multiply")
OPTOD_TRACED(/, "divide")  // integers: C++ division, towards zero; by 0: an exception node for integers
OPTOD_TRACED(<, "lt")
OPTOD_TRACED(<=, "le")
OPTOD_TRACED(>, "gt")
OPTOD_TRACED(>=, "ge")
OPTOD_TRACED(==, "eq")
OPTOD_TRACED(!=, "ne")
#undef OPTOD_TRACED

template <typename T>
Node<T> operator-(const Node<T>& a) {
  static const std::vector<std::string> names = {"x"};
  return a.tracer().Call(
      "neg", "", names, [](const T& x) { return static_cast<T>(-x); }, a);
}

/// Each "{}" of the template is replaced by the next argument's text.
template <typename... Ts>
Node<std::string> Format(const Node<std::string>& pattern, const Node<Ts>&... inputs) {
  std::vector<std::string> names = {"x"};
  for (size_t i = 0; i < sizeof...(Ts); ++i) names.push_back("args_" + std::to_string(i));
  return pattern.tracer().Call(
      "format", "", names,
      [](const std::string& text, const Ts&... values) {
        std::string out = text;
        size_t at = 0;
        for (const std::string& value : {Shown<Ts>::Text(values)...}) {
          at = out.find("{}", at);
          if (at == std::string::npos) break;
          out.replace(at, 2, value);
          at += value.size();
        }
        return out;
      },
      pattern, inputs...);
}

}  // namespace optod::client
