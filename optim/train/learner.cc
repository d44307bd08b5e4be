#include "optim/train/learner.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/fs.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/rules/kernels.h"
#include "optim/train/learners.h"
#include "optim/train/state_file.h"

namespace optod::train {

absl::Status SnapshotLearner::Resume(const std::string& before) {
  const bool mine = PosixFs().Exists(own_ + "/state.safetensors") || before.empty();
  const std::string& folder = mine ? own_ : before;
  absl::StatusOr<StateFile> file = ReadStateFile(folder + "/state.safetensors", engine_.theta().size());
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  if (!file.ok()) return file.status();
  RETURN_IF_ERROR(ImportState(file->state));
  std::copy(file->theta.begin(), file->theta.end(), engine_.theta().begin());
  done_ = file->step;
  if (mine) return absl::OkStatus();
  // The best values of the older attempt go on being the best.
  auto best = PosixFs().ReadFile(folder + "/best.safetensors");
  return best.ok() ? PosixFs().WriteFileAtomic(own_ + "/best.safetensors", BytesOf(*best)) : absl::OkStatus();
}

absl::Status SnapshotLearner::Checkpoint() {
  return WriteStateFile(own_ + "/state.safetensors", engine_.theta(), ExportState(), done_);
}
absl::Status SnapshotLearner::KeepBest() {
  return WriteStateFile(own_ + "/best.safetensors", engine_.theta(), {}, done_);
}
absl::Status SnapshotLearner::GoTo(int64_t, const std::function<absl::Status()>&) {
  ASSIGN_OR_RETURN(const StateFile best, ReadStateFile(own_ + "/best.safetensors", engine_.theta().size()));
  std::copy(best.theta.begin(), best.theta.end(), engine_.theta().begin());
  return absl::OkStatus();
}

optim::RuleMemory MemoryOfMoments(const zo::ZoLayout& layout, const zo::ZoState<float>& state) {
  optim::RuleMemory out;
  const size_t moments = (state.m.empty() ? 0 : 1) + (state.v.empty() ? 0 : 1);
  for (size_t i = 0; i < layout.tensors(); ++i) out.tensors.push_back({moments * layout.tensor(i).size * sizeof(float), 0});
  out.shared_state = state.counts.size() * sizeof(int64_t);
  out.state = (state.m.size() + state.v.size()) * sizeof(float) + out.shared_state;
  return out;
}

namespace {

constexpr size_t kPiece = size_t{1} << 16;

/// body(piece number, piece) for pieces of `values` that do not depend on the number of threads, on all threads.
template <typename Body>
void ForEachPiece(std::span<float> values, Body body) {
  const auto pieces = static_cast<int64_t>((values.size() + kPiece - 1) / kPiece);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < pieces; ++i) {
    const size_t at = static_cast<size_t>(i) * kPiece;
    body(static_cast<size_t>(i), values.subspan(at, std::min(kPiece, values.size() - at)));
  }
}

}  // namespace

bool SnapshotLearner::Clip(std::span<float> grad) const {
  std::vector<double> squares((grad.size() + kPiece - 1) / kPiece);
  ForEachPiece(grad, [&](size_t i, std::span<float> piece) {
    squares[i] = optim::Kernels().f32.sum_squares(piece.data(), static_cast<int64_t>(piece.size()));
  });
  const double square = std::accumulate(squares.begin(), squares.end(), 0.0);
  if (!std::isfinite(square)) return false;
  if (clip_ > 0 && square > clip_ * clip_) {
    const auto scale = static_cast<float>(clip_ / std::sqrt(square));
    ForEachPiece(grad, [&](size_t, std::span<float> piece) {
      for (float& g : piece) g *= scale;
    });
  }
  return true;
}

absl::StatusOr<zo::ZoHyper> ZoHyperOf(const TrainSpec& spec) {
  zo::ZoValues values;
  for (const auto& [name, value] : spec.hyper) values[name] = value;
  return zo::ZoHyperFor(spec.optimizer, values);
}

std::string LogHeader(const TrainSpec& spec, const std::string& scheme, const std::string& layout) {
  nlohmann::ordered_json hyper = nlohmann::ordered_json::object();
  for (const auto& [name, value] : spec.hyper) std::visit([&, n = name](const auto& v) { hyper[n] = v; }, value);
  nlohmann::ordered_json header = {{"format", 1},       {"optimizer", spec.optimizer},
                                   {"seed", spec.seed}, {"scheme", scheme},
                                   {"hyper", hyper},    {"layout", Sha256Hex(layout)}};
  if (spec.objective != "loss") header["objective"] = spec.objective;
  if (!spec.blockwise.level.empty()) header["blockwise"] = {spec.blockwise.level, spec.blockwise.schedule};
  const SparseSpec& s = spec.sparse;
  if (s.ratio > 0) header["sparse"] = {s.ratio, s.source, s.group, s.law, s.resample};
  if (spec.parallel.workers > 1) header["parallel"] = {spec.parallel.workers, spec.parallel.share};
  if (spec.tier.codec != "none") header["codec"] = {spec.tier.codec, spec.tier.write_every};
  return header.dump();
}

absl::StatusOr<ReplayLog> OpenLog(const std::string& header, size_t scalars, const std::string& own,
                                  const std::string& before) {
  std::vector<ReplayRecord> older;
  if (!before.empty()) {
    std::string found;
    older = ParseReplayLog(PosixFs().ReadFile(before + "/replay.log").value_or(""), scalars, &found, nullptr);
    if (!older.empty() && found != header) return DataLoss("replay.log: the older attempt is of another run");
  }
  ASSIGN_OR_RETURN(ReplayLog log, ReplayLog::Open(own + "/replay.log", header, scalars));
  for (const ReplayRecord& record : older) {
    if (record.step == log.records().size()) RETURN_IF_ERROR(log.Append(record));
  }
  return log;
}

absl::Status JoinOthers(ScalarExchange& exchange, ReplayLog& log, const std::function<bool()>& stop,
                        const std::function<absl::Status(const ReplayRecord&)>& repeat) {
  bool joined = false;
  while (!joined) {
    std::vector<ReplayRecord> missed;
    ASSIGN_OR_RETURN(joined, exchange.Join(log.records(), &missed, stop));
    for (const ReplayRecord& record : missed) {
      RETURN_IF_ERROR(log.Append(record));
      RETURN_IF_ERROR(repeat(record));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckExchange(const TrainSpec& spec, const ScalarExchange* exchange) {
  if (spec.parallel.workers <= 1 || exchange != nullptr) return absl::OkStatus();
  return Unimplemented("parallel.workers: ", spec.parallel.workers, "; this worker has no way to the others");
}

absl::StatusOr<std::unique_ptr<Learner>> MakeLearner(const TrainSpec& spec, Engine& engine, bool classify,
                                                     const std::string& own, const std::string& before,
                                                     ScalarExchange* exchange, const Answering* answering) {
  RETURN_IF_ERROR(CheckExchange(spec, exchange));
  const LearnerArgs args{spec, engine, classify, own, before, exchange, answering};
  if (!spec.zeroth_order) return MakeFirstOrder(args);
  return spec.hybrid.blocks > 0 ? MakeHybrid(args) : MakeZerothOrder(args);
}

}  // namespace optod::train
