#pragma once
/// What a training problem must answer so that the effect of its sample order can be studied: loss, gradient and
/// Hessian-vector product of a batch at any parameter vector. Parameters are one flat vector in the model's own order;
/// values cross this interface as double whatever the model computes in (a float32 model narrows and widens, which
/// costs nothing beside a backward pass).

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::order {

/// In what the model computes. It decides the rounding of the reference run (parameters are rounded to it after every
/// step) and the width of exactly stored terms (4 or 8 bytes a number).
enum class Precision { kFloat32, kFloat64 };

/// A training batch (0 .. batches() - 1) or a held-out set (0 .. evaluations() - 1).
struct DataRef {
  enum class Part { kBatch, kEvaluation };
  Part part = Part::kBatch;
  int index = 0;
};
inline DataRef Batch(int index) { return {DataRef::Part::kBatch, index}; }
inline DataRef Evaluation(int index = 0) { return {DataRef::Part::kEvaluation, index}; }

/// Const methods are called from up to concurrency() threads at once. Every span has size() elements. Answers must be
/// functions of the arguments alone (no dropout that moves, no state), else estimates mean nothing. Indices are checked
/// by the callers. Errors are passed on with the batch's name before them.
class Model {
 public:
  virtual ~Model() = default;

  virtual size_t size() const = 0;  ///< n, number of parameters; >= 1
  virtual int batches() const = 0;  ///< T, distinct training batches; >= 1
  virtual int evaluations() const { return 0; }
  virtual Precision precision() const { return Precision::kFloat64; }
  virtual int concurrency() const { return 1; }  ///< most calls at the same time; >= 1
  /// Names architecture, data and start, at most some hundred bytes in one line. A stored study refuses a model that
  /// answers differently.
  virtual std::string fingerprint() const = 0;
  /// Some measure of a batch's length (tokens, say), for the short-to-long order; 0: unknown.
  virtual double length(int batch) const { return 0.0; }

  /// theta_0.
  virtual absl::Status Initial(std::span<double> theta) const = 0;
  /// Mean loss (nats; exp of it is the perplexity of a language model).
  virtual absl::StatusOr<double> Loss(DataRef data, std::span<const double> theta) const = 0;
  /// Writes the gradient of Loss and returns the loss.
  virtual absl::StatusOr<double> Gradient(DataRef data, std::span<const double> theta,
                                          std::span<double> gradient) const = 0;
  /// out = H v, H the Hessian of Loss at theta. The base version is a central difference of two gradients with step
  /// cbrt(epsilon of precision()) * (1 + |theta|_rms) / |v|_rms: relative error about 1e-9 (float64), 1e-3 (float32).
  virtual absl::Status HessianVector(DataRef data, std::span<const double> theta, std::span<const double> v,
                                     std::span<double> out) const;
};

}  // namespace optod::order
