#pragma once
/// Where a step's directions z come from. A source is a pure function of (query, position in the flat parameter
/// vector), so a pass over the parameters can be repeated, sliced and reordered without storing z. Thread-safe. T is
/// float or double.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "optim/zo/hyper.h"
#include "optim/zo/mask.h"
#include "optim/zo/stream.h"

namespace optod::zo {

/// Elements handled at a time where z passes through a buffer: small enough for the first-level cache.
inline constexpr size_t kChunk = 2048;

template <class T>
class DirectionSource {
 public:
  virtual ~DirectionSource() = default;
  /// z[i] = element first + i of direction `query`; a call may cross tensors.
  virtual void Fill(int query, size_t first, std::span<T> z) const = 0;
  /// out[i] = in[i] + scale * z[i], product and sum rounded separately; in and out equal or disjoint. Overridden where
  /// z need not be stored.
  virtual void AddScaled(int query, size_t first, T scale, std::span<const T> in, std::span<T> out) const;
};

/// Directions given as numbers: z[query] has the layout's size.
template <class T>
class ExplicitDirection final : public DirectionSource<T> {
 public:
  explicit ExplicitDirection(std::vector<std::vector<T>> z) : z_(std::move(z)) {}
  void Fill(int query, size_t first, std::span<T> z) const override;

 private:
  std::vector<std::vector<T>> z_;
};

/// Directions of the random stream: element e of tensor t in query k is Gaussian(seed, step, k, t, e), widened for
/// double.
template <class T>
class StreamDirection final : public DirectionSource<T> {
 public:
  StreamDirection(uint64_t seed, uint32_t step, ZoLayout layout)
      : seed_(seed), step_(step), layout_(std::move(layout)) {}
  void Fill(int query, size_t first, std::span<T> z) const override;
  void AddScaled(int query, size_t first, T scale, std::span<const T> in, std::span<T> out) const override;

 private:
  uint64_t seed_;
  uint32_t step_;
  ZoLayout layout_;
};

/// Sparse directions: another source with the masked elements set to zero, so those parameters do not move (weight
/// decay apart). mask has the layout's size. `inner` and `mask` are shared, not copied.
template <class T>
class MaskedDirection final : public DirectionSource<T> {
 public:
  MaskedDirection(std::shared_ptr<const DirectionSource<T>> inner, std::shared_ptr<const BitMask> mask)
      : inner_(std::move(inner)), mask_(std::move(mask)) {}
  void Fill(int query, size_t first, std::span<T> z) const override;

 private:
  std::shared_ptr<const DirectionSource<T>> inner_;
  std::shared_ptr<const BitMask> mask_;
};

}  // namespace optod::zo
