#pragma once
/// Several workers on one zeroth-order run: nothing but the scalars of each step travels (MeZO, section 2.1; DistZO2,
/// Liu et al., 2025). Every worker holds the parameters, evaluates its part, tells its record, and gets the agreed one
/// back; the agreed records are the run's replay log, so every worker has the same bytes, and one that comes late or
/// was away catches up by replaying what it missed. No LibTorch.
///
///   worker r: Join(own log) -> missed records ... joined     then for every step: Agree(own record) -> agreed record
///
///   share = examples  same direction, a part of the batch each: g = mean over those present, loss likewise
///   share = queries   the same batch, direction r each: g[r] of worker r, 0 for one that is absent; q = workers
/// A record with a number that is not finite makes the step a skipped one, for all.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/train/replay_log.h"
#include "optim/train/spec.h"

namespace optod::train {

/// One worker's seat. Leaves when it ends; the others go on without it.
class ScalarExchange {
 public:
  virtual ~ScalarExchange() = default;
  virtual int rank() const = 0;
  /// Takes part from the step after `log` (this worker's records) and `missed` on (those that it lacks, for it to take
  /// over first): true. False: the others have gone on meanwhile; take over `missed` and join again. OUT_OF_RANGE: the
  /// run is not so far as `log`. CANCELLED when `stop` says so.
  virtual absl::StatusOr<bool> Join(std::span<const ReplayRecord> log, std::vector<ReplayRecord>* missed,
                                    const std::function<bool()>& stop) = 0;
  /// The agreed record of own.step, when every worker that takes part has told its own. CANCELLED when `stop` says so.
  virtual absl::StatusOr<ReplayRecord> Agree(const ReplayRecord& own, const std::function<bool()>& stop) = 0;
};

/// What the worker in this seat evaluates of a batch: with share examples every workers-th from its rank on, else all.
template <class T>
std::vector<T> ShareOf(const ScalarExchange* seat, const ParallelSpec& spec, std::span<const T> batch) {
  const bool divide = seat != nullptr && spec.share == "examples";
  const auto stride = divide ? static_cast<size_t>(spec.workers) : size_t{1};
  std::vector<T> part;
  for (size_t i = divide ? static_cast<size_t>(seat->rank()) : 0; i < batch.size(); i += stride) part.push_back(batch[i]);
  return part;
}

/// The agreed record of one step from those of the workers present, by rank (absent: step = UINT32_MAX).
ReplayRecord Combine(const std::vector<ReplayRecord>& by_rank, const std::string& share);

/// Where the workers of one process meet (those of several meet at the server: server/jobs/exchange_relay.h). The first
/// step waits for all `workers` and begins where the longest of their logs ends; later ones wait for those that take
/// part. Thread-safe; must outlive its seats.
class ExchangeHub {
 public:
  explicit ExchangeHub(const ParallelSpec& spec);
  ~ExchangeHub();
  std::unique_ptr<ScalarExchange> Seat(int rank);
  std::vector<ReplayRecord> agreed() const;

 private:
  friend class HubSeat;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace optod::train
