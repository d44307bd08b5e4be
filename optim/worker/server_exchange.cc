#include "optim/worker/server_exchange.h"

#include <algorithm>
#include <chrono>

#include "base/status.h"
#include "optim/worker/step_records.h"

namespace optod::worker {
namespace {

using train::ReplayRecord;

constexpr std::chrono::milliseconds kLook{100};  // how often a waiting worker asks whether it is to stop
constexpr size_t kPieceBytes = 1 << 20;

}  // namespace

void ServerExchange::Deliver(const v1::ServerMessage& message) {
  if (!message.has_send_records() && !message.has_missed() && !message.has_joined() && !message.has_agreed()) return;
  std::lock_guard lock(mutex_);
  incoming_.push_back(message);
  changed_.notify_all();
}

void ServerExchange::End() {
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

absl::StatusOr<v1::ServerMessage> ServerExchange::Next(const std::function<bool()>& stop) {
  std::unique_lock lock(mutex_);
  while (incoming_.empty()) {
    if (ended_ || (stop && stop())) return absl::CancelledError("stopped");
    changed_.wait_for(lock, kLook);
  }
  v1::ServerMessage message = std::move(incoming_.front());
  incoming_.pop_front();
  return message;
}

void ServerExchange::SendRecords(std::span<const ReplayRecord> log, const v1::SendRecords& asked) {
  v1::WorkerMessage message;
  size_t bytes = 0;
  const auto end = static_cast<size_t>(std::clamp<int64_t>(asked.to(), 0, static_cast<int64_t>(log.size())));
  for (auto i = static_cast<size_t>(std::max<int64_t>(0, asked.from())); i < end && bytes < kPieceBytes; ++i) {
    *message.mutable_records()->add_records() = ToProto(log[i]);
    bytes += 64 + 8 * log[i].g.size();
  }
  message.mutable_records();
  send_(message);
}

absl::StatusOr<bool> ServerExchange::Join(std::span<const ReplayRecord> log, std::vector<ReplayRecord>* missed,
                                          const std::function<bool()>& stop) {
  missed->clear();
  v1::WorkerMessage join;
  join.mutable_join()->set_done(static_cast<int64_t>(log.size()));
  send_(join);
  while (true) {
    ASSIGN_OR_RETURN(const v1::ServerMessage message, Next(stop));
    if (message.has_send_records()) SendRecords(log, message.send_records());
    for (const v1::StepRecord& record : message.missed().records()) {
      if (record.step() != static_cast<int64_t>(log.size() + missed->size()))
        return Internal("exchange: missed step ", record.step(), " does not follow ", log.size() + missed->size());
      missed->push_back(FromProto(record));
    }
    if (message.has_agreed()) return Internal("exchange: an agreed record before all have joined");
    if (!message.has_joined()) continue;
    if (message.joined().step() != static_cast<int64_t>(log.size() + missed->size()))
      return Internal("exchange: all begin with step ", message.joined().step(), ", this one with ",
                      log.size() + missed->size());
    return true;
  }
}

absl::StatusOr<ReplayRecord> ServerExchange::Agree(const ReplayRecord& own, const std::function<bool()>& stop) {
  v1::WorkerMessage message;
  *message.mutable_exchange() = ToProto(own);
  send_(message);
  ASSIGN_OR_RETURN(const v1::ServerMessage answer, Next(stop));
  if (!answer.has_agreed() || answer.agreed().step() != own.step)
    return Internal("exchange: the answer to step ", own.step, " is not its agreed record");
  return FromProto(answer.agreed());
}

}  // namespace optod::worker
