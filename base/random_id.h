#pragma once
/// Unguessable identifiers from the kernel's generator (getrandom). Not for experiments: those draw from a seeded
/// stream. Thread-safe; never fails (the kernel's pool is waited for once after boot).

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace optod {

void FillRandom(std::span<std::byte> out);
uint64_t RandomU64();

/// `length` >= 1 characters: a letter a-z, then a-z and 0-9, each equally likely. 16 characters hold 82 bits. A valid
/// resource id
/// ([a-z]([a-z0-9-]{0,61}[a-z0-9])?) when length <= 63.
std::string RandomId(size_t length = 16);

/// RFC 9562 version 4, lower case: xxxxxxxx-xxxx-4xxx-[89ab]xxx-xxxxxxxxxxxx.
std::string Uuid4();

}  // namespace optod
