#pragma once
/// Orders of batches: what is one, how it is spelled out over epochs, and random ones drawn by counter.

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "optim/order/options.h"

namespace optod::order {

/// 0, 1, .., batches - 1.
Order Identity(int batches);

/// The batch of each of epochs * batches positions. `order` has `batches` numbers (repeated in every epoch) or epochs *
/// batches; every epoch must hold each batch once. INVALID_ARGUMENT: "order[3]: 7 stands twice".
absl::StatusOr<Order> Expand(std::span<const int> order, int batches, int epochs, const char* name = "order");

/// Uniform integers and permutations as functions of (seed, stream, index): Philox 4x32-10, key = seed, counter =
/// (index, stream, 0, "orde"). The same on every machine.
class CounterRandom {
 public:
  CounterRandom(uint64_t seed, uint32_t stream) : seed_(seed), stream_(stream) {}
  uint32_t Bits();
  int Below(int bound);  ///< 0 .. bound - 1, bound >= 1; bias below 2^-32 * bound
  double Uniform();      ///< [0, 1), 32 bits
  Order Permutation(int size);

 private:
  uint64_t seed_;
  uint32_t stream_, index_ = 0;
};

/// The order with `batch` taken out and put back at `position`; the others keep their relative order.
Order Moved(const Order& order, int batch, int position);

}  // namespace optod::order
