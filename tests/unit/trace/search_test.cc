// Search as a state machine: what it asks for, what it keeps, and that its journal rebuilds it.
#include "trace/search/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <set>

namespace optod::trace {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// A world in which version v has a score on task t; a proposal from v makes the next versions.
struct Event {
  bool evaluated;
  size_t a;
  uint32_t task;
  double score;
  std::vector<int64_t> versions;
};
struct World {
  std::function<double(int64_t version, uint32_t task)> score;
  std::function<std::vector<int64_t>(int64_t parent, uint32_t count, int64_t* next)> propose =
      [](int64_t, uint32_t count, int64_t* next) {
        std::vector<int64_t> out;
        for (uint32_t i = 0; i < count; ++i) out.push_back((*next)++);
        return out;
      };
  int64_t next = 1;
  std::vector<Event> events{};

  void Apply(Search& search, const Event& e) {
    if (e.evaluated)
      ASSERT_TRUE(search.Evaluated(e.a, e.task, e.score));
    else
      ASSERT_TRUE(search.Proposed(static_cast<uint32_t>(e.a), e.versions));
    events.push_back(e);
  }
  // One event, the k-th of those possible.
  bool Step(Search& search, size_t k = 0) {
    const auto evaluations = search.Evaluations();
    if (!evaluations.empty()) {
      const auto& e = evaluations[k % evaluations.size()];
      Apply(search, {true, e.candidate, e.task, score(search.candidates()[e.candidate].version, e.task), {}});
      return true;
    }
    const auto proposals = search.Proposals();
    if (proposals.empty()) return false;
    const auto& p = proposals[k % proposals.size()];
    Apply(search, {false, p.slot, 0, 0, propose(search.candidates()[p.candidate].version, p.count, &next)});
    return true;
  }
  void Run(Search& search, std::mt19937* rng = nullptr) {
    for (int i = 0; i < 100'000 && Step(search, rng ? (*rng)() : 0); ++i) {
    }
    EXPECT_EQ(search.state(), Search::State::kDone);
  }
};

SearchOptions Options(SearchAlgorithm algorithm) {
  SearchOptions o;
  o.algorithm = algorithm;
  o.tasks = 6;
  o.batch = 2;
  o.max_steps = 8;
  o.seed = 3;
  return o;
}

TEST(Search, MinibatchGoesOnWithoutCheckAndCoversTheTasks) {
  World w{[](int64_t v, uint32_t) { return static_cast<double>(v); }};
  Search search(Options(SearchAlgorithm::kMinibatch), 0);
  std::set<uint32_t> seen;
  for (int step = 0; step < 3; ++step) {
    ASSERT_THAT(search.Evaluations(), SizeIs(2));
    for (const auto& e : search.Evaluations()) {
      EXPECT_EQ(search.candidates()[e.candidate].version, step);
      seen.insert(e.task);
    }
    while (search.state() == Search::State::kEvaluating) w.Step(search);
    ASSERT_THAT(search.Proposals(), SizeIs(1));
    w.Step(search);
  }
  EXPECT_THAT(seen, SizeIs(6));  // an epoch
}

TEST(Search, EnsureImprovementKeepsOnlyWhatRises) {
  // Version 2 is better than 0, version 1 and all others are worse.
  World w{[](int64_t v, uint32_t) { return v == 2 ? 1.0 : v == 0 ? 0.5 : 0.1; }};
  SearchOptions o = Options(SearchAlgorithm::kMinibatch);
  o.ensure_improvement = true;
  o.max_steps = 4;
  Search search(o, 0);
  w.Run(search);
  EXPECT_EQ(search.candidates()[*search.best()].version, 2);
  EXPECT_EQ(*search.candidates()[3].parent, 2u);  // candidate 3 was proposed from version 2
}

TEST(Search, BeamKeepsTheBestOfParentsAndChildren) {
  World w{
      [](int64_t v, uint32_t) { return v == 0 ? 0.5 : 1.0 / static_cast<double>(v); }};  // 1 is best, later ones worse
  SearchOptions o = Options(SearchAlgorithm::kBeam);
  o.candidates = 2;
  o.memory = 2;
  o.proposals = 2;
  o.max_steps = 3;
  Search search(o, 0);
  w.Run(search);
  EXPECT_EQ(search.candidates()[*search.best()].version, 1);
  EXPECT_EQ(search.step(), 3u);
  EXPECT_EQ(search.candidates().size(), 1u + 2 + 4 + 4);
  int alive = 0;
  for (const auto& c : search.candidates()) alive += c.alive;
  EXPECT_EQ(alive, 2);
}

TEST(Search, UcbTriesTheUnknownAndComesBackToTheGood) {
  std::map<int64_t, int> expanded;
  World w{[](int64_t v, uint32_t) { return v == 3 ? 0.9 : 0.2; }};
  w.propose = [&](int64_t parent, uint32_t, int64_t* next) {
    ++expanded[parent];
    return std::vector<int64_t>{(*next)++};
  };
  SearchOptions o = Options(SearchAlgorithm::kUcb);
  o.max_steps = 30;
  o.exploration = 0.1;
  Search search(o, 0);
  w.Run(search);
  EXPECT_EQ(search.candidates()[*search.best()].version, 3);
  for (const auto& [v, n] : expanded) EXPECT_LE(n, expanded[3]) << v;
}

TEST(Search, PriorityExpandsTheTopOfTheHeap) {
  std::vector<int64_t> expanded;
  World w{[](int64_t v, uint32_t) { return static_cast<double>(v % 5); }};
  w.propose = [&](int64_t parent, uint32_t count, int64_t* next) {
    expanded.push_back(parent);
    std::vector<int64_t> out;
    for (uint32_t i = 0; i < count; ++i) out.push_back((*next)++);
    return out;
  };
  SearchOptions o = Options(SearchAlgorithm::kPriority);
  o.proposals = 4;
  o.max_steps = 3;
  Search search(o, 0);
  w.Run(search);
  EXPECT_THAT(expanded, ElementsAre(0, 4, 4));  // 4 stays the best (9 is as good, but later)
}

TEST(Search, ParetoDrawsFromSpecialistsAndNeverFromTheDominated) {
  // Odd versions are best on even tasks, even ones on odd tasks, every fifth is nowhere good.
  World w{[](int64_t v, uint32_t t) {
    if (v == 0) return 0.3;
    if (v % 5 == 3) return 0.35;
    return (v + t) % 2 == 1 ? 1.0 : 0.4;
  }};
  std::set<int64_t> expanded;
  w.propose = [&](int64_t parent, uint32_t, int64_t* next) {
    if (*next > 10) expanded.insert(parent);
    return std::vector<int64_t>{(*next)++};
  };
  SearchOptions o = Options(SearchAlgorithm::kPareto);
  o.batch = 1;
  o.max_steps = 60;
  Search search(o, 0);
  w.Run(search);
  int odd = 0, even = 0;
  for (int64_t v : expanded) {
    EXPECT_TRUE(v != 0 && v % 5 != 3) << v;
    ++(v % 2 ? odd : even);
  }
  EXPECT_GT(odd, 0);
  EXPECT_GT(even, 0);
}

TEST(Search, EndsForItsReasons) {
  World good{[](int64_t v, uint32_t) { return v >= 2 ? 1.0 : 0.0; }};
  SearchOptions o = Options(SearchAlgorithm::kBeam);
  o.target = 1.0;
  Search target(o, 0);
  good.Run(target);
  EXPECT_EQ(target.reason(), "target");
  EXPECT_DOUBLE_EQ(*target.best_score(), 1.0);

  World flat{[](int64_t, uint32_t) { return 0.0; }};
  o.target.reset();
  o.max_evaluations = 9;
  Search evaluations(o, 0);
  flat.Run(evaluations);
  EXPECT_EQ(evaluations.reason(), "max_evaluations");
  EXPECT_EQ(evaluations.evaluations(), 9u);

  World barren{[](int64_t, uint32_t) { return 0.0; }};
  barren.propose = [](int64_t, uint32_t, int64_t*) { return std::vector<int64_t>{}; };
  Search none(Options(SearchAlgorithm::kUcb), 0);
  barren.Run(none);
  EXPECT_EQ(none.reason(), "no proposal was usable in 3 steps");
  none.Stop("again");
  EXPECT_EQ(none.reason(), "no proposal was usable in 3 steps");
}

TEST(Search, WhatIsNotWantedChangesNothing) {
  Search search(Options(SearchAlgorithm::kBeam), 0);
  EXPECT_FALSE(search.Evaluated(0, 99, 1));
  EXPECT_FALSE(search.Evaluated(7, 0, 1));
  EXPECT_FALSE(search.Proposed(0, {1}));
  EXPECT_TRUE(search.Evaluated(0, 0, 1));
  EXPECT_FALSE(search.Evaluated(0, 0, 2));
  EXPECT_EQ(search.evaluations(), 1u);
}

class AnyAlgorithm : public testing::TestWithParam<SearchAlgorithm> {};

// Events may come in any order inside a phase; folding any prefix of the journal gives the same needs, and minimizing
// mirrors maximizing.
TEST_P(AnyAlgorithm, JournalRebuildsItAndOrderInsideAPhaseDoesNotMatter) {
  const auto score = [](int64_t v, uint32_t t) { return static_cast<double>((v * 7919 + t * 104729) % 101) / 101; };
  for (uint32_t validation : {0u, 3u}) {
    SearchOptions o = Options(GetParam());
    o.validation_tasks = validation;
    o.candidates = 2;
    o.proposals = 2;
    o.memory = GetParam() == SearchAlgorithm::kBeam ? 2 : 5;
    // Proposals name their versions by the parent, so that order cannot matter.
    const auto propose = [](int64_t parent, uint32_t count, int64_t* next) {
      std::vector<int64_t> out;
      for (uint32_t i = 0; i < count; ++i) out.push_back(parent * 3 + 1 + i);
      ++*next;
      return out;
    };
    World first{score, propose}, mirror{[&](int64_t v, uint32_t t) { return -score(v, t); }, propose};
    Search a(o, 0);
    first.Run(a);
    std::mt19937 rng(5);
    for (size_t prefix = 0; prefix <= first.events.size(); prefix += 7) {
      Search b(o, 0);
      World again{score, propose};
      for (size_t i = 0; i < prefix; ++i) again.Apply(b, first.events[i]);
      again.Run(b);
      EXPECT_EQ(b.best(), a.best());
      EXPECT_EQ(b.candidates().size(), a.candidates().size());
    }
    o.maximize = false;
    o.min_score = -1;
    o.max_score = 0;
    Search c(o, 0);
    mirror.Run(c);
    ASSERT_EQ(c.candidates().size(), a.candidates().size());
    for (size_t i = 0; i < a.candidates().size(); ++i) EXPECT_EQ(c.candidates()[i].version, a.candidates()[i].version);
    EXPECT_EQ(c.best(), a.best());
  }
}
INSTANTIATE_TEST_SUITE_P(All, AnyAlgorithm,
                         testing::Values(SearchAlgorithm::kMinibatch, SearchAlgorithm::kBeam, SearchAlgorithm::kUcb,
                                         SearchAlgorithm::kPriority, SearchAlgorithm::kPareto));

TEST(Search, OptionsAreChecked) {
  EXPECT_TRUE(CheckSearchOptions({}).ok());
  EXPECT_FALSE(CheckSearchOptions({.tasks = 0}).ok());
  EXPECT_FALSE(CheckSearchOptions({.tasks = 2, .batch = 3}).ok());
  EXPECT_FALSE(CheckSearchOptions({.candidates = 2, .memory = 1}).ok());
  EXPECT_FALSE(CheckSearchOptions({.min_score = 1, .max_score = 1}).ok());
  EXPECT_FALSE(CheckSearchOptions({.max_steps = 0}).ok());
}

}  // namespace
}  // namespace optod::trace
