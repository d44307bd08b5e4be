#pragma once
/// Several workers on one zeroth-order run: nothing but the scalars of each step travels (MeZO, section 2.1; DistZO2,
/// Liu et al., 2025). Every worker holds the parameters, evaluates its part, tells its record, and gets the agreed one
/// back; the agreed records are the run's replay log, so every worker has the same bytes, and one that comes late or
/// was away catches up by replaying what it missed. No LibTorch.
///
///   worker r: Join(steps done) -> missed records ... joined     then for every step: Agree(own record) -> agreed
///   record
///
///   share = examples  same direction, a part of the batch each: g = mean over those present, loss likewise
///   share = queries   the same batch, direction r each: g[r] of worker r, 0 for one that is absent; q = workers
/// A record with a number that is not finite makes the step a skipped one, for all.

#include <cstdint>
#include <functional>
#include <memory>
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
  /// Takes part from step `done` on when that is the step under way: true. Otherwise false, and `missed` holds the
  /// agreed records from `done` on. OUT_OF_RANGE: nobody has come so far.
  virtual absl::StatusOr<bool> Join(int64_t done, std::vector<ReplayRecord>* missed) = 0;
  /// The agreed record of own.step, when every worker that takes part has told its own. CANCELLED when `stop` says so.
  virtual absl::StatusOr<ReplayRecord> Agree(const ReplayRecord& own, const std::function<bool()>& stop) = 0;
};

/// The agreed record of one step from those of the workers present, by rank (absent: step = UINT32_MAX).
ReplayRecord Combine(const std::vector<ReplayRecord>& by_rank, const std::string& share);

/// Where the workers of one process, or the connections of several, meet. The first step waits for all `workers`;
/// later ones for those that take part. Thread-safe; must outlive its seats.
class ExchangeHub {
 public:
  /// `agreed`: the records of an earlier run of the same log, to go on from.
  explicit ExchangeHub(const ParallelSpec& spec, std::vector<ReplayRecord> agreed = {});
  ~ExchangeHub();
  std::unique_ptr<ScalarExchange> Seat(int rank);
  std::vector<ReplayRecord> agreed() const;

 private:
  friend class HubSeat;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace optod::train
