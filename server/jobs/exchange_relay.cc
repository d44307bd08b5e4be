#include "server/jobs/exchange_relay.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "optim/train/exchange.h"
#include "optim/worker/step_records.h"

namespace optod::jobs {
namespace {

using v1::ServerMessage;
using v1::WorkerMessage;

}  // namespace

ExchangeRelay::ExchangeRelay(int workers, std::string share)
    : share_(std::move(share)), done_(static_cast<size_t>(workers)), own_(static_cast<size_t>(workers)) {}

absl::StatusOr<std::vector<ToRank>> ExchangeRelay::OnMessage(int rank, const WorkerMessage& message) {
  switch (message.message_case()) {
    case WorkerMessage::kJoin:
      return OnJoin(rank, message.join().done());
    case WorkerMessage::kRecords:
      return OnRecords(rank, message.records());
    case WorkerMessage::kExchange:
      return OnExchange(rank, message.exchange());
    default:
      return FailedPrecondition("exchange: neither join, records nor exchange");
  }
}

std::vector<ToRank> ExchangeRelay::ToAll(const ServerMessage& message) const {
  std::vector<ToRank> all;
  for (size_t r = 0; r < done_.size(); ++r) all.push_back({static_cast<int>(r), message});
  return all;
}

absl::StatusOr<std::vector<ToRank>> ExchangeRelay::OnJoin(int rank, int64_t done) {
  std::optional<int64_t>& place = done_[static_cast<size_t>(rank)];
  if (place || done < 0) return FailedPrecondition("exchange: rank ", rank, " joins twice, or with ", done, " steps");
  place = done;
  if (!std::all_of(done_.begin(), done_.end(), [](const auto& d) { return d.has_value(); })) return std::vector<ToRank>();
  const auto furthest = std::max_element(done_.begin(), done_.end());
  sent_ = **std::min_element(done_.begin(), done_.end());
  if (sent_ == **furthest) return Begin();
  source_ = static_cast<int>(furthest - done_.begin());
  return std::vector<ToRank>{Ask()};
}

ToRank ExchangeRelay::Ask() {
  ToRank ask{source_, {}};
  ask.message.mutable_send_records()->set_from(sent_);
  ask.message.mutable_send_records()->set_to(*done_[static_cast<size_t>(source_)]);
  return ask;
}

std::vector<ToRank> ExchangeRelay::Begin() {
  source_ = -1;
  step_ = **std::max_element(done_.begin(), done_.end());
  ServerMessage joined;
  joined.mutable_joined()->set_step(step_);
  return ToAll(joined);
}

absl::StatusOr<std::vector<ToRank>> ExchangeRelay::OnRecords(int rank, const v1::StepRecords& records) {
  if (rank != source_ || records.records().empty())
    return FailedPrecondition("exchange: rank ", rank, " was not asked for records, or has none");
  std::vector<ToRank> out;
  for (size_t r = 0; r < done_.size(); ++r) {
    ServerMessage missed;
    for (const v1::StepRecord& record : records.records()) {
      if (record.step() >= *done_[r]) *missed.mutable_missed()->add_records() = record;
    }
    if (missed.has_missed()) out.push_back({static_cast<int>(r), std::move(missed)});
  }
  for (const v1::StepRecord& record : records.records()) {
    if (record.step() != sent_++) return FailedPrecondition("exchange: rank ", rank, " sent step ", record.step(), " out of order");
  }
  if (sent_ < *done_[static_cast<size_t>(source_)]) {
    out.push_back(Ask());
    return out;
  }
  for (ToRank& joined : Begin()) out.push_back(std::move(joined));
  return out;
}

absl::StatusOr<std::vector<ToRank>> ExchangeRelay::OnExchange(int rank, const v1::StepRecord& record) {
  std::optional<train::ReplayRecord>& place = own_[static_cast<size_t>(rank)];
  if (step_ < 0 || record.step() != step_ || place)
    return FailedPrecondition("exchange: rank ", rank, " tells step ", record.step(), "; step ", step_, " is under way");
  place = worker::FromProto(record);
  for (size_t r = 0; r < own_.size(); ++r) {
    if (own_[r] && (own_[r]->lr != place->lr || own_[r]->g.size() != place->g.size()))
      return DataLoss("exchange: step ", step_, ": rank ", rank, " has lr ", place->lr, " and ", place->g.size(),
                      " scalars, rank ", r, " has ", own_[r]->lr, " and ", own_[r]->g.size());
  }
  if (++told_ < own_.size()) return std::vector<ToRank>();
  std::vector<train::ReplayRecord> by_rank;
  for (auto& own : own_) by_rank.push_back(*std::exchange(own, std::nullopt));
  told_ = 0;
  ++step_;
  ServerMessage agreed;
  *agreed.mutable_agreed() = worker::ToProto(train::Combine(by_rank, share_));
  return ToAll(agreed);
}

}  // namespace optod::jobs
