/// Flags and YAML through one table: what is accepted, and what each wrong line is told.
#include "server/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "server/config/value.h"

namespace optod::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct FlagCase {
  const char* name;
  std::vector<std::string> argv;
  const char* error;  ///< "" = accepted
};

const FlagCase kFlagCases[] = {
    {"none", {}, ""},
    {"port_zero", {"--listen", "127.0.0.1:0"}, ""},
    {"equals", {"--listen=localhost:1"}, ""},
    {"ipv6_loopback", {"--listen", "[::1]:7070"}, ""},
    {"unix_socket", {"--listen", "unix:/run/optod.sock"}, ""},
    {"unknown_flag", {"--data-dri", "x"}, "unknown flag --data-dri; did you mean --data-dir?"},
    {"unknown_flag_far", {"--zzzzzzzzzz"}, "unknown flag --zzzzzzzzzz; see --help"},
    {"stray_argument", {"serve"}, "serve: unexpected argument"},
    {"no_port", {"--listen", "127.0.0.1"}, "--listen: \"127.0.0.1\" is not HOST:PORT or unix:PATH"},
    {"port_too_large", {"--listen", "127.0.0.1:65536"}, "the port must be a number from 0 to 65535"},
    {"port_no_number", {"--listen", "127.0.0.1:http"}, "the port must be a number from 0 to 65535"},
    {"host_name", {"--listen", "example.org:1"}, "the host must be an IP address or localhost"},
    {"unix_empty", {"--listen", "unix:"}, "has no path after unix:"},
    {"unix_too_long", {"--listen", "unix:/" + std::string(200, 'x')}, "the path of the socket has 201 bytes"},
    {"choice", {"--auth", "tokens"}, "--auth: \"tokens\" is not one of off|token; did you mean token?"},
    {"twice", {"--auth", "off", "--auth", "token"}, "--auth: takes one value, 2 are given"},
    {"duration", {"--drain-grace", "5 parsecs"}, "--drain-grace: \"5 parsecs\" is not a value like 500ms, 10s, 2m, 1h"},
    {"negative", {"--drain-grace=-1s"}, "--drain-grace: -1s is negative"},
    {"bytes", {"--memory-budget", "4GB"}, "--memory-budget: \"4GB\" is not a value like 64KiB, 512MiB, 2GiB"},
    {"bytes_overflow", {"--memory-budget", "9000000000GiB"}, "--memory-budget: 9000000000GiB is too large"},
    {"zero_sessions", {"--max-sessions-loaded", "0"}, "--max-sessions-loaded: 0 is zero; must be >= 1"},
    {"plaintext_remote",
     {"--listen", "0.0.0.0:7070"},
     "listen: 0.0.0.0:7070 can be reached by other machines and has no TLS"},
    {"remote_without_token", {"--listen", "0.0.0.0:7070", "--insecure"}, "needs --auth token"},
    {"remote_insecure_token", {"--listen", "0.0.0.0:7070", "--insecure", "--auth", "token"}, ""},
    {"remote_tls_token", {"--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k", "--auth", "token"}, ""},
    {"http_remote", {"--http", "0.0.0.0:7071"}, "http: 0.0.0.0:7071 can be reached by other machines and is plaintext"},
    {"http_unix", {"--http", "unix:/x"}, "--http: must be HOST:PORT or off"},
    {"cert_without_key", {"--tls-cert", "c.pem"}, "tls-key: missing; tls-cert and tls-key go together"},
    {"cassette_mode_alone", {"--cassette-mode", "replay"}, "cassette-mode: replay needs cassette"},
    {"config_missing", {"--config", "/nonexistent/optod.yaml"}, "/nonexistent/optod.yaml: cannot be read"},
};

class Flags : public ::testing::TestWithParam<FlagCase> {};
TEST_P(Flags, AcceptedOrTold) {
  auto line = ParseCommandLine(GetParam().argv);
  std::string message = line.ok() ? "" : std::string(line.status().message());
  EXPECT_EQ(message.empty(), *GetParam().error == '\0');
  EXPECT_THAT(message, HasSubstr(GetParam().error));
  if (!line.ok()) {
    EXPECT_EQ(line.status().code(), absl::StatusCode::kInvalidArgument);
  }
}
INSTANTIATE_TEST_SUITE_P(All, Flags, ::testing::ValuesIn(kFlagCases), [](const auto& info) { return info.param.name; });

struct YamlCase {
  const char* name;
  const char* text;
  const char* error;
};

const YamlCase kYamlCases[] = {
    {"empty", "", ""},
    {"comment", "# nothing\n", ""},
    {"scalar_listen", "listen: 127.0.0.1:1\n", ""},
    {"list", "listen: [127.0.0.1:1, 'unix:/x']\n", ""},
    {"garbage", "log-level: debug\n{{{ : [\n", "f.yaml:"},
    {"tab", "log-level: debug\n\tauth: off\n", "not YAML"},
    {"binary", "\x01\x02\x03", "f.yaml:1: "},
    {"not_a_mapping", "- a\n- b\n", "f.yaml:1: must be a mapping of keys to values"},
    {"a_word", "hello\n", "f.yaml:1: must be a mapping"},
    {"unknown_key", "log-level: info\n\nlog-levle: debug\n",
     "f.yaml:3: unknown key log-levle; did you mean log-level?"},
    {"wrong_type_list", "auth:\n  - token\n", "f.yaml:2: auth: must be a single value, not a list"},
    {"wrong_type_mapping", "listen:\n  host: x\n",
     "f.yaml:2: listen: must be a text or a list of texts, not a mapping"},
    {"nested_list", "listen: [[x]]\n", "f.yaml:1: listen: must be a list of texts"},
    {"empty_list", "listen: []\n", "f.yaml:1: listen: is an empty list"},
    {"missing_value", "auth:\n", "auth: must be a single value, not nothing"},
    {"bool", "insecure: maybe\n", "f.yaml:1: insecure: \"maybe\" is not true or false"},
    {"bad_number", "log-level: info\nmax-sessions-loaded: many\n",
     "f.yaml:2: max-sessions-loaded: \"many\" is not a value like"},
    {"twice", "auth: off\nauth: token\n", "f.yaml:2: auth: given twice (first in line 1)"},
    {"config_in_config", "config: other.yaml\n", "f.yaml:1: config: a file cannot name another one"},
};

class Yaml : public ::testing::TestWithParam<YamlCase> {};
TEST_P(Yaml, AcceptedOrToldWithLine) {
  Config config;
  absl::Status status = ApplyYaml(GetParam().text, "f.yaml", {}, &config);
  EXPECT_EQ(status.ok(), *GetParam().error == '\0') << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().error));
}
INSTANTIATE_TEST_SUITE_P(All, Yaml, ::testing::ValuesIn(kYamlCases), [](const auto& info) { return info.param.name; });

TEST(Config, EveryKeyReachesItsField) {
  const std::string yaml =
      "data-dir: d\nlisten: [127.0.0.1:1, 127.0.0.1:2]\nhttp: 'off'\ninsecure: true\nauth: token\ntls-cert: "
      "c\ntls-key: k\n"
      "log-level: debug\nlog-format: json\ndrain-grace: 1500ms\nmax-sessions-loaded: 7\nmemory-budget: "
      "1MiB\nmax-artifact-size: 2KiB\n"
      "synchronous: normal\nllm-endpoints: e\nllm-secrets: s\nexecutor: disabled\ncassette: t\ncassette-mode: record\n"
      "max-workers: 3\nmax-job-workers: 5\n";
  Config c;
  ASSERT_TRUE(ApplyYaml(yaml, "f", {}, &c).ok());
  EXPECT_THAT(c.listen, ElementsAre("127.0.0.1:1", "127.0.0.1:2"));
  EXPECT_THAT((std::vector<std::string>{c.data_dir, c.http, c.auth, c.tls_cert, c.tls_key, c.log_level, c.log_format,
                                        c.synchronous, c.llm_endpoints, c.llm_secrets, c.executor, c.cassette, c.cassette_mode}),
              ElementsAre("d", "off", "token", "c", "k", "debug", "json", "normal", "e", "s", "disabled", "t", "record"));
  EXPECT_THAT((std::vector<int64_t>{c.drain_grace_ms, c.max_sessions_loaded, c.memory_budget_bytes,
                                    c.max_artifact_bytes, c.insecure, c.max_workers, c.max_job_workers}),
              ElementsAre(1500, 7, 1 << 20, 2048, 1, 3, 5));
}

TEST(Config, WhatIsSetByFlagIsLeftAloneByTheFile) {
  Config config;
  config.log_level = "error";
  ASSERT_TRUE(ApplyYaml("log-level: debug\nauth: token\n", "f", {"log-level"}, &config).ok());
  EXPECT_EQ(config.log_level, "error");
  EXPECT_EQ(config.auth, "token");
}

TEST(Config, AnErrorInTheFileChangesNothing) {
  Config config;
  EXPECT_FALSE(ApplyYaml("log-level: debug\nauth: perhaps\n", "f", {}, &config).ok());
  EXPECT_EQ(config.log_level, "info");
}

TEST(Config, HelpNamesEveryKeyAndVersionIsOneLine) {
  auto help = ParseCommandLine({"--help"});
  ASSERT_TRUE(help.ok() && help->only_print);
  for (const char* key : {"--data-dir", "--listen", "--http", "--config", "--insecure", "--auth", "--log-level",
                          "--drain-grace", "--tls-key", "--cassette-mode", "--executor"}) {
    EXPECT_THAT(help->text, HasSubstr(key));
  }
  auto version = ParseCommandLine({"--version"});
  ASSERT_TRUE(version.ok() && version->only_print);
  EXPECT_EQ(version->text, "optod " + Version() + "\n");
}

TEST(Address, TextIsWhatWasParsed) {
  for (const char* text : {"127.0.0.1:7070", "[::1]:7070", "unix:/run/x.sock", "0.0.0.0:0"}) {
    auto address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->Text(), text);
  }
  EXPECT_TRUE(ParseAddress("127.9.9.9:1")->loopback);
  EXPECT_FALSE(ParseAddress("10.0.0.1:1")->loopback);
  EXPECT_FALSE(ParseAddress("[::]:1")->loopback);
}

TEST(Nearest, OnlyWhatIsNear) {
  const std::string_view known[] = {"alpha", "beta", "gamma"};
  EXPECT_EQ(Nearest("alhpa", known), "alpha");
  EXPECT_EQ(Nearest("betta", known), "beta");
  EXPECT_EQ(Nearest("delta-delta-delta", known), "");
}

}  // namespace
}  // namespace optod::config
