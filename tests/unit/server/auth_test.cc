/// Tokens and who they let in, over a memory store and a clock that stands still.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

#include "base/sha256.h"
#include "server/auth/authenticator.h"
#include "server/auth/token.h"
#include "server/store/memory_store.h"

namespace optod::auth {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "optod-auth-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class AuthTest : public ::testing::Test {
 protected:
  void SetUp() override { auth_ = Open(Mode::kToken); }
  std::unique_ptr<Authenticator> Open(Mode mode) {
    auto made = Authenticator::Create(mode, *store_, clock_, PosixFs(), dir_.path());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  std::string AdminToken() {
    std::string text = *PosixFs().ReadFile(dir_.path() + "/admin.token");
    return text.substr(0, text.size() - 1);
  }
  std::string Reason(const std::string& authorization, const std::string& peer = "ipv4:127.0.0.1:1") {
    auto caller = auth_->Check(peer, authorization);
    if (caller.ok()) return "ok " + caller->user;
    EXPECT_EQ(caller.status().code(), absl::StatusCode::kUnauthenticated);
    return std::string(caller.status().message());
  }
  std::string NewToken(const std::string& user, int64_t ttl_ms = 0) {
    return auth_->CreateToken(user, "test", ttl_ms)->token;
  }

  TempDir dir_;
  FakeClock clock_;
  std::unique_ptr<store::Store> store_ = store::MakeMemoryStore();
  std::unique_ptr<Authenticator> auth_;
};

TEST(Token, HasItsShapeAndNeverRepeats) {
  std::set<std::string> seen;
  std::map<char, int> letters;
  for (int i = 0; i < 500; ++i) {
    NewToken token = MakeToken();
    EXPECT_TRUE(seen.insert(token.token).second);
    auto parts = ParseToken(token.token);
    ASSERT_TRUE(parts.ok());
    EXPECT_EQ(parts->id, token.id);
    EXPECT_EQ(parts->secret.size(), 43u);
    EXPECT_EQ(HashSecret(parts->secret), token.secret_sha256);
    for (char c : parts->secret) ++letters[c];
  }
  // 21,500 draws of 62 letters: 347 each, standard deviation 18.5; ten of them allow no false alarm and catch a modulo
  // bias (25 %).
  EXPECT_EQ(letters.size(), 62u);
  for (auto [letter, count] : letters) EXPECT_NEAR(count, 21500 / 62.0, 185) << letter;
}

TEST(Token, HashIsSha256OfTheSecret) {
  std::string hash = HashSecret("abc");
  EXPECT_EQ(HexOf(std::as_bytes(std::span(hash))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Token, MalformedOnesAreRefusedAndNotShown) {
  const std::string good = MakeToken().token;
  for (std::string bad :
       {std::string(), std::string("optod_"), good.substr(1), good + "x", good.substr(0, good.size() - 1),
        std::string(62, 'a'), "optod_ABCDEFGHIJKL_" + good.substr(19), good.substr(0, 61) + "-"}) {
    auto parts = ParseToken(bad);
    ASSERT_FALSE(parts.ok()) << bad;
    if (bad.size() > 10) {
      EXPECT_THAT(std::string(parts.status().message()), Not(HasSubstr(bad.substr(10))));
    }
  }
}

TEST(Token, ComparisonLooksAtAllBytes) {
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  for (const char* other : {"bbc", "abd", "ab", "abcd", ""}) EXPECT_FALSE(EqualInConstantTime("abc", other)) << other;
}

TEST_F(AuthTest, FirstStartWritesAnAdminTokenOfMode0600) {
  EXPECT_EQ(*PosixFs().FileMode(dir_.path() + "/admin.token"), 0600);
  auto caller = auth_->Check("ipv4:1.2.3.4:5", "Bearer " + AdminToken());
  ASSERT_TRUE(caller.ok()) << caller.status();
  EXPECT_EQ(caller->user, "admin");
  EXPECT_TRUE(caller->admin);
}

TEST_F(AuthTest, ASecondStartKeepsTheTokenAndForgetsNothing) {
  std::string admin = AdminToken();
  ASSERT_TRUE(auth_->CreateUser("ann", kViewer).ok());
  std::string ann = NewToken("ann");
  auth_ = Open(Mode::kToken);
  EXPECT_EQ(AdminToken(), admin);
  EXPECT_EQ(Reason("Bearer " + admin), "ok admin");
  EXPECT_EQ(Reason("Bearer " + ann), "ok ann");
}

TEST_F(AuthTest, TheStoreHoldsNoSecret) {
  std::string token = AdminToken();
  std::string secret(ParseToken(token)->secret);
  std::vector<store::TokenRow> rows = *store_->ListTokens("");
  ASSERT_EQ(rows.size(), 1u);
  for (const store::TokenRow& row : rows) {
    EXPECT_EQ(row.secret_sha256, HashSecret(secret));
    EXPECT_THAT(row.token_id + row.label + row.user, Not(HasSubstr(secret)));
  }
  for (const store::TokenRow& row : auth_->ListTokens("admin")) EXPECT_THAT(row.secret_sha256, IsEmpty());
}

TEST_F(AuthTest, WhoIsRefusedAndHow) {
  ASSERT_TRUE(auth_->CreateUser("ann", kUser).ok());
  ASSERT_TRUE(auth_->CreateUser("bob", kUser).ok());
  std::string ann = NewToken("ann"), expiring = NewToken("ann", 1000), bob = NewToken("bob"), revoked = NewToken("ann");
  std::string wrong = ann;
  wrong.back() = wrong.back() == 'a' ? 'b' : 'a';
  clock_.Advance(std::chrono::milliseconds(999));
  EXPECT_EQ(Reason("Bearer " + expiring), "ok ann");
  clock_.Advance(std::chrono::milliseconds(1));
  ASSERT_TRUE(auth_->RevokeToken("ann", std::string(ParseToken(revoked)->id)).ok());
  ASSERT_TRUE(auth_->DeleteUser("bob").ok());
  const struct {
    std::string authorization, want;
  } cases[] = {
      {"", "token: missing; set OPTOD_TOKEN (header authorization: Bearer <token>)"},
      {ann, "token: the header authorization must be `Bearer <token>`"},
      {"Bearer x", "token: malformed; must look like optod_<id>_<secret>"},
      {"Bearer " + MakeToken().token, "token: not known here"},
      {"Bearer " + wrong, "token: not known here"},
      {"Bearer " + expiring, "token: expired"},
      {"Bearer " + revoked, "token: revoked"},
      {"Bearer " + bob, "token: revoked"},
      {"Bearer " + ann, "ok ann"},
  };
  for (const auto& c : cases) EXPECT_EQ(Reason(c.authorization), c.want);
}

TEST_F(AuthTest, TheUnixSocketIsLocalUnlessATokenIsGiven) {
  EXPECT_EQ(Reason("", "unix:"), "ok local");
  EXPECT_EQ(Reason("Bearer " + AdminToken(), "unix:"), "ok admin");
  EXPECT_EQ(Reason("Bearer nonsense", "unix:"), "token: malformed; must look like optod_<id>_<secret>");
}

TEST_F(AuthTest, OffLetsEverybodyInAsLocalAdmin) {
  auth_ = Open(Mode::kOff);
  auto caller = auth_->Check("ipv4:127.0.0.1:1", "Bearer nonsense");
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->user, "local");
  EXPECT_TRUE(caller->admin);
}

TEST_F(AuthTest, RolesBecomeRights) {
  const struct {
    Role role;
    bool admin, viewer;
  } cases[] = {{kViewer, false, true}, {kUser, false, false}, {kAdmin, true, false}};
  for (const auto& c : cases) {
    std::string name = "user" + std::to_string(c.role);
    ASSERT_TRUE(auth_->CreateUser(name, c.role).ok());
    auto caller = auth_->Check("ipv4:x", "Bearer " + NewToken(name));
    ASSERT_TRUE(caller.ok());
    EXPECT_EQ(caller->admin, c.admin);
    EXPECT_EQ(caller->viewer, c.viewer);
    EXPECT_EQ(RequireAdmin(*caller).ok(), c.admin);
    EXPECT_EQ(RequireWriter(*caller).ok(), !c.viewer);
  }
}

TEST_F(AuthTest, RevocationMovesTheGeneration) {
  uint64_t before = auth_->generation();
  std::string token = NewToken("admin");
  EXPECT_EQ(auth_->generation(), before);
  ASSERT_TRUE(auth_->RevokeToken("admin", std::string(ParseToken(token)->id)).ok());
  EXPECT_GT(auth_->generation(), before);
}

TEST_F(AuthTest, UsersAndTokensThatCannotBe) {
  EXPECT_THAT(std::string(auth_->CreateUser("Ann", kUser).status().message()),
              HasSubstr("user_id: \"Ann\" must match"));
  EXPECT_THAT(std::string(auth_->CreateUser("ann", 7).status().message()), HasSubstr("role: must be"));
  ASSERT_TRUE(auth_->CreateUser("ann", kUser).ok());
  EXPECT_TRUE(auth_->CreateUser("ann", kUser).ok()) << "a retry";
  EXPECT_EQ(auth_->CreateUser("ann", kAdmin).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(auth_->CreateToken("nobody", "", 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(auth_->RevokeToken("ann", "nosuchtoken").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(auth_->DeleteUser("admin").status().code(), absl::StatusCode::kFailedPrecondition) << "the last admin";
  ASSERT_TRUE(auth_->DeleteUser("ann").ok());
  EXPECT_TRUE(auth_->CreateUser("ann", kViewer).ok()) << "comes back";
}

TEST(ResolveUser, OwnAnyForAdminsNothingElse) {
  engine::Caller ann, admin;
  ann.user = "ann";
  admin.user = "root";
  admin.admin = true;
  EXPECT_EQ(*ResolveUser("", ann, "parent"), "ann");
  EXPECT_EQ(*ResolveUser("users/ann", ann, "parent"), "ann");
  EXPECT_EQ(*ResolveUser("users/ann", admin, "parent"), "ann");
  EXPECT_EQ(ResolveUser("users/bob", ann, "parent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ResolveUser("users/../x", admin, "parent").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace optod::auth
