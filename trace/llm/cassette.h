#pragma once
/// A cassette holds exchanges with language models, so that a run repeats bit for bit, offline and free of charge.
///
///   {"hash":"9f86..","occurrence":0,"request":{"model":..,"messages":[..],..},"reply":{"text":..,"finish_reason":..,"model":..,"usage":{..}}}
///
/// One exchange a line (JSON Lines, UTF-8), readable and diffable. A line holds neither key, header, URL nor endpoint
/// name. The hash is SHA-256 over the canonical request: model, messages, temperature, max_tokens, seed, schema, stop,
/// in that order without spaces. The k-th identical request of a run gets the k-th recorded reply. A model's unusable
/// answer (empty, malformed) is recorded as
/// `"error":{"code":..,"reason":..,"message":..}` beside the reply, so that a run which met one repeats too;
/// transport errors are not. Thread-safe.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "trace/llm/chat.h"

namespace optod::trace {

enum class CassetteMode {
  kOff,     ///< as if there were none
  kAuto,    ///< replay what is recorded, ask for the rest and record it
  kRecord,  ///< ask always; starts an empty file, replacing one that is there
  kReplay,  ///< never touches the network: NOT_FOUND for a request that was not recorded
};

/// "off", "auto", "record", "replay"; INVALID_ARGUMENT otherwise.
absl::StatusOr<CassetteMode> ParseCassetteMode(const std::string& text);

class Cassette {
 public:
  /// Reads the file when the mode replays. A missing file is NOT_FOUND in replay mode and an empty cassette in auto
  /// mode. A last line without line break (a run that was killed) is cut off; any other line that is no exchange is
  /// DATA_LOSS naming file and line.
  static absl::StatusOr<std::unique_ptr<Cassette>> Open(Fs& fs, const std::string& path, CassetteMode mode);
  ~Cassette();

  CassetteMode mode() const;

  /// Where a request stands in this run. Taken once for each call, before it is made.
  struct Ticket {
    std::string hash;
    int occurrence = 0;
    std::string request;  ///< canonical JSON
  };
  Ticket Take(const std::string& model, const ChatRequest& request);

  /// The recorded outcome, or nullopt: ask the endpoint. In replay mode a miss is the error NOT_FOUND [not_recorded],
  /// which says which call of the run it is and where it first differs from the nearest recorded request.
  std::optional<ChatOutcome> Find(const Ticket& ticket);

  /// Appends one line and fsyncs, in modes auto and record. The outcome is paid for and goes to the caller whatever
  /// becomes of the file, so a failure is kept for Health().
  void Record(const Ticket& ticket, const ChatOutcome& outcome);

  /// The first failure to write. Callers look before they pay for the next call: a run must not go on unrecorded.
  absl::Status Health() const;

  /// The model that every recorded request names; "" when there are several or none. Lets a replay run without a
  /// configured endpoint.
  std::string OnlyModel() const;

  /// Exchanges held.
  size_t size() const;

 private:
  struct Impl;
  explicit Cassette(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::trace
