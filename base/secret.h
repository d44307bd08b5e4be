#pragma once
/// A value that must not be printed: an API key, a token. Its bytes lie in guarded, locked memory (libsodium) that is
/// wiped when the last copy goes, is left out of core dumps, and can be had only by the call Reveal(), which is easy to
/// search for. Copies share the bytes. Thread-safe for reading.

#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <string_view>

namespace optod {

class Secret {
 public:
  Secret() = default;  ///< holds nothing
  explicit Secret(std::string_view value);
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  /// The bytes; valid while any copy of this Secret lives. Use it at the last moment, and do not keep what it was
  /// written into.
  std::string_view Reveal() const { return {bytes_.get(), size_}; }
  /// Equal bytes, compared in time that depends on the length only.
  bool Equals(std::string_view other) const;

 private:
  std::shared_ptr<const char> bytes_;
  size_t size_ = 0;
};

/// The value of an environment variable, which is then gone: its bytes are overwritten where the kernel put them, so
/// that /proc/PID/environ, child processes and memory dumps do not show it, and it is unset. Nothing when it is not set.
/// Call it before other threads start: it changes the environment.
Secret TakeFromEnvironment(const char* name);

/// Does not compile: a Secret in a message or a log line is a bug.
std::ostream& operator<<(std::ostream&, const Secret&) = delete;

/// Overwrites a string's bytes in a way the compiler keeps, then empties it.
void Wipe(std::string& text);

/// `text` with every occurrence of a secret's value (as it is, and with "/" written "\/" as JSON may) replaced by
/// "[redacted]". Values shorter than 4 bytes are no secrets and are left, since replacing them would only garble the
/// text.
std::string Redact(std::string text, std::span<const Secret> secrets);

}  // namespace optod
