// Reverse mode: the gradient of the objective, z * Hz by a second pass over it, and what flows through linear layers.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/train/torch_engine.h"

namespace optod::train {
namespace {

using nn::Weights;
using torch::autograd::variable_list;

at::Tensor Numbers(const std::vector<double>& values) {
  at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
  for (size_t i = 0; i < values.size(); ++i) t.data_ptr<float>()[i] = static_cast<float>(values[i]);
  return t;
}

/// Judge's loss as operations that can be differentiated again: scores are means of picks, one row an example.
at::Tensor LossOf(std::span<const Example* const> examples, const at::Tensor& picks, bool classify) {
  int64_t widest = 1;
  for (const Example* example : examples) widest = std::max<int64_t>(widest, example->candidates);
  const auto n = static_cast<int64_t>(examples.size());
  std::vector<int64_t> owner, correct;
  std::vector<double> count(static_cast<size_t>(n * widest), 0), absent(static_cast<size_t>(n * widest), 0);
  for (int64_t e = 0; e < n; ++e) {
    const Example& example = *examples[static_cast<size_t>(e)];
    correct.push_back(e * widest + example.correct);
    for (int64_t c = example.candidates; c < widest; ++c) absent[static_cast<size_t>(e * widest + c)] = -1e30;
    for (const Sequence& sequence : example.sequences) {
      for (const Pick& pick : sequence.picks) {
        owner.push_back(e * widest + pick.candidate);
        count[static_cast<size_t>(owner.back())] += 1;
      }
    }
  }
  std::vector<double> share;
  for (int64_t o : owner) share.push_back(1 / count[static_cast<size_t>(o)]);
  const at::Tensor scores = at::index_add(Numbers(absent), 0, Indices(owner), at::mul(picks, Numbers(share)));
  const at::Tensor right = at::index_select(scores, 0, Indices(correct));
  if (!classify) return right.mean().neg();
  return at::sub(at::logsumexp(scores.reshape({n, widest}), at::IntArrayRef{1}), right).mean();
}

/// +1 or -1 for every element of a tensor.
at::Tensor Signs(const zo::Direction& direction, uint32_t tensor, const std::vector<int64_t>& shape) {
  at::Tensor z = at::empty(shape, at::kFloat);
  float* to = z.data_ptr<float>();
  at::parallel_for(0, z.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> words(static_cast<size_t>(end - begin));
    zo::FillBits(direction, tensor, static_cast<uint64_t>(begin), words);
    for (int64_t i = begin; i < end; ++i) to[i] = (words[static_cast<size_t>(i - begin)] & 1) != 0 ? 1.0f : -1.0f;
  });
  return z;
}

optim::OwnedTensor Owned(const std::string& name, const at::Tensor& given) {
  const at::Tensor values = given.detach().contiguous();
  optim::OwnedTensor tensor;
  tensor.spec = {name, optim::DType::kF32, values.sizes().vec()};
  const auto* bytes = static_cast<const std::byte*>(values.data_ptr());
  tensor.data.assign(bytes, bytes + values.nbytes());
  return tensor;
}

at::Tensor Clipped(const at::Tensor& x, double bound) { return bound > 0 ? x.clamp(-bound, bound) : x; }

/// A layer's input and the gradient of its output, as the request wants them.
void Describe(const std::string& weight, const at::Tensor& x, const at::Tensor& dy, const GradientRequest& request,
              std::map<std::string, optim::OwnedTensor>* out) {
  if (!dy.defined()) return;
  const std::string layer = weight.substr(0, weight.rfind(".weight"));
  const bool rows = request.statistics == GradientRequest::Statistics::kRows;
  const int64_t rows_away[] = {0};
  const at::IntArrayRef first(rows_away);
  const at::Tensor scaled = rows ? dy : dy.mul(static_cast<double>(dy.size(0)));
  (*out)["act/" + layer] = Owned("act/" + layer, rows ? x : Clipped(x, request.clipping).mean(first));
  (*out)["pgrad/" + layer] = Owned("pgrad/" + layer, rows ? dy : Clipped(scaled, request.clipping).mean(first));
}

/// z * (H z) of every leaf, from gradients that still have their graph.
variable_list HessianZ(const variable_list& leaves, const std::vector<int>& numbers, const variable_list& gradients,
                       const zo::Direction& direction) {
  variable_list signs, products;
  for (size_t i = 0; i < leaves.size(); ++i) {
    signs.push_back(Signs(direction, static_cast<uint32_t>(numbers[i]), leaves[i].sizes().vec()));
    if (gradients[i].defined() && gradients[i].requires_grad())
      products.push_back(at::sum(at::mul(gradients[i], signs[i])));
  }
  if (products.empty()) return variable_list(leaves.size());
  variable_list hz = torch::autograd::grad(products, leaves, {}, false, false, true);
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (hz[i].defined()) hz[i] = at::mul(hz[i], signs[i]);
  }
  return hz;
}

/// Where the gradients of leaves go: leaf i is tensor number numbers[i] of the layout.
class Places {
 public:
  Places(const zo::ZoLayout& layout, std::span<float> to) : layout_(layout), to_(to), reached_(layout.tensors(), false) {}
  void Put(int tensor, const at::Tensor& gradient) {
    const auto i = static_cast<size_t>(tensor);
    nn::View(Of(i), gradient.sizes().vec()).copy_(gradient.detach());
    reached_[i] = true;
  }
  void PutAll(const variable_list& gradients, const std::vector<int>& numbers) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (gradients[i].defined()) Put(numbers[i], gradients[i]);
    }
  }
  /// Zero where nothing flowed.
  void Close() {
    for (size_t i = 0; i < reached_.size(); ++i) {
      const std::span<float> place = Of(i);
      if (!reached_[i]) std::fill(place.begin(), place.end(), 0.0f);
    }
  }

 private:
  std::span<float> Of(size_t i) const { return to_.subspan(layout_.offset(i), layout_.tensor(i).size); }
  const zo::ZoLayout& layout_;
  const std::span<float> to_;
  std::vector<bool> reached_;
};

/// Stands before a leaf's accumulation: puts the gradient into its place while it is in cache, and leaves nothing to
/// accumulate, so that autograd never holds all gradients.
class Delivery final : public torch::autograd::FunctionPreHook {
 public:
  Delivery(Places& places, int tensor) : places_(places), tensor_(tensor) {}
  variable_list operator()(const variable_list& gradients) override {
    if (gradients[0].defined()) places_.Put(tensor_, gradients[0]);
    return variable_list(1);
  }

 private:
  Places& places_;
  const int tensor_;
};

void BackwardInto(const at::Tensor& picks, const at::Tensor& slopes, const variable_list& leaves,
                  const std::vector<int>& numbers, Places& places) {
  for (size_t i = 0; i < leaves.size(); ++i)
    torch::autograd::impl::grad_accumulator(leaves[i])->add_pre_hook(std::make_unique<Delivery>(places, numbers[i]));
  torch::autograd::backward({picks}, {slopes});
}

/// What was seen of the linear layers, in the order of the forward pass.
struct LayersSeen {
  std::vector<int> tensors;
  variable_list inputs, outputs;
};

}  // namespace

absl::StatusOr<GradientResult> TorchEngine::Gradient(std::span<const Example* const> examples, bool classify,
                                                     const GradientRequest& request, std::span<float> grad) {
  return Run([&] {
    Flush();
    return Backward(examples, classify, request, grad);
  });
}

GradientResult TorchEngine::Backward(std::span<const Example* const> examples, bool classify,
                                     const GradientRequest& request, std::span<float> grad) {
  std::vector<Weights> blocks = base_;
  Weights adapters = AdapterViews(theta_);
  variable_list leaves;
  std::vector<int> numbers;
  const auto lead = [&](int tensor, at::Tensor& t) {
    if (tensor < 0 || block_of_[Number(tensor)] < request.first_block) return;
    t = t.detach().set_requires_grad(true);
    leaves.push_back(t);
    numbers.push_back(tensor);
  };
  for (size_t b = 0; b < blocks.size() && adapters_.empty(); ++b) {
    for (size_t i = 0; i < blocks[b].size(); ++i) lead(TrainableAt(b, static_cast<int>(i)), blocks[b][i]);
  }
  for (size_t i = 0; i < adapters.size(); ++i) lead(static_cast<int>(i), adapters[i]);

  LayersSeen layers;
  LayerObserver seen;
  if (request.statistics != GradientRequest::Statistics::kNone)
    seen = [&](int tensor, const at::Tensor& x, const at::Tensor& y) {
      layers.tensors.push_back(tensor);
      layers.inputs.push_back(x.detach());
      layers.outputs.push_back(y);
    };
  const at::Tensor picks = PicksOf(examples, blocks, adapters, request.first_block, seen);
  GradientResult result;
  const at::Tensor values = picks.detach().contiguous();
  const std::vector<double> log_probs(values.data_ptr<float>(), values.data_ptr<float>() + values.numel());
  result.objective = Judge(examples, log_probs, classify);
  if (request.hessian) result.hessian_z.assign(layout_.size(), 0);
  Places places(layout_, grad), products(layout_, result.hessian_z);
  if (leaves.empty()) return places.Close(), result;
  Breathe();
  const at::Tensor slopes = Numbers(result.objective.gradient);  // the objective's own derivative by the chain rule
  if (!request.hessian && layers.tensors.empty()) {
    BackwardInto(picks, slopes, leaves, numbers, places);
    return places.Close(), result;
  }
  variable_list wanted = leaves;
  wanted.insert(wanted.end(), layers.outputs.begin(), layers.outputs.end());
  const variable_list gradients =
      request.hessian
          ? torch::autograd::grad({LossOf(examples, picks, classify)}, wanted, {}, /*retain_graph=*/true,
                                  /*create_graph=*/true, /*allow_unused=*/true)
          : torch::autograd::grad({picks}, wanted, {slopes}, false, false, true);
  places.PutAll(gradients, numbers);
  places.Close();
  for (size_t i = 0; i < layers.tensors.size(); ++i)
    Describe(trainable_[Number(layers.tensors[i])].name, layers.inputs[i], gradients[leaves.size() + i], request,
             &result.statistics);
  if (request.hessian) {
    Breathe();
    products.PutAll(HessianZ(leaves, numbers, gradients, request.signs), numbers);
    products.Close();
  }
  return result;
}

ObservedOps TorchEngine::Observed(size_t block, const Weights& w, const nn::LayerExtra* extra,
                                  const LayerObserver& seen) const {
  return {files_.config, block, [this, block](int slot) { return TrainableAt(block, slot); }, w, extra, seen};
}

/// Log-probabilities of the picks, whole vocabulary at once, with a graph from `first_block` on.
at::Tensor TorchEngine::PicksOf(std::span<const Example* const> examples, const std::vector<Weights>& blocks,
                                const Weights& adapters, size_t first_block, const LayerObserver& seen) {
  const Packed packed = Pack(examples, VirtualTokens());
  const nn::Batch batch(files_.config, packed.ids, packed.lengths, 0, Shift());
  const std::vector<nn::LayerExtra> extras = Extras(adapters);
  at::Tensor x;
  {
    const at::AutoGradMode mode(first_block == 0);
    x = EmbedPlain(blocks.front(), packed, batch, Scheme("prompt") ? adapters[0] : at::Tensor());
  }
  for (size_t b = 1; b + 1 < blocks.size(); ++b) {
    Breathe();
    const at::AutoGradMode mode(b >= first_block);
    x = model_.Layer(Observed(b, blocks[b], &extras[b - 1], seen), x, batch);
  }
  x = model_.Final(Observed(blocks.size() - 1, blocks.back(), nullptr, seen),
                   at::index_select(x, 0, Indices(packed.rows)));
  const at::Tensor logits = nn::Model::Logits(x, Matrix(blocks), Bias(blocks));
  std::vector<int64_t> flat;
  for (const Packed::Ask& ask : packed.asks) flat.push_back(ask.row * files_.config.vocab + ask.target);
  return at::index_select(at::log_softmax(logits, -1).reshape({-1}), 0, Indices(flat));
}

absl::StatusOr<std::map<size_t, std::vector<double>>> TorchEngine::InputNorms(
    std::span<const Example* const> examples) {
  return Run([&] {
    at::NoGradGuard no_grad;
    Flush();
    const Packed packed = Pack(examples, VirtualTokens());
    const nn::Batch batch(files_.config, packed.ids, packed.lengths, 0, Shift());
    const Weights adapters = AdapterViews(theta_);
    const std::vector<nn::LayerExtra> extras = Extras(adapters);
    std::map<size_t, std::vector<double>> norms;
    const LayerObserver seen = [&](int tensor, const at::Tensor& x, const at::Tensor&) {
      norms[Number(tensor)] = ColumnNorms(x);
    };
    at::Tensor x = EmbedPlain(base_.front(), packed, batch, Scheme("prompt") ? adapters[0] : at::Tensor());
    for (size_t b = 1; b + 1 < base_.size(); ++b) {
      Breathe();
      x = model_.Layer(Observed(b, base_[b], &extras[b - 1], seen), x, batch);
    }
    model_.Final(Observed(base_.size() - 1, base_.back(), nullptr, seen),
                 at::index_select(x, 0, Indices(packed.rows)));
    return norms;
  });
}

}  // namespace optod::train
