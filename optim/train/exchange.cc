#include "optim/train/exchange.h"

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <set>

#include "base/status.h"

namespace optod::train {
namespace {

constexpr uint32_t kAbsent = 0xffffffffu;
constexpr std::chrono::milliseconds kLook{20};  // how often a waiting worker asks whether it is to stop

bool Finite(const ReplayRecord& record) {
  bool finite = std::isfinite(record.loss) && (record.flags & ReplayRecord::kSkipped) == 0;
  for (double g : record.g) finite = finite && std::isfinite(g);
  return finite;
}

}  // namespace

ReplayRecord Combine(const std::vector<ReplayRecord>& by_rank, const std::string& share) {
  ReplayRecord agreed;
  bool finite = true;
  double present = 0;
  for (const ReplayRecord& own : by_rank) {
    if (own.step == kAbsent) {
      if (share == "queries") agreed.g.push_back(0);
      continue;
    }
    finite = finite && Finite(own);
    present += 1;
    agreed.step = own.step;
    agreed.lr = own.lr;
    agreed.loss += own.loss;
    if (share == "queries") {
      agreed.g.push_back(own.g.empty() ? 0 : own.g[0]);
      continue;
    }
    agreed.g.resize(own.g.size(), 0);
    for (size_t q = 0; q < own.g.size(); ++q) agreed.g[q] += own.g[q];
  }
  agreed.loss /= present;
  if (share == "examples") {
    for (double& g : agreed.g) g /= present;
  }
  if (!finite) agreed.flags |= ReplayRecord::kSkipped;
  return agreed;
}

struct ExchangeHub::State {
  ParallelSpec spec;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<ReplayRecord> agreed;
  std::set<int> present;
  std::vector<ReplayRecord> told;  // of the step under way, by rank
  bool begun = false;              // all workers have been there once

  void Clear() {
    ReplayRecord nobody;
    nobody.step = kAbsent;
    told.assign(static_cast<size_t>(spec.workers), nobody);
  }
  /// The first step: all begin together, with the longest of their logs.
  absl::Status Gather(int rank, std::span<const ReplayRecord> log, std::unique_lock<std::mutex>& lock,
                      const std::function<bool()>& stop) {
    if (log.size() > agreed.size())
      agreed.insert(agreed.end(), log.begin() + static_cast<ptrdiff_t>(agreed.size()), log.end());
    present.insert(rank);
    begun = present.size() == static_cast<size_t>(spec.workers);
    changed.notify_all();
    while (!begun) {
      if (stop && stop()) {
        present.erase(rank);
        return absl::CancelledError("stopped");
      }
      changed.wait_for(lock, kLook);
    }
    return absl::OkStatus();
  }
  /// Closes the step when everybody who takes part has told.
  void Close() {
    if (!begun || present.empty()) return;
    for (int rank : present) {
      if (told[static_cast<size_t>(rank)].step == kAbsent) return;
    }
    agreed.push_back(Combine(told, spec.share));
    Clear();
    changed.notify_all();
  }
};

class HubSeat final : public ScalarExchange {
 public:
  HubSeat(ExchangeHub::State& hub, int rank) : hub_(hub), rank_(rank) {}
  ~HubSeat() override {
    std::lock_guard lock(hub_.mutex);
    if (hub_.present.erase(rank_) > 0) hub_.Close();
  }
  int rank() const override { return rank_; }

  absl::StatusOr<bool> Join(std::span<const ReplayRecord> log, std::vector<ReplayRecord>* missed,
                            const std::function<bool()>& stop) override {
    std::unique_lock lock(hub_.mutex);
    missed->clear();
    const bool first = !hub_.begun;
    if (first) RETURN_IF_ERROR(hub_.Gather(rank_, log, lock, stop));
    const size_t step = hub_.agreed.size();
    if (log.size() > step) return absl::OutOfRangeError(Cat("exchange: ", log.size(), " steps done; the run is at ", step));
    missed->assign(hub_.agreed.begin() + static_cast<ptrdiff_t>(log.size()), hub_.agreed.end());
    if (first) return true;  // the step under way waits for it
    if (!missed->empty()) return false;
    hub_.present.insert(rank_);
    hub_.changed.notify_all();
    return true;
  }

  absl::StatusOr<ReplayRecord> Agree(const ReplayRecord& own, const std::function<bool()>& stop) override {
    std::unique_lock lock(hub_.mutex);
    if (!hub_.present.contains(rank_) || own.step != hub_.agreed.size())
      return FailedPrecondition("exchange: step ", own.step, " is not under way for worker ", rank_);
    hub_.told[static_cast<size_t>(rank_)] = own;
    hub_.Close();
    while (hub_.agreed.size() <= own.step) {
      if (stop && stop()) {
        hub_.present.erase(rank_);
        hub_.told[static_cast<size_t>(rank_)].step = kAbsent;
        hub_.Close();
        return absl::CancelledError("stopped");
      }
      hub_.changed.wait_for(lock, kLook);
    }
    return hub_.agreed[own.step];
  }

 private:
  ExchangeHub::State& hub_;
  const int rank_;
};

ExchangeHub::ExchangeHub(const ParallelSpec& spec) : state_(std::make_unique<State>()) {
  state_->spec = spec;
  state_->Clear();
}
ExchangeHub::~ExchangeHub() = default;

std::unique_ptr<ScalarExchange> ExchangeHub::Seat(int rank) { return std::make_unique<HubSeat>(*state_, rank); }

std::vector<ReplayRecord> ExchangeHub::agreed() const {
  std::lock_guard lock(state_->mutex);
  return state_->agreed;
}

}  // namespace optod::train
