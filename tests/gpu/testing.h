#pragma once
// A test main in a page, for machines without a test framework. TEST(Name) { ... EXPECT(...) << ...; } ; the last line
// printed is "N passed, N failed".
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

namespace optod::cuda::testing {

struct Case {
  const char* name;
  void (*body)();
};
inline std::vector<Case>& Cases() {
  static std::vector<Case> cases;
  return cases;
}
inline int& Failures() {
  static int failures = 0;
  return failures;
}
struct Register {
  Register(const char* name, void (*body)()) { Cases().push_back({name, body}); }
};

/// Prints what was streamed into it, once, with the place.
class Failure {
 public:
  Failure(const char* file, int line, const char* what) { text_ << file << ":" << line << ": " << what; }
  ~Failure() {
    if (++Failures() <= 20) std::printf("  %s\n", text_.str().c_str());
  }
  template <typename T>
  Failure& operator<<(const T& value) {
    text_ << " " << value;
    return *this;
  }

 private:
  std::ostringstream text_;
};

#define TEST(Name)                                                              \
  static void Name();                                                           \
  static const ::optod::cuda::testing::Register register_##Name(#Name, &Name); \
  static void Name()
#define EXPECT(condition) \
  if (condition) {        \
  } else                  \
    ::optod::cuda::testing::Failure(__FILE__, __LINE__, #condition)
#define EXPECT_OK(expression)                                            \
  if (const ::optod::cuda::Error error_ = (expression); error_.ok()) {   \
  } else                                                                 \
    ::optod::cuda::testing::Failure(__FILE__, __LINE__, #expression) << error_.text

/// Tests whose names contain `only`.
inline int RunAll(const std::string& only, bool device = true) {
  int passed = 0, failed = 0;
  for (const Case& test : Cases()) {
    if (!only.empty() && std::string(test.name).find(only) == std::string::npos) continue;
    Failures() = 0;
    test.body();
    if (const cudaError_t code = device ? cudaDeviceSynchronize() : cudaSuccess; code != cudaSuccess) {
      std::printf("  %s: %s\n", test.name, cudaGetErrorString(code));
      ++Failures();
    }
    std::printf("[%s] %s\n", Failures() == 0 ? "ok" : "FAILED", test.name);
    std::fflush(stdout);
    ++(Failures() == 0 ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

/// A vector in device memory.
template <typename T>
class Device {
 public:
  explicit Device(size_t n) : n_(n) {
    if (cudaMalloc(&data_, (n > 0 ? n : 1) * sizeof(T)) != cudaSuccess) {
      std::printf("no device memory for %zu bytes\n", n * sizeof(T));
      std::exit(1);
    }
  }
  explicit Device(const std::vector<T>& from) : Device(from.size()) {
    cudaMemcpy(data_, from.data(), n_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Device() { cudaFree(data_); }
  Device(Device&& other) noexcept : data_(other.data_), n_(other.n_) { other.data_ = nullptr; }
  Device(const Device&) = delete;
  T* get() const { return data_; }
  std::vector<T> Host() const {
    std::vector<T> out(n_);
    cudaMemcpy(out.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost);
    return out;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

/// xorshift: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : x_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t Bits() {
    x_ ^= x_ << 13;
    x_ ^= x_ >> 7;
    x_ ^= x_ << 17;
    return x_;
  }
  double Uniform(double low, double high) { return low + (high - low) * static_cast<double>(Bits() >> 11) * 0x1p-53; }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }

 private:
  uint64_t x_;
};

}  // namespace optod::cuda::testing
