#pragma once
/// A zeroth-order update on one element, written once for CPU and GPU (update.h has it over vectors). Every operation is
/// rounded by itself: compile without contraction. T is float or double.

#if defined(__CUDACC__)
#define OPTOD_ZO_FORMULA __host__ __device__ __forceinline__
#else
#define OPTOD_ZO_FORMULA inline __attribute__((always_inline))
#endif

namespace optod::zo::formula {

#if defined(__CUDA_ARCH__)
OPTOD_ZO_FORMULA float Root(float x) { return ::sqrtf(x); }  // rounded to nearest: nvcc's -prec-sqrt=true
OPTOD_ZO_FORMULA double Root(double x) { return ::sqrt(x); }
#else
OPTOD_ZO_FORMULA float Root(float x) { return __builtin_sqrtf(x); }
OPTOD_ZO_FORMULA double Root(double x) { return __builtin_sqrt(x); }
#endif

/// -1, 0 or 1; 0 for NaN.
template <class T>
OPTOD_ZO_FORMULA T SignOf(T x) {
  return static_cast<T>((x > 0) - (x < 0));
}

/// Decoupled weight decay: rate = fl(lr * weight_decay).
template <class T>
OPTOD_ZO_FORMULA T Decayed(T rate, T theta) {
  return theta - rate * theta;
}

/// What direction z with its scalar adds to the gradient: the product, or with `sign` the sign of it.
template <class T>
OPTOD_ZO_FORMULA T Product(bool sign, T scalar, T z) {
  const T product = scalar * z;
  return sign ? SignOf(product) : product;
}

/// The mean over `queries` directions, plus decay * theta.
template <class T>
OPTOD_ZO_FORMULA T Averaged(T queries, T decay, T theta, T gradient) {
  if (queries > 1) gradient /= queries;
  if (decay != 0) gradient += decay * theta;
  return gradient;
}

/// Adam (Kingma & Ba, 2015, Alg. 1), epsilon outside the root. bias: 1 - beta^t.
template <class T>
struct AdamConstants {
  T beta1, beta2, eps, lr, bias1, bias2;
};
template <class T>
OPTOD_ZO_FORMULA void Adam(const AdamConstants<T>& c, T gradient, T& theta, T& m, T& v) {
  m = c.beta1 * m + (1 - c.beta1) * gradient;
  v = c.beta2 * v + (1 - c.beta2) * gradient * gradient;
  theta -= c.lr * (m / c.bias1) / (Root(v / c.bias2) + c.eps);
}

/// SGD with momentum: no dampening, no bias correction; the first step takes the gradient as it is.
template <class T>
OPTOD_ZO_FORMULA void Momentum(T momentum, T lr, bool first, T gradient, T& theta, T& m) {
  if (!first) gradient += momentum * m;
  m = gradient;
  theta -= lr * gradient;
}

}  // namespace optod::zo::formula
