#pragma once
/// A store that forgets everything when it is closed: for tests and for `--data-dir :memory:`. Same semantics as the
/// SQLite store (atomic batches in order, gates, callbacks on a thread of its own, gapless events); nothing is durable.
/// Thread-safe.

#include <memory>

#include "server/store/store.h"

namespace optod::store {

std::unique_ptr<Store> MakeMemoryStore();

}  // namespace optod::store
