// Rows of the optimizers that optim/zo and trace/ serve: the registry holds their hyperparameters, so that one place
// checks every request.
#include "optim/rules/registry_rows.h"

namespace optod::optim {
namespace {

Row ZerothOrder(const char* name, const char* summary, std::vector<HyperInfo> more, std::vector<std::string> tell,
                const char* state, double bytes, const char* golden, const char* source) {
  std::vector<HyperInfo> hyper = {
      Positive("lr", 1e-6, "learning rate eta"),
      Positive("eps", 1e-3, "smoothing: parameters are moved by eps z"),
      Int("queries", 1, 1, 1024, "independent directions a step, q"),
      Choice("perturbation", "two-side", {"two-side", "one-side"}, "losses at +-eps, or at +eps and 0"),
      NonNegative("weight_decay", 0, "lambda p is added to the estimate"),
      Choice("residue", "none", {"none", "mezo"}, "mezo: keep the rounding residue of perturbing in place")};
  hyper.insert(hyper.end(), more.begin(), more.end());
  RuleInfo info = {name, Family::kZerothOrder, summary, std::move(hyper), std::move(tell), state, bytes, golden, source,
                   true};
  return {std::move(info), nullptr};
}

/// Block-wise estimation: the rules that make one update of what the directions say.
std::vector<HyperInfo> WithBlocks(std::vector<HyperInfo> hyper) {
  hyper.push_back(Text("blocks", "",
                       "tensors that a direction perturbs together: empty = all; each = every tensor alone; else name prefixes, "
                       "\"layers.0.;layers.1.,norm.\" is two blocks"));
  hyper.push_back(Choice("block_schedule", "coordinate", {"coordinate", "joint"},
                         "coordinate: one block a step, in turn, so that later ones see it; joint: all blocks at the same theta"));
  return hyper;
}

/// Sparse estimation with masks that every worker draws for itself. Masks from magnitudes or activations (Wanda) need the
/// weights or the inputs of the layers, which a worker has and the server has not: optim/zo/mask.h, for programs that
/// evaluate and update in one place; their ratios can be given as mask_ratios.
std::vector<HyperInfo> WithMasks(std::vector<HyperInfo> hyper) {
  hyper.push_back(Range("mask_ratio", 0, 0, 1,
                        "fraction of the elements that a random mask keeps still; 0 = none. Masks from magnitudes or activations "
                        "(Wanda) are made where the weights and inputs are, see mask_ratios"));
  hyper.push_back(Text("mask_ratios", "",
                       "one ratio a tensor, comma-separated, in place of mask_ratio: the global scheme takes them from the weights"));
  hyper.push_back(Choice("mask_law", "uniform", {"uniform", "normal"},
                         "normal: as the published code draws it, which masks Phi(ratio)"));
  hyper.push_back(Int("mask_every", 1, 1, 1 << 20, "steps that share a mask, K"));
  return hyper;
}

std::vector<HyperInfo> ProposalHyper(int64_t candidates, int64_t memory, int64_t max_tokens) {
  return {
      Int("candidates", candidates, 1, 64, "proposals a step, asked for in parallel"),
      Int("memory", memory, 0, 1 << 20, "past (variables, feedback) pairs shown to the model"),
      Int("max_tokens", max_tokens, 1, 1 << 20, "longest reply, tokens"),
      Range("temperature", 0.7, 0, 2, "of the model; of several candidates the hottest, the others fall evenly to 0"),
      Text("objective", "", "what the model is asked to do; empty = the optimizer's own sentence"),
      Flag("include_example", false, "show a worked example in the prompt"),
      Choice("memory_by", "recency", {"recency", "score", "both"},
             "which past pairs are shown: the newest, the best-scored, half of each"),
      Text("mask", "", "sections of the prompt left empty, by title: Code, Feedback"),
      Text("titles", "", "other section titles: Code=#Program; Feedback=#Verdict"),
      Int("seed", 0, 0, int64_t{1} << 31, "passed to endpoints that take one")};
}

std::vector<HyperInfo> WithPromptForm(std::vector<HyperInfo> hyper) {
  hyper.push_back(Choice("prompt", "full", {"full", "brief"},
                         "brief: the feedback and one question, for models too small to follow the full format"));
  return hyper;
}

Row Trace(const char* name, const char* summary, std::vector<HyperInfo> hyper, const char* state, const char* source) {
  RuleInfo info = {name, Family::kTrace, summary, std::move(hyper), {"feedback"}, state, 0, "", source, true};
  return {std::move(info), nullptr};
}

}  // namespace

std::vector<Row> ZerothOrderRows() {
  const HyperInfo momentum = Fraction("momentum", 0.9, "mu");
  const std::vector<std::string> losses = {"loss_plus", "loss_minus"};
  return {
      ZerothOrder("zo-sgd", "SGD on g z, g from two losses", WithMasks(WithBlocks({})), losses, "none", 0, "zo_sgd_0",
                  "Malladi et al. 2023, Alg. 1"),
      ZerothOrder("zo-sgd-mmt", "ZO-SGD with a momentum buffer", WithBlocks({momentum}), losses,
                  "m of the parameter's shape, float32", 4, "zo_sgd_mmt_0", "Zhang et al. 2024"),
      ZerothOrder("zo-sgd-cons", "ZO-SGD that keeps the best of descent, ascent and staying", {},
                  {"loss_plus", "loss_minus", "loss_stay", "loss_descent", "loss_ascent"}, "none", 0, "zo_sgd_cons_0", "Zhang et al. 2024"),
      ZerothOrder("zo-sgd-sign", "ZO-SGD on signs",
                  WithBlocks({Choice("sign", "code", {"code", "paper"}, "sign(g) z, or sign(g z) entry by entry")}), losses, "none",
                  0, "zo_sgd_sign_code_0", "Zhang et al. 2024"),
      ZerothOrder(
          "zo-adam", "Adam on the zeroth-order estimate",
          WithBlocks({Fraction("beta1", 0.9, "decay of the first moment"), Fraction("beta2", 0.999, "decay of the second moment"),
                      Positive("adam_eps", 1e-8, "added to the bias-corrected root; 0 would make a first gradient of 0 NaN")}),
          losses, "m, v of the parameter's shape, float32", 8, "zo_adam_0", "Zhang et al. 2024"),
      ZerothOrder("forward-grad", "SGD on (directional derivative) v", {}, {"jvp"}, "none", 0, "forward_grad_0",
                  "Baydin et al. 2022"),
  };
}

std::vector<Row> TraceRows() {
  std::vector<HyperInfo> v2 = ProposalHyper(1, 0, 8192);
  v2.push_back(Int("initial_var_char_limit", 2000, 1, 1 << 30,
                   "characters of an input, other or output value shown in the prompt"));
  std::vector<HyperInfo> multi = WithPromptForm(ProposalHyper(5, 0, 4096));
  multi[3] = Range("temperature", 0, 0, 2, "of the last candidate");
  multi.push_back(Range("temperature_max", 1.3, 0, 2, "of the first candidate; the others fall evenly to temperature"));
  multi.push_back(Choice("generation", "temperature", {"temperature", "self_refinement", "alternatives", "experts"},
                         "one prompt at several temperatures; each candidate improves the one before; each differs "
                         "from all before; each an expert's view"));
  multi.push_back(Choice("selection", "last_of_n", {"last_of_n", "best_of_n", "majority", "mixture", "first"},
                         "which candidate is applied: the coolest usable; a judging call; the largest cluster's "
                         "middle; a merging call; the first usable"));
  std::vector<HyperInfo> opro = ProposalHyper(1, 0, 4096);
  opro[1].doc = "past (variables, feedback) pairs shown to the model; 0 = the last 1000, as far as they fit";
  return {
      Trace("optoprime", "one model call on the minimal subgraph of the execution trace",
            WithPromptForm(ProposalHyper(1, 0, 4096)), "the last `memory` pairs", "Cheng et al. 2024, Sec. 3"),
      Trace("optoprime-v2", "OptoPrime with tagged sections and per-variable replies", std::move(v2),
            "the last `memory` rounds", "Cheng et al. 2024; OpenTrace"),
      Trace("optoprime-multi", "OptoPrime with several candidates at falling temperatures", std::move(multi),
            "the last `memory` pairs", "Cheng et al. 2024; OpenTrace"),
      Trace("opro", "proposals from past values and scores, without the trace", std::move(opro), "all past pairs",
            "Yang et al. 2024"),
      Trace("textgrad", "one model call an edge of the trace, then one a parameter", ProposalHyper(1, 0, 4096), "none",
            "Yuksekgonul et al. 2024"),
  };
}

}  // namespace optod::optim
