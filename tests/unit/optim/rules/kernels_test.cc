// The loops under the rules: 16-bit conversions over all bit patterns, sums that do not depend on the instruction set,
// the NaN scan, the 8-bit code.
#include "optim/rules/kernels.h"

#include <cmath>

#include "optim/rules/dynamic_code.h"
#include "run.h"

namespace optod::optim {
namespace {

using testing::Random;

// Value of a half by its definition.
double Half(uint16_t bits, int mantissa, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1), top = (0x7fff >> mantissa);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == top) return fraction == 0 ? sign * INFINITY : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - mantissa);
  return sign * std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
}

TEST(SixteenBits, WidenEveryPatternAndBack) {
  for (const auto& [dtype, mantissa, bias] : {std::tuple{DType::kF16, 10, 15}, std::tuple{DType::kBF16, 7, 127}}) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double want = Half(static_cast<uint16_t>(bits), mantissa, bias);
      const float got = WidenOne(dtype, static_cast<uint16_t>(bits));
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got) && std::isnan(WidenOne(dtype, NarrowOne(dtype, got)))) << bits;
      } else {
        ASSERT_EQ(got, want) << bits;
        ASSERT_EQ(NarrowOne(dtype, got), bits) << bits;
      }
    }
  }
}

TEST(SixteenBits, NarrowRoundsToNearestEven) {
  Random random(1);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (uint32_t bits = 0; bits + 1 < (dtype == DType::kF16 ? 0x7c00u : 0x7f80u); ++bits) {
      const double low = WidenOne(dtype, static_cast<uint16_t>(bits)),
                   high = WidenOne(dtype, static_cast<uint16_t>(bits + 1));
      if (std::isinf(high)) continue;
      const float middle = static_cast<float>((low + high) / 2);
      ASSERT_EQ(NarrowOne(dtype, middle), bits % 2 == 0 ? bits : bits + 1) << bits;
      ASSERT_EQ(NarrowOne(dtype, std::nextafterf(middle, 0)), bits) << bits;
      ASSERT_EQ(NarrowOne(dtype, -std::nextafterf(middle, INFINITY)), (bits + 1) | 0x8000) << bits;
    }
  }
  EXPECT_EQ(NarrowOne(DType::kF16, 65519.996f), 0x7bff);
  EXPECT_EQ(NarrowOne(DType::kF16, 65520.0f), 0x7c00);
}

TEST(Sums, AreTheSameOnEveryPathAndRight) {
  Random random(2);
  for (const int64_t n : {0, 1, 15, 16, 17, 1000, 4097}) {
    const std::vector<double> x = random.Normals(n);
    const std::vector<float> y(x.begin(), x.end());
    std::vector<double> got;
    for (std::string_view path : KernelPaths()) {
      ASSERT_TRUE(SelectKernels(path));
      const KernelTable& k = Kernels();
      for (double value :
           {k.f64.sum(x.data(), n), k.f64.sum_squares(x.data(), n), k.f64.sum_square_deviations(x.data(), n, 0.5),
            k.f32.sum(y.data(), n), k.f32.sum_squares(y.data(), n), k.f32.sum_square_deviations(y.data(), n, 0.5)}) {
        got.push_back(value);
      }
    }
    SelectKernels("");
    double sum = 0, squares = 0, deviations = 0;
    for (double value : x) {
      sum += value;
      squares += value * value;
      deviations += (value - 0.5) * (value - 0.5);
    }
    EXPECT_NEAR(got[0], sum, 1e-10);
    EXPECT_NEAR(got[1], squares, 1e-9);
    EXPECT_NEAR(got[2], deviations, 1e-9);
    EXPECT_NEAR(got[4], squares, 1e-3);
    for (size_t i = 6; i < got.size(); ++i) EXPECT_EQ(got[i], got[i % 6]);
  }
}

// One pass for both sums gives what the two kernels give by themselves, whatever the number of rows left over.
TEST(Sums, OfSquaresAlongRowsAndColumnsAtOnce) {
  Random random(6);
  constexpr int64_t kStride = 70;
  for (std::string_view path : KernelPaths()) {
    ASSERT_TRUE(SelectKernels(path));
    for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{1, 70}, {3, 16}, {4, 70}, {9, 33}, {8, 0}}) {
      const std::vector<double> wide = random.Normals(rows * kStride);
      const std::vector<float> x(wide.begin(), wide.end());
      std::vector<double> columns(kStride, 0.5), want_columns = columns, row_sums(rows, 0.25), want_rows = row_sums;
      Kernels().f32.add_squares_rows(x.data(), kStride, rows, columns.data(), row_sums.data(), n);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < n; ++c) want_columns[c] += static_cast<double>(x[r * kStride + c]) * x[r * kStride + c];
        want_rows[r] += Kernels().f32.sum_squares(x.data() + r * kStride, n);
      }
      EXPECT_EQ(columns, want_columns) << path << " " << rows << " " << n;
      EXPECT_EQ(row_sums, want_rows) << path << " " << rows << " " << n;
    }
  }
  SelectKernels("");
}

TEST(Guard, FindsTheFirstBadElementOfEveryDtype) {
  Random random(3);
  for (std::string_view path : KernelPaths()) {
    ASSERT_TRUE(SelectKernels(path));
    for (const DType dtype : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16}) {
      std::vector<double> values = random.Normals(9000);
      values[0] = dtype == DType::kF16 ? 65504 : 3e38;  // large, yet finite
      if (dtype == DType::kBF16) values[0] = 3e38;
      const auto first = [&] {
        const OwnedTensor tensor = testing::MakeTensor("x", dtype, {9000}, values);
        return Kernels().first_not_finite(dtype, tensor.data.data(), 9000);
      };
      EXPECT_EQ(first(), -1);
      values[8999] = -INFINITY;
      EXPECT_EQ(first(), 8999);
      values[4096] = std::nan("");
      EXPECT_EQ(first(), 4096);
    }
  }
  SelectKernels("");
}

TEST(DynamicCodes, AreSortedAndTakeTheNearest) {
  Random random(4);
  for (const DynamicCode* code : {&DynamicCode::Signed(), &DynamicCode::Unsigned()}) {
    for (int c = 0; c < 255; ++c) ASSERT_LT(code->value(c), code->value(c + 1));
    EXPECT_EQ(code->value(255), 1.0f);
    const bool is_signed = code == &DynamicCode::Signed();
    for (int trial = 0; trial < 20000; ++trial) {
      const double magnitude = std::pow(10, random.Uniform(-9, 0));
      const float x = static_cast<float>(is_signed && random.Chance(0.5) ? -magnitude : magnitude);
      float best = 2;
      for (int c = 0; c < 256; ++c) best = std::min(best, std::abs(code->value(c) - x));
      ASSERT_NEAR(std::abs(code->value(code->Nearest(x)) - x), best, 4e-6 * std::abs(x) + 1e-12) << x;
    }
    EXPECT_EQ(code->value(code->Nearest(0)), 0);
    EXPECT_EQ(code->value(code->Nearest(1)), 1);
    for (int c = 0; c < 256; ++c) EXPECT_EQ(code->Nearest(code->value(c)), c);
  }
}

TEST(DynamicCodes, VectorsGiveTheBitsOfTheElementFunctions) {
  Random random(5);
  constexpr int64_t kN = 1003;
  for (const bool is_signed : {false, true}) {
    const DynamicCode& code = is_signed ? DynamicCode::Signed() : DynamicCode::Unsigned();
    for (int trial = 0; trial < 50; ++trial) {
      std::vector<float> x(kN), y(kN), want(kN);
      std::vector<uint8_t> codes(kN), want_codes(kN);
      for (float& value : x) {
        value = static_cast<float>(std::pow(10, random.Uniform(-9, 0)));
        if (is_signed && random.Chance(0.5)) value = -value;
      }
      for (int c = 0; c < 8; ++c) x[c] = (is_signed ? kDynamicSigned : kDynamicUnsigned).from[c];
      for (int c = 0; c < 256; ++c) x[300 + c] = code.value(static_cast<uint8_t>(c));
      x[900] = 0;
      x[901] = 1;
      x[902] = is_signed ? -1.0f : 1.0f;
      x[903] = 1e-41f;  // subnormal
      x[904] = std::nanf("");
      // Both sides of every threshold and of every power of two, where vectors change their table entry.
      for (int c = 0; c < 8; ++c) {
        x[100 + 2 * c] = std::nextafter(x[c], 0.0f);
        x[101 + 2 * c] = std::nextafter(x[c], 2.0f);
      }
      for (int e = 0; e < 30; ++e) {
        x[120 + 3 * e] = std::ldexp(1.0f, -e);
        x[121 + 3 * e] = std::nextafter(x[120 + 3 * e], 0.0f);
        x[122 + 3 * e] = std::nextafter(x[120 + 3 * e], 1.0f);
      }
      const float scale = static_cast<float>(random.Uniform(0.1, 3)), inverse = trial == 0 ? 1 : 1 / scale;
      for (int64_t i = 0; i < kN; ++i) want_codes[i] = code.Nearest(x[i] * inverse);
      for (int64_t i = 0; i < kN; ++i) want[i] = scale * code.value(want_codes[i]);
      for (std::string_view path : KernelPaths()) {
        ASSERT_TRUE(SelectKernels(path));
        Kernels().encode8(is_signed, x.data(), inverse, codes.data(), kN);
        EXPECT_EQ(codes, want_codes) << path;
        Kernels().decode8(is_signed, codes.data(), scale, y.data(), kN);
        EXPECT_EQ(y, want) << path;
        EXPECT_EQ(Kernels().max_abs(x.data(), 904), std::abs(*std::max_element(x.begin(), x.begin() + 904, [](float a, float b) {
          return std::abs(a) < std::abs(b);
        })));
      }
    }
  }
  SelectKernels("");
}

}  // namespace
}  // namespace optod::optim
