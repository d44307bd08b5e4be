#pragma once
/// Every rule again, slow and obvious, in double and over whole vectors: what the fast ones are compared with. Nothing
/// here uses code of optim/rules beyond the types.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "optim/rules/rule.h"

namespace optod::optim::testing {

using Vec = std::vector<double>;

struct RefTensor {
  std::string name;
  std::vector<int64_t> shape;
  Vec p;
  std::optional<Vec> g;  ///< of this step
  int64_t t = 0;         ///< steps taken, the present one included
  std::map<std::string, Vec> state;
};

struct RefStep {
  double lr = 0;
  std::optional<double> given_lr;  ///< the schedule's, when there is one
  double loss = 0;
  std::map<std::string, Vec> extra;     ///< hessian_z/, act/, pgrad/
  std::map<std::string, int64_t> rows;  ///< of act/ and pgrad/
};

class Reference {
 public:
  virtual ~Reference() = default;
  /// Updates tensors that have a gradient; t is already advanced.
  virtual void Step(std::vector<RefTensor>& tensors, const RefStep& step) = 0;
};

/// Null when there is none. `hyper` is complete.
std::unique_ptr<Reference> MakeReference(const std::string& rule, const Hyper& hyper);
std::unique_ptr<Reference> MakeElementwiseReference(const std::string& rule, const Hyper& hyper);
std::unique_ptr<Reference> MakeMatrixReference(const std::string& rule, const Hyper& hyper);

inline double Num(const Hyper& hyper, const char* name) { return std::get<double>(hyper.at(name)); }
inline bool Switch(const Hyper& hyper, const char* name) { return std::get<bool>(hyper.at(name)); }
inline const std::string& Word(const Hyper& hyper, const char* name) { return std::get<std::string>(hyper.at(name)); }

/// A dense matrix, for references only.
struct Mat {
  int64_t rows = 0, cols = 0;
  Vec x;
  Mat(int64_t r, int64_t c) : rows(r), cols(c), x(r * c) {}
  Mat(int64_t r, int64_t c, Vec values) : rows(r), cols(c), x(std::move(values)) {}
  double& operator()(int64_t r, int64_t c) { return x[r * cols + c]; }
  double operator()(int64_t r, int64_t c) const { return x[r * cols + c]; }
};
Mat Identity(int64_t n, double value = 1);
Mat Times(const Mat& a, const Mat& b);
Mat Transposed(const Mat& a);
Mat Plus(double alpha, const Mat& a, double beta, const Mat& b);
Mat Inverse(Mat a);  ///< Gauss-Jordan with pivoting
double Norm(const Vec& x);
void JacobiSvd(const Mat& a, Mat& u, Vec& s, Mat& v);  ///< one-sided Jacobi; a = u diag(s) v', s falling, rows >= cols

}  // namespace optod::optim::testing
