// Every kernel against the CPU's: bit for bit where the CPU's order of operations is kept, else to a stated tolerance.
#include <cmath>
#include <cstring>

#include "cuda/adamw_8bit.h"
#include "cuda/matrix.h"
#include "cuda/norms.h"
#include "cuda/random.h"
#include "cuda/step.h"
#include "cuda/transfer.h"
#include "optim/rules/dynamic_code.h"
#include "optim/rules/half.h"
#include "optim/rules/kernels.h"
#include "optim/zo/stream.h"
#include "tests/gpu/testing.h"

namespace optod::optim {
extern const KernelTable kKernelsScalar;
}

namespace optod::cuda {
namespace {

using namespace testing;
namespace formula = optim::formula;
namespace half = optim::half;

template <typename T>
std::vector<T> Numbers(Random& random, int64_t n, double low, double high) {
  std::vector<T> out(static_cast<size_t>(n));
  for (T& x : out) x = static_cast<T>(random.Uniform(low, high));
  return out;
}
template <typename T>
int64_t FirstDifference(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return static_cast<int64_t>(i);
  }
  return a.size() == b.size() ? -1 : static_cast<int64_t>(a.size());
}

template <typename T>
std::vector<std::byte> Bytes(const T& constants, size_t copies) {
  std::vector<std::byte> out(sizeof(T) * copies);
  for (size_t i = 0; i < copies; ++i) std::memcpy(out.data() + i * sizeof(T), &constants, sizeof(T));
  return out;
}

template <typename T>
std::vector<std::byte> ConstantsFor(Operation operation, Random& random, size_t copies) {
  const auto u = [&](double low, double high) { return static_cast<T>(random.Uniform(low, high)); };
  const formula::Ema<T> first = {u(0.5, 0.95), u(0.05, 0.5)}, second = {u(0.9, 0.999), u(0.001, 0.1)};
  switch (operation) {
    case Operation::kSgdPlain:
    case Operation::kSgdMomentum:
    case Operation::kSgdNesterov:
      return Bytes(formula::Sgd<T>{u(1e-3, 0.1), u(0, 0.1), u(0.5, 0.95), u(0.5, 1), u(0.5, 0.95)}, copies);
    case Operation::kAdam:
    case Operation::kAmsgrad:
      return Bytes(formula::Adam<T>{first, second, u(1e-3, 0.1), u(0.1, 1), u(1e-8, 1e-3), u(0.9, 1), u(0, 0.1), T{1}}, copies);
    case Operation::kSai: return Bytes(formula::Sai<T>{first, u(0.9, 1), u(1e-3, 0.1)}, copies);
    case Operation::kAdaHessian:
    case Operation::kAdaHessianPower:
      return Bytes(formula::AdaHessian<T>{first, second, u(1e-3, 0.1), u(0, 0.1), u(0.1, 1), u(0.1, 1), u(1e-6, 1e-3), u(0.3, 0.9)},
                   copies);
    case Operation::kLambMoments:
    case Operation::kLambApply:
      return Bytes(formula::Lamb<T>{first, second, u(0.1, 1), u(0.1, 1), u(1e-8, 1e-3), u(0, 0.1), u(1e-3, 0.1)}, copies);
    case Operation::kNormalisedRow: return Bytes(formula::Normalised<T>{first, u(0.9, 1), u(1e-3, 0.1), u(0.1, 2)}, copies);
    case Operation::kAverage: return Bytes(first, copies);
  }
  return {};
}

struct OperationCase {
  Operation operation;
  optim::KernelId kernel;
  const char* name;
};
const OperationCase kOperations[] = {
    {Operation::kSgdPlain, optim::kSgdPlain, "sgd"},
    {Operation::kSgdMomentum, optim::kSgdMomentum, "sgd momentum"},
    {Operation::kSgdNesterov, optim::kSgdNesterov, "sgd nesterov"},
    {Operation::kAdam, optim::kAdam, "adam"},
    {Operation::kAmsgrad, optim::kAmsgrad, "amsgrad"},
    {Operation::kSai, optim::kSai, "sgd-sai"},
    {Operation::kAdaHessian, optim::kAdaHessian, "adahessian"},
    {Operation::kAdaHessianPower, optim::kAdaHessianPower, "adahessian power"},
    {Operation::kLambMoments, optim::kLambMoments, "lamb moments"},
    {Operation::kLambApply, optim::kLambApply, "lamb apply"},
    {Operation::kNormalisedRow, optim::kNormalisedRow, "normalised"},
    {Operation::kAverage, optim::kAverage, "average"},
};

uint16_t Narrow(DType dtype, float x) { return dtype == DType::kBF16 ? half::ToBf16(x) : half::ToF16(x); }
float Widen(DType dtype, uint16_t x) { return dtype == DType::kBF16 ? half::FromBf16(x) : half::FromF16(x); }

/// 200 random configurations a formula: sizes, alignments, constants. The reference is the CPU's scalar table.
template <typename T>
void CompareOperations() {
  const DType dtype = sizeof(T) == 8 ? DType::kF64 : DType::kF32;
  for (const OperationCase& c : kOperations) {
    for (int trial = 0; trial < 200; ++trial) {
      Random random(1000 * static_cast<int>(c.kernel) + trial);
      const size_t tensors = 1 + random.Below(3);
      std::vector<int64_t> sizes;
      for (size_t i = 0; i < tensors; ++i) sizes.push_back(trial % 10 == 0 ? random.Below(40000) : random.Below(300));
      const int64_t shift = trial % 3 == 2 ? 1 + random.Below(3) : 0;  // elements off a vector's border
      std::vector<std::byte> constants = ConstantsFor<T>(c.operation, random, tensors);
      std::vector<std::vector<T>> host[6];
      std::vector<Device<T>> device[6];
      std::vector<TensorOperands> operands(tensors);
      const size_t one = constants.size() / tensors;
      for (size_t i = 0; i < tensors; ++i) {
        for (int k = 0; k < 6; ++k) {  // p, g, s0, s1, s2, x; second moments are not negative
          host[k].push_back(Numbers<T>(random, sizes[i] + shift, k == 3 || k == 4 ? 0 : -1, 1));
          device[k].emplace_back(host[k][i]);
        }
        const bool no_gradient = tensors > 1 && i == 1 && c.operation != Operation::kLambApply;
        operands[i].p = device[0][i].get() + shift;
        operands[i].g = no_gradient ? nullptr : device[1][i].get() + shift;
        for (int k = 0; k < 3; ++k) operands[i].s[k] = device[2 + k][i].get() + shift;
        operands[i].x = device[5][i].get() + shift;
        operands[i].p_dtype = operands[i].g_dtype = dtype;
        if (no_gradient) continue;
        optim::Lanes<T> lanes;
        lanes.p = host[0][i].data() + shift;
        lanes.g = host[1][i].data() + shift;
        for (int k = 0; k < 3; ++k) lanes.s[k] = host[2 + k][i].data() + shift;
        lanes.x = host[5][i].data() + shift;
        optim::kKernelsScalar.typed<T>().step[c.kernel](constants.data() + i * one, lanes, sizes[i]);
      }
      std::unique_ptr<StepPlan> plan;
      EXPECT_OK(StepPlan::Make(sizes, &plan));
      if (plan == nullptr) return;
      EXPECT_OK(plan->Run(c.operation, operands, constants, nullptr));
      for (int k : {0, 2, 3, 4}) {
        for (size_t i = 0; i < tensors; ++i) {
          const std::vector<T> got = device[k][i].Host();
          if (c.operation == Operation::kAdaHessianPower) {  // pow is another implementation on the device
            for (size_t e = 0; e < got.size(); ++e)
              EXPECT(std::abs(got[e] - host[k][i][e]) <= 1e-5 * (1 + std::abs(host[k][i][e]))) << c.name << trial << e;
            continue;
          }
          const int64_t at = FirstDifference(got, host[k][i]);
          EXPECT(at < 0) << c.name << "trial" << trial << "operand" << k << "tensor" << i << "element" << at;
        }
      }
    }
  }
}
TEST(StepsAreTheCpusBitForBitFloat32) { CompareOperations<float>(); }
TEST(StepsAreTheCpusBitForBitFloat64) { CompareOperations<double>(); }

TEST(SixteenBitParametersHaveFloat32State) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const bool narrow_gradient : {false, true}) {
      for (const int64_t n : {1, 5, 1024, 70001}) {
        for (const bool stochastic : {false, true}) {
          Random random(n);
          const auto p = Numbers<float>(random, n, -1, 1), g = Numbers<float>(random, n, -1, 1);
          std::vector<uint16_t> p16, g16;
          std::vector<float> p32, g32, m(n, 0.0f), v(n, 0.0f);
          for (int64_t i = 0; i < n; ++i) {
            p16.push_back(Narrow(dtype, p[i]));
            g16.push_back(Narrow(dtype, g[i]));
            p32.push_back(Widen(dtype, p16[i]));
            g32.push_back(narrow_gradient ? Widen(dtype, g16[i]) : g[i]);
          }
          Device<uint16_t> dp(p16), dg16(g16);
          Device<float> dg(g), dm(m), dv(v);
          TensorOperands o;
          o.p = dp.get();
          o.g = narrow_gradient ? static_cast<const void*>(dg16.get()) : dg.get();
          o.s[0] = dm.get();
          o.s[1] = dv.get();
          o.p_dtype = dtype;
          o.g_dtype = narrow_gradient ? dtype : DType::kF32;
          o.stochastic = stochastic;
          o.seed = 11;
          o.step = 5;
          o.tensor = 2;
          const std::vector<std::byte> constants = ConstantsFor<float>(Operation::kAdam, random, 1);
          std::unique_ptr<StepPlan> plan;
          const int64_t sizes[] = {n};
          EXPECT_OK(StepPlan::Make(sizes, &plan));
          EXPECT_OK(plan->Run(Operation::kAdam, std::span(&o, 1), constants, nullptr));
          optim::Lanes<float> lanes;
          lanes.p = p32.data();
          lanes.g = g32.data();
          lanes.s[0] = m.data();
          lanes.s[1] = v.data();
          optim::kKernelsScalar.f32.step[optim::kAdam](constants.data(), lanes, n);
          std::vector<uint16_t> want(n);
          for (int64_t i = 0; i < n; ++i) {
            const auto words = zo::Philox4x32({static_cast<uint32_t>(i / 4), 2, 0xFFFFFFFFu, 5}, {11, 0});
            want[i] = stochastic && dtype == DType::kBF16 ? half::ToBf16Stochastic(p32[i], words[i % 4]) : Narrow(dtype, p32[i]);
          }
          EXPECT(FirstDifference(dp.Host(), want) < 0) << n << stochastic;
          EXPECT(FirstDifference(dm.Host(), m) < 0) << n;
          EXPECT(FirstDifference(dv.Host(), v) < 0) << n;
        }
      }
    }
  }
}

TEST(ManyStepsMayBeInFlight) {
  const int64_t n = 100000;
  Random random(3);
  std::vector<float> p = Numbers<float>(random, n, -1, 1), g = Numbers<float>(random, n, -1, 1);
  Device<float> dp(p), dg(g);
  std::unique_ptr<StepPlan> plan;
  const int64_t sizes[] = {n};
  EXPECT_OK(StepPlan::Make(sizes, &plan));
  TensorOperands o;
  o.p = dp.get();
  o.g = dg.get();
  for (int step = 0; step < 40; ++step) {
    const formula::Sgd<float> c = {0.001f * static_cast<float>(step), 0.01f, 0, 1, 0};
    EXPECT_OK(plan->Run(Operation::kSgdPlain, std::span(&o, 1), std::as_bytes(std::span(&c, 1)), nullptr));
    optim::Lanes<float> lanes;
    lanes.p = p.data();
    lanes.g = g.data();
    optim::kKernelsScalar.f32.step[optim::kSgdPlain](&c, lanes, n);
  }
  EXPECT(FirstDifference(dp.Host(), p) < 0);
}

TEST(AdamW8bitIsTheCpusBitForBit) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int block : {256, 512, 1024, 2048, 4096}) {
      for (const int64_t n : {int64_t{1}, int64_t{255}, int64_t{4096}, int64_t{100003}}) {
        Random random(n + block);
        std::vector<float> p = Numbers<float>(random, n, -1, 1);
        const size_t blocks = (n + block - 1) / block;
        std::vector<uint16_t> p16;
        for (float& x : p) {
          p16.push_back(half::ToBf16(x));
          if (dtype == DType::kBF16) x = half::FromBf16(p16.back());
        }
        std::vector<uint8_t> m(n, 127), v(n, 0);  // codes of 0
        std::vector<float> m_max(blocks, 0.0f), v_max(blocks, 0.0f);
        Device<float> dp(p), dm_max(m_max), dv_max(v_max);
        Device<uint16_t> dp16(p16);
        Device<uint8_t> dm(m), dv(v);
        for (int step = 1; step <= 4; ++step) {
          std::vector<float> g = Numbers<float>(random, n, -1, 1);
          for (float& x : g) x = x * x * x * 1e-2f;
          Device<float> dg(g);
          const double b1 = 1 - std::pow(0.9, step), b2 = std::sqrt(1 - std::pow(0.999, step));
          const formula::Adam<float> c = {{0.9f, 0.1f}, {0.999f, 0.001f}, static_cast<float>(1e-3 / b1), static_cast<float>(b2), 1e-8f, 0.99999f, 0, 1};
          TensorOperands o;
          o.p = dtype == DType::kF32 ? static_cast<void*>(dp.get()) : dp16.get();
          o.g = dg.get();
          o.p_dtype = dtype;
          EXPECT_OK(StepAdamW8bit(o, {dm.get(), dv.get(), dm_max.get(), dv_max.get()}, n, block, c, nullptr));
          const optim::KernelTable& k = optim::kKernelsScalar;
          for (size_t b = 0; b < blocks; ++b) {
            const int64_t at = static_cast<int64_t>(b) * block, count = std::min<int64_t>(block, n - at);
            std::vector<float> mf(count), vf(count);
            k.decode8(true, m.data() + at, m_max[b], mf.data(), count);
            k.decode8(false, v.data() + at, v_max[b], vf.data(), count);
            optim::Lanes<float> lanes;
            lanes.p = p.data() + at;
            lanes.g = g.data() + at;
            lanes.s[0] = mf.data();
            lanes.s[1] = vf.data();
            k.f32.step[optim::kAdam](&c, lanes, count);
            m_max[b] = std::max(k.max_abs(mf.data(), count), 1.17549435e-38f);
            v_max[b] = std::max(k.max_abs(vf.data(), count), 1.17549435e-38f);
            k.encode8(true, mf.data(), 1 / m_max[b], m.data() + at, count);
            k.encode8(false, vf.data(), 1 / v_max[b], v.data() + at, count);
          }
          if (dtype == DType::kBF16) {
            for (float& x : p) x = half::FromBf16(half::ToBf16(x));
          }
        }
        if (dtype == DType::kF32) {
          EXPECT(FirstDifference(dp.Host(), p) < 0) << block << n;
        } else {
          std::vector<uint16_t> want;
          for (float x : p) want.push_back(half::ToBf16(x));
          EXPECT(FirstDifference(dp16.Host(), want) < 0) << block << n;
        }
        EXPECT(FirstDifference(dm.Host(), m) < 0) << block << n;
        EXPECT(FirstDifference(dv.Host(), v) < 0) << block << n;
        EXPECT(FirstDifference(dm_max.Host(), m_max) < 0) << block << n;
        EXPECT(FirstDifference(dv_max.Host(), v_max) < 0) << block << n;
      }
    }
  }
}

TEST(TheStreamHasTheBytesOfTheCpu) {
  for (const uint64_t first : {uint64_t{0}, uint64_t{1}, uint64_t{6}, (uint64_t{1} << 34) - 5, (uint64_t{1} << 41) + 3}) {
    for (const int64_t n : {1, 3, 4, 1000, 300001}) {
      const StreamId id = {0x123456789abcdefu, 77, 3, 5};
      const zo::Direction direction = {id.seed, id.step, id.query};
      std::vector<float> want(n);
      zo::FillNormalScalar(direction, id.tensor, first, want);
      Device<float> z(static_cast<size_t>(n));
      EXPECT_OK(FillNormal(id, first, z.get(), n, nullptr));
      EXPECT(FirstDifference(z.Host(), want) < 0) << first << n;
      Device<uint32_t> bits(static_cast<size_t>(n));
      EXPECT_OK(FillBits(id, first, bits.get(), n, nullptr));
      const std::vector<uint32_t> words = bits.Host();
      for (int64_t i = 0; i < n; i += 997) {
        const uint64_t block = (first + i) / 4;
        const auto x = zo::Philox4x32({static_cast<uint32_t>(block), id.tensor + (static_cast<uint32_t>(block >> 32) << 24), id.query, id.step},
                                      {static_cast<uint32_t>(id.seed), static_cast<uint32_t>(id.seed >> 32)});
        EXPECT(words[i] == x[(first + i) % 4]) << first << i;
      }
      for (const int64_t shift : {0, 1, 2}) {
        Random random(n);
        const std::vector<float> theta = Numbers<float>(random, n + shift, -1, 1);
        Device<float> in(theta), out(theta);
        EXPECT_OK(AddScaledNormal(id, first, 1e-3f, DType::kF32, in.get() + shift, out.get() + shift, n, nullptr));
        std::vector<float> moved = theta;
        for (int64_t i = 0; i < n; ++i) moved[i + shift] = theta[i + shift] + 1e-3f * want[i];
        EXPECT(FirstDifference(out.Host(), moved) < 0) << first << n << shift;
        EXPECT(FirstDifference(in.Host(), theta) < 0);
      }
    }
  }
}

TEST(UpdatesOfManyTermsAreOnePass) {
  for (const int64_t n : {1, 4, 9999}) {
    Random random(n);
    std::vector<float> theta = Numbers<float>(random, n, -1, 1);
    Device<float> device(theta);
    const UpdateTerm terms[] = {{3, 0, 0.01f}, {3, 1, -0.02f}, {4, 0, 1.5f}};
    EXPECT_OK(ApplyUpdate({99, 0, 0, 7}, terms, 0.05f, DType::kF32, device.get(), n, nullptr));
    for (float& x : theta) x = x - 0.05f * x;
    for (const UpdateTerm& term : terms) {
      std::vector<float> z(n);
      zo::FillNormalScalar({99, term.step, term.query}, 7, 0, z);
      for (int64_t i = 0; i < n; ++i) theta[i] = theta[i] + -term.coefficient * z[i];
    }
    EXPECT(FirstDifference(device.Host(), theta) < 0) << n;
  }
}

TEST(CastsAreTheCpus) {
  std::vector<uint16_t> all(65536);
  for (int i = 0; i < 65536; ++i) all[i] = static_cast<uint16_t>(i);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    Device<uint16_t> from(all), back(all.size());
    Device<float> to(all.size());
    EXPECT_OK(Cast(dtype, from.get(), DType::kF32, to.get(), 65536, nullptr));
    EXPECT_OK(Cast(DType::kF32, to.get(), dtype, back.get(), 65536, nullptr));
    const std::vector<float> wide = to.Host();
    const std::vector<uint16_t> narrow = back.Host();
    for (int i = 0; i < 65536; ++i) {
      const float want = Widen(dtype, all[i]);
      EXPECT(std::memcmp(&wide[i], &want, 4) == 0 || (std::isnan(want) && std::isnan(wide[i]))) << i;
      EXPECT(narrow[i] == Narrow(dtype, want)) << i;
    }
  }
}

TEST(ThePipelineMovesEveryByte) {
  std::unique_ptr<Pipeline> pipeline;
  EXPECT_OK(Pipeline::Make(4096, &pipeline));
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4096}, size_t{100001}}) {
    std::vector<uint8_t> host(bytes), back(bytes, 0);
    for (size_t i = 0; i < bytes; ++i) host[i] = static_cast<uint8_t>(i * 37);
    Device<uint8_t> device(bytes);
    EXPECT_OK(pipeline->ToDevice(host.data(), device.get(), bytes, nullptr));
    EXPECT_OK(pipeline->ToHost(device.get(), back.data(), bytes, nullptr));
    EXPECT(back == host) << bytes;
  }
}

TEST(NormsAreRightAndRepeat) {
  const int64_t rows = 37, cols = 515;
  Random random(5);
  const std::vector<float> g = Numbers<float>(random, rows * cols, -1, 1), p = Numbers<float>(random, rows * cols, -1, 1);
  Device<float> dg(g);
  Device<double> partial(kPartials), sum(1), sums(cols), column_partial(kColumnSegments * cols);
  double want = 0;
  for (float x : g) want += static_cast<double>(x) * x;
  for (int repeat = 0; repeat < 2; ++repeat) {
    EXPECT_OK(SumSquares(DType::kF32, dg.get(), rows * cols, partial.get(), sum.get(), nullptr));
    EXPECT(std::abs(sum.Host()[0] - want) <= 1e-12 * want);
  }
  EXPECT_OK(ColumnSumSquares(DType::kF32, dg.get(), rows, cols, column_partial.get(), sums.get(), nullptr));
  const std::vector<double> columns = sums.Host();
  for (int64_t c = 0; c < cols; ++c) {
    double column = 0;
    for (int64_t r = 0; r < rows; ++r) column += static_cast<double>(g[r * cols + c]) * g[r * cols + c];
    EXPECT(std::abs(columns[c] - column) <= 1e-12 * column) << c;
  }
  for (const bool momentum : {false, true}) {
    std::vector<float> m(rows * cols, 0.25f), theta = p;
    Device<float> dp(p), dm(m);
    TensorOperands o;
    o.p = dp.get();
    o.g = dg.get();
    const formula::Normalised<float> c = {{0.9f, 0.1f}, 0.999f, 0.01f, 1};
    EXPECT_OK(StepNormalisedRows(o, momentum ? dm.get() : nullptr, rows, cols, c, nullptr));
    for (int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (int64_t j = r * cols; j < (r + 1) * cols; ++j) {
        if (momentum) m[j] = c.average(m[j], g[j]);
        const double x = momentum ? m[j] : g[j];
        squares += x * x;
      }
      const float rms = static_cast<float>(std::sqrt(squares / cols));
      for (int64_t j = r * cols; j < (r + 1) * cols; ++j) formula::NormalisedStep(c, theta[j], momentum ? m[j] : g[j], rms);
    }
    const std::vector<float> got = dp.Host();
    for (size_t i = 0; i < got.size(); ++i) EXPECT(std::abs(got[i] - theta[i]) <= 1e-6f) << i;
    if (momentum) EXPECT(FirstDifference(dm.Host(), m) < 0);
  }
}

std::vector<double> Product(const std::vector<double>& a, const std::vector<double>& b, int64_t m, int64_t n, int64_t k) {
  std::vector<double> c(m * n, 0.0);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t l = 0; l < k; ++l) {
      for (int64_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + l] * b[l * n + j];
    }
  }
  return c;
}
std::vector<double> Transposed(const std::vector<double>& a, int64_t rows, int64_t cols) {
  std::vector<double> out(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) out[j * rows + i] = a[i * cols + j];
  }
  return out;
}
void ExpectNear(const std::vector<float>& got, const std::vector<double>& want, double tolerance, const char* what) {
  for (size_t i = 0; i < want.size(); ++i) EXPECT(std::abs(got[i] - want[i]) <= tolerance) << what << i << got[i] << want[i];
}

TEST(NewtonSchulzIsTheFormula) {
  std::unique_ptr<Matrices> matrices;
  EXPECT_OK(Matrices::Make(nullptr, &matrices));
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 40}, {40, 16}, {24, 24}, {1, 7}}) {
    Random random(rows);
    const std::vector<float> u = Numbers<float>(random, rows * cols, -1, 1);
    Device<float> du(u), out(u.size());
    EXPECT_OK(matrices->NewtonSchulz(rows, cols, du.get(), out.get()));
    std::vector<double> x(u.begin(), u.end());
    double norm = 0;
    for (double e : x) norm += e * e;
    for (double& e : x) e /= std::sqrt(norm) + 1e-7;
    const bool tall = rows > cols;
    const int64_t a = tall ? cols : rows, b = tall ? rows : cols;
    if (tall) x = Transposed(x, rows, cols);
    for (int step = 0; step < 5; ++step) {
      const std::vector<double> gram = Product(x, Transposed(x, a, b), a, a, b), squared = Product(gram, gram, a, a, a);
      std::vector<double> poly(gram.size());
      for (size_t i = 0; i < poly.size(); ++i) poly[i] = -4.7750 * gram[i] + 2.0315 * squared[i];
      const std::vector<double> more = Product(poly, x, a, b, a);
      for (size_t i = 0; i < x.size(); ++i) x[i] = 3.4445 * x[i] + more[i];
    }
    if (tall) x = Transposed(x, a, b);
    ExpectNear(out.Host(), x, 2e-4, "newton-schulz");
  }
}

TEST(MkorsFactorIsTheFormula) {
  std::unique_ptr<Matrices> matrices;
  EXPECT_OK(Matrices::Make(nullptr, &matrices));
  for (const int64_t d : {1, 5, 64}) {
    Random random(d);
    std::vector<double> k(d * d, 0.0);
    for (int64_t i = 0; i < d; ++i) k[i * d + i] = 1;
    Device<float> device(std::vector<float>(k.begin(), k.end()));
    for (int step = 0; step < 10; ++step) {
      const std::vector<float> v = Numbers<float>(random, d, -1, 1);
      Device<float> dv(v);
      EXPECT_OK(matrices->MkorRelease(d, dv.get(), device.get()));
      std::vector<double> w(d, 0.0);
      double dot = 0;
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j < d; ++j) {
          k[i * d + j] = 0.95 * k[i * d + j] + (i == j ? 0.05 : 0);
          w[i] += k[i * d + j] * v[j];
        }
        dot += w[i] * v[i];
      }
      for (int64_t i = 0; i < d * d; ++i) k[i] -= w[i / d] * w[i % d] / (1 + dot);
    }
    ExpectNear(device.Host(), k, 1e-5, "mkor");
  }
}

TEST(InversesAndEigenvectorsInvert) {
  std::unique_ptr<Matrices> matrices;
  EXPECT_OK(Matrices::Make(nullptr, &matrices));
  const int64_t n = 48;
  Random random(9);
  const std::vector<float> x = Numbers<float>(random, n * n, -1, 1);
  std::vector<double> a = Product({x.begin(), x.end()}, Transposed({x.begin(), x.end()}, n, n), n, n, n);
  for (int64_t i = 0; i < n; ++i) a[i * n + i] += 5;
  std::vector<double> identity(n * n, 0.0);
  for (int64_t i = 0; i < n; ++i) identity[i * n + i] = 1;
  Device<float> inverse(std::vector<float>(a.begin(), a.end()));
  bool positive = false, converged = false;
  EXPECT_OK(matrices->InvertPositive(n, inverse.get(), &positive));
  EXPECT(positive);
  const std::vector<float> found = inverse.Host();
  const std::vector<double> product = Product(a, {found.begin(), found.end()}, n, n, n);
  ExpectNear(std::vector<float>(product.begin(), product.end()), identity, 1e-3, "inverse");
  Device<float> vectors(std::vector<float>(a.begin(), a.end())), values(n);
  EXPECT_OK(matrices->Eigh(n, vectors.get(), values.get(), &converged));
  EXPECT(converged);
  const std::vector<float> q32 = vectors.Host(), w = values.Host();
  const std::vector<double> q(q32.begin(), q32.end());
  std::vector<double> scaled = q;
  for (int64_t i = 0; i < n; ++i) {
    EXPECT(i == 0 || w[i] >= w[i - 1]) << i;
    for (int64_t j = 0; j < n; ++j) scaled[i * n + j] *= w[i];
  }
  const std::vector<double> rebuilt = Product(Transposed(q, n, n), scaled, n, n, n);
  ExpectNear(std::vector<float>(rebuilt.begin(), rebuilt.end()), a, 2e-3, "eigh");
  std::vector<float> indefinite(n * n, 0.0f);
  Device<float> bad(indefinite);
  EXPECT_OK(matrices->InvertPositive(n, bad.get(), &positive));
  EXPECT(!positive);
}

TEST(BadCallsAreRefusedInWords) {
  std::unique_ptr<StepPlan> plan;
  const int64_t negative[] = {-1}, one[] = {4};
  EXPECT(StepPlan::Make(negative, &plan).text.find("negative") != std::string::npos);
  EXPECT_OK(StepPlan::Make(one, &plan));
  EXPECT(!plan->Run(Operation::kSgdPlain, {}, {}, nullptr).ok());
  Device<float> p(4);
  TensorOperands o;
  o.p = p.get();
  o.g = p.get();
  o.p_dtype = DType::kF64;
  EXPECT(plan->Run(Operation::kSgdPlain, std::span(&o, 1), {}, nullptr).text.find("float64") != std::string::npos);
  EXPECT(!StepAdamW8bit({p.get(), p.get()}, {}, 4, 100, {}, nullptr).ok());
}

}  // namespace
}  // namespace optod::cuda

int main(int argc, char** argv) {
  int devices = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&devices); code != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device here%s%s: nothing was tested\n", code == cudaSuccess ? "" : ": ",
                 code == cudaSuccess ? "" : cudaGetErrorString(code));
    return 2;
  }
  return optod::cuda::testing::RunAll(argc > 1 ? argv[1] : "");
}
