#include "optim/train/tiered_learner.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/fs.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/train/replay_log.h"

namespace optod::train {
namespace {

/// What a log belongs to; a log of another run is refused. A lossless run's log is that of any other lossless one.
std::string HeaderOf(const TrainSpec& spec, const TieredModel& model) {
  nlohmann::ordered_json hyper = nlohmann::ordered_json::object();
  for (const auto& [name, value] : spec.hyper) std::visit([&, n = name](const auto& v) { hyper[n] = v; }, value);
  nlohmann::ordered_json header = {{"format", 1},       {"optimizer", spec.optimizer}, {"seed", spec.seed},
                                   {"scheme", "tiered"}, {"hyper", hyper},              {"layout", Sha256Hex(model.LayoutText())}};
  if (spec.scheme.name != "full") header["scheme"] = Cat("tiered ", spec.scheme.name);
  if (spec.objective != "loss") header["objective"] = spec.objective;
  if (spec.tier.codec != "none") header["codec"] = {spec.tier.codec, spec.tier.write_every};
  return header.dump();
}

tier::History HistoryOf(const std::vector<ReplayRecord>& records, size_t steps) {
  tier::History history;
  for (size_t i = 0; i < steps; ++i)
    history.Add({records[i].lr, records[i].g, (records[i].flags & ReplayRecord::kSkipped) != 0});
  return history;
}

class TieredLearner final : public Learner {
 public:
  TieredLearner(TieredModel& model, bool classify, ReplayLog log)
      : model_(model), classify_(classify), log_(std::move(log)) {}

  absl::Status Resume(const std::vector<ReplayRecord>& older) {
    for (const ReplayRecord& record : older) {
      if (record.step == log_.records().size()) RETURN_IF_ERROR(log_.Append(record));
    }
    return model_.Start(HistoryOf(log_.records(), log_.records().size()));
  }

  int64_t done() const override { return static_cast<int64_t>(log_.records().size()); }
  std::optional<double> LossOf(int64_t step) const override { return log_.records()[static_cast<size_t>(step)].loss; }

  absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) override {
    ASSIGN_OR_RETURN(const tier::StepLosses losses, model_.Step(lr, batch, classify_));
    ReplayRecord record{static_cast<uint32_t>(step), losses.skipped ? uint32_t{ReplayRecord::kSkipped} : 0u, lr,
                        losses.plus[0], losses.g};
    RETURN_IF_ERROR(log_.Append(record));
    return StepOutcome{losses.plus[0], losses.skipped, losses.reason};
  }

  absl::Status Checkpoint() override { return log_.Sync(); }
  absl::Status KeepBest() override { return absl::OkStatus(); }  // the log has every step
  absl::Status GoTo(int64_t step, const std::function<absl::Status()>&) override {
    return model_.Start(HistoryOf(log_.records(), static_cast<size_t>(step)));
  }

 private:
  TieredModel& model_;
  const bool classify_;
  ReplayLog log_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeTieredLearner(const TrainSpec& spec, TieredModel& model, bool classify,
                                                           const std::string& own, const std::string& before) {
  ASSIGN_OR_RETURN(const zo::ZoHyper hyper, ZoHyperOf(spec));
  const std::string header = HeaderOf(spec, model);
  const auto queries = static_cast<size_t>(hyper.queries);
  std::vector<ReplayRecord> older;
  if (!before.empty()) {
    std::string found;
    older = ParseReplayLog(PosixFs().ReadFile(before + "/replay.log").value_or(""), queries, &found, nullptr);
    if (!older.empty() && found != header) return DataLoss("replay.log: the older attempt is of another run");
  }
  ASSIGN_OR_RETURN(ReplayLog log, ReplayLog::Open(own + "/replay.log", header, queries));
  auto learner = std::make_unique<TieredLearner>(model, classify, std::move(log));
  RETURN_IF_ERROR(learner->Resume(older));
  return learner;
}

}  // namespace optod::train
