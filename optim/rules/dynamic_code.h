#pragma once
/// The dynamic-tree 8-bit code of Dettmers et al. 2022 (Sec. 2): a sign (signed code), a unary exponent of ten, a
/// linear fraction. 256 values in
/// [-1, 1] (signed) or [0, 1] (unsigned), sorted; entry x of a block is held as the nearest value to x / absolute
/// maximum. Read-only, thread-safe.

#include <array>
#include <cstdint>
#include <vector>

namespace optod::optim {

class DynamicCode {
 public:
  /// The two codes, built once.
  static const DynamicCode& Signed();
  static const DynamicCode& Unsigned();

  float value(uint8_t code) const { return values_[code]; }
  /// Code of the nearest value; halfway goes to the smaller. x in [-1, 1].
  uint8_t Nearest(float x) const {
    // The upper half of the bits picks a run of 1/128 of its value at most, which one midpoint at most crosses.
    const uint8_t code = first_[__builtin_bit_cast(uint32_t, x) >> 16];
    return static_cast<uint8_t>(code + (x > midpoints_[code] ? 1 : 0));
  }

 private:
  explicit DynamicCode(bool is_signed);

  std::array<float, 256> values_;
  std::array<float, 256> midpoints_;  ///< above each value; the last is never passed
  std::vector<uint8_t> first_;        ///< by the upper 16 bits of x: the code of the least x that has them
};

}  // namespace optod::optim
