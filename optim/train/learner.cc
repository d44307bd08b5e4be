#include "optim/train/learner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/fs.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/nn/safetensors.h"
#include "optim/rules/registry.h"
#include "optim/train/replay_log.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::train {
namespace {

/// What a log belongs to; a log of another run is refused.
std::string HeaderOf(const TrainSpec& spec, const zo::ZoLayout& layout) {
  std::string tensors;
  for (size_t i = 0; i < layout.tensors(); ++i) tensors += Cat(layout.tensor(i).name, ":", layout.tensor(i).size, ";");
  nlohmann::ordered_json hyper = nlohmann::ordered_json::object();
  for (const auto& [name, value] : spec.hyper) std::visit([&, n = name](const auto& v) { hyper[n] = v; }, value);
  return nlohmann::ordered_json{{"format", 1},       {"optimizer", spec.optimizer},
                                {"seed", spec.seed}, {"scheme", spec.scheme.name},
                                {"hyper", hyper},    {"layout", Sha256Hex(tensors)}}
      .dump();
}

class ZerothOrder final : public Learner {
 public:
  ZerothOrder(const TrainSpec& spec, Engine& engine, bool classify, const zo::ZoHyper& hyper, ReplayLog log)
      : seed_(spec.seed),
        classify_(classify),
        engine_(engine),
        hyper_(hyper),
        log_(std::move(log)),
        optimizer_(engine.layout(), hyper),
        all_(engine.layout().All()) {}

  /// Takes over the older attempt's records, then repeats all of them on the parameters.
  absl::Status Resume(const std::vector<ReplayRecord>& older) {
    for (const ReplayRecord& record : older) {
      if (record.step == log_.records().size()) RETURN_IF_ERROR(log_.Append(record));
    }
    for (const ReplayRecord& record : log_.records()) Repeat(record);
    return absl::OkStatus();
  }

  int64_t done() const override { return static_cast<int64_t>(log_.records().size()); }

  absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) override {
    optimizer_.update().set_lr(lr);
    const zo::StreamDirection<float> z(seed_, static_cast<uint32_t>(step), engine_.layout());
    ReplayRecord record{static_cast<uint32_t>(step), 0, lr, 0, {}};
    const bool sweep = engine_.pairs() && hyper_.rule == zo::Rule::kPlain && hyper_.sides == zo::Sides::kTwo;
    StepOutcome outcome;
    if (sweep) {
      ASSIGN_OR_RETURN(outcome, Swept(step, batch, z, &record));
    } else {
      ASSIGN_OR_RETURN(outcome, Evaluated(batch, z, &record));
    }
    record.loss = outcome.loss;
    if (outcome.skipped) record.flags |= ReplayRecord::kSkipped;
    RETURN_IF_ERROR(log_.Append(record));
    return outcome;
  }

  absl::Status Checkpoint() override { return log_.Sync(); }
  absl::Status KeepBest() override { return absl::OkStatus(); }  // the log has every step

  absl::Status GoTo(int64_t step, const std::function<absl::Status()>& reload) override {
    RETURN_IF_ERROR(reload());
    optimizer_ = zo::ZoOptimizer<float>(engine_.layout(), hyper_);
    for (int64_t i = 0; i < step; ++i) Repeat(log_.records()[static_cast<size_t>(i)]);
    return absl::OkStatus();
  }

 private:
  double LossOf(std::span<const Example* const> batch, std::span<const double> log_probs) const {
    return Judge(batch, log_probs, classify_).loss;
  }

  /// Both points of every direction in one sweep over the blocks.
  absl::StatusOr<StepOutcome> Swept(int64_t step, std::span<const Example* const> batch,
                                    const zo::DirectionSource<float>& z, ReplayRecord* record) {
    std::vector<double> plus, minus;
    for (int q = 0; q < hyper_.queries; ++q) {
      const zo::Direction direction{seed_, static_cast<uint32_t>(step), static_cast<uint32_t>(q)};
      ASSIGN_OR_RETURN(const ScoredPair pair, engine_.ScorePair(direction, static_cast<float>(hyper_.eps), batch));
      plus.push_back(LossOf(batch, pair.plus));
      minus.push_back(LossOf(batch, pair.minus));
    }
    zo::ZoHyper now = hyper_;
    now.lr = record->lr;
    ASSIGN_OR_RETURN(const zo::ProjectedGradients projected, zo::ProjectLosses(now, plus, minus));
    record->g = projected.g;
    if (!projected.usable) return StepOutcome{plus[0], true, projected.reason};
    optimizer_.update().Apply(engine_.theta(), z, projected.g, all_);
    return StepOutcome{plus[0], false, ""};
  }

  /// Any other procedure of optim/zo: points are formed there, in a scratch copy.
  absl::StatusOr<StepOutcome> Evaluated(std::span<const Example* const> batch, const zo::DirectionSource<float>& z,
                                        ReplayRecord* record) {
    absl::Status status;
    const zo::LossFn<float> loss = [&](std::span<const float> theta) {
      if (!status.ok()) return std::nan("");
      absl::StatusOr<std::vector<double>> log_probs = engine_.Score(theta, batch);
      if (!log_probs.ok()) status = log_probs.status();
      return log_probs.ok() ? LossOf(batch, *log_probs) : std::nan("");
    };
    const zo::StepResult result = optimizer_.StepByRule(engine_.theta(), z, loss);
    RETURN_IF_ERROR(status);  // the step was skipped: theta is as it was
    record->g = result.projected_grad;
    if (result.chosen == zo::Candidate::kStay) record->flags |= ReplayRecord::kStay;
    if (result.chosen == zo::Candidate::kDescent) record->flags |= ReplayRecord::kDescent;
    if (result.chosen == zo::Candidate::kAscent) record->flags |= ReplayRecord::kAscent;
    return StepOutcome{result.loss, result.skipped, result.reason};
  }

  /// The step again, from its record.
  void Repeat(const ReplayRecord& record) {
    if ((record.flags & (ReplayRecord::kSkipped | ReplayRecord::kStay)) != 0) return;
    const zo::StreamDirection<float> z(seed_, record.step, engine_.layout());
    optimizer_.update().set_lr(record.lr);
    if ((record.flags & ReplayRecord::kAscent) != 0)
      optimizer_.update().ApplyPlain(engine_.theta(), z, record.g, -1, all_);
    else if ((record.flags & ReplayRecord::kDescent) != 0)
      optimizer_.update().ApplyPlain(engine_.theta(), z, record.g, 1, all_);
    else
      optimizer_.update().Apply(engine_.theta(), z, record.g, all_);
  }

  const uint64_t seed_;
  const bool classify_;
  Engine& engine_;
  const zo::ZoHyper hyper_;
  ReplayLog log_;
  zo::ZoOptimizer<float> optimizer_;
  const std::vector<size_t> all_;
};

class FirstOrder final : public Learner {
 public:
  FirstOrder(Engine& engine, bool classify, double clip, std::unique_ptr<optim::Rule> rule, std::string own)
      : classify_(classify),
        clip_(clip),
        engine_(engine),
        rule_(std::move(rule)),
        own_(std::move(own)),
        grad_(engine.layout().size()) {}

  absl::Status Resume(const std::string& folder) {
    auto file = nn::Safetensors::Open(folder + "/state.safetensors");
    if (absl::IsNotFound(file.status())) return absl::OkStatus();
    if (!file.ok()) return file.status();
    std::vector<optim::OwnedTensor> state;
    for (const nn::FileTensor& tensor : file->header().tensors) {
      if (tensor.name == "theta") {
        if (tensor.type != nn::FileType::kF32 || file->bytes(tensor).size() != engine_.theta().size_bytes())
          return DataLoss("state.safetensors: of another model");
        std::memcpy(engine_.theta().data(), file->bytes(tensor).data(), engine_.theta().size_bytes());
        continue;
      }
      optim::OwnedTensor owned;
      owned.spec.name = tensor.name;
      owned.spec.shape = tensor.shape;
      owned.spec.dtype = DTypeOf(tensor.type);
      owned.data.assign(file->bytes(tensor).begin(), file->bytes(tensor).end());
      state.push_back(std::move(owned));
    }
    RETURN_IF_ERROR(rule_->ImportState(state));
    const auto step = file->header().metadata.find("step");
    done_ = step == file->header().metadata.end() ? 0 : std::atoll(step->second.c_str());
    // The best values of the older attempt go on being the best.
    if (folder != own_) {
      if (auto best = PosixFs().ReadFile(folder + "/best.safetensors"); best.ok())
        RETURN_IF_ERROR(PosixFs().WriteFileAtomic(own_ + "/best.safetensors", BytesOf(*best)));
    }
    return absl::OkStatus();
  }

  int64_t done() const override { return done_; }

  absl::StatusOr<StepOutcome> Step(int64_t, std::span<const Example* const> batch, double lr) override {
    ASSIGN_OR_RETURN(const Objective objective, engine_.Gradient(batch, classify_, grad_));
    double square = 0;
    for (float g : grad_) square += double{g} * g;
    if (!std::isfinite(square) || !std::isfinite(objective.loss)) {
      ++done_;
      return StepOutcome{objective.loss, true, "the gradient or the loss is not finite"};
    }
    if (clip_ > 0 && square > clip_ * clip_) {
      const auto scale = static_cast<float>(clip_ / std::sqrt(square));
      for (float& g : grad_) g *= scale;
    }
    std::vector<void*> params;
    std::vector<const void*> grads;
    for (size_t i = 0; i < engine_.layout().tensors(); ++i) {
      params.push_back(engine_.theta().data() + engine_.layout().offset(i));
      grads.push_back(grad_.data() + engine_.layout().offset(i));
    }
    optim::StepInput input;
    input.grads = grads;
    input.grads_finite = true;  // their squares' sum is
    input.lr = lr;
    input.loss = objective.loss;
    RETURN_IF_ERROR(rule_->Step(params, input).status());
    ++done_;
    return StepOutcome{objective.loss, false, ""};
  }

  absl::Status Checkpoint() override {
    const std::vector<optim::OwnedTensor> state = rule_->ExportState();
    std::vector<nn::TensorToWrite> tensors = {ThetaTensor()};
    for (const optim::OwnedTensor& tensor : state)
      tensors.push_back(
          {tensor.spec.name, FileTypeOf(tensor.spec.dtype), tensor.spec.shape, std::as_bytes(std::span(tensor.data))});
    return nn::WriteSafetensors(own_ + "/state.safetensors", tensors, {{"step", Cat(done_)}});
  }

  absl::Status KeepBest() override {
    return nn::WriteSafetensors(own_ + "/best.safetensors", {ThetaTensor()}, {{"step", Cat(done_)}});
  }

  absl::Status GoTo(int64_t, const std::function<absl::Status()>&) override {
    ASSIGN_OR_RETURN(const nn::Safetensors file, nn::Safetensors::Open(own_ + "/best.safetensors"));
    if (file.header().tensors.size() != 1 ||
        file.bytes(file.header().tensors[0]).size() != engine_.theta().size_bytes())
      return DataLoss("best.safetensors: of another model");
    std::memcpy(engine_.theta().data(), file.bytes(file.header().tensors[0]).data(), engine_.theta().size_bytes());
    return absl::OkStatus();
  }

 private:
  static optim::DType DTypeOf(nn::FileType type) {
    switch (type) {
      case nn::FileType::kF64:
        return optim::DType::kF64;
      case nn::FileType::kF16:
        return optim::DType::kF16;
      case nn::FileType::kBF16:
        return optim::DType::kBF16;
      case nn::FileType::kI64:
        return optim::DType::kI64;
      case nn::FileType::kI32:
        return optim::DType::kI32;
      case nn::FileType::kI8:
        return optim::DType::kI8;
      case nn::FileType::kU8:
        return optim::DType::kU8;
      case nn::FileType::kBool:
        return optim::DType::kBool;
      default:
        return optim::DType::kF32;
    }
  }
  static nn::FileType FileTypeOf(optim::DType type) {
    switch (type) {
      case optim::DType::kF64:
        return nn::FileType::kF64;
      case optim::DType::kF16:
        return nn::FileType::kF16;
      case optim::DType::kBF16:
        return nn::FileType::kBF16;
      case optim::DType::kI64:
        return nn::FileType::kI64;
      case optim::DType::kI32:
        return nn::FileType::kI32;
      case optim::DType::kI8:
        return nn::FileType::kI8;
      case optim::DType::kU8:
        return nn::FileType::kU8;
      case optim::DType::kBool:
        return nn::FileType::kBool;
      default:
        return nn::FileType::kF32;
    }
  }
  nn::TensorToWrite ThetaTensor() {
    return {
        "theta", nn::FileType::kF32, {static_cast<int64_t>(engine_.theta().size())}, std::as_bytes(engine_.theta())};
  }

  const bool classify_;
  const double clip_;
  Engine& engine_;
  std::unique_ptr<optim::Rule> rule_;
  const std::string own_;
  std::vector<float> grad_;
  int64_t done_ = 0;
};

absl::StatusOr<std::unique_ptr<Learner>> MakeZerothOrder(const TrainSpec& spec, Engine& engine, bool classify,
                                                         const std::string& own, const std::string& before) {
  ASSIGN_OR_RETURN(const zo::ZoHyper hyper, ZoHyperOf(spec));
  const std::string header = HeaderOf(spec, engine.layout());
  const auto queries = static_cast<size_t>(hyper.queries);
  std::vector<ReplayRecord> older;
  if (!before.empty()) {
    std::string found;
    older = ParseReplayLog(PosixFs().ReadFile(before + "/replay.log").value_or(""), queries, &found, nullptr);
    if (!older.empty() && found != header) return DataLoss("replay.log: the older attempt is of another run");
  }
  ASSIGN_OR_RETURN(ReplayLog log, ReplayLog::Open(own + "/replay.log", header, queries));
  auto learner = std::make_unique<ZerothOrder>(spec, engine, classify, hyper, std::move(log));
  RETURN_IF_ERROR(learner->Resume(older));
  return learner;
}

absl::StatusOr<std::unique_ptr<Learner>> MakeFirstOrder(const TrainSpec& spec, Engine& engine, bool classify,
                                                        const std::string& own, const std::string& before) {
  std::vector<optim::TensorSpec> layout;
  for (const tier::BlockTensor& tensor : engine.trainable())
    layout.push_back({tensor.name, optim::DType::kF32, tensor.shape, !tensor.decay});
  ASSIGN_OR_RETURN(auto rule, optim::MakeRule(spec.optimizer, spec.hyper, layout, spec.seed));
  auto learner = std::make_unique<FirstOrder>(engine, classify, spec.clip_norm, std::move(rule), own);
  RETURN_IF_ERROR(learner->Resume(PosixFs().Exists(own + "/state.safetensors") || before.empty() ? own : before));
  return learner;
}

}  // namespace

absl::StatusOr<zo::ZoHyper> ZoHyperOf(const TrainSpec& spec) {
  zo::ZoValues values;
  for (const auto& [name, value] : spec.hyper) values[name] = value;
  return zo::ZoHyperFor(spec.optimizer, values);
}

absl::StatusOr<std::unique_ptr<Learner>> MakeLearner(const TrainSpec& spec, Engine& engine, bool classify,
                                                     const std::string& own, const std::string& before) {
  return spec.zeroth_order ? MakeZerothOrder(spec, engine, classify, own, before)
                           : MakeFirstOrder(spec, engine, classify, own, before);
}

}  // namespace optod::train
