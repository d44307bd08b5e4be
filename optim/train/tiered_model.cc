#include "optim/train/tiered_model.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/fs.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/nn/checkpoint.h"
#include "optim/nn/safetensors.h"
#include "optim/train/adapters.h"
#include "optim/train/learner.h"
#include "optim/train/tiered_compute.h"
#include "optim/train/tiered_masks.h"
#include "optim/train/tiered_place.h"

namespace optod::train {
namespace {

constexpr int kDiskThreads = 8;  // requests in flight

tier::ParallelFor OnTorchThreads() {
  return [](size_t count, const std::function<void(size_t, size_t)>& body) {
    at::parallel_for(0, static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
      body(static_cast<size_t>(begin), static_cast<size_t>(end));
    });
  };
}

/// A model's files cut into units, and where they will be.
struct Opened {
  std::unique_ptr<nn::WeightReader> reader;
  TieredUnits streamed;
  zo::ZoHyper hyper;
  int evaluated = 0;  ///< queries of this worker; 0 = all
  std::vector<tier::TensorGroup> groups;  ///< block-wise
  tier::Plan plan;
  uint64_t trainable = 0;  ///< floats
};

double SecondsOf(const std::function<void()>& work) {
  work();  // pages and threads
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 3; ++i) work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count() / 3;
}

/// Seconds a parameter and step: two products of a layer's matrix a query (zo-sgd-cons: three more); for the share of the parameters that is
/// trained, catching up one update and both copies of every query.
double MeasureCompute(const nn::ModelConfig& config, zo::ZoHyper hyper, int evaluated, int64_t tokens, double trained) {
  if (evaluated > 0) hyper.queries = evaluated;
  at::NoGradGuard no_grad;
  const at::Tensor x = at::zeros({tokens, config.hidden}, at::kFloat), w = at::zeros({config.inter, config.hidden}, at::kFloat);
  const double product = SecondsOf([&] { (void)at::linear(x, w); });
  std::vector<float> theta(static_cast<size_t>(w.numel())), plus(theta.size()), minus(theta.size());
  std::vector<float> m(theta.size()), v(theta.size());
  tier::History history;
  history.Add({hyper.lr, std::vector<double>(static_cast<size_t>(hyper.queries), 1e-3), false});
  const tier::UnitPass pass(hyper, 1, history, OnTorchThreads());
  const int states = tier::UnitPass::StatesOf(hyper);
  tier::Values values{0, 0, true, theta, {}, {}};
  if (states > 0) values.m = m;
  if (states > 1) values.v = v;
  const double passes = SecondsOf([&] {
    for (int query = 0; query < hyper.queries; ++query)
      pass.Perturb(values, {query == 0 ? 0u : 1u, 1}, 1, query, tier::Copies::kBoth, plus, minus);
  });
  const int each = hyper.rule == zo::Rule::kForwardGrad ? 3 : 2;  // forward-grad: x W, dx W, x z
  const int products = each * hyper.queries + (hyper.rule == zo::Rule::kConservative ? 3 : 0);
  return (trained * passes + products * product) / static_cast<double>(theta.size());
}

absl::StatusOr<Opened> OpenAndPlan(const TrainSpec& spec, int64_t tokens) {
  Opened opened;
  ASSIGN_OR_RETURN(opened.hyper, ZoHyperOf(spec));
  if (spec.parallel.workers > 1 && spec.parallel.share == "queries") {
    opened.hyper.queries = static_cast<int>(spec.parallel.workers);
    opened.evaluated = 1;
  }
  ASSIGN_OR_RETURN(tier::TierRequest request, TierRequestOf(spec.tier));
  if (opened.hyper.rule == zo::Rule::kConservative) request.sweeps = 2;
  request.separate_device = spec.device != "cpu";
  ASSIGN_OR_RETURN(opened.reader, nn::OpenModel(spec.model));
  ASSIGN_OR_RETURN(opened.streamed, UnitsOf(opened.reader->config(), opened.reader->blocks(), spec.scheme));
  if (!spec.blockwise.level.empty()) {
    ASSIGN_OR_RETURN(opened.groups, GroupsOf(opened.reader->config(), opened.streamed, spec.scheme, spec.blockwise.level));
    request.both = true;
    request.sweeps = SweepsOf(opened.streamed, opened.groups);
  }
  RETURN_IF_ERROR(tier::CheckUnits(opened.streamed.units, opened.streamed.blocks));
  uint64_t all = 0;
  for (const tier::Unit& unit : opened.streamed.units) {
    all += unit.floats();
    opened.trainable += unit.trainable ? unit.floats() : 0;
  }
  request.beside = TieredMasks::Bytes(spec.sparse, opened.trainable);
  tier::Rates rates;
  if (request.disk && !PosixFs().Exists(spec.tier.disk)) return NotFound("tier.disk: no such folder");
  if (request.disk && tokens > 0) {
    ASSIGN_OR_RETURN(rates, tier::MeasureDisk(spec.tier.disk, kDiskThreads));
  }
  const double trained = static_cast<double>(opened.trainable) / static_cast<double>(all);
  if (tokens > 0 && !request.separate_device)  // a GPU is not measured: no times are predicted
    rates.compute = (opened.groups.empty() ? 1.0 : request.sweeps) * MeasureCompute(opened.reader->config(), opened.hyper, opened.evaluated, tokens, trained);
  ASSIGN_OR_RETURN(opened.plan, tier::MakePlan(opened.streamed.units, tier::UnitPass::StatesOf(opened.hyper),
                                               opened.hyper.residue == zo::Residue::kMezo, request, rates));
  return opened;
}

/// The trained tensors in the order of the resident engine's layout.
zo::ZoLayout LayoutOf(const TieredUnits& streamed) {
  std::vector<zo::ZoTensor> tensors;
  for (size_t uid : streamed.trainable) {
    const tier::BlockTensor& tensor = streamed.tensor(uid);
    tensors.push_back({tensor.name, static_cast<size_t>(tensor.elements()), tensor.decay});
  }
  return zo::ZoLayout(std::move(tensors));
}

/// Whether the resident engine has both points of a direction in one sweep.
bool InPairs(const zo::ZoHyper& hyper) { return hyper.rule == zo::Rule::kPlain && hyper.sides == zo::Sides::kTwo; }

class TieredTorchModel final : public TieredModel {
 public:
  TieredTorchModel(const TrainSpec& spec, std::string path, std::function<bool()> stop, int rank, Opened opened,
                   std::unique_ptr<TieredPlace> place)
      : seed_(spec.seed),
        rank_(rank),
        serial_(!spec.tier.overlap),
        scheme_(spec.scheme),
        coordinate_(spec.blockwise.schedule == "coordinate"),
        objective_(spec.objective),
        path_(std::move(path)),
        stop_(std::move(stop)),
        opened_(std::move(opened)),
        masks_(spec.sparse, spec.seed, LayoutOf(opened_.streamed)),
        place_(std::move(place)),
        compute_(opened_.reader->config(), opened_.streamed, scheme_, InPairs(opened_.hyper), stop_, place_->device(),
                 place_->enqueues()) {}

  const nn::ModelConfig& config() const override { return opened_.reader->config(); }
  int64_t parameters() const override { return static_cast<int64_t>(opened_.plan.parameters); }
  int64_t trainable() const override { return static_cast<int64_t>(opened_.trainable); }
  const tier::Plan& plan() const override { return opened_.plan; }
  std::string LayoutText() const override {
    std::string text;
    for (size_t uid : opened_.streamed.trainable) text += Cat(opened_.streamed.tensor(uid).name, ":", opened_.streamed.tensor(uid).elements(), ";");
    return text;
  }

  absl::Status SetMaskFolders(const std::string& own, const std::string& before) override {
    if (!masks_.fixed()) return absl::OkStatus();
    mask_file_ = MaskFile(own);
    ASSIGN_OR_RETURN(std::optional<zo::BitMask> mask, FindMask(own, before, masks_.bits().size()));
    if (mask) masks_.SetFixed(*std::move(mask));
    return absl::OkStatus();
  }

  absl::Status Start(tier::History history) override {
    if (history.steps() > 0 && masks_.fixed() && !masks_.HasFixed()) return FailedPrecondition("sparse: wanda's mask is missing");
    if (!masks_.FromValues()) return Begin(std::move(history));
    RETURN_IF_ERROR(Begin({}));
    for (uint32_t step = 0; step < history.steps(); ++step) {
      RETURN_IF_ERROR(DrawWhenDue());
      pipeline_->Finish(history[step]);
    }
    return absl::OkStatus();
  }

  size_t scalars() const override {
    return opened_.groups.empty() ? static_cast<size_t>(opened_.hyper.queries) : opened_.groups.size();
  }

  absl::StatusOr<tier::StepLosses> Measure(double lr, std::span<const Example* const> batch,
                                           std::span<const Example* const> whole, bool classify) override {
    RETURN_IF_ERROR(DrawWhenDue());
    if (masks_.fixed() && !masks_.HasFixed()) RETURN_IF_ERROR(DrawFixed(whole));
    const auto there = place_->Enter();
    compute_.SetExamples(batch, classify, objective_);
    return pipeline_->Measure(lr, compute_);
  }

  void Finish(tier::StepRecord record) override { pipeline_->Finish(std::move(record)); }

  absl::StatusOr<std::vector<double>> Score(std::span<const Example* const> examples) override {
    const auto there = place_->Enter();
    compute_.SetExamples(examples, false, "loss");
    RETURN_IF_ERROR(pipeline_->Evaluate(compute_).status());
    return compute_.LogProbabilities(0);
  }

  absl::Status Flush() override { return pipeline_->Flush(); }

  absl::StatusOr<std::string> Sha256() override {
    optod::Sha256 hash;
    RETURN_IF_ERROR(InOrder(opened_.streamed.trainable, [&](std::span<const float> values) {
      hash.Update(std::as_bytes(values));
      return absl::OkStatus();
    }));
    return hash.FinishHex();
  }

  absl::Status Save(const std::string& folder) override {
    if (opened_.streamed.adapters) return SaveAdapters(folder);
    RETURN_IF_ERROR(PosixFs().CreateDirectories(folder));
    std::vector<nn::TensorToWrite> tensors;
    std::vector<size_t> uids;
    for (size_t uid = 0; uid < opened_.streamed.model_tensors; ++uid) {
      tensors.push_back({opened_.streamed.tensor(uid).name, nn::FileType::kF32, opened_.streamed.tensor(uid).shape, {}});
      uids.push_back(uid);
    }
    ASSIGN_OR_RETURN(nn::SafetensorsWriter writer,
                     nn::SafetensorsWriter::Create(folder + "/model.safetensors", tensors, {{"format", "pt"}}));
    RETURN_IF_ERROR(InOrder(uids, [&](std::span<const float> values) { return writer.Append(std::as_bytes(values)); }));
    RETURN_IF_ERROR(writer.Commit());
    return nn::SaveConfig(folder, config());
  }

  std::map<std::string, double> Figures() const override {
    const tier::QueueTimes t = device_->times();
    const auto of = [](const auto& array, tier::Queue queue) { return static_cast<double>(array[static_cast<size_t>(queue)]); };
    const double compute = of(t.busy, tier::Queue::kCompute), elapsed = std::max(t.elapsed, 1e-9);
    return {{"tier/read_bytes", of(t.bytes, tier::Queue::kRead)},
            {"tier/written_bytes", of(t.bytes, tier::Queue::kWrite)},
            {"tier/compute_busy", compute / elapsed},
            {"tier/disk_busy", std::max(of(t.busy, tier::Queue::kRead), of(t.busy, tier::Queue::kWrite)) / elapsed},
            {"tier/compute_seconds", compute},
            {"tier/waited_seconds", t.compute_waited},
            {"tier/overlap", compute > 0 ? compute / (compute + t.compute_waited) : 1},
            {"tier/plan_bytes", static_cast<double>(opened_.plan.device_peak + opened_.plan.host_peak)}};
  }

  void Discard() override {
    pipeline_.reset();
    if (opened_.plan.disk_bytes > 0) (void)PosixFs().Remove(path_);
  }

 private:
  absl::Status Begin(tier::History history) {
    pipeline_.reset();
    ASSIGN_OR_RETURN(adapters_, InitialAdapters(opened_.streamed, scheme_, seed_, *opened_.reader));
    device_ = place_->MakeQueues();
    std::unique_ptr<tier::DirectFile> file;
    if (opened_.plan.disk_bytes > 0) {
      if (history.steps() == 0 && PosixFs().Exists(path_)) RETURN_IF_ERROR(PosixFs().Remove(path_));
      ASSIGN_OR_RETURN(file, tier::OpenDirectFile(path_, kDiskThreads));
    }
    tier::PipelineOptions options;
    options.hyper = opened_.hyper;
    options.seed = seed_;
    if (masks_.on()) options.mask = &masks_;
    options.groups = opened_.groups;
    options.coordinate = coordinate_;
    options.first_query = opened_.evaluated > 0 ? rank_ : 0;
    options.evaluated = opened_.evaluated;
    options.parallel = OnTorchThreads();
    options.serial = serial_;
    options.accelerator = place_->accelerator();
    ASSIGN_OR_RETURN(pipeline_, tier::Pipeline::Create(
                                    opened_.streamed.units, opened_.plan, options, device_.get(), std::move(file),
                                    std::move(history), [this](size_t unit, std::span<float> slot) { return Initial(unit, slot); }));
    return absl::OkStatus();
  }

  /// Trained parts of units as they come by.
  TieredMasks::Sweep ShowTo(absl::Status (tier::Pipeline::*sweep)(const tier::Pipeline::Visitor&)) {
    return [this, sweep](const TieredMasks::Parts& parts) {
      return (pipeline_.get()->*sweep)([&](size_t unit, tier::Progress, std::span<const float> slot) {
        if (!opened_.streamed.units[unit].trainable) return absl::OkStatus();
        std::vector<TieredMasks::Part> list;
        for (const tier::UnitPart& part : opened_.streamed.units[unit].parts) {
          list.push_back({part.number(), part.first, slot.first(part.count)});
          slot = slot.subspan(part.count);
        }
        parts(list);
        return absl::OkStatus();
      });
    };
  }

  absl::Status DrawWhenDue() {
    const uint32_t step = pipeline_->history().steps();
    if (!masks_.Due(step)) return absl::OkStatus();
    return masks_.Draw(step, ShowTo(&tier::Pipeline::ForEachUnit), ShowTo(&tier::Pipeline::Settle));
  }

  /// Wanda's mask: the inputs of the layers at the values of now, and then the values.
  absl::Status DrawFixed(std::span<const Example* const> examples) {
    std::map<size_t, std::vector<double>> norms;
    compute_.SetExamples(examples, false, "loss");
    compute_.ObserveInputs(&norms);
    const absl::Status status = pipeline_->Evaluate(compute_).status();
    compute_.ObserveInputs(nullptr);
    RETURN_IF_ERROR(status);
    std::vector<tier::BlockTensor> tensors;
    for (size_t uid : opened_.streamed.trainable) tensors.push_back(opened_.streamed.tensor(uid));
    const bool in_out = config().fused_qkv() && !opened_.streamed.adapters;
    RETURN_IF_ERROR(masks_.DrawFixed(norms, tensors, in_out, ShowTo(&tier::Pipeline::ForEachUnit)));
    return WriteMask(mask_file_, masks_.bits());
  }

  absl::StatusOr<tier::Progress> Initial(size_t unit, std::span<float> slot) {
    if (opened_.streamed.units[unit].resident) {
      std::copy(adapters_.begin(), adapters_.end(), slot.begin());
      return tier::Progress{};
    }
    for (const tier::UnitPart& part : opened_.streamed.units[unit].parts) {
      RETURN_IF_ERROR(opened_.reader->Read(part.uid, part.first, slot.first(part.count)));
      slot = slot.subspan(part.count);
    }
    return tier::Progress{};
  }

  absl::Status SaveAdapters(const std::string& folder) {
    std::vector<float> values;
    RETURN_IF_ERROR(InOrder(opened_.streamed.trainable, [&](std::span<const float> part) {
      values.insert(values.end(), part.begin(), part.end());
      return absl::OkStatus();
    }));
    return SaveAdapter(folder, config(), scheme_, opened_.streamed.blocks.back().tensors, values);
  }

  /// All values of these tensors in this order. Units come in the order of the forward pass, so it may take a second sweep:
  /// a tied table is the first tensor and the last unit.
  absl::Status InOrder(const std::vector<size_t>& uids, const std::function<absl::Status(std::span<const float>)>& sink) {
    size_t at = 0;
    uint64_t element = 0;
    while (at < uids.size()) {
      RETURN_IF_ERROR(pipeline_->ForEachUnit([&](size_t unit, tier::Progress, std::span<const float> slot) {
        for (const tier::UnitPart& part : opened_.streamed.units[unit].parts) {
          const std::span<const float> values = slot.first(part.count);
          slot = slot.subspan(part.count);
          if (at == uids.size() || part.uid != uids[at] || part.first != element) continue;
          RETURN_IF_ERROR(sink(values));
          element += part.count;
          if (element < static_cast<uint64_t>(opened_.streamed.tensor(part.uid).elements())) continue;
          ++at;
          element = 0;
        }
        return absl::OkStatus();
      }));
    }
    return absl::OkStatus();
  }

  const uint64_t seed_;
  const int rank_;
  const bool serial_;
  const SchemeSpec scheme_;
  const bool coordinate_;
  const std::string objective_;
  const std::string path_;
  const std::function<bool()> stop_;
  Opened opened_;
  TieredMasks masks_;
  std::string mask_file_;        // Wanda's
  std::vector<float> adapters_;  // as they begin
  std::unique_ptr<TieredPlace> place_;
  TieredCompute compute_;
  std::unique_ptr<tier::Device> device_;
  std::unique_ptr<tier::Pipeline> pipeline_;
};

}  // namespace

absl::StatusOr<tier::TierRequest> TierRequestOf(const TierSpec& spec) {
  tier::TierRequest request;
  request.device_budget = spec.device_budget;
  request.host_budget = spec.host_budget;
  request.disk = !spec.disk.empty();
  request.slots = static_cast<int>(spec.slots);
  request.fused = spec.fused;
  request.write_every = static_cast<int>(spec.write_every);
  ASSIGN_OR_RETURN(request.codec, tier::ParseCodec(spec.codec));
  return request;
}

absl::StatusOr<tier::Plan> PlanOf(const TrainSpec& spec, int64_t tokens) {
  ASSIGN_OR_RETURN(Opened opened, OpenAndPlan(spec, tokens));
  return std::move(opened.plan);
}

absl::StatusOr<std::unique_ptr<TieredModel>> TieredModel::Open(const TrainSpec& spec, const std::string& name,
                                                               std::function<bool()> stop, int rank) {
  ASSIGN_OR_RETURN(std::unique_ptr<TieredPlace> place, TieredPlace::Open(spec.device));
  ASSIGN_OR_RETURN(Opened opened, OpenAndPlan(spec, 0));
  return std::make_unique<TieredTorchModel>(spec, spec.tier.disk + "/" + name, std::move(stop), rank, std::move(opened),
                                            std::move(place));
}

}  // namespace optod::train
