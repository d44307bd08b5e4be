#pragma once
/// The look for NaN and infinity at told numbers as they arrive: while a copy or a checksum has their bytes in cache it
/// costs next to nothing, where a pass of its own before the step costs a quarter of it (rules_bench). What is found
/// here only spares the rule its own look (StepInput::grads_finite); a number that is not finite is looked for again
/// there, which names tensor and element and leaves everything as it was.
///
///   StepStream: chunks (FlatReceiver), shared memory (CopyAndLook)     replay (GradientsFromRecord)
///        └────────────────► FlatNumbers::Finite, block by block ◄─────────┘
///   Tell, gradients of a training's own engine, rules called directly: Rule::Step looks, or the norm of clipping has.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "server/engine/gradients.h"
#include "server/engine/layout.h"

namespace optod::engine {

/// Which bytes of a flat buffer are numbers of which dtype. Read-only once made.
class FlatNumbers {
 public:
  /// `form` has passed CheckForm.
  FlatNumbers(const Layout& layout, const FlatForm& form);
  /// Whether all numbers in bytes [begin, end) of the buffer `flat` are finite; integers are. `begin` is a multiple of
  /// kGrain, `end` too or the buffer's size, so that no number is cut. False as well when a tensor does not lie at a
  /// multiple of its element size: nothing is known then.
  bool Finite(const std::byte* flat, uint64_t begin, uint64_t end) const;
  /// Copies the buffer, block by block, and looks at every block.
  bool CopyFinite(std::byte* to, const std::byte* from, uint64_t begin, uint64_t end) const;

  static constexpr uint64_t kGrain = 64;
  /// Bytes that stay in the second-level cache between a copy and what reads them again.
  static constexpr uint64_t kInCache = uint64_t{128} << 10;

 private:
  struct Run {
    uint64_t end;  ///< it begins where the one before ends
    optim::DType dtype;
  };
  void Append(optim::DType dtype, uint64_t bytes);
  std::vector<Run> runs_;
  bool aligned_ = true;
};

}  // namespace optod::engine
