#pragma once
/// Training over a given order of batches, and the record of it: parameters before every position and after the last.
/// The arithmetic of a step is double, by the kernels that estimates use; the parameters are rounded to the model's
/// precision after every step.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optim/order/model.h"
#include "optim/order/options.h"
#include "optim/order/parallel.h"

namespace optod::order {

/// theta_0 .. theta_P of n parameters, held in the model's precision. Immutable once filled: any number of readers.
class Trajectory {
 public:
  Trajectory() = default;
  Trajectory(size_t n, int positions, Precision precision);

  size_t n() const { return n_; }
  int positions() const { return positions_; }
  Precision precision() const { return precision_; }
  /// Parameters [begin, begin + out.size()) before position t, 0 <= t <= P.
  void Read(int t, size_t begin, std::span<double> out) const;
  std::vector<double> Row(int t) const;
  void SetRow(int t, std::span<const double> theta);

  /// The file: a header, the raw numbers, a CRC-32C of all. DATA_LOSS when what is read is not what was written.
  absl::Status Save(Fs& fs, const std::string& path) const;
  static absl::StatusOr<Trajectory> Load(Fs& fs, const std::string& path, size_t n, int positions, Precision precision);
  uint32_t Checksum() const;

 private:
  size_t n_ = 0;
  int positions_ = 0;
  Precision precision_ = Precision::kFloat64;
  std::vector<float> narrow_;
  std::vector<double> wide_;
};

/// A training run, step by step. The model and lr must outlive it.
class Training {
 public:
  Training(const Model& model, const Optimizer& optimizer, std::span<const double> lr)
      : model_(model),
        optimizer_(optimizer),
        lr_(lr),
        theta_(model.size()),
        gradient_(model.size()),
        m_(model.size()),
        v_(model.size()),
        direction_(model.size()) {}

  /// To Initial(), in the model's precision.
  absl::Status Start();
  /// One step on a batch; position() < lr.size(). FAILED_PRECONDITION when its loss or gradient is not finite.
  absl::Status Step(int batch);

  int position() const { return position_; }  ///< steps made
  const std::vector<double>& parameters() const { return theta_; }
  const std::vector<double>& gradient() const { return gradient_; }  ///< of the last step, before it
  double loss() const { return loss_; }                              ///< likewise

 private:
  const Model& model_;
  const Optimizer optimizer_;
  const std::span<const double> lr_;
  std::vector<double> theta_, gradient_, m_, v_, direction_;
  double loss_ = 0.0;
  int position_ = 0;
};

/// A training run's outcome. losses[t]: of the batch of position t before its step.
struct TrainingRun {
  std::vector<double> parameters;  // [n], final
  std::vector<double> losses;      // [P]
};

/// Trains from Initial() over order (expanded: one batch a position; lr of the same length). Fills `trajectory` when
/// given. Progress in steps. FAILED_PRECONDITION when a loss or a gradient is not finite, naming position and batch.
absl::StatusOr<TrainingRun> Train(const Model& model, const Optimizer& optimizer, std::span<const double> lr,
                                  std::span<const int> order, const Control& control = {},
                                  Trajectory* trajectory = nullptr);

}  // namespace optod::order
