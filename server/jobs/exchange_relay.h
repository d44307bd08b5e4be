#pragma once
/// The server's part of a job of several workers: it lets all ranks begin with the same step, and puts the records of
/// each step together in the order of the ranks (optim/train/exchange.h: Combine). One relay an attempt; it knows no
/// stream: it is told what a rank said and answers what is to be sent to whom. Not thread-safe.
///
///   join    all have joined: those whose logs are shorter get what they lack from the one whose is longest
///   step    all have told their record: all get the agreed one
/// Ranks of one attempt are never more than a step apart; logs of an older attempt may be (a lost disk).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/train/replay_log.h"
#include "optod/v1/worker.pb.h"

namespace optod::jobs {

struct ToRank {
  int rank = 0;
  v1::ServerMessage message;
};

class ExchangeRelay {
 public:
  /// `share`: examples or queries.
  ExchangeRelay(int workers, std::string share);
  /// Join, records or exchange of `rank`. FAILED_PRECONDITION: not what is due now; DATA_LOSS: records of ranks that do
  /// not belong to one run (`exchange: step 7: rank 1 has lr 0.1, rank 0 has 0.2`).
  absl::StatusOr<std::vector<ToRank>> OnMessage(int rank, const v1::WorkerMessage& message);

 private:
  absl::StatusOr<std::vector<ToRank>> OnJoin(int rank, int64_t done);
  absl::StatusOr<std::vector<ToRank>> OnRecords(int rank, const v1::StepRecords& records);
  absl::StatusOr<std::vector<ToRank>> OnExchange(int rank, const v1::StepRecord& record);
  std::vector<ToRank> ToAll(const v1::ServerMessage& message) const;
  std::vector<ToRank> Begin();
  ToRank Ask();

  const std::string share_;
  std::vector<std::optional<int64_t>> done_;  // by rank; what its log holds
  int source_ = -1;                           // the rank that sends its records; -1: nobody does
  int64_t sent_ = 0;                          // records of it that have been passed on
  int64_t step_ = -1;                         // under way; -1: not all have joined
  size_t told_ = 0;
  std::vector<std::optional<train::ReplayRecord>> own_;  // of the step, by rank
};

}  // namespace optod::jobs
