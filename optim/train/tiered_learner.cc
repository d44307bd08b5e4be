#include "optim/train/tiered_learner.h"

#include <utility>

#include "base/status.h"
#include "optim/train/learners.h"

namespace optod::train {
namespace {

tier::StepRecord RecordOf(const ReplayRecord& record) {
  tier::StepRecord step{record.lr, record.g, (record.flags & (ReplayRecord::kSkipped | ReplayRecord::kStay)) != 0};
  if ((record.flags & ReplayRecord::kAscent) != 0) step.factor = -1;
  return step;
}

tier::History HistoryOf(const std::vector<ReplayRecord>& records, size_t steps) {
  tier::History history;
  for (size_t i = 0; i < steps; ++i) history.Add(RecordOf(records[i]));
  return history;
}

uint32_t FlagsOf(const tier::StepLosses& losses) {
  if (losses.skipped) return ReplayRecord::kSkipped;
  if (losses.chosen == zo::Candidate::kStay) return ReplayRecord::kStay;
  if (losses.chosen == zo::Candidate::kDescent) return ReplayRecord::kDescent;
  return losses.chosen == zo::Candidate::kAscent ? uint32_t{ReplayRecord::kAscent} : 0u;
}

class TieredLearner final : public Learner {
 public:
  TieredLearner(const TrainSpec& spec, TieredModel& model, bool classify, ReplayLog log, ScalarExchange* exchange,
                std::function<bool()> stop)
      : parallel_(spec.parallel),
        model_(model),
        classify_(classify),
        log_(std::move(log)),
        exchange_(exchange),
        stop_(std::move(stop)) {}

  absl::Status Resume() {
    if (exchange_ != nullptr)
      RETURN_IF_ERROR(JoinOthers(*exchange_, log_, stop_, [](const ReplayRecord&) { return absl::OkStatus(); }));
    return model_.Start(HistoryOf(log_.records(), log_.records().size()));
  }

  int64_t done() const override { return static_cast<int64_t>(log_.records().size()); }
  std::optional<double> LossOf(int64_t step) const override { return log_.records()[static_cast<size_t>(step)].loss; }

  absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) override {
    const std::vector<const Example*> part = ShareOf(exchange_, parallel_, batch);
    ASSIGN_OR_RETURN(const tier::StepLosses losses, model_.Measure(lr, part, batch, classify_));
    ReplayRecord record{static_cast<uint32_t>(step), FlagsOf(losses), lr, losses.loss, losses.g};
    StepOutcome outcome{losses.loss, losses.skipped, losses.reason};
    if (exchange_ != nullptr) {
      ASSIGN_OR_RETURN(record, exchange_->Agree(record, stop_));
      const bool skipped = (record.flags & ReplayRecord::kSkipped) != 0;
      outcome = {record.loss, skipped, skipped ? "a worker's losses are not finite" : ""};
    }
    RETURN_IF_ERROR(log_.Append(record));
    model_.Finish(RecordOf(record));
    return outcome;
  }

  absl::Status Checkpoint() override { return log_.Sync(); }
  absl::Status KeepBest() override { return absl::OkStatus(); }  // the log has every step
  absl::Status GoTo(int64_t step, const std::function<absl::Status()>&) override {
    return model_.Start(HistoryOf(log_.records(), static_cast<size_t>(step)));
  }

 private:
  const ParallelSpec parallel_;
  TieredModel& model_;
  const bool classify_;
  ReplayLog log_;
  ScalarExchange* const exchange_;
  const std::function<bool()> stop_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeTieredLearner(const TrainSpec& spec, TieredModel& model, bool classify,
                                                           const std::string& own, const std::string& before,
                                                           ScalarExchange* exchange, std::function<bool()> stop) {
  RETURN_IF_ERROR(CheckExchange(spec, exchange));
  // A lossless run's log is that of any other lossless one.
  const std::string scheme = spec.scheme.name == "full" ? "tiered" : Cat("tiered ", spec.scheme.name);
  ASSIGN_OR_RETURN(ReplayLog log, OpenLog(LogHeader(spec, scheme, model.LayoutText()), model.scalars(), own, before));
  RETURN_IF_ERROR(model.SetMaskFolders(own, before));
  auto learner = std::make_unique<TieredLearner>(spec, model, classify, std::move(log), exchange, std::move(stop));
  RETURN_IF_ERROR(learner->Resume());
  return learner;
}

}  // namespace optod::train
