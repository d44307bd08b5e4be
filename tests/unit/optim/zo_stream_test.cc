// The random stream: published Philox answers, golden bytes, and bit equality of every path with the
// one-element-at-a-time reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "optim/zo/stream.h"
#include "optim/zo/stream_slices.h"

namespace optod::zo {
namespace {

using nlohmann::json;

// z of seed 0, step 0, query 0, tensor 0, elements 0..3: what any other implementation must print.
constexpr float kFirstNormals[4] = {-0x1.42d892p+0f, 0x1.fcdafap-2f, 0x1.050530p-2f, -0x1.7b506ep-1f};

std::vector<const kernels::Kernels*> Paths() {
  std::vector<const kernels::Kernels*> paths = {&kernels::Scalar()};
  if (kernels::Avx2() != nullptr) paths.push_back(kernels::Avx2());
  if (kernels::Avx512() != nullptr) paths.push_back(kernels::Avx512());
  return paths;
}

json Vectors() {
  std::ifstream in(OPTOD_GOLDEN_DIR "/zo_stream/vectors.json");
  return json::parse(in);
}

std::vector<uint32_t> Words(const std::string& text) {
  std::istringstream in(text);
  std::vector<uint32_t> words;
  for (uint32_t word; in >> std::hex >> word;) words.push_back(word);
  return words;
}

template <class T>
std::string Hex(const std::vector<T>& values) {
  std::string hex;
  for (const T& value : values) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    for (int byte = 0; byte < 4; ++byte) {
      char digits[3];
      std::snprintf(digits, sizeof(digits), "%02x", word >> (8 * byte) & 255);
      hex += digits;
    }
  }
  return hex;
}

std::vector<float> FromHex(const std::string& hex) {
  std::vector<float> values;
  for (size_t i = 0; i + 8 <= hex.size(); i += 8) {
    uint32_t word = 0;
    for (size_t byte = 0; byte < 4; ++byte) word |= std::stoul(hex.substr(i + 2 * byte, 2), nullptr, 16) << (8 * byte);
    values.push_back(std::bit_cast<float>(word));
  }
  return values;
}

// Number of elements whose bytes differ.
size_t Differences(std::span<const float> a, std::span<const float> b) {
  size_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  return count;
}

TEST(PhiloxTest, PublishedAnswers) {
  const json vectors = Vectors();
  ASSERT_EQ(vectors.at("philox").size(), 3u);
  for (const json& row : vectors.at("philox")) {
    const auto counter = Words(row.at("counter")), key = Words(row.at("key"));
    const auto got = Philox4x32({counter[0], counter[1], counter[2], counter[3]}, {key[0], key[1]});
    EXPECT_THAT(got, testing::ElementsAreArray(Words(row.at("output"))));
  }
}

TEST(StreamTest, FirstNormals) {
  float z[4];
  FillNormalScalar({}, 0, 0, z);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(z[i], kFirstNormals[i]) << i;
}

TEST(StreamTest, GoldenBytes) {
  const json vectors = Vectors();
  ASSERT_GE(vectors.at("normal").size(), 11u);
  for (const json& row : vectors.at("normal")) {
    const Direction direction{row.at("seed"), row.at("step"), row.at("query")};
    const uint32_t tensor = row.at("tensor");
    const uint64_t first = row.at("first");
    std::vector<float> z(row.at("n").get<size_t>());
    for (const kernels::Kernels* path : Paths()) {
      kernels::FillSlice(*path, 1, direction, tensor, first, z);
      EXPECT_EQ(Hex(z), row.at("z")) << path->name << " first " << first;
    }
    FillNormalScalar(direction, tensor, first, z);
    EXPECT_EQ(Hex(z), row.at("z")) << "reference, first " << first;
    std::vector<uint32_t> bits(z.size());
    FillBits(direction, tensor, first, bits);
    EXPECT_EQ(Hex(bits), row.at("bits")) << "first " << first;
  }
}

TEST(StreamTest, GoldenSums) {
  const json vectors = Vectors();
  ASSERT_EQ(vectors.at("add").size(), 3u);
  for (const json& row : vectors.at("add")) {
    const Direction direction{row.at("seed"), row.at("step"), row.at("query")};
    const std::vector<float> theta = FromHex(row.at("theta"));
    for (const kernels::Kernels* path : Paths()) {
      std::vector<float> out(theta.size());
      kernels::AddSlice(*path, 1, direction, row.at("tensor"), row.at("first"), row.at("scale").get<float>(), theta,
                        out);
      EXPECT_EQ(Hex(out), row.at("result")) << path->name;
    }
  }
}

TEST(StreamTest, PairsAreTwoSums) {
  std::vector<float> theta(1000);
  FillNormal({1, 1, 1}, 1, 0, theta);
  for (const auto& [first, n] :
       {std::pair<uint64_t, size_t>(0, 1000), {3, 997}, {6, 1}, {5, 2}, {(1ull << 34) - 9, 700}}) {
    const std::span<const float> in = std::span<const float>(theta).first(n);
    for (const kernels::Kernels* path : Paths()) {
      std::vector<float> plus(n), minus(n), want_plus(n), want_minus(n);
      kernels::PairSlice(*path, {7, 8, 9}, 5, first, 0.25f, in, plus, minus);
      kernels::AddSlice(kernels::Scalar(), 1, {7, 8, 9}, 5, first, 0.25f, in, want_plus);
      kernels::AddSlice(kernels::Scalar(), 1, {7, 8, 9}, 5, first, -0.25f, in, want_minus);
      EXPECT_EQ(plus, want_plus) << path->name << " first " << first;
      EXPECT_EQ(minus, want_minus) << path->name << " first " << first;
    }
  }
}

struct Slice {
  Direction direction;
  uint32_t tensor;
  uint64_t first;
  size_t n;
};

// Slices of any alignment and length at scattered counters; one in eight straddles 2^32 elements, one in eight 2^32
// blocks.
std::vector<Slice> ScatteredSlices(size_t elements) {
  std::mt19937_64 random(20260101);
  std::vector<Slice> slices;
  for (size_t total = 0; total < elements;) {
    Slice slice;
    slice.direction = {random(), static_cast<uint32_t>(random()), static_cast<uint32_t>(random() % 64)};
    slice.tensor = random() % (1u << 24);
    slice.n = slices.size() % 3 == 0 ? random() % 40 : 1 + random() % 60000;
    const uint64_t before = random() % (slice.n + 1);
    switch (slices.size() % 8) {
      case 0:
        slice.first = (uint64_t{1} << 32) - before;
        break;
      case 1:
        slice.first = (uint64_t{1} << 34) - before;
        break;
      default:
        slice.first = random() % (uint64_t{1} << 41);
        break;
    }
    total += slice.n;
    slices.push_back(slice);
  }
  return slices;
}

TEST(StreamTest, EveryPathGivesTheReferenceBytes) {
  size_t elements = 0, slices = 0, different = 0;
  std::vector<float> want, got;
  for (const Slice& slice : ScatteredSlices(10'000'000)) {
    want.assign(slice.n, 0.0f);
    FillNormalScalar(slice.direction, slice.tensor, slice.first, want);
    for (const kernels::Kernels* path : Paths()) {
      got.assign(slice.n + 1, 123.0f);
      kernels::FillSlice(*path, 1, slice.direction, slice.tensor, slice.first, std::span(got).first(slice.n));
      const size_t now = Differences(std::span(got).first(slice.n), want);
      EXPECT_EQ(now, 0u) << path->name << " first " << slice.first << " n " << slice.n;
      EXPECT_EQ(got[slice.n], 123.0f) << path->name << " wrote past the end";
      different += now;
    }
    elements += slice.n;
    ++slices;
  }
  EXPECT_EQ(different, 0u);
  EXPECT_GE(elements, 10'000'000u);
  RecordProperty("paths", static_cast<int>(Paths().size()));
  RecordProperty("slices", static_cast<int>(slices));
}

TEST(StreamTest, FusedSumEqualsProductThenSum) {
  std::mt19937_64 random(7);
  std::uniform_real_distribution<float> uniform(-3, 3);
  for (const Slice& slice : ScatteredSlices(400'000)) {
    std::vector<float> theta(slice.n), z(slice.n), want(slice.n), got(slice.n);
    for (float& x : theta) x = uniform(random);
    const float scale = uniform(random);
    FillNormalScalar(slice.direction, slice.tensor, slice.first, z);
    for (size_t i = 0; i < slice.n; ++i) {
      volatile float product =
          scale * z[i];  // volatile: rounded to float32 before the sum whatever the compiler's flags
      want[i] = theta[i] + product;
    }
    for (const kernels::Kernels* path : Paths()) {
      kernels::AddSlice(*path, 1, slice.direction, slice.tensor, slice.first, scale, theta, got);
      EXPECT_EQ(Differences(got, want), 0u) << path->name << " out of place";
    }
    AddScaledNormalTo(slice.direction, slice.tensor, slice.first, scale, theta, got);
    EXPECT_EQ(Differences(got, want), 0u);
    AddScaledNormal(slice.direction, slice.tensor, slice.first, scale, theta);
    EXPECT_EQ(Differences(theta, want), 0u) << "in place";
  }
}

TEST(StreamTest, BytesDoNotDependOnThreads) {
  const Direction direction{11, 3, 1};
  const size_t n = 1'300'003;
  std::vector<float> want(n), got(n);
  kernels::FillSlice(kernels::Best(), 1, direction, 9, 4093, want);
  for (int threads : {2, 3, 5, 8}) {
    std::fill(got.begin(), got.end(), 0.0f);
    kernels::FillSlice(kernels::Best(), threads, direction, 9, 4093, got);
    EXPECT_EQ(Differences(got, want), 0u) << threads;
    std::vector<float> theta(n, 0.5f), theta_one(n, 0.5f);
    kernels::AddSlice(kernels::Best(), threads, direction, 9, 4093, 0.1f, theta, theta);
    kernels::AddSlice(kernels::Best(), 1, direction, 9, 4093, 0.1f, theta_one, theta_one);
    EXPECT_EQ(Differences(theta, theta_one), 0u) << threads;
  }
}

TEST(StreamTest, ThreadLimitIsAtLeastOne) {
  const int before = StreamThreads();
  EXPECT_GE(before, 1);
  SetStreamThreads(0);
  EXPECT_EQ(StreamThreads(), 1);
  SetStreamThreads(before);
}

TEST(StreamTest, SlicesJoin) {
  const Direction direction{5, 6, 7};
  std::vector<float> whole(4099), parts(4099);
  FillNormal(direction, 1, 17, whole);
  for (size_t begin = 0, n = 1; begin < parts.size(); begin += n, n = n * 2 + 1) {
    n = std::min(n, parts.size() - begin);
    FillNormal(direction, 1, 17 + begin, std::span(parts).subspan(begin, n));
  }
  EXPECT_EQ(Differences(whole, parts), 0u);
}

TEST(StreamTest, DifferentCoordinatesGiveDifferentValues) {
  const Direction base{1, 2, 3};
  auto first = [](Direction direction, uint32_t tensor, uint64_t element) {
    float z = 0;
    FillNormal(direction, tensor, element, {&z, 1});
    return z;
  };
  const float z = first(base, 4, 100);
  EXPECT_NE(z, first({1ull << 32 | 1, 2, 3}, 4, 100)) << "high word of the seed";
  EXPECT_NE(z, first({1, 3, 3}, 4, 100));
  EXPECT_NE(z, first({1, 2, 4}, 4, 100));
  EXPECT_NE(z, first(base, 5, 100));
  EXPECT_NE(z, first(base, 4, 101));
  EXPECT_NE(z, first(base, 4, 100 + (uint64_t{1} << 34))) << "high bits of the block number";
}

TEST(StreamTest, BestPathIsTheWidest) { EXPECT_STREQ(NormalPathName(), Paths().back()->name); }

}  // namespace
}  // namespace optod::zo
