// The tiered pipeline on the device: the bytes of the resident run on the CPU, slots poisoned as soon as they are free.
// The tests named Host need no GPU: with an argument, those whose names contain it are run.
#include <cmath>

#include "optim/tier/cuda_accelerator.h"
#include "tests/gpu/mlp_kernels.h"
#include "tests/gpu/testing.h"
#include "tier_testing.h"

namespace optod::tier {
namespace {

using namespace cuda::testing;

TierRequest Ask(int slots, bool disk = false, int write_every = 1, int64_t device_budget = 24 << 10,
                bool fused = true) {
  TierRequest request;
  request.slots = slots;
  request.disk = disk;
  request.write_every = write_every;
  request.device_budget = device_budget;
  request.separate_device = true;
  request.fused = fused;
  return request;
}

const TierCase kCases[] = {
    {.name = "all on the device", .request = Ask(0, false, 1, -1), .hyper = {.lr = 1e-2, .weight_decay = 0.1}},
    {.name = "one slot", .request = Ask(1), .hyper = {.lr = 1e-2}},
    {.name = "two slots", .request = Ask(2), .hyper = {.lr = 1e-2, .weight_decay = 0.1}},
    {.name = "three slots, untied", .request = Ask(3), .hyper = {.lr = 1e-2}, .tied = false},
    {.name = "one copy", .request = Ask(2, false, 1, 24 << 10, false), .hyper = {.lr = 1e-2}},
    {.name = "disk", .request = Ask(2, true), .host_share = 0.7, .hyper = {.lr = 1e-2}},
    {.name = "disk, lazily", .request = Ask(2, true, 7), .host_share = 0.7, .hyper = {.lr = 1e-2, .queries = 3}},
    {.name = "all three", .request = Ask(2, true), .host_share = 0.7, .device_share = 0.7, .hyper = {.lr = 1e-2}},
    {.name = "mezo", .request = Ask(2), .hyper = {.residue = zo::Residue::kMezo, .lr = 1e-2, .queries = 2}},
    {.name = "momentum", .request = Ask(3), .hyper = {.lr = 1e-3, .momentum = 0.9}},
    {.name = "adam", .request = Ask(2), .hyper = {.base = zo::Base::kAdam, .lr = 1e-3}},
    {.name = "serial", .request = Ask(2), .hyper = {.lr = 1e-2}, .serial = true},
};

void CompareWithResident(TierCase c, uint32_t steps) {
  const MlpModel model({.tied = c.tied});
  TempFolder folder;
  Resident resident(model, c.hyper);
  auto run = StartRun(c, model, folder.File("units"));
  EXPECT(run.ok()) << c.name << run.status().ToString();
  for (uint32_t step = 0; step < steps && run.ok(); ++step) {
    const zo::StepResult want = resident.Step();
    const auto got = run->Step(model, c.hyper.lr);
    EXPECT(got.ok()) << c.name << step << got.status().ToString();
    if (!got.ok()) return;
    EXPECT(got->plus == want.loss_plus && got->minus == want.loss_minus) << c.name << "step" << step;
  }
  if (!run.ok()) return;
  for (const std::string& name : Different(*run, model, resident.theta(), &resident.state()))
    EXPECT(false) << c.name << name;
}

TEST(HostPipelineIsTheResidentRun) {
  for (TierCase c : kCases) {
    CompareWithResident(c, 6);
    c.accelerated = true;
    CompareWithResident(c, 6);
  }
}

TEST(HostNoDeviceIsSaidClearly) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return;
  const absl::Status status = CudaAccelerator::Create().status();
  EXPECT(status.code() == absl::StatusCode::kFailedPrecondition) << status.ToString();
  EXPECT(status.ToString().find("device: cuda: no CUDA device here") != std::string::npos) << status.ToString();
}

TEST(PipelineIsTheResidentRun) {
  auto gpu = CudaAccelerator::Create();
  EXPECT(gpu.ok()) << gpu.status().ToString();
  if (!gpu.ok()) return;
  for (TierCase c : kCases) {
    c.accelerator = gpu->get();
    CompareWithResident(c, 22);
  }
}

/// The model's kernels on the compute stream: the host waits once a step. Losses agree to the last bits of exp, and
/// then the resident run's are used, so that theta can be compared bit for bit.
class DeviceMlp final : public BlockCompute {
 public:
  DeviceMlp(CudaAccelerator& gpu, const MlpModel& model, MlpCompute& here)
      : stream_(gpu.stream(Queue::kCompute)),
        model_(model),
        here_(here),
        tokens_(static_cast<int>(here.ids().size())),
        hidden_(static_cast<int>(model.shape().hidden)),
        ids_(here.ids()),
        targets_(here.targets()) {}
  absl::Status Begin(int copies) override {
    copies_.clear();
    for (int c = 0; c < copies; ++c) {
      const auto tokens = static_cast<size_t>(tokens_);
      copies_.push_back({cuda::testing::Device<float>(tokens * static_cast<size_t>(hidden_)),
                         cuda::testing::Device<double>(std::vector<double>(tokens, -INFINITY)),
                         cuda::testing::Device<double>(std::vector<double>(tokens, 0)),
                         cuda::testing::Device<double>(std::vector<double>(tokens, 0))});
    }
    return absl::OkStatus();
  }
  std::vector<Slice> Wanted() override { return here_.Wanted(); }
  absl::Status Gathered(int copy, std::span<const float> values) override {
    cudaMemcpyAsync(copies_[static_cast<size_t>(copy)].x.get(), values.data(), values.size_bytes(),
                    cudaMemcpyHostToDevice, stream_);
    return absl::OkStatus();
  }
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override {
    const Unit& u = model_.units()[unit];
    Copy& c = copies_[static_cast<size_t>(copy)];
    const UnitPart& part = u.parts[0];
    const auto row = static_cast<int64_t>(part.first / part.columns),
               rows = static_cast<int64_t>(part.count / part.columns);
    if (u.name.starts_with("layers."))
      cuda::MlpLayer(weights.data(), tokens_, hidden_, static_cast<int>(model_.shape().inner), c.x.get(), stream_);
    else if (u.name == "head")
      cuda::MlpGain(weights.data(), tokens_, hidden_, c.x.get(), stream_);
    else if (part.uid == 0 && !model_.shape().tied)
      cuda::MlpEmbed(weights.data(), row, rows, ids_.get(), tokens_, hidden_, c.x.get(), stream_);
    else
      cuda::MlpVocabulary(weights.data(), row, rows, targets_.get(), tokens_, hidden_, c.x.get(),
                          {c.best.get(), c.sum.get(), c.asked.get()}, stream_);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<double>> Losses() override {
    cudaStreamSynchronize(stream_);
    std::vector<double> losses;
    for (Copy& c : copies_) {
      const std::vector<double> best = c.best.Host(), sum = c.sum.Host(), asked = c.asked.Host();
      double loss = 0;
      for (size_t t = 0; t < best.size(); ++t) loss += best[t] + std::log(sum[t]) - asked[t];
      losses.push_back(loss / tokens_);
    }
    for (size_t c = 0; c < losses.size(); ++c)
      EXPECT(std::abs(losses[c] - want[c]) <= 1e-12 * std::abs(want[c])) << "loss" << c << losses[c] << want[c];
    return want;
  }
  std::vector<double> want;

 private:
  struct Copy {
    cuda::testing::Device<float> x;
    cuda::testing::Device<double> best, sum, asked;
  };
  const cudaStream_t stream_;
  const MlpModel& model_;
  MlpCompute& here_;
  const int tokens_, hidden_;
  const cuda::testing::Device<int64_t> ids_, targets_;
  std::vector<Copy> copies_;
};

TEST(ComputingOnTheStreamGivesTheResidentBytes) {
  auto gpu = CudaAccelerator::Create();
  EXPECT(gpu.ok());
  if (!gpu.ok()) return;
  for (TierCase c : kCases) {
    c.accelerator = gpu->get();
    const MlpModel model({.vocab = 400, .hidden = 96, .inner = 200, .layers = 9, .tied = c.tied, .piece_rows = 128});
    if (c.request.device_budget > 0) c.request.device_budget *= 40;
    TempFolder folder;
    Resident resident(model, c.hyper);
    auto run = StartRun(c, model, folder.File("units"));
    EXPECT(run.ok()) << c.name << run.status().ToString();
    for (uint32_t step = 0; step < 12 && run.ok(); ++step) {
      const zo::StepResult want = resident.Step();
      MlpCompute here(model, step);
      DeviceMlp there(**gpu, model, here);
      for (size_t q = 0; q < want.loss_plus.size(); ++q) {
        there.want.push_back(want.loss_plus[q]);
        there.want.push_back(want.loss_minus[q]);
      }
      const auto got = run->pipeline->Step(RateAt(c.hyper.lr, step), there);
      EXPECT(got.ok() && got->g == want.projected_grad) << c.name << step << got.status().ToString();
    }
    if (!run.ok()) continue;
    for (const std::string& name : Different(*run, model, resident.theta(), &resident.state()))
      EXPECT(false) << c.name << name;
  }
}

}  // namespace
}  // namespace optod::tier

int main(int argc, char** argv) {
  namespace testing = optod::cuda::testing;
  int devices = 0;
  const bool device = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  if (argc > 1) return testing::RunAll(argv[1], device);
  if (device) return testing::RunAll("");
  std::printf("no CUDA device here: only the tests that need none\n");
  return testing::RunAll("Host", false) == 0 ? 2 : 1;
}
