// The device's element code, run on the host: the stream and every operation against the CPU's kernels, bit for bit.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "cuda/operations.h"
#include "cuda/philox.h"
#include "optim/rules/kernels.h"
#include "optim/zo/stream.h"

namespace optod::cuda {
namespace {

TEST(DeviceStream, HasTheBytesOfTheReference) {
  for (const uint64_t block : {uint64_t{0}, uint64_t{1}, uint64_t{77}, (uint64_t{1} << 32) - 1, uint64_t{1} << 32, (uint64_t{1} << 39) + 5}) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{0x123456789abcdef0u}}) {
      const StreamId id = {seed, 9, 4, 1234};
      std::vector<float> want(4);
      std::vector<uint32_t> words(4);
      zo::FillNormalScalar({seed, 9, 4}, 1234, 4 * block, want);
      zo::FillBits({seed, 9, 4}, 1234, 4 * block, words);
      float z[4];
      NormalBlock(id, block, z);
      EXPECT_EQ(std::memcmp(z, want.data(), sizeof(z)), 0) << block;
      EXPECT_EQ(std::memcmp(StreamBlock(id, block).word, words.data(), 16), 0) << block;
    }
  }
}

TEST(DeviceStream, HasThePublishedVector) {
  const PhiloxBlock x = Philox(0, 0, 0, 0, 0, 0);
  EXPECT_EQ(x.word[0], 0x6627e8d5u);
  EXPECT_EQ(x.word[3], 0x9b00dbd8u);
}

template <typename T>
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : engine_(seed) {}
  T operator()(double low, double high) { return static_cast<T>(std::uniform_real_distribution<double>(low, high)(engine_)); }

 private:
  std::mt19937_64 engine_;
};

/// 200 random configurations: one element through the operation and through the CPU's table.
template <typename T, typename Op>
void Compare(optim::KernelId kernel, const char* name) {
  for (uint64_t trial = 0; trial < 200; ++trial) {
    Numbers<T> random(trial);
    typename Op::Constants constants;
    constexpr size_t kCount = sizeof(constants) / sizeof(T);
    static_assert(sizeof(constants) % sizeof(T) == 0);
    T values[kCount];
    for (T& value : values) value = random(1e-3, 0.99);
    std::memcpy(&constants, values, sizeof(constants));
    T p = random(-1, 1), g = random(-1, 1), x = random(-1, 1), s[3] = {random(-1, 1), random(0, 1), random(0, 1)};
    T want_p = p, want[3] = {s[0], s[1], s[2]};
    optim::Lanes<T> lanes;
    lanes.p = &want_p;
    lanes.g = &g;
    lanes.x = &x;
    for (int k = 0; k < 3; ++k) lanes.s[k] = &want[k];
    optim::Kernels().typed<T>().step[kernel](&constants, lanes, 1);
    Op::Apply(constants, p, g, s, x);
    EXPECT_EQ(p, want_p) << name << " " << trial;
    for (int k = 0; k < 3; ++k) EXPECT_EQ(s[k], want[k]) << name << " " << trial << " state " << k;
  }
}

template <typename T>
void CompareAll() {
  Compare<T, SgdPlain<T>>(optim::kSgdPlain, "sgd");
  Compare<T, SgdMomentum<T, false>>(optim::kSgdMomentum, "momentum");
  Compare<T, SgdMomentum<T, true>>(optim::kSgdNesterov, "nesterov");
  Compare<T, Adam<T>>(optim::kAdam, "adam");
  Compare<T, Amsgrad<T>>(optim::kAmsgrad, "amsgrad");
  Compare<T, Sai<T>>(optim::kSai, "sai");
  Compare<T, AdaHessian<T, false>>(optim::kAdaHessian, "adahessian");
  Compare<T, AdaHessian<T, true>>(optim::kAdaHessianPower, "adahessian power");
  Compare<T, LambMoments<T>>(optim::kLambMoments, "lamb moments");
  Compare<T, LambApply<T>>(optim::kLambApply, "lamb apply");
  Compare<T, NormalisedRow<T>>(optim::kNormalisedRow, "normalised");
  Compare<T, Average<T>>(optim::kAverage, "average");
}
TEST(DeviceOperations, AreTheCpusFloat32) { CompareAll<float>(); }
TEST(DeviceOperations, AreTheCpusFloat64) { CompareAll<double>(); }

}  // namespace
}  // namespace optod::cuda
