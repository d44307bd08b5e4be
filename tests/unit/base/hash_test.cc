#include <sodium.h>

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/random_id.h"
#include "base/secret.h"
#include "base/sha256.h"
#include "gtest/gtest.h"

namespace optod {
namespace {

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Pattern(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 131 + (i >> 8) * 7);
  return text;
}

std::string SodiumSha256(const std::string& text) {
  std::array<std::byte, 32> digest;
  crypto_hash_sha256(reinterpret_cast<unsigned char*>(digest.data()),
                     reinterpret_cast<const unsigned char*>(text.data()), text.size());
  return HexOf(digest);
}

TEST(Sha256, PublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, EqualsLibsodiumAtEveryLengthAroundBlocks) {
  for (size_t size = 0; size <= 300; ++size) {
    const std::string text = Pattern(size);
    PortableSha256 portable;
    portable.Update(text);
    ASSERT_EQ(Sha256Hex(text), SodiumSha256(text)) << size;
    ASSERT_EQ(portable.FinishHex(), SodiumSha256(text)) << size;
  }
}

TEST(Sha256, PiecesOfAnySizeGiveTheSameDigest) {
  const std::string text = Pattern(5'000);
  for (size_t piece : {1, 3, 55, 63, 64, 65, 127, 1'000, 4'999}) {
    Sha256 hash;
    for (size_t at = 0; at < text.size(); at += piece) hash.Update(std::string_view(text).substr(at, piece));
    EXPECT_EQ(hash.FinishHex(), SodiumSha256(text)) << piece;
  }
}

TEST(Crc32c, PublishedVectors) {
  std::string rising(32, '\0'), falling(32, '\0');
  for (int i = 0; i < 32; ++i) rising[i] = static_cast<char>(i), falling[i] = static_cast<char>(31 - i);
  const struct {
    std::string data;
    uint32_t want;
  } kCases[] = {{"", 0},
                {"123456789", 0xE3069283},
                {std::string(32, '\0'), 0x8A9136AA},  // the rest: RFC 3720 appendix B.4
                {std::string(32, '\xff'), 0x62A8AB43},
                {rising, 0x46DD794E},
                {falling, 0x113FDB5C}};
  for (const auto& test : kCases) {
    EXPECT_EQ(Crc32c(test.data), test.want);
    EXPECT_EQ(Crc32cPortable(Bytes(test.data)), test.want);
  }
}

TEST(Crc32c, FastPathEqualsTableAtAllLengthsAndOffsets) {
  const std::string text = Pattern(20'000);
  for (size_t size = 0; size < text.size() - 16; size = size < 70 ? size + 1 : size + 509) {
    for (size_t offset : {0, 1, 7}) {
      const auto part = Bytes(text).subspan(offset, size);
      ASSERT_EQ(Crc32c(part, 0x1234), Crc32cPortable(part, 0x1234)) << size << " at " << offset;
    }
  }
}

TEST(Crc32c, ExtendsOverPieces) {
  const std::string text = Pattern(10'000);
  for (size_t cut : {0, 1, 8, 3'071, 3'072, 9'999}) {
    EXPECT_EQ(Crc32c(text.substr(cut), Crc32c(text.substr(0, cut))), Crc32c(text)) << cut;
  }
}

TEST(RandomId, HasTheFormOfAResourceId) {
  std::set<std::string> ids;
  for (int i = 0; i < 1'000; ++i) {
    const std::string id = RandomId();
    ASSERT_EQ(id.size(), 16u);
    ASSERT_TRUE(id[0] >= 'a' && id[0] <= 'z') << id;
    ASSERT_EQ(id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789"), std::string::npos) << id;
    ids.insert(id);
  }
  EXPECT_EQ(ids.size(), 1'000u);
  EXPECT_EQ(RandomId(63).size(), 63u);
}

TEST(RandomId, UsesEveryCharacter) {
  const std::string id = RandomId(20'000);  // P(one of 36 missing) < 36 * exp(-555)
  EXPECT_EQ(std::set<char>(id.begin(), id.end()).size(), 36u);
}

TEST(RandomId, Uuid4HasVersionAndVariant) {
  std::set<char> variants;
  for (int i = 0; i < 500; ++i) {
    const std::string uuid = Uuid4();
    ASSERT_EQ(uuid.size(), 36u);
    for (size_t at : {8, 13, 18, 23}) ASSERT_EQ(uuid[at], '-');
    ASSERT_EQ(uuid[14], '4');
    variants.insert(uuid[19]);
  }
  EXPECT_EQ(variants, (std::set<char>{'8', '9', 'a', 'b'}));
}

TEST(Secret, RevealsItsBytesAndSharesThemWithCopies) {
  const std::string value("key\0with zero", 13);
  Secret first(value);
  const Secret copy = first;
  first = Secret();
  EXPECT_TRUE(first.empty());
  EXPECT_EQ(copy.Reveal(), value);
  EXPECT_TRUE(copy.Equals(value));
  EXPECT_FALSE(copy.Equals("key"));
  EXPECT_FALSE(copy.Equals(std::string(13, 'x')));
  EXPECT_TRUE(Secret().Equals(""));
}

template <typename T>
concept Printable = requires(std::ostream& out, const T& value) {
  out << value;
};
static_assert(Printable<std::string> && !Printable<Secret>, "a Secret must not be printable");

TEST(Secret, RedactReplacesKnownValues) {
  const Secret key("sk-a/b123"), longer("sk-a/b123456"), tiny("abc");
  const Secret all[] = {key, longer, tiny, Secret()};
  const struct {
    const char *text, *want;
  } kCases[] = {{"", ""},
                {"nothing here", "nothing here"},
                {"Bearer sk-a/b123, again sk-a/b123", "Bearer [redacted], again [redacted]"},
                {"the longer sk-a/b123456.", "the longer [redacted]."},
                {R"({"key":"sk-a\/b123"})", R"({"key":"[redacted]"})"},
                {"abc is too short to be one", "abc is too short to be one"}};
  for (const auto& test : kCases) EXPECT_EQ(Redact(test.text, all), test.want);
}

TEST(Secret, TakenFromTheEnvironmentItIsNoLongerThere) {
  constexpr char kName[] = "OPTOD_TEST_TAKEN";
  EXPECT_TRUE(TakeFromEnvironment(kName).empty());
  ASSERT_EQ(setenv(kName, "sk-taken-31f7", 1), 0);
  const char* where = getenv(kName);
  EXPECT_EQ(TakeFromEnvironment(kName).Reveal(), "sk-taken-31f7");
  EXPECT_EQ(getenv(kName), nullptr);
  EXPECT_EQ(std::string(where, 13), std::string(13, '\0'));  // the C library keeps the memory of what was set
}

TEST(Secret, WipeLeavesNoByte) {
  std::string text = "a value that is long enough to live on the heap";
  const char* data = text.data();
  const size_t size = text.size();
  Wipe(text);
  EXPECT_TRUE(text.empty());
  EXPECT_EQ(std::string(data, size), std::string(size, '\0'));
}

}  // namespace
}  // namespace optod
