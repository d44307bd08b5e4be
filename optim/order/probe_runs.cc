#include "optim/order/probe_runs.h"

#include <algorithm>
#include <chrono>

#include "base/status.h"
#include "optim/order/orders.h"

namespace optod::order {
namespace {

constexpr uint32_t kStream = 0x70726f62;  // "prob"

/// One run: trained position by position, its terms written a file at a time.
class Probe {
 public:
  Probe(const Model& model, const Trajectory& trajectory, const StudyOptions& options, std::span<const double> lr,
        const Order& order, const TermStore& terms)
      : model_(model), trajectory_(trajectory), order_(order), terms_(terms), run_(model, options.optimizer, lr) {}

  absl::Status Start() { return run_.Start(); }

  /// Trains on to position t and gives what is stored there.
  absl::Status Produce(int t, std::span<std::vector<double>> records) {
    while (run_.position() < t) RETURN_IF_ERROR(run_.Step(order_[run_.position()]));
    std::vector<double>& change = records[kChange];
    const std::vector<double> theta = trajectory_.Row(t);
    std::copy(run_.parameters().begin(), run_.parameters().end(), records[kDeviation].begin());
    for (size_t i = 0; i < theta.size(); ++i) records[kDeviation][i] -= theta[i];
    if (t == trajectory_.positions()) {
      std::fill(change.begin(), change.end(), 0.0);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(AtReference(t, theta, change));
    RETURN_IF_ERROR(run_.Step(order_[t]));
    for (size_t i = 0; i < change.size(); ++i) change[i] = run_.gradient()[i] - change[i];
    return absl::OkStatus();
  }

 private:
  absl::Status AtReference(int t, const std::vector<double>& theta, std::vector<double>& out) const {
    if (terms_.layout().codec.lossless()) return terms_.Read(kGradient, t, order_[t], 0, out);
    return model_.Gradient(Batch(order_[t]), theta, out).status();
  }

  const Model& model_;
  const Trajectory& trajectory_;
  const Order& order_;
  const TermStore& terms_;
  Training run_;
};

}  // namespace

std::vector<Order> ProbeOrders(int runs, int batches, int epochs, uint64_t seed) {
  CounterRandom random(seed, kStream);
  std::vector<Order> orders;
  Order base, places;
  for (int k = 0; k < runs; ++k) {
    if (k % batches == 0) base = random.Permutation(batches), places = random.Permutation(batches);
    const int together = std::min(batches, runs - k / batches * batches);  // runs that share this base
    const auto shift = static_cast<int>(int64_t{k % batches} * batches / together);
    Order& order = orders.emplace_back();
    for (int p = 0; p < epochs * batches; ++p) order.push_back(base[(places[p % batches] + shift) % batches]);
  }
  return orders;
}

TermLayout ProbeLayout(const TermLayout& terms, int runs) {
  TermLayout layout = terms;
  layout.batches = runs;
  layout.positions = terms.positions + 1;
  layout.records = 2;
  if (!layout.codec.lossless() && layout.codec.storage != Storage::kBf16) layout.codec.storage = Storage::kFp16;
  return layout;
}

absl::Status FillProbeRuns(const Model& model, const Trajectory& trajectory, const StudyOptions& options,
                           std::span<const double> lr, std::span<const Order> orders, const TermStore& terms,
                           TermStore& store, const Control& control) {
  const auto begin = std::chrono::steady_clock::now();
  const int files = store.layout().segments_of_batch();
  const int64_t total = static_cast<int64_t>(orders.size()) * store.layout().positions;
  std::mutex mutex;
  int64_t done = 0;
  for (int index = 0; index < store.layout().segments(); ++index) {
    if (store.Filled(index)) done += store.segment(index).count;
  }
  const auto tell = [&] {
    const std::lock_guard lock(mutex);
    ++done;
    if (!control.progress) return;
    control.progress(done, total, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  };
  return ParallelFor(
      std::min(ThreadCount(options.threads), model.concurrency()), static_cast<int64_t>(orders.size()),
      [&](int64_t k) -> absl::Status {
        Probe probe(model, trajectory, options, lr, orders[k], terms);
        bool started = false;
        for (int index = static_cast<int>(k) * files; index < static_cast<int>(k + 1) * files; ++index) {
          if (store.Filled(index)) continue;
          if (!started) RETURN_IF_ERROR(probe.Start());
          started = true;
          RETURN_IF_ERROR(store.Write(index, [&](int t, std::span<std::vector<double>> records) -> absl::Status {
            if (control.stop.stop_requested()) return absl::CancelledError("stopped on request");
            const absl::Status status = probe.Produce(t, records);
            if (!status.ok())
              return absl::Status(status.code(), Cat("probe run ", k, ": ", std::string(status.message())));
            tell();
            return absl::OkStatus();
          }));
        }
        return absl::OkStatus();
      },
      control.stop);
}

}  // namespace optod::order
