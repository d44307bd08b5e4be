#pragma once
/// The elementwise update formulas, each written once. CPU launchers (kernels_body.h) and CUDA launchers call these
/// functions; nobody else computes an update. Every operand is one element: `p` parameter, `g` gradient, the rest
/// optimizer state. Constants are prepared in double by the rule and rounded once to T; a division by one is a product
/// with its reciprocal, since divisions and roots are what can hold a step below the speed of memory. No fused multiply-add and no
/// libm beyond sqrt (and pow in one AdaHessian mode), so that all paths give the same bits. T is float or double.

#if defined(__CUDACC__)
#define OPTOD_FORMULA __host__ __device__ __forceinline__
#else
#define OPTOD_FORMULA inline __attribute__((always_inline))
#endif

namespace optod::optim::formula {

#if defined(__CUDA_ARCH__)
OPTOD_FORMULA float Sqrt(float x) { return ::sqrtf(x); }  // rounded to nearest: nvcc's -prec-sqrt=true
OPTOD_FORMULA double Sqrt(double x) { return ::sqrt(x); }
OPTOD_FORMULA float Pow(float x, float y) { return ::powf(x, y); }  // the one formula whose bits differ there
OPTOD_FORMULA double Pow(double x, double y) { return ::pow(x, y); }
OPTOD_FORMULA float Abs(float x) { return ::fabsf(x); }
OPTOD_FORMULA double Abs(double x) { return ::fabs(x); }
#else
OPTOD_FORMULA float Sqrt(float x) { return __builtin_sqrtf(x); }
OPTOD_FORMULA double Sqrt(double x) { return __builtin_sqrt(x); }
OPTOD_FORMULA float Pow(float x, float y) { return __builtin_powf(x, y); }
OPTOD_FORMULA double Pow(double x, double y) { return __builtin_pow(x, y); }
OPTOD_FORMULA float Abs(float x) { return __builtin_fabsf(x); }
OPTOD_FORMULA double Abs(double x) { return __builtin_fabs(x); }
#endif

/// Exponential moving average b s + (1 - b) x, with 1 - b taken in double before rounding.
template <typename T>
struct Ema {
  T keep, add;
  OPTOD_FORMULA T operator()(T s, T x) const { return keep * s + add * x; }
};

/// SGD (Robbins and Monro 1951; momentum: Polyak 1964; Nesterov as in Sutskever et al. 2013), L2 decay inside the
/// gradient. First use of a buffer takes the gradient itself: the rule then passes momentum 0 and gain 1.
template <typename T>
struct Sgd {
  T lr, weight_decay;
  T momentum;   ///< mu
  T gain;       ///< 1 - dampening
  T lookahead;  ///< mu of the Nesterov look-ahead (also at first use)
};
template <typename T>
OPTOD_FORMULA void SgdPlain(const Sgd<T>& c, T& p, T g) {
  p -= c.lr * (g + c.weight_decay * p);
}
template <bool kNesterov, typename T>
OPTOD_FORMULA void SgdMomentum(const Sgd<T>& c, T& p, T g, T& buffer) {
  const T d = g + c.weight_decay * p;
  buffer = c.momentum * buffer + c.gain * d;
  p -= c.lr * (kNesterov ? d + c.lookahead * buffer : buffer);
}

/// Adam (Kingma and Ba 2015, Alg. 1) and AdamW (Loshchilov and Hutter 2019, Alg. 2). Adam: decay 1, l2 = lambda; AdamW:
/// decay 1 - eta lambda, l2 0.
template <typename T>
struct Adam {
  Ema<T> first, second;
  T step;        ///< eta / (1 - beta1^t)
  T root_scale;  ///< 1 / sqrt(1 - beta2^t)
  T eps;
  T decay, l2;
  T decay_after;  ///< multiplies the parameter last (the low-rank family's order); 1 elsewhere
};
template <typename T>
OPTOD_FORMULA void AdamStep(const Adam<T>& c, T& p, T g, T& m, T& v) {
  p *= c.decay;
  g += c.l2 * p;
  m = c.first(m, g);
  v = c.second(v, g * g);
  p = (p - c.step * m / (Sqrt(v) * c.root_scale + c.eps)) * c.decay_after;
}
/// AMSGrad (Reddi et al. 2018): the largest second moment seen takes the place of v.
template <typename T>
OPTOD_FORMULA void AmsgradStep(const Adam<T>& c, T& p, T g, T& m, T& v, T& v_max) {
  p *= c.decay;
  g += c.l2 * p;
  m = c.first(m, g);
  v = c.second(v, g * g);
  v_max = v_max > v ? v_max : v;
  p -= c.step * m / (Sqrt(v_max) * c.root_scale + c.eps);
}

/// SGD-SaI (Xu et al. 2024): a moving average of the gradient, one step length a tensor. First use: keep 0, add 1.
template <typename T>
struct Sai {
  Ema<T> average;
  T decay;  ///< 1 - eta lambda
  T step;   ///< eta gsnr
};
template <typename T>
OPTOD_FORMULA void SaiStep(const Sai<T>& c, T& p, T g, T& m) {
  m = c.average(m, g);
  p = p * c.decay - c.step * m;
}

/// AdaHessian (Yao et al. 2021, Alg. 1, lines 6-8): `d` is the spatially averaged Hessian diagonal.
template <typename T>
struct AdaHessian {
  Ema<T> first, second;
  T lr, weight_decay;
  T first_scale;  ///< 1 / (1 - beta1^t)
  T root_scale;   ///< 1 / sqrt(1 - beta2^t)
  T eps;
  T power;  ///< k
};
template <bool kPower, typename T>
OPTOD_FORMULA void AdaHessianStep(const AdaHessian<T>& c, T& p, T g, T& m, T& s, T d) {
  m = c.first(m, g);
  s = c.second(s, d * d);
  const T root = Sqrt(s) * c.root_scale;
  const T denominator = (kPower ? Pow(root, c.power) : root) + c.eps;
  p -= c.lr * (m * c.first_scale / denominator + c.weight_decay * p);
}

/// LAMB (You et al. 2020, Alg. 2): moments and direction; the trust ratio comes from norms over the whole tensor.
template <typename T>
struct Lamb {
  Ema<T> first, second;
  T first_scale, root_scale;  ///< 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t); both 1 without bias correction
  T eps, weight_decay;
  T step;  ///< eta times trust ratio
};
template <typename T>
OPTOD_FORMULA T LambDirection(const Lamb<T>& c, T p, T m, T v) {
  return m * c.first_scale / (Sqrt(v) * c.root_scale + c.eps) + c.weight_decay * p;
}

/// SCALE (Glentis et al. 2025): gradient over its root mean square along one dimension.
template <typename T>
struct Normalised {
  Ema<T> average;  ///< of the last layer's momentum
  T decay;         ///< 1 - eta lambda
  T lr;
  T rms;  ///< of the row
};
template <typename T>
OPTOD_FORMULA void NormalisedStep(const Normalised<T>& c, T& p, T x, T rms) {
  p = p * c.decay - c.lr * (x / rms);
}

}  // namespace optod::optim::formula
