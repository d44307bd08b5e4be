// A unit's pass and the codecs on the device: the CPU's bytes.
#include <cmath>
#include <cstring>
#include <limits>

#include "optim/tier/cuda_accelerator.h"
#include "optim/tier/direct_file.h"
#include "optim/tier/unit_pass.h"
#include "tests/gpu/testing.h"

namespace optod::tier {
namespace {

using namespace cuda::testing;

std::unique_ptr<CudaAccelerator> Gpu() {
  auto made = CudaAccelerator::Create();
  if (made.ok()) return *std::move(made);
  std::printf("%s\n", made.status().ToString().c_str());
  std::exit(1);
}

std::vector<float> Normals(Random& random, size_t n, double scale) {
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(scale * random.Uniform(-2, 2));
  return out;
}

/// Floats in device memory, a copy of `host`, beginning `shift` floats behind a border.
struct There {
  There(CudaAccelerator& gpu, std::span<const float> host, size_t shift) : gpu(gpu) {
    auto made = gpu.Allocate((host.size() + shift + 1) * sizeof(float));
    if (!made.ok()) std::printf("%s\n", made.status().ToString().c_str()), std::exit(1);
    buffer = *std::move(made);
    floats = buffer.floats().subspan(shift, host.size());
    EXPECT(gpu.CopyToDevice(std::as_bytes(host), std::as_writable_bytes(floats)).ok());
  }
  std::vector<float> Host() {
    std::vector<float> out(floats.size());
    EXPECT(gpu.CopyToHost(std::as_bytes(floats), std::as_writable_bytes(std::span(out))).ok());
    return out;
  }
  CudaAccelerator& gpu;
  DeviceBuffer buffer;
  std::span<float> floats;
};

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct HyperCase {
  const char* name;
  zo::ZoHyper hyper;
};
const HyperCase kHypers[] = {
    {"sgd", {.lr = 1e-2, .weight_decay = 0.1}},
    {"queries", {.lr = 1e-2, .queries = 3}},
    {"mezo", {.residue = zo::Residue::kMezo, .lr = 1e-2, .queries = 2, .weight_decay = 0.01}},
    {"scalar sign", {.sign = zo::Sign::kScalar, .lr = 1e-3}},
    {"element sign", {.sign = zo::Sign::kElement, .lr = 1e-3, .queries = 2, .weight_decay = 0.1}},
    {"momentum", {.lr = 1e-3, .momentum = 0.9, .weight_decay = 0.1}},
    {"adam", {.base = zo::Base::kAdam, .lr = 1e-3, .queries = 2, .weight_decay = 0.1}},
};

History Steps(const zo::ZoHyper& hyper, uint32_t steps, Random& random) {
  History history;
  for (uint32_t step = 0; step < steps; ++step) {
    StepRecord record{random.Uniform(0.5, 1.5) * hyper.lr, {}, step % 5 == 3};
    for (int q = 0; q < hyper.queries; ++q) record.g.push_back(random.Uniform(-3, 3));
    history.Add(record);
  }
  return history;
}

void ComparePass(CudaAccelerator& gpu, const HyperCase& c, uint32_t steps, Copies copies, int trial) {
  Random random(100 * steps + trial);
  const History history = Steps(c.hyper, steps, random);
  const auto n = static_cast<size_t>(trial % 4 == 0 ? 70000 + random.Below(9) : 1 + random.Below(700));
  const uint64_t first = trial % 3 == 0 ? 0 : static_cast<uint64_t>(random.Below(1 << 20));
  const size_t shift = trial % 2 == 0 ? first % 4 : static_cast<size_t>(random.Below(4));
  std::vector<float> theta = Normals(random, n, 0.1), plus = Normals(random, n, 0.1), minus(n, 0.0f), m, v;
  const int states = UnitPass::StatesOf(c.hyper);
  if (states > 0) m = Normals(random, n, 0.01);
  if (states > 1) v.assign(n, 0.01f);
  There t(gpu, theta, shift), p(gpu, plus, shift), q(gpu, minus, shift), tm(gpu, m, shift), tv(gpu, v, shift);
  const UnitPass here(c.hyper, 11, history, MakeTileTeam(1)), there(c.hyper, 11, history, MakeTileTeam(1), nullptr, &gpu);
  const Progress from{steps / 3, steps / 3};
  here.Perturb({5, first, trial % 5 != 0, theta, m, v}, from, steps, 0, copies, plus, minus);
  there.Perturb({5, first, trial % 5 != 0, t.floats, tm.floats, tv.floats}, from, steps, 0, copies, p.floats, q.floats);
  EXPECT(Same(t.Host(), theta)) << c.name << steps << trial << "theta";
  EXPECT(copies == Copies::kMinus || Same(p.Host(), plus)) << c.name << steps << trial << "plus";
  EXPECT(copies == Copies::kPlus || Same(q.Host(), minus)) << c.name << steps << trial << "minus";
  EXPECT(Same(tm.Host(), m) && Same(tv.Host(), v)) << c.name << steps << trial << "state";
}

/// 7 optimizers, steps behind (0: none; 90: several launches), every form of copies, sizes, places, alignments.
TEST(PassesAreTheCpusBitForBit) {
  const auto gpu = Gpu();
  for (const HyperCase& c : kHypers) {
    for (const uint32_t steps : {0u, 1u, 7u, 90u}) {
      for (const Copies copies : {Copies::kBoth, Copies::kPlus, Copies::kMinus}) {
        for (int trial = 0; trial < 10; ++trial) ComparePass(*gpu, c, steps, copies, trial);
      }
    }
  }
}

Unit TwoParts(size_t columns) {
  return {.name = "unit",
          .parts = {{.uid = 3, .first = 7 * columns, .count = 33 * columns, .columns = columns},
                    {.uid = 4, .first = 0, .count = 5, .columns = 5}}};
}

/// Every kind of number, in rows of every kind of top.
std::vector<float> Values(size_t n, size_t columns) {
  Random random(n);
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i)
    values[i] =
        static_cast<float>(random.Uniform(-1, 1) * std::exp2(static_cast<double>((i / columns) % 37) * 8 - 148));
  const float specials[] = {0.0f,     -0.0f, INFINITY, -INFINITY, NAN,   65504.0f,
                            65519.9f, 1e30f, 0x1p-24f, 0x1p-149f, 448.0f};
  for (size_t i = 0; i < std::size(specials); ++i) values[(3 * columns + i * 17) % n] = specials[i];
  return values;
}

TEST(RecordsAreTheCpusBitForBit) {
  const auto gpu = Gpu();
  for (const Codec codec : {Codec::kNone, Codec::kBf16, Codec::kF16, Codec::kFp8}) {
    for (const size_t columns : {1u, 3u, 64u, 129u, 1000u}) {
      for (const int states : {0, 2}) {
        const RecordLayout layout(TwoParts(columns), states, codec);
        const std::vector<float> slot = Values(layout.slot_floats(), columns);
        std::vector<std::byte> want(layout.record_bytes()), got(layout.record_bytes()), coded(layout.record_bytes());
        layout.ToRecord(slot, 9, 4, want);
        There there(*gpu, slot, 0);
        const DeviceBuffer buffer = *gpu->Allocate(codec == Codec::kNone ? 0 : layout.record_bytes());
        EXPECT(gpu->Offload(layout, there.floats, 9, 4, buffer.bytes, got).ok());
        EXPECT(gpu->Synchronize(*gpu->Record(Queue::kOffload)).ok());
        EXPECT(want == got) << CodecName(codec) << columns << states << "offload";
        std::vector<float> back(layout.slot_floats());
        layout.ToSlot(want, back);
        EXPECT(gpu->Upload(layout, want, buffer.bytes, there.floats).ok());
        EXPECT(gpu->Synchronize(*gpu->Record(Queue::kUpload)).ok());
        EXPECT(Same(there.Host(), back)) << CodecName(codec) << columns << states << "upload";
      }
    }
  }
}

TEST(LockedMemoryAndItsFallback) {
  const auto gpu = Gpu();
  const PageBuffer buffer = *PageBuffer::Create(1 << 20);
  EXPECT(gpu->Lock(buffer.bytes()) != nullptr);
  EXPECT(gpu->Lock(buffer.bytes()) != nullptr) << "again, after it was given back";
  const auto held = gpu->Lock(buffer.bytes());
  EXPECT(gpu->Lock(buffer.bytes()) == nullptr) << "twice";
  EXPECT(gpu->Record(Queue::kUpload).ok()) << "a refusal is no error of what comes next";
  EXPECT(gpu->Allocate(size_t{1} << 50).status().code() == absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace optod::tier
