// The worker's arithmetic against the definition, one element at a time.
#include "clients/cpp/zo_worker.h"

#include <gtest/gtest.h>

#include "optim/zo/stream.h"

namespace optod::client {
namespace {

std::vector<Place> Places() { return *PlaceTensors(Float32Layout({{"w", {5, 3}, false}, {"b", {7}, true}})); }

std::vector<float> Reference(const v1::ReplayStep& step, uint64_t seed, const std::vector<Place>& places,
                             std::vector<float> theta) {
  for (uint32_t t = 0; t < places.size(); ++t) {
    const auto n = static_cast<size_t>(places[t].elements);
    float* tensor = theta.data() + places[t].offset / 4;
    for (size_t i = 0; i < n; ++i) {
      if (places[t].no_decay) continue;
      const float decayed = step.weight_decay_rate() * tensor[i];
      tensor[i] -= decayed;
    }
    for (const v1::ReplayQuery& query : step.queries()) {
      std::vector<float> z(n);
      zo::FillNormalScalar({seed, query.step(), query.query()}, t, 0, z);
      for (size_t i = 0; i < n; ++i) {
        const float scaled = -query.coefficient() * z[i];
        tensor[i] += scaled;
      }
    }
  }
  return theta;
}

struct ReplayCase {
  const char* name;
  float decay;
  std::vector<std::pair<uint32_t, float>> queries;  // query number, coefficient
};
TEST(ZeroOrderWorker, ReplayIsTheDefinitionBitForBit) {
  const ReplayCase cases[] = {{"one", 0, {{0, 0.25f}}},
                              {"two", 0, {{0, 1e-3f}, {1, -2.5f}}},
                              {"decay", 0.01f, {{0, 3e-4f}}},
                              {"none", 0.5f, {}}};
  for (const ReplayCase& c : cases) {
    v1::ReplayStep step;
    step.set_weight_decay_rate(c.decay);
    for (const auto& [query, coefficient] : c.queries) {
      v1::ReplayQuery* q = step.add_queries();
      q->set_step(17);
      q->set_query(query);
      q->set_coefficient(coefficient);
    }
    std::vector<float> theta(22);
    for (size_t i = 0; i < theta.size(); ++i) theta[i] = 0.1f * static_cast<float>(i) - 1;
    const std::vector<float> want = Reference(step, 5, Places(), theta);
    const zo::ZoLayout layout({{"w", 15, true}, {"b", 7, false}});
    ASSERT_TRUE(zo::ApplyUpdate(layout, {}, 5, ScalarsOf(step), theta, nullptr).ok());
    EXPECT_EQ(theta, want) << c.name;
  }
}

TEST(ZeroOrderWorker, PerturbAddsTheScaledDirectionOfEachTensor) {
  const std::vector<float> theta(22, 1.0f);
  std::vector<float> out(22), z(22);
  Perturb(9, 3, 1, 0.5f, Places(), theta, out);
  zo::FillNormalScalar({9, 3, 1}, 0, 0, std::span(z).first(15));
  zo::FillNormalScalar({9, 3, 1}, 1, 0, std::span(z).last(7));
  for (size_t i = 0; i < 22; ++i) {
    const float scaled = 0.5f * z[i];
    EXPECT_EQ(out[i], 1.0f + scaled) << i;
  }
}

}  // namespace
}  // namespace optod::client
