#include "optim/nn/buffer_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace optod::nn {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(BufferPool, GivesBackWhatIsKept) {
  BufferPool pool(8 * kMiB);
  void* first = pool.Take(3 * kMiB);
  std::memset(first, 1, 3 * kMiB);
  EXPECT_EQ(pool.in_use(), 3 * kMiB);
  pool.Give(first);
  EXPECT_EQ(pool.in_use(), 0u);
  EXPECT_EQ(pool.kept(), 3 * kMiB);
  EXPECT_EQ(pool.Take(3 * kMiB - 5), first) << "of the same class";
  EXPECT_NE(pool.Take(3 * kMiB), first);
}

/// A step's memory, ten times what is kept in any case: the next step maps nothing.
TEST(BufferPool, KeepsWhatAStepHasUsedAtOnce) {
  BufferPool pool(kMiB);
  std::vector<void*> step, again;
  for (int i = 0; i < 10; ++i) step.push_back(pool.Take(kMiB));
  for (void* memory : step) pool.Give(memory);
  EXPECT_EQ(pool.kept(), 10 * kMiB);
  for (int i = 0; i < 10; ++i) again.push_back(pool.Take(kMiB));
  EXPECT_EQ(pool.kept(), 0u);
  EXPECT_TRUE(std::is_permutation(step.begin(), step.end(), again.begin()));
  for (void* memory : again) pool.Give(memory);
}

/// Sizes at random: mapped bytes stay under the bound, whatever was kept before; contents belong to one owner.
TEST(BufferPool, NeverMapsMoreThanWasUsedAtOnceAndKept) {
  for (const size_t keep : {size_t{0}, 4 * kMiB, 64 * kMiB}) {
    BufferPool pool(keep);
    std::mt19937 random(7);
    struct Buffer {
      unsigned char* memory;
      size_t bytes;
      unsigned char mark;
    };
    std::vector<Buffer> held;
    size_t most = 0;
    for (int i = 0; i < 2000; ++i) {
      if (held.size() < 2 || (held.size() < 12 && random() % 2 == 0)) {
        const size_t bytes = 1 + random() % (6 * kMiB);
        auto* memory = static_cast<unsigned char*>(pool.Take(bytes));
        ASSERT_NE(memory, nullptr);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
        memory[0] = memory[bytes - 1] = static_cast<unsigned char>(i);
        held.push_back({memory, bytes, static_cast<unsigned char>(i)});
      } else {
        std::swap(held[random() % held.size()], held.back());
        ASSERT_EQ(held.back().memory[0], held.back().mark);
        ASSERT_EQ(held.back().memory[held.back().bytes - 1], held.back().mark);
        pool.Give(held.back().memory);
        held.pop_back();
      }
      most = std::max(most, pool.in_use());
      ASSERT_LE(pool.in_use() + pool.kept(), most + keep) << "keep " << keep << " turn " << i;
    }
    for (const Buffer& buffer : held) pool.Give(buffer.memory);
    EXPECT_EQ(pool.in_use(), 0u);
  }
}

}  // namespace
}  // namespace optod::nn
