#pragma once
/// Told gradients on their way into a rule: views of bytes somewhere, checked, brought to one dtype, clipped; and their
/// durable form, from which a session is replayed bit for bit. Functions are pure; objects belong to one thread.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/rule.h"
#include "optod/v1/session.pb.h"
#include "server/engine/layout.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace optod::engine {

/// One tensor's gradient; data nullptr = none in this step.
struct GradientView {
  const void* data = nullptr;
  optim::DType dtype = optim::DType::kUnspecified;
};

/// The gradients of a step: one view a layout entry, extra inputs by name. Bytes are borrowed, or held by `owner`.
struct Gradients {
  std::vector<GradientView> views;
  std::vector<optim::OwnedTensor> extra;
  std::vector<double> lr;  ///< told rates (GradientTell.lr); empty = the session's
  bool finite = false;     ///< gradients and extra inputs were all seen to be (flat_numbers.h); false: not looked at, or not so
  std::shared_ptr<const void> owner;
};

/// What a flat buffer of told bytes holds: the gradients of all tensors but the absent ones, one after another in
/// layout order, then the extra inputs.
struct FlatForm {
  optim::DType dtype = optim::DType::kUnspecified;  ///< of the gradients; kUnspecified: each tensor its own
  std::vector<int32_t> absent;                      ///< ascending positions in the layout
  std::vector<optim::TensorSpec> extra;
  std::vector<double> lr;
};

/// Checks the tensors of a message (see GradientTell). The views borrow from `tell`.
absl::StatusOr<Gradients> GradientsFromTell(const Layout& layout, const v1::GradientTell& tell);
/// OK for rates that a step may be told: at most one, or one a group; finite and >= 0. INVALID_ARGUMENT names the
/// field.
absl::Status CheckRates(const std::vector<double>& lr, const std::string& field);
/// Whether the form fits the layout: dtype float32, the parameters', or a half precision for float32 parameters; absent
/// positions ascending and inside; extra names unique, their sizes sane. INVALID_ARGUMENT names the field.
absl::Status CheckForm(const Layout& layout, const FlatForm& form);
/// Bytes of a flat buffer of this form, which has passed CheckForm.
uint64_t FlatBytes(const Layout& layout, const FlatForm& form);
/// Views into a flat buffer of exactly FlatBytes(layout, form) bytes; extra inputs are copied. Errors as CheckForm.
absl::StatusOr<Gradients> GradientsFromFlat(const Layout& layout, std::shared_ptr<const TensorBuffer> flat,
                                            const FlatForm& form);

/// Tells two writers' gradients apart: CRC-32C of every small tensor and of blocks spread over the large ones, with the
/// dtypes. Never 0; the same for equal bytes however they came.
int64_t Fingerprint(const Layout& layout, const Gradients& gradients);

/// What Rule::Step takes: aligned pointers of the parameter's dtype, or float32 for all half-precision parameters;
/// scratch where a copy was needed.
struct Prepared {
  std::vector<const void*> grads;
  std::optional<optim::DType> grad_dtype;
  double norm = -1;  ///< joint 2-norm before clipping by it; -1 when clip_norm is 0
  bool finite = false;  ///< every gradient is known to be finite, as it arrived or since the norm is; false: not looked at, or not so
  std::vector<std::shared_ptr<TensorBuffer>> scratch;
};
/// clip_value > 0: entries limited to [-clip_value, clip_value] first; NaN stays NaN. clip_norm > 0: all gradients times clip_norm / norm when the joint 2-norm (sums in double, fixed order) is larger. A
/// norm that is not finite is left to the rule, which names the tensor.
absl::StatusOr<Prepared> Prepare(const Layout& layout, const Gradients& gradients, double clip_value, double clip_norm);

// ---- durable form: an observation "gradient", a = the version that it made

inline constexpr size_t kInlineGradientBytes = 64u << 10;
/// Larger data goes into a blob first (on the calling thread).
absl::StatusOr<store::ObservationRow> RecordTell(store::BlobStore& blobs, const v1::GradientTell& tell);
/// `blob`: hash under which the flat buffer is stored already; "" = inline when small, else stored now.
absl::StatusOr<store::ObservationRow> RecordFlat(store::BlobStore& blobs, const TensorBuffer& flat,
                                                 const FlatForm& form, const std::string& blob);
/// What was recorded, owning its bytes. DATA_LOSS when it does not fit the layout.
absl::StatusOr<Gradients> GradientsFromRecord(const Layout& layout, store::BlobStore& blobs,
                                              const store::ObservationRow& row);

}  // namespace optod::engine
