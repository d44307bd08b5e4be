// A program that tunes its own constants and its own prompt: a filter for notices, and the sentence that it shows to
// people.
//
//   OPTOD_ADDRESS=127.0.0.1:7070 optod-example-tune-prompt [--optimizer optoprime] [--steps 5] [--seed 1]
//
// The score of a run is the share of notices filed rightly, less 0.1 for each fault of the sentence. The last line is
// `best_score=... start_score=... session=...`.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/status.h"
#include "clients/cpp/tracing.h"

namespace {

using optod::client::Node;
using optod::client::Tracer;

struct Notice {
  const char* text;
  bool urgent;
};
constexpr Notice kNotices[] = {
    {"Server room is on FIRE! Leave now!", true},      {"The canteen has soup today.", false},
    {"PAYMENT SYSTEM DOWN! All tills stopped!", true}, {"Your parcel waits at the desk.", false},
    {"Gas smell on floor 3! Call 112!", true},         {"New plants in the hall, please water.", false},
    {"DATA CENTER flooding! Pumps needed!", true},     {"Meeting moved to Tuesday.", false},
    {"ALARM in lab 4! Doors locked!", true},           {"HR asks for holiday plans.", false},
};

// How loud a text is: shouted letters and exclamation marks, weighted.
double Loudness(const std::string& text, double caps, double marks) {
  double shouted = 0, exclaimed = 0;
  for (char c : text) {
    shouted += c >= 'A' && c <= 'Z';
    exclaimed += c == '!';
  }
  return caps * shouted + marks * exclaimed;
}

struct Judged {
  double score = 0;
  std::string feedback;
};

Judged Judge(const std::vector<bool>& filed, const std::string& sentence) {
  Judged out;
  int right = 0;
  for (size_t i = 0; i < std::size(kNotices); ++i) {
    if (filed[i] == kNotices[i].urgent) {
      ++right;
    } else {
      out.feedback += std::string(filed[i] ? "Not urgent, but filed as urgent: " : "Urgent, but missed: ") +
                      kNotices[i].text + "\n";
    }
  }
  int faults = 0;
  const auto fault = [&](const std::string& what) {
    ++faults;
    out.feedback += "The sentence " + what + "\n";
  };
  if (sentence.find("urgent") == std::string::npos) fault("must hold the word urgent.");
  if (sentence.find("{}") == std::string::npos && sentence.find("Server") == std::string::npos)
    fault("must keep {} where the notice goes.");
  if (sentence.size() > 120) fault("must have at most 120 characters.");
  if (sentence.find("please") == std::string::npos && sentence.find("Please") == std::string::npos)
    fault("must say please.");
  out.score = static_cast<double>(right) / static_cast<double>(std::size(kNotices)) - 0.1 * faults;
  if (out.feedback.empty()) out.feedback = "All is right.";
  return out;
}

absl::Status Tune(optod::client::Client& client, const std::string& optimizer, int steps, uint64_t seed) {
  optod::client::TracerOptions options;
  options.optimizer = optimizer;
  options.seed = seed;
  options.objective = "File every urgent notice as urgent and no other, and make the sentence right.";
  ASSIGN_OR_RETURN(const std::unique_ptr<Tracer> tracer, Tracer::Create(client, options));
  const Node<double> caps =
      tracer->Parameter(0.0, "caps", {.description = "weight of a capital letter", .min = 0, .max = 10});
  const Node<double> marks =
      tracer->Parameter(0.1, "marks", {.description = "weight of an exclamation mark", .min = 0, .max = 10});
  const Node<double> limit =
      tracer->Parameter(1.0, "limit", {.description = "loudness from which a notice is urgent", .min = 0, .max = 100});
  const Node<std::string> sentence = tracer->Parameter(
      "Look at this: {}", "sentence", {.description = "shown to people; {} becomes the notice", .max_length = 200});

  const auto loudness = tracer->Bundle("loudness", "how loud a notice is", {"text", "caps", "marks"}, Loudness);
  double best = -1, start = 0;
  int64_t best_version = 0;
  for (int step = 0; step <= steps; ++step) {
    std::vector<bool> filed;
    std::vector<Node<bool>> nodes;
    for (const Notice& notice : kNotices) {
      nodes.push_back(loudness(notice.text, caps, marks) > limit);
      filed.push_back(nodes.back().value());
    }
    const Node<std::string> shown = Format(sentence, tracer->Constant(kNotices[0].text));
    const auto summary =
        tracer->Bundle("file", "files the notices and shows the first urgent one", {"shown", "first", "second"},
                       [&](const std::string& text, bool, bool) { return text; })(shown, nodes[0], nodes[1]);
    const Judged judged = Judge(filed, sentence.value());
    if (step == 0) start = judged.score;
    ASSIGN_OR_RETURN(const optod::v1::Session session, [&] {
      optod::v1::GetSessionRequest request;
      request.set_name(tracer->session());
      return client.GetSession(request);
    }());
    if (judged.score > best) best = judged.score, best_version = session.head_version();
    std::printf("step %d: score %.2f  caps=%g marks=%g limit=%g sentence=\"%s\"\n", step, judged.score, caps.value(),
                marks.value(), limit.value(), sentence.value().c_str());
    if (step == steps || judged.score >= 1) break;
    RETURN_IF_ERROR(tracer->Backward(summary, judged.feedback, judged.score));
    ASSIGN_OR_RETURN(const optod::client::TraceStep done, tracer->Step());
    if (!done.changed)
      std::printf("  the model changed nothing: %s\n",
                  done.response.candidates_size() ? done.response.candidates(0).reason().c_str() : "");
    if (!done.changed) RETURN_IF_ERROR(tracer->ZeroFeedback());
  }
  RETURN_IF_ERROR(tracer->GoTo(best_version));  // the best one is the program's
  std::printf("best_score=%.2f start_score=%.2f session=%s\n", best, start, tracer->session().c_str());
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  std::string optimizer = "optoprime";
  int steps = 5;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--optimizer") == 0) optimizer = argv[i + 1];
    if (std::strcmp(argv[i], "--steps") == 0) steps = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  auto client = optod::client::Client::Connect(optod::client::OptionsFromEnv());
  const absl::Status done = client.ok() ? Tune(**client, optimizer, steps, seed) : client.status();
  if (!done.ok()) std::fprintf(stderr, "%s\n", done.ToString().c_str());
  return done.ok() ? 0 : 1;
}
