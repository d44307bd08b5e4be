#pragma once
/// The exchange of a worker whose companions are other processes: everything goes over its stream to the server, which
/// puts the records of all ranks together (server/jobs/exchange_relay.h). Knows protobuf, not gRPC.

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>

#include "optim/train/exchange.h"
#include "optod/v1/worker.pb.h"

namespace optod::worker {

/// Join and Agree are called by the thread that trains, Deliver and End by the one that reads the stream.
class ServerExchange final : public train::ScalarExchange {
 public:
  /// `send` writes a message to the server, on any thread.
  ServerExchange(int rank, std::function<void(const v1::WorkerMessage&)> send) : rank_(rank), send_(std::move(send)) {}

  int rank() const override { return rank_; }
  /// Waits for all ranks; true, with `missed` to be taken over first. CANCELLED: the stream has ended, or `stop`.
  absl::StatusOr<bool> Join(std::span<const train::ReplayRecord> log, std::vector<train::ReplayRecord>* missed,
                            const std::function<bool()>& stop) override;
  absl::StatusOr<train::ReplayRecord> Agree(const train::ReplayRecord& own,
                                            const std::function<bool()>& stop) override;

  /// send_records, missed, joined or agreed from the server; others are ignored.
  void Deliver(const v1::ServerMessage& message);
  /// Nothing more will come.
  void End();

 private:
  absl::StatusOr<v1::ServerMessage> Next(const std::function<bool()>& stop);
  void SendRecords(std::span<const train::ReplayRecord> log, const v1::SendRecords& asked);

  const int rank_;
  const std::function<void(const v1::WorkerMessage&)> send_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::ServerMessage> incoming_;
  bool ended_ = false;
};

}  // namespace optod::worker
