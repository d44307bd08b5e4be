#include "optim/tier/tile_team.h"

#include <algorithm>
#include <latch>

namespace optod::tier {

ParallelFor MakeTileTeam(int threads) {
  if (threads <= 1) {
    return [](size_t count, const std::function<void(size_t, size_t)>& body) {
      if (count > 0) body(0, count);
    };
  }
  auto pool = std::make_shared<ThreadPool>(threads - 1);
  return [pool, threads](size_t count, const std::function<void(size_t, size_t)>& body) {
    const size_t runs = std::min(count, static_cast<size_t>(threads));
    if (runs == 0) return;
    std::latch left(static_cast<ptrdiff_t>(runs - 1));
    for (size_t r = 1; r < runs; ++r) {
      pool->Post([&, r] {
        body(count * r / runs, count * (r + 1) / runs);
        left.count_down();
      });
    }
    body(0, count / runs);
    left.wait();
  };
}

}  // namespace optod::tier
