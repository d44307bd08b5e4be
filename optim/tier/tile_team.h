#pragma once
/// A fixed team of threads for passes over a unit: the caller and `threads` - 1 others, each with one run of tiles.

#include <functional>
#include <memory>

#include "base/thread_pool.h"

namespace optod::tier {

/// Calls body(begin, end) for runs that together are [0, count), in any order, at once; returns when all are done.
using ParallelFor = std::function<void(size_t count, const std::function<void(size_t begin, size_t end)>& body)>;

/// On `threads` threads (the caller's among them), which live as long as the function.
ParallelFor MakeTileTeam(int threads);

}  // namespace optod::tier
