#include "optim/rules/dynamic_code.h"

#include <algorithm>
#include <cmath>

namespace optod::optim {

const DynamicCode& DynamicCode::Signed() {
  static const DynamicCode code(true);
  return code;
}
const DynamicCode& DynamicCode::Unsigned() {
  static const DynamicCode code(false);
  return code;
}

// Seven decades; decade e (10^-6 ... 1) holds 2^e fractions (signed) or 2^(e+1) (unsigned): the middles of equal parts
// of [0.1, 1] times 10^(e-6). Zero and one complete the 256.
DynamicCode::DynamicCode(bool is_signed) {
  constexpr int kDecades = 7;
  std::vector<float> values = {0.0f, 1.0f};
  for (int e = 0; e < kDecades; ++e) {
    const int parts = 1 << (is_signed ? e : e + 1);
    for (int k = 0; k < parts; ++k) {
      const double middle = (0.1 + 0.9 * (k + 0.5) / parts) * std::pow(10.0, e - (kDecades - 1));
      values.push_back(static_cast<float>(middle));
      if (is_signed) values.push_back(static_cast<float>(-middle));
    }
  }
  std::sort(values.begin(), values.end());
  std::copy_n(values.begin(), 256, values_.begin());
  for (int c = 0; c < 255; ++c) midpoints_[c] = 0.5f * (values_[c] + values_[c + 1]);
  midpoints_[255] = 2.0f;
  first_.resize(1 << 16);
  for (uint32_t key = 0; key < (1u << 16); ++key) {
    const bool negative = (key & 0x8000u) != 0;
    const float least = __builtin_bit_cast(float, (key << 16) | (negative ? 0xffffu : 0u));
    const auto at = std::lower_bound(midpoints_.begin(), midpoints_.end() - 1, std::isnan(least) ? 1.0f : least);
    first_[key] = static_cast<uint8_t>(at - midpoints_.begin());
  }
}

}  // namespace optod::optim
