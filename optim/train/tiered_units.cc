#include "optim/train/tiered_units.h"

#include <algorithm>

#include "base/status.h"
#include "optim/nn/guard.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/train/adapters.h"
#include "optim/train/groups.h"
#include "optim/train/vocabulary.h"

namespace optod::train {
namespace {

/// Rows of a table that are one unit: whole pieces of the vocabulary, about 4096 rows.
int64_t UnitRows(int64_t columns) {
  const int64_t piece = VocabularyRows(columns);
  return piece * std::max<int64_t>(1, 4096 / piece);
}

size_t CountTensors(const std::vector<tier::BlockSpec>& blocks) {
  size_t count = 0;
  for (const tier::BlockSpec& block : blocks) count += block.tensors.size();
  return count;
}

/// The tensor that logits are made with.
size_t VocabularyUid(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& model) {
  const int head = nn::HeadSlotsOf(config).lm_head;
  if (head < 0) return static_cast<size_t>(nn::EmbedSlotsOf(config).tokens);
  return CountTensors(model) - model.back().tensors.size() + static_cast<size_t>(head);
}

/// Keys and values of random tokens, layer by layer.
class PrefixStart {
 public:
  PrefixStart(nn::WeightReader& reader, uint64_t seed, int64_t tokens)
      : reader_(reader),
        model_(reader.config()),
        ids_(VirtualTokenIds(seed, tokens, reader.config().vocab)),
        batch_(reader.config(), ids_, {tokens}) {}

  absl::Status Run(std::vector<float>* out) {
    ASSIGN_OR_RETURN(at::Tensor x, Embed());
    for (size_t b = 1; b + 1 < reader_.blocks().size(); ++b) {
      nn::Weights layer(reader_.blocks()[b].tensors.size());
      for (size_t slot = 0; slot < layer.size(); ++slot) {
        ASSIGN_OR_RETURN(layer[slot], Whole(b, static_cast<int>(slot)));
      }
      nn::KeyValues cache;
      RETURN_IF_ERROR(nn::Guarded([&] {
                        const at::NoGradGuard no_grad;
                        x = model_.Layer(nn::PlainOps(reader_.config(), layer), x, batch_, &cache);
                        return true;
                      }).status());
      for (const at::Tensor& part : {cache.k.contiguous(), cache.v.contiguous()})
        out->insert(out->end(), part.data_ptr<float>(), part.data_ptr<float>() + part.numel());
    }
    return absl::OkStatus();
  }

 private:
  size_t UidOf(size_t block, int slot) const {
    size_t uid = static_cast<size_t>(slot);
    for (size_t b = 0; b < block; ++b) uid += reader_.blocks()[b].tensors.size();
    return uid;
  }
  absl::StatusOr<at::Tensor> Whole(size_t block, int slot) {
    at::Tensor t = at::empty(reader_.blocks()[block].tensors[static_cast<size_t>(slot)].shape, at::kFloat);
    RETURN_IF_ERROR(reader_.Read(UidOf(block, slot), 0, {t.data_ptr<float>(), static_cast<size_t>(t.numel())}));
    return t;
  }
  absl::StatusOr<at::Tensor> Rows(int slot, std::span<const int64_t> rows) {
    const auto width = static_cast<size_t>(reader_.config().hidden);
    at::Tensor t = at::empty({static_cast<int64_t>(rows.size()), reader_.config().hidden}, at::kFloat);
    for (size_t i = 0; i < rows.size(); ++i)
      RETURN_IF_ERROR(reader_.Read(UidOf(0, slot), static_cast<uint64_t>(rows[i]) * width, {t.data_ptr<float>() + i * width, width}));
    return t;
  }
  absl::StatusOr<at::Tensor> Embed() {
    const nn::EmbedSlots& e = model_.embed_slots();
    at::Tensor tokens, positions, types;
    ASSIGN_OR_RETURN(tokens, Rows(e.tokens, ids_));
    if (e.positions >= 0) {
      ASSIGN_OR_RETURN(positions, Rows(e.positions, {batch_.positions.data_ptr<int64_t>(), ids_.size()}));
    }
    const int64_t first[] = {0};
    if (e.types >= 0) {
      ASSIGN_OR_RETURN(types, Rows(e.types, first));
    }
    nn::Weights embed(reader_.blocks()[0].tensors.size());
    for (int slot : {e.norm, e.norm_bias}) {
      if (slot < 0) continue;
      ASSIGN_OR_RETURN(embed[static_cast<size_t>(slot)], Whole(0, slot));
    }
    return nn::Guarded([&] {
      const at::NoGradGuard no_grad;
      return model_.Embed(tokens, positions, types, nn::PlainOps(reader_.config(), embed));
    });
  }

  nn::WeightReader& reader_;
  const nn::Model model_;
  const std::vector<int64_t> ids_;
  const nn::Batch batch_;
};

}  // namespace

size_t TieredUnits::block_of(size_t uid) const {
  size_t block = 0;
  for (; uid >= blocks[block].tensors.size(); ++block) uid -= blocks[block].tensors.size();
  return block;
}

const tier::BlockTensor& TieredUnits::tensor(size_t uid) const {
  const size_t block = block_of(uid);
  for (size_t b = 0; b < block; ++b) uid -= blocks[b].tensors.size();
  return blocks[block].tensors[uid];
}

absl::StatusOr<TieredUnits> UnitsOf(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& model,
                                    const SchemeSpec& scheme) {
  TieredUnits result;
  result.blocks = model;
  result.model_tensors = CountTensors(model);
  const nn::EmbedSlots embed = nn::EmbedSlotsOf(config);
  const size_t vocabulary = VocabularyUid(config, model);
  std::vector<size_t> tables;
  for (int slot : {embed.tokens, embed.positions, embed.types}) {
    if (slot >= 0) tables.push_back(static_cast<size_t>(slot));
  }
  tables.push_back(vocabulary);
  result.units = tier::CutIntoUnits(model, tables, static_cast<size_t>(UnitRows(config.hidden)));
  const auto is_vocabulary = [&](const tier::Unit& unit) { return unit.parts[0].uid == vocabulary; };
  std::stable_partition(result.units.begin(), result.units.end(), std::not_fn(is_vocabulary));
  if (scheme.name == "full") {
    for (size_t uid = 0; uid < result.model_tensors; ++uid) result.trainable.push_back(uid);
    return result;
  }
  for (tier::Unit& unit : result.units) {
    unit.trainable = scheme.name == "head" && is_vocabulary(unit);
    for (tier::UnitPart& part : unit.parts) part.stream = unit.trainable ? 0 : -1;
  }
  if (scheme.name == "head") {
    result.trainable = {vocabulary};
    return result;
  }
  ASSIGN_OR_RETURN(std::vector<tier::BlockTensor> tensors, AdapterTensors(config, scheme));
  result.adapters = true;
  result.blocks.push_back({"adapters", std::move(tensors)});
  tier::Unit unit = tier::CutIntoUnits({result.blocks.back()}, {}, 1).front();
  unit.resident = true;
  for (tier::UnitPart& part : unit.parts) {
    part.stream = part.uid;
    part.uid += static_cast<uint32_t>(result.model_tensors);
    result.trainable.push_back(part.uid);
  }
  result.units.insert(result.units.begin(), std::move(unit));
  return result;
}

absl::StatusOr<std::vector<tier::TensorGroup>> GroupsOf(const nn::ModelConfig& config, const TieredUnits& streamed,
                                                        const SchemeSpec& scheme, const std::string& level) {
  std::vector<tier::BlockTensor> tensors;
  std::vector<size_t> block_of;
  const size_t a_layer = std::max<size_t>(1, streamed.trainable.size() / static_cast<size_t>(config.layers));
  for (size_t uid : streamed.trainable) {
    const size_t number = tensors.size();
    tensors.push_back(streamed.tensor(uid));
    block_of.push_back(!streamed.adapters ? streamed.block_of(uid) : scheme.name == "prompt" ? 0 : 1 + number / a_layer);
  }
  ASSIGN_OR_RETURN(const auto numbers, GroupTensors(tensors, block_of, static_cast<size_t>(config.layers) + 2, level));
  std::vector<tier::TensorGroup> groups;
  for (const std::vector<size_t>& group : numbers) {
    tier::TensorGroup& made = groups.emplace_back();
    size_t block = block_of[group[0]];
    for (size_t tensor : group) {
      made.tensors.push_back(static_cast<uint32_t>(tensor));
      block = std::min(block, block_of[tensor]);
    }
    const auto begins = [&](const tier::Unit& unit) { return !unit.resident && streamed.block_of(unit.parts[0].uid) == block; };
    if (block > 0)
      made.first_unit = static_cast<size_t>(std::find_if(streamed.units.begin(), streamed.units.end(), begins) - streamed.units.begin());
  }
  return groups;
}

double SweepsOf(const TieredUnits& streamed, const std::vector<tier::TensorGroup>& groups) {
  double all = 0, seen = 0;
  for (size_t u = 0; u < streamed.units.size(); ++u) {
    const auto floats = static_cast<double>(streamed.units[u].floats());
    all += floats;
    seen += floats;  // of the first group's sweep
    for (size_t g = 0; g + 1 < groups.size(); ++g) seen += u >= groups[g].first_unit ? floats : 0;
  }
  return seen / all;
}

absl::StatusOr<std::vector<float>> InitialAdapters(const TieredUnits& streamed, const SchemeSpec& scheme, uint64_t seed,
                                                   nn::WeightReader& reader) {
  std::vector<float> values;
  if (!streamed.adapters) return values;
  if (scheme.name == "prefix") {
    RETURN_IF_ERROR(PrefixStart(reader, seed, scheme.tokens).Run(&values));
    return values;
  }
  values.resize(streamed.units.front().floats());
  if (scheme.name == "lora") {
    InitLora(streamed.blocks.back().tensors, seed, values);
    return values;
  }
  const auto width = static_cast<size_t>(reader.config().hidden);
  const auto table = static_cast<size_t>(nn::EmbedSlotsOf(reader.config()).tokens);
  std::span<float> row = values;
  for (int64_t id : VirtualTokenIds(seed, scheme.tokens, reader.config().vocab)) {
    RETURN_IF_ERROR(reader.Read(table, static_cast<uint64_t>(id) * width, row.first(width)));
    row = row.subspan(width);
  }
  return values;
}

}  // namespace optod::train
