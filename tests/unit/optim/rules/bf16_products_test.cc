// Products of bfloat16 numbers against the same products added in double, for every way the operands can lie and for
// sizes that fill no tile, one tile, and many with edges.
#include "optim/rules/bf16_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "optim/rules/half.h"
#include "run.h"

namespace optod::optim::testing {
namespace {

std::vector<float> Numbers(Random& random, int64_t n) {
  std::vector<float> out;
  for (const double x : random.Normals(n)) out.push_back(half::FromBf16(half::ToBf16(static_cast<float>(x))));
  return out;
}

struct Size {
  int64_t m, n, k;
};
const Size kSizes[] = {{1, 1, 1}, {5, 7, 3}, {13, 33, 1}, {12, 32, 384}, {12, 32, 385}, {100, 70, 801}, {193, 65, 400}};

class Bf16Products : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!bf16::ProductsHere()) GTEST_SKIP() << "this processor has no bf16 dot products";
  }
};

TEST_F(Bf16Products, GemmAddsTheExactProducts) {
  Random random(5);
  for (const Size& size : kSizes) {
    const auto [m, n, k] = size;
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        const std::vector<float> a = Numbers(random, m * k), b = Numbers(random, k * n);
        std::vector<float> c(static_cast<size_t>(m * n), 7.0f);  // what was there does not count
        std::vector<std::byte> scratch(bf16::ScratchBytes(m, n, k));
        bf16::Gemm(transpose_a, transpose_b, m, n, k, 2.5f, a.data(), b.data(), c.data(), scratch.data());
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0, size_of = 0;
            for (int64_t p = 0; p < k; ++p) {
              const double x = a[transpose_a ? p * m + i : i * k + p], y = b[transpose_b ? j * k + p : p * n + j];
              sum += 2.5 * x * y;
              size_of += std::fabs(2.5 * x * y);
            }
            ASSERT_NEAR(c[i * n + j], sum, 1e-6 * size_of)
                << m << " " << n << " " << k << " " << transpose_a << transpose_b << " at " << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST_F(Bf16Products, GramIsTheProductWithTheTransposeAndSymmetric) {
  Random random(6);
  for (const Size& size : kSizes) {
    const int64_t n = size.m, k = size.k;
    for (const bool transpose : {false, true}) {
      const std::vector<float> a = Numbers(random, n * k);
      std::vector<float> c(static_cast<size_t>(n * n), 7.0f), whole(c);
      std::vector<std::byte> scratch(bf16::ScratchBytes(n, n, k));
      bf16::Gram(transpose, n, k, 0.5f, a.data(), c.data(), scratch.data());
      bf16::Gemm(transpose, !transpose, n, n, k, 0.5f, a.data(), a.data(), whole.data(), scratch.data());
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          ASSERT_EQ(c[i * n + j], whole[i * n + j]) << n << " " << k << transpose << " at " << i << ", " << j;
          ASSERT_EQ(c[j * n + i], c[i * n + j]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace optod::optim::testing
