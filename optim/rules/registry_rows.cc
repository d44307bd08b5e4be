// The only list of optimizers. A row: name, what it is, hyperparameters (name, default, range, meaning), what a tell
// carries, state, bytes a parameter, golden file, source, factory. registry.cc sorts them by name.
#include "optim/rules/registry_rows.h"

namespace optod::optim {
namespace {

Row FirstOrder(const char* name, const char* summary, std::vector<HyperInfo> hyper, std::vector<std::string> tell,
               const char* state, double bytes, const char* golden, const char* source, RuleFactory factory) {
  hyper.push_back(Flag("stochastic_rounding", false, "bfloat16 parameters: round up or down at random (seeded)"));
  return {{name, Family::kFirstOrder, summary, std::move(hyper), std::move(tell), state, bytes, golden, source,
           factory != nullptr},
          factory};
}

std::vector<HyperInfo> AdamHyper(double weight_decay, const char* decay_doc) {
  return {Positive("lr", 1e-3, "learning rate eta"),
          Fraction("beta1", 0.9, "decay of the first moment"),
          Fraction("beta2", 0.999, "decay of the second moment"),
          NonNegative("eps", 1e-8, "added to the bias-corrected root"),
          NonNegative("weight_decay", weight_decay, decay_doc),
          Flag("amsgrad", false, "use the largest second moment seen (Reddi et al. 2018)")};
}

std::vector<HyperInfo> LowRankHyper(int64_t rank, double scale) {
  return {Positive("lr", 0.01, "learning rate eta"),
          Fraction("beta1", 0.9, "decay of the first moment"),
          Fraction("beta2", 0.999, "decay of the second moment"),
          NonNegative("eps", 1e-6, "added to the uncorrected root"),
          NonNegative("weight_decay", 0, "decoupled decay lambda, after the update"),
          Int("rank", rank, 1, 1 << 20, "rank r of the projection"),
          Int("update_proj_gap", 200, 1, 1 << 30, "steps T between two projections"),
          Positive("scale", scale, "factor on the projected update"),
          Text("full_tensors", "*embed*,*head*",
               "matrices that take Adam without projection: comma-separated names, * and ? match")};
}

std::vector<HyperInfo> LimitedLowRankHyper(int64_t rank, double scale) {
  std::vector<HyperInfo> hyper = LowRankHyper(rank, scale);
  hyper.push_back(Range("limiter", 1.01, 1, 1e6, "largest growth of the limited norm from step to step"));
  return hyper;
}

std::vector<HyperInfo> ApolloHyper(int64_t rank, double scale, const char* scale_type, bool scale_front) {
  std::vector<HyperInfo> hyper = LimitedLowRankHyper(rank, scale);
  hyper.push_back(Choice("scale_type", scale_type, {"channel", "tensor"}, "one factor a channel or a tensor"));
  hyper.push_back(Flag("scale_front", scale_front, "apply sqrt(scale) before the limiter"));
  return hyper;
}

std::vector<HyperInfo> MkorHyper() {
  return {Positive("lr", 0.01, "learning rate eta of the backend"),
          Choice("rule", "release", {"release", "paper", "exact"},
                 "factor update: the published code's, Algorithm 1's, or the true Sherman-Morrison inverse"),
          Int("inv_freq", 10, 1, 1 << 30, "steps between factor updates"),
          Int("warmup_steps", 0, 0, 1 << 30, "factors are updated on every step up to this one"),
          NonNegative("clipping", 100, "every entry of act and pgrad rows is clipped to +-this; 0 = not"),
          Range("keep", 0.95, 0, 1, "release: weight of K against I before an update"),
          Range("gamma", 0.95, 1e-3, 1, "paper, exact: momentum of the factors"),
          Range("zeta", 0.9, 0, 1, "paper, exact: weight of K against I when the stabiliser acts"),
          Positive("threshold", 2, "paper, exact: largest |K| that is left alone"),
          Choice("backend", "sgd", {"sgd", "adam", "adamw", "lamb"}, "rule that steps on the preconditioned gradients"),
          Fraction("momentum", 0.9, "backend sgd"),
          Fraction("beta1", 0.9, "backend adam, adamw, lamb"),
          Fraction("beta2", 0.999, "backend adam, adamw, lamb"),
          NonNegative("eps", 1e-8, "backend adam, adamw, lamb"),
          NonNegative("weight_decay", 0, "of the backend"),
          Text("sgd_layers", "*embed*,*norm*,*lm_head*",
               "layers left to the backend: comma-separated names, * and ? match")};
}

std::vector<HyperInfo> MkorHHyper() {
  std::vector<HyperInfo> hyper = MkorHyper();
  hyper.push_back(Int("window", 50, 1, 1 << 30, "steps w of one rate measurement"));
  hyper.push_back(Positive("fraction", 0.1, "switch when the rate falls below this part of the largest seen"));
  hyper.push_back(Int("patience", 2, 1, 1 << 20, "successive windows below it"));
  hyper.push_back(Fraction("beta", 0.98, "decay of the smoothed loss"));
  return hyper;
}

}  // namespace

std::vector<Row> FirstOrderRows() {
  std::vector<Row> rows;
  rows.push_back(FirstOrder("sgd", "gradient descent; momentum, Nesterov, dampening, L2 decay by choice",
                            {Positive("lr", 1e-3, "learning rate eta"), Fraction("momentum", 0, "mu"),
                             Fraction("dampening", 0, "the gradient enters the buffer times 1 - dampening"),
                             Flag("nesterov", false, "step along d + mu buffer"),
                             NonNegative("weight_decay", 0, "L2: lambda p is added to the gradient")},
                            {"grad"}, "m of the parameter's shape when momentum > 0, float32", 4, "sgd_momentum",
                            "Polyak 1964; Sutskever et al. 2013", &MakeSgd));
  rows.push_back(FirstOrder("adam", "adaptive moments; decay is L2",
                            AdamHyper(0, "L2: lambda p is added to the gradient"), {"grad"},
                            "m, v of the parameter's shape, float32 (amsgrad: vmax too)", 8, "adam_default",
                            "Kingma and Ba 2015, Alg. 1", &MakeAdam));
  rows.push_back(FirstOrder("adamw", "Adam with decoupled weight decay",
                            AdamHyper(1e-2, "decoupled: p is multiplied by 1 - eta lambda first"), {"grad"},
                            "m, v of the parameter's shape, float32 (amsgrad: vmax too)", 8, "adamw_decoupled",
                            "Loshchilov and Hutter 2019, Alg. 2", &MakeAdamW));
  rows.push_back(FirstOrder(
      "adamw-8bit", "AdamW with block-wise 8-bit moments",
      {Positive("lr", 1e-3, "learning rate eta"), Fraction("beta1", 0.9, "decay of the first moment"),
       Fraction("beta2", 0.999, "decay of the second moment"),
       NonNegative("eps", 1e-8, "added to the bias-corrected root"),
       NonNegative("weight_decay", 1e-2, "decoupled: p is multiplied by 1 - eta lambda first"),
       Int("block_size", 256, 16, 4096, "entries that share one absolute maximum"),
       Int("min_8bit_size", 4096, 0, 1 << 30, "smaller tensors keep float32 moments"),
       Text("float_tensors", "*embed*", "tensors that keep float32 moments: comma-separated names, * and ? match")},
      {"grad"}, "m, v as 8-bit codes and one float32 maximum a block each", 2.03125, "", "Dettmers et al. 2022",
      &MakeAdamW8bit));
  rows.push_back(FirstOrder(
      "lamb", "Adam direction scaled by a trust ratio a tensor",
      {Positive("lr", 1e-3, "learning rate eta"), Fraction("beta1", 0.9, "decay of the first moment"),
       Fraction("beta2", 0.999, "decay of the second moment"), NonNegative("eps", 1e-6, "added to the root"),
       NonNegative("weight_decay", 0.01, "lambda p is added to the direction"),
       Flag("bias_correction", false, "divide the moments by 1 - beta^t (the published variant)"),
       NonNegative("clamp", 10, "largest ||p|| in the trust ratio; 0 = no clamp (the published variant)")},
      {"grad"}, "m, v of the parameter's shape, float32", 8, "lamb_v3", "You et al. 2020, Alg. 2", &MakeLamb));
  rows.push_back(
      FirstOrder("adafactor", "factored second moments",
                 {Positive("lr", 1e-3, "learning rate eta when relative_step is off"),
                  Flag("relative_step", true, "eta = min(1e-2, 1/sqrt(t)) unless the step brings one"),
                  Flag("scale_parameter", true, "eta is multiplied by max(eps2, RMS(p))"),
                  NonNegative("eps1", 1e-30, "added to g^2"), NonNegative("eps2", 1e-3, "smallest parameter scale"),
                  Positive("clip_threshold", 1, "largest RMS of the update"),
                  Range("decay_rate", -0.8, -10, 0, "beta2_t = 1 - t^decay_rate"),
                  Fraction("beta1", 0, "decay of an average of the scaled update; 0 = none"),
                  NonNegative("weight_decay", 0, "decoupled decay lambda")},
                 {"grad"}, "row and column means of g^2 (rank >= 2), else v; beta1 adds m; float32", 0.01,
                 "adafactor_manual", "Shazeer and Stern 2018, Alg. 4", &MakeAdafactor));
  rows.push_back(FirstOrder(
      "muon", "orthogonalised momentum for hidden matrices, AdamW for the rest",
      {Positive("lr", 0.02, "learning rate eta of matrices"), Fraction("momentum", 0.95, "mu of the averaged gradient"),
       Flag("nesterov", true, "orthogonalise (1-mu) g + mu m"), Int("ns_steps", 5, 1, 32, "Newton-Schulz iterations"),
       NonNegative("weight_decay", 0, "decoupled decay lambda"),
       Choice("ns_dtype", "bfloat16", {"bfloat16", "parameter"}, "arithmetic of the iteration"),
       Text("aux_tensors", "*embed*,*head*",
            "matrices stepped by AdamW as 1-D tensors are: comma-separated names, * and ? match"),
       Positive("adam_lr", 3e-4, "learning rate of AdamW tensors when lr is as given here; it follows lr's schedule"),
       Fraction("adam_beta1", 0.9, "of AdamW tensors"), Fraction("adam_beta2", 0.95, "of AdamW tensors"),
       NonNegative("adam_eps", 1e-10, "of AdamW tensors")},
      {"grad"}, "m of the parameter's shape for matrices; m, v for the rest; float32", 4, "muon_nocast",
      "Jordan et al. 2024", &MakeMuon));
  rows.push_back(
      FirstOrder("galore", "Adam in a low-rank subspace of the gradient", LowRankHyper(128, 0.25), {"grad"},
                 "m, v of [long side, r] and a projector [r, short side] a matrix; m, v for the rest; float32", 8,
                 "galore_adamw", "Zhao et al. 2024, Alg. 2", &MakeGalore));
  rows.push_back(FirstOrder("fira", "GaLore plus the scaled part outside the subspace", LimitedLowRankHyper(128, 0.25),
                            {"grad"}, "as galore, one norm a matrix", 8, "fira_adamw", "Chen et al. 2024, Alg. 1",
                            &MakeFira));
  rows.push_back(FirstOrder(
      "apollo", "gradient scaled a channel by low-rank Adam statistics", ApolloHyper(256, 1, "channel", false),
      {"grad"}, "m, v of [long side, r] a matrix, a projector drawn from the seed; m, v for the rest; float32", 8,
      "apollo_channel", "Zhu et al. 2024, Alg. 1", &MakeApollo));
  rows.push_back(FirstOrder("apollo-mini", "APOLLO of rank 1, one factor a tensor", ApolloHyper(1, 128, "tensor", true),
                            {"grad"}, "as apollo with r = 1", 0.01, "apollo_mini", "Zhu et al. 2024, Sec. 4.2",
                            &MakeApollo));
  rows.push_back(FirstOrder(
      "kfac", "Kronecker-factored natural gradient; SGD behind",
      {Positive("lr", 0.01, "learning rate eta"), Fraction("momentum", 0, "of the SGD behind"),
       Fraction("decay", 0.95, "xi of the factors"), Positive("damping", 0.003, "mu"),
       Int("factor_every", 10, 1, 1 << 30, "steps between factor updates"),
       Int("inv_every", 100, 1, 1 << 30, "steps between inversions"),
       NonNegative("kl_clip", 0.001, "kappa; 0 = no clipping"),
       Choice("method", "eigen", {"eigen", "inverse"}, "eigendecomposition (KAISA) or damped Cholesky inverses"),
       NonNegative("weight_decay", 0, "L2, of the SGD behind"),
       Text("sgd_layers", "*embed*,*norm*,*lm_head*", "layers left to SGD: comma-separated names, * and ? match")},
      {"grad", "act", "pgrad"}, "A, G and their eigenvectors or inverses a layer: 2 (in^2 + out^2) numbers, float32",
      16, "kfac_eigen", "Martens and Grosse 2015; Pauloski et al. 2021", &MakeKfac));
  rows.push_back(FirstOrder(
      "adahessian", "Adam with a Hutchinson estimate of the Hessian diagonal as second moment",
      {Positive("lr", 0.15, "learning rate eta"), Fraction("beta1", 0.9, "decay of the first moment"),
       Fraction("beta2", 0.999, "decay of the squared estimate"), NonNegative("eps", 1e-4, "added after the power"),
       NonNegative("weight_decay", 0, "decoupled decay lambda"),
       Range("hessian_power", 1, 0, 1, "k: 1 full curvature, 0 momentum"),
       Choice("variant", "image", {"image", "block", "fairseq", "lazy"}, "which spatial averaging"),
       Int("block", -1, -1, 1 << 30,
           "block: entries a mean, -1 = the natural block of the rank; fairseq: entries a mean of rank 2"),
       Flag("average_conv_kernel", false, "lazy: mean over the kernel of rank 4"),
       Int("update_each", 1, 1, 1 << 20, "steps between Hessian estimates")},
      {"grad", "hessian_z"}, "m, s of the parameter's shape (update_each > 1: the last estimate too), float32", 8,
      "adahessian_quartic", "Yao et al. 2021, Alg. 1", &MakeAdaHessian));
  rows.push_back(FirstOrder("mkor", "momentum-enabled Kronecker factors by rank-1 updates of the inverses", MkorHyper(),
                            {"grad", "act", "pgrad"}, "A_inv [in+1, in+1], G_inv [out, out] a layer, and the backend's",
                            12, "mkor_exact_sm", "Mozaffari et al. 2023, Alg. 1", &MakeMkor));
  rows.push_back(FirstOrder("mkor-h", "MKOR that falls back for good to its backend once second order stops helping",
                            MkorHHyper(), {"grad", "act", "pgrad", "loss"}, "as mkor, and the smoothed loss", 12,
                            "mkor_exact_sm", "Mozaffari et al. 2023, Sec. 3.3", &MakeMkorH));
  rows.push_back(FirstOrder(
      "scale", "column-normalised gradients, momentum for the last layer only",
      {Positive("lr", 1e-3, "learning rate eta"), NonNegative("weight_decay", 0, "decoupled decay lambda"),
       Fraction("momentum", 0.9, "of matrices in neither list"),
       Positive("adam_lr", 2e-2, "learning rate of 1-D tensors at the rule's own lr; it follows lr's schedule"),
       Fraction("beta1", 0.9, "of 1-D tensors"), Fraction("beta2", 0.999, "of 1-D tensors"),
       NonNegative("adam_eps", 1e-8, "inside the uncorrected root"),
       Text("hidden_tensors", "*attn*,*attention*,*mlp*",
            "matrices without momentum: comma-separated names, * and ? match"),
       Text("embedding_tensors", "*embed_tokens*", "matrices normalised over dim 0, without momentum")},
      {"grad"}, "m of the last layer; m, v of 1-D tensors; float32", 0.5, "scale_default",
      "Glentis et al. 2025, Alg. 1", &MakeScale));
  rows.push_back(FirstOrder(
      "sgd-sai", "momentum SGD scaled a tensor by the gradient's signal-to-noise ratio at its first step",
      {Positive("lr", 1e-2, "learning rate eta"), Fraction("momentum", 0.9, "mu of the averaged gradient"),
       NonNegative("eps", 1e-8, "added to the standard deviation"),
       NonNegative("weight_decay", 1e-2, "decoupled decay lambda"),
       Choice("normalise", "none", {"none", "max"}, "divide the ratios by the largest"),
       NonNegative("min_std", 0,
                   "smallest standard deviation, as part of the gradient's RMS; 0 = the published arithmetic")},
      {"grad"}, "m of the parameter's shape and one number a tensor, float32", 4, "sgdsai_default",
      "Xu et al. 2024, Alg. 1", &MakeSgdSai));
  return rows;
}

}  // namespace optod::optim
