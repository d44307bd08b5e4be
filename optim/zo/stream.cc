#include "optim/zo/stream.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "optim/zo/stream_kernels.h"
#include "optim/zo/stream_pair.h"
#include "optim/zo/stream_slices.h"

namespace optod::zo {
namespace {

using kernels::Kernels;
using kernels::StreamKey;

// Below this many elements a thread more costs about what it saves (64 k values take 40 us, a thread 20 us).
constexpr size_t kMinElementsPerThread = size_t{1} << 17;
constexpr uint64_t kBlocksPerWord = uint64_t{1} << 32;

StreamKey MakeKey(const Direction& direction, uint32_t tensor, uint64_t block) {
  return {static_cast<uint32_t>(direction.seed), static_cast<uint32_t>(direction.seed >> 32),
          tensor + (static_cast<uint32_t>(block >> 32) << 24), direction.query, direction.step};
}

int AvailableCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int>& ThreadLimit() {
  static std::atomic<int> limit{AvailableCpus()};
  return limit;
}

// Whole blocks [block, block + blocks): the wide kernel over its multiple, the scalar one over the rest; the high word
// changes every 2^32 blocks.
template <class Wide, class Narrow>
void WholeBlocks(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t block, size_t blocks,
                 Wide wide, Narrow narrow) {
  size_t done = 0;
  while (done < blocks) {
    const uint64_t now = block + done;
    const size_t run = std::min<uint64_t>(blocks - done, kBlocksPerWord - now % kBlocksPerWord);
    const StreamKey key = MakeKey(direction, tensor, now);
    const size_t grouped = run - run % kernel.group;
    if (grouped > 0) wide(key, static_cast<uint32_t>(now), grouped, 4 * done);
    if (run > grouped) narrow(key, static_cast<uint32_t>(now + grouped), run - grouped, 4 * (done + grouped));
    done += run;
  }
}

// Runs body(begin, end) over [0, n) on up to `threads` threads; borders fall on multiples of 4096 elements of the
// tensor.
template <class Body>
void ForEachPart(uint64_t first, size_t n, int threads, Body body) {
  const size_t parts = std::min<size_t>(std::max(1, threads), std::max<size_t>(1, n / kMinElementsPerThread));
  if (parts <= 1) return body(size_t{0}, n);
  auto border = [&](size_t part) {
    if (part == 0) return size_t{0};
    if (part == parts) return n;
    const uint64_t element = (first + n / parts * part) / 4096 * 4096;
    return static_cast<size_t>(element - first);
  };
  std::vector<std::thread> workers;
  workers.reserve(parts - 1);
  for (size_t part = 1; part < parts; ++part) workers.emplace_back([&, part] { body(border(part), border(part + 1)); });
  body(border(0), border(1));
  for (std::thread& worker : workers) worker.join();
}

void FillPart(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t first, size_t n, float* z) {
  const size_t head = std::min<size_t>(n, (4 - first % 4) % 4);
  FillNormalScalar(direction, tensor, first, {z, head});
  const size_t blocks = (n - head) / 4, body_end = head + 4 * blocks;
  WholeBlocks(
      kernel, direction, tensor, (first + head) / 4, blocks,
      [&](const StreamKey& key, uint32_t block, size_t count, size_t offset) {
        kernel.fill(key, block, count, z + head + offset);
      },
      [&](const StreamKey& key, uint32_t block, size_t count, size_t offset) {
        kernels::Scalar().fill(key, block, count, z + head + offset);
      });
  FillNormalScalar(direction, tensor, first + body_end, {z + body_end, n - body_end});
}

void AddPart(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t first, size_t n, float scale,
             const float* in, float* out) {
  auto ends = [&](size_t begin, size_t end) {  // at most three elements before the first or after the last whole block
    float z[4];
    FillNormalScalar(direction, tensor, first + begin, {z, end - begin});
    kernels::AddScaled(scale, z, in + begin, out + begin, end - begin);
  };
  const size_t head = std::min<size_t>(n, (4 - first % 4) % 4);
  const size_t blocks = (n - head) / 4, body_end = head + 4 * blocks;
  ends(0, head);
  WholeBlocks(
      kernel, direction, tensor, (first + head) / 4, blocks,
      [&](const StreamKey& key, uint32_t block, size_t count, size_t offset) {
        kernel.add(key, block, count, scale, in + head + offset, out + head + offset);
      },
      [&](const StreamKey& key, uint32_t block, size_t count, size_t offset) {
        kernels::Scalar().add(key, block, count, scale, in + head + offset, out + head + offset);
      });
  ends(body_end, n);
}

void PairPart(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t first, size_t n, float scale,
              const float* in, float* plus, float* minus) {
  auto ends = [&](size_t begin, size_t end) {
    float z[4];
    FillNormalScalar(direction, tensor, first + begin, {z, end - begin});
    kernels::AddScaledPair(scale, z, in + begin, plus + begin, minus + begin, end - begin);
  };
  const size_t head = std::min<size_t>(n, (4 - first % 4) % 4);
  const size_t blocks = (n - head) / 4, body_end = head + 4 * blocks;
  const auto with = [&](kernels::PairFn pair) {
    return [&, pair](const StreamKey& key, uint32_t block, size_t count, size_t offset) {
      const size_t at = head + offset;
      pair(key, block, count, scale, in + at, plus + at, minus + at);
    };
  };
  ends(0, head);
  WholeBlocks(kernel, direction, tensor, (first + head) / 4, blocks, with(kernel.pair), with(kernels::Scalar().pair));
  ends(body_end, n);
}

}  // namespace

namespace kernels {

const Kernels& Best() {
  static const Kernels& best = Avx512() ? *Avx512() : Avx2() ? *Avx2() : Scalar();
  return best;
}

void FillSlice(const Kernels& kernel, int threads, const Direction& direction, uint32_t tensor, uint64_t first,
               std::span<float> z) {
  ForEachPart(first, z.size(), threads, [&](size_t begin, size_t end) {
    FillPart(kernel, direction, tensor, first + begin, end - begin, z.data() + begin);
  });
}

void AddSlice(const Kernels& kernel, int threads, const Direction& direction, uint32_t tensor, uint64_t first,
              float scale, std::span<const float> in, std::span<float> out) {
  ForEachPart(first, out.size(), threads, [&](size_t begin, size_t end) {
    AddPart(kernel, direction, tensor, first + begin, end - begin, scale, in.data() + begin, out.data() + begin);
  });
}

void PairSlice(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t first, float scale,
               std::span<const float> in, std::span<float> plus, std::span<float> minus) {
  PairPart(kernel, direction, tensor, first, in.size(), scale, in.data(), plus.data(), minus.data());
}

}  // namespace kernels

void FillNormal(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z) {
  kernels::FillSlice(kernels::Best(), StreamThreads(), direction, tensor, first, z);
}

void AddScaledNormal(const Direction& direction, uint32_t tensor, uint64_t first, float scale, std::span<float> theta) {
  kernels::AddSlice(kernels::Best(), StreamThreads(), direction, tensor, first, scale, theta, theta);
}

void AddScaledNormalTo(const Direction& direction, uint32_t tensor, uint64_t first, float scale,
                       std::span<const float> theta, std::span<float> out) {
  kernels::AddSlice(kernels::Best(), StreamThreads(), direction, tensor, first, scale, theta, out);
}

void AddScaledNormalPair(const Direction& direction, uint32_t tensor, uint64_t first, float scale,
                         std::span<const float> theta, std::span<float> plus, std::span<float> minus) {
  kernels::PairSlice(kernels::Best(), direction, tensor, first, scale, theta, plus, minus);
}

void FillBits(const Direction& direction, uint32_t tensor, uint64_t first, std::span<uint32_t> bits) {
  for (size_t i = 0; i < bits.size();) {
    const uint64_t block = (first + i) / 4;
    const StreamKey key = MakeKey(direction, tensor, block);
    const auto words = Philox4x32({static_cast<uint32_t>(block), key.word1, key.query, key.step}, {key.key0, key.key1});
    for (size_t lane = (first + i) % 4; lane < 4 && i < bits.size(); ++lane, ++i) bits[i] = words[lane];
  }
}

const char* NormalPathName() { return kernels::Best().name; }

void SetStreamThreads(int threads) { ThreadLimit().store(std::max(1, threads), std::memory_order_relaxed); }

int StreamThreads() { return ThreadLimit().load(std::memory_order_relaxed); }

}  // namespace optod::zo
