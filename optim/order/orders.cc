#include "optim/order/orders.h"

#include <algorithm>
#include <numeric>

#include "base/status.h"
#include "optim/zo/stream.h"

namespace optod::order {

Order Identity(int batches) {
  Order order(batches);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

absl::StatusOr<Order> Expand(std::span<const int> order, int batches, int epochs, const char* name) {
  const size_t positions = static_cast<size_t>(batches) * epochs;
  if (order.size() != positions && order.size() != static_cast<size_t>(batches)) {
    return InvalidArgument(name, ": ", order.size(), " batches; must be ", batches,
                           epochs > 1 ? Cat(" (the same in every epoch) or ", positions) : "", ", each once an epoch");
  }
  std::vector<int> seen(batches, -1);
  for (size_t t = 0; t < order.size(); ++t) {
    const int epoch = static_cast<int>(t / batches);
    if (order[t] < 0 || order[t] >= batches) {
      return InvalidArgument(name, "[", t, "]: ", order[t], " is no batch; must be in 0..", batches - 1);
    }
    if (seen[order[t]] == epoch) {
      return InvalidArgument(name, "[", t, "]: ", order[t], " stands twice", epochs > 1 ? " in its epoch" : "");
    }
    seen[order[t]] = epoch;
  }
  Order expanded;
  expanded.reserve(positions);
  while (expanded.size() < positions) expanded.insert(expanded.end(), order.begin(), order.end());
  return expanded;
}

uint32_t CounterRandom::Bits() {
  const uint32_t index = index_++;
  return zo::Philox4x32({index / 4, stream_, 0, 0x6f726465},
                        {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)})[index % 4];
}

int CounterRandom::Below(int bound) {
  return static_cast<int>((static_cast<uint64_t>(Bits()) * static_cast<uint64_t>(bound)) >> 32);
}

double CounterRandom::Uniform() { return Bits() * 0x1p-32; }

Order CounterRandom::Permutation(int size) {
  Order order = Identity(size);
  for (int i = size - 1; i > 0; --i) std::swap(order[i], order[Below(i + 1)]);
  return order;
}

Order Moved(const Order& order, int batch, int position) {
  Order moved;
  for (const int other : order) {
    if (other != batch) moved.push_back(other);
  }
  moved.insert(moved.begin() + position, batch);
  return moved;
}

}  // namespace optod::order
