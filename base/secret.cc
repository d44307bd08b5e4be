#include "base/secret.h"

#include <sodium.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace optod {
namespace {

bool SodiumReady() {
  static const bool ready = sodium_init() >= 0;
  return ready;
}

std::shared_ptr<char> Allocate(size_t size) {
  void* guarded = SodiumReady() ? sodium_malloc(size) : nullptr;
  if (guarded != nullptr) return {static_cast<char*>(guarded), [](char* p) { sodium_free(p); }};
  // No room for guard pages: ordinary memory, still wiped.
  return {new char[size], [size](char* p) {
            sodium_memzero(p, size);
            delete[] p;
          }};
}

void ReplaceAll(std::string& text, const std::string& from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

}  // namespace

Secret::Secret(std::string_view value) : size_(value.size()) {
  if (value.empty()) return;
  std::shared_ptr<char> bytes = Allocate(value.size());
  std::memcpy(bytes.get(), value.data(), value.size());
  bytes_ = std::move(bytes);
}

bool Secret::Equals(std::string_view other) const {
  return size_ == other.size() && (size_ == 0 || sodium_memcmp(bytes_.get(), other.data(), size_) == 0);
}

Secret TakeFromEnvironment(const char* name) {
  char* value = std::getenv(name);
  if (value == nullptr) return {};
  Secret taken(value);
  sodium_memzero(value, std::strlen(value));
  unsetenv(name);
  return taken;
}

void Wipe(std::string& text) {
  sodium_memzero(text.data(), text.size());
  text.clear();
}

std::string Redact(std::string text, std::span<const Secret> secrets) {
  // Longest first: where one value holds another, no tail of the longer one stays behind.
  std::vector<const Secret*> ordered;
  for (const Secret& secret : secrets) {
    if (secret.size() >= 4) ordered.push_back(&secret);
  }
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const Secret* a, const Secret* b) { return a->size() > b->size(); });
  for (const Secret* secret : ordered) {
    std::string value;
    value.reserve(2 * secret->size());  // one buffer: what it outgrew could not be wiped
    value.append(secret->Reveal());
    ReplaceAll(text, value, "[redacted]");
    ReplaceAll(value, "/", "\\/");
    if (value.size() != secret->size()) ReplaceAll(text, value, "[redacted]");
    Wipe(value);
  }
  return text;
}

}  // namespace optod
