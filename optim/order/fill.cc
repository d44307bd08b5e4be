#include "optim/order/fill.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "base/status.h"
#include "optim/zo/stream.h"

namespace optod::order {
namespace {

/// The terms of one batch along consecutive positions; keeps the last few gradients and diagonals.
class Column {
 public:
  Column(const Model& model, const Trajectory& trajectory, const StudyOptions& options, double cap, int batch)
      : model_(model), trajectory_(trajectory), options_(options), cap_(cap), batch_(batch) {}

  absl::Status Produce(int t, std::span<std::vector<double>> records) {
    ASSIGN_OR_RETURN(records[kGradient], Gradient(t));
    if (records.size() > kCurvature) {
      ASSIGN_OR_RETURN(records[kCurvature], Diagonal(t));
    }
    if (records.size() > kThird) {
      ASSIGN_OR_RETURN(records[kThird], Third(t));
    }
    Forget(t);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<double>> Gradient(int t) {
    if (const auto known = gradients_.find(t); known != gradients_.end()) return known->second;
    std::vector<double> gradient(trajectory_.n());
    if (const auto loss = model_.Gradient(Batch(batch_), trajectory_.Row(t), gradient); !loss.ok()) {
      return Annotate(loss.status(), t);
    }
    return gradients_[t] = std::move(gradient);
  }

  absl::StatusOr<std::vector<double>> Diagonal(int t) {
    if (const auto known = diagonals_.find(t); known != diagonals_.end()) return known->second;
    std::vector<double> h(trajectory_.n(), 0.0);
    if (options_.curvature == Curvature::kDiag) {
      RETURN_IF_ERROR(Hutchinson(t, h));
    } else if (trajectory_.positions() > 1) {
      const int later = std::max(t, 1);
      ASSIGN_OR_RETURN(const std::vector<double> here, Gradient(later));
      ASSIGN_OR_RETURN(const std::vector<double> before, Gradient(later - 1));
      Quotient(here, before, later, h);
    }
    for (double& value : h) value = std::clamp(value, -cap_, cap_);
    return diagonals_[t] = std::move(h);
  }

  absl::StatusOr<std::vector<double>> Third(int t) {
    std::vector<double> q(trajectory_.n(), 0.0);
    if (t == 0) return q;
    ASSIGN_OR_RETURN(const std::vector<double> here, Diagonal(t));
    ASSIGN_OR_RETURN(const std::vector<double> before, Diagonal(t - 1));
    Quotient(here, before, t, q);
    return q;
  }

  /// (here - before) / (theta_t - theta_{t-1}), 0 where the parameters did not move.
  void Quotient(const std::vector<double>& here, const std::vector<double>& before, int t, std::vector<double>& out) {
    const std::vector<double> theta = trajectory_.Row(t), previous = trajectory_.Row(t - 1);
    for (size_t i = 0; i < out.size(); ++i) {
      const double moved = theta[i] - previous[i];
      out[i] = std::abs(moved) < options_.secant_guard || moved == 0.0 ? 0.0 : (here[i] - before[i]) / moved;
    }
  }

  absl::Status Hutchinson(int t, std::vector<double>& h) {
    const std::vector<double> theta = trajectory_.Row(t);
    std::vector<uint32_t> bits((h.size() + 31) / 32);
    std::vector<double> z(h.size()), product(h.size());
    for (int probe = 0; probe < options_.probes; ++probe) {
      zo::FillBits({options_.seed, 0x68757463 /* "hutc" */, static_cast<uint32_t>(probe)},
                   static_cast<uint32_t>(batch_), 0, bits);
      for (size_t i = 0; i < z.size(); ++i) z[i] = (bits[i / 32] >> (i % 32)) & 1u ? 1.0 : -1.0;
      const absl::Status status = model_.HessianVector(Batch(batch_), theta, z, product);
      if (!status.ok()) return Annotate(status, t);
      for (size_t i = 0; i < z.size(); ++i) h[i] += z[i] * product[i] / options_.probes;
    }
    return absl::OkStatus();
  }

  void Forget(int t) {
    std::erase_if(gradients_, [t](const auto& entry) { return entry.first < t - 1; });
    std::erase_if(diagonals_, [t](const auto& entry) { return entry.first < t; });
  }

  absl::Status Annotate(const absl::Status& status, int t) const {
    return absl::Status(status.code(), Cat("terms[", t, "][", batch_, "]: ", std::string(status.message())));
  }

  const Model& model_;
  const Trajectory& trajectory_;
  const StudyOptions& options_;
  const double cap_;
  const int batch_;
  std::map<int, std::vector<double>> gradients_, diagonals_;
};

}  // namespace

int RecordsOf(const StudyOptions& options) {
  if (options.curvature != Curvature::kDiag && options.curvature != Curvature::kSecant) return 1;
  return options.second_order ? 3 : 2;
}

absl::Status FillTerms(const Model& model, const Trajectory& trajectory, const StudyOptions& options, double cap,
                       TermStore& store, const Control& control) {
  const auto begin = std::chrono::steady_clock::now();
  const int64_t total = static_cast<int64_t>(store.layout().positions) * store.layout().batches;
  std::vector<int> missing;
  int64_t done = total;
  for (int index = 0; index < store.layout().segments(); ++index) {
    if (store.Filled(index)) continue;
    missing.push_back(index);
    done -= store.segment(index).count;
  }
  std::mutex mutex;
  const auto tell = [&] {
    const std::lock_guard lock(mutex);
    ++done;
    if (!control.progress) return;
    control.progress(done, total, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  };
  const int threads = std::min(ThreadCount(options.threads), model.concurrency());
  return ParallelFor(
      threads, static_cast<int64_t>(missing.size()),
      [&](int64_t item) {
        const int index = missing[item];
        Column column(model, trajectory, options, cap, store.segment(index).batch);
        return store.Write(index, [&](int t, std::span<std::vector<double>> records) -> absl::Status {
          if (control.stop.stop_requested()) return absl::CancelledError("stopped on request");
          RETURN_IF_ERROR(column.Produce(t, records));
          tell();
          return absl::OkStatus();
        });
      },
      control.stop);
}

}  // namespace optod::order
