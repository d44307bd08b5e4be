#pragma once
/// How a unit's values are held outside the working slots. Lossless: float32 as it is. The others move fewer bytes and
/// round what is written back, at random (unbiased, so that updates below half a step of the format are not lost), from
/// the seeded stream: the same run gives the same bytes.
///
///   none  4 bytes   lossless
///   bf16  2 bytes   8 bits of mantissa
///   fp16  2 bytes   11 bits of mantissa, |x| <= 65504 (larger ones become infinite)
///   fp8   1 byte    e4m3 (Micikevicius et al., 2022; no infinities, 448 the largest) times a float32 scale a row
///
/// Pure functions, thread-safe.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "optim/tier/codec_elements.h"

namespace optod::tier {

/// INVALID_ARGUMENT: `codec: "int4" is not one of none, bf16, fp16, fp8`.
absl::StatusOr<Codec> ParseCodec(const std::string& name);
const char* CodecName(Codec codec);
inline bool Lossless(Codec codec) { return codec == Codec::kNone; }

/// Where the random words of a rounding come from: stream (seed, step, query 2^32 - 2), tensor, element.
struct Rounding {
  uint64_t seed = 0;
  uint32_t step = 0, uid = 0;
  uint64_t first = 0;  ///< element of the tensor that values[0] is
};
/// out.size() = CodedBytes. values: whole rows.
void Encode(Codec codec, std::span<const float> values, size_t columns, const Rounding& rounding,
            std::span<std::byte> out);
/// Exact.
void Decode(Codec codec, std::span<const std::byte> coded, size_t columns, std::span<float> values);

}  // namespace optod::tier
