// A state file from outside: any bytes are refused or give a state that encodes to a file with the same content.
#include <cstdlib>

#include "server/engine/state_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = optod::engine::DecodeStateFile(std::as_bytes(std::span(data, size)));
  if (!file.ok()) return 0;
  (void)optod::engine::CheckFinite(*file);
  const auto encoded = optod::engine::EncodeStateFile(*file);
  if (!encoded.ok()) std::abort();
  const auto again = optod::engine::DecodeStateFile((*encoded)->bytes());
  if (!again.ok() || again->state.size() != file->state.size() || again->step != file->step) std::abort();
  return 0;
}
