"""What training writes, opened by `transformers` and `peft`: the same losses and logits as in the worker.

Runs where both can be imported; elsewhere the whole file is skipped, with that reason."""
import json
import random

import pytest
from worker_binary import needs_worker, run_worker

torch = pytest.importorskip("torch", reason="needs PyTorch, which is not installed here")
transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed here")
peft = pytest.importorskip("peft", reason="needs peft, which is not installed here")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = needs_worker

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WINDOW = 24  # tokens of a piece of text
SMALL = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=300, max_position_embeddings=96)
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        intermediate_size=172, num_key_value_heads=2, tie_word_embeddings=True, **SMALL)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(
        intermediate_size=172, num_key_value_heads=2, sliding_window=None, **SMALL)),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(ffn_dim=128, word_embed_proj_dim=64, **SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=300, n_positions=96)),
}
SCHEMES = {"lora": {"name": "lora", "rank": 4, "alpha": 16}, "prefix": {"name": "prefix", "tokens": 5}}
CASES = [(model, scheme) for model in MODELS for scheme in SCHEMES if (model, scheme) != ("gpt2", "lora")]  # refused: one matrix for q, k and v


def write_model(name, folder):
    torch.manual_seed(0)
    model = MODELS[name]().eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {c: n for n, c in enumerate(LETTERS)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    return model


def train(tmp_path, scheme, optimizer):
    """Trains on a text of letters; (last dev loss, ids of the dev text)."""
    rng = random.Random(1)
    texts = {name: "".join(rng.choice("abcde" if rng.random() < 0.8 else LETTERS) for _ in range(length)) for name, length in (("train", 2000), ("dev", 500))}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "spec.json").write_text(json.dumps({
        "model": str(tmp_path / "model"), "scheme": scheme, "optimizer": optimizer, "steps": 30, "batch": 8, "threads": 1, "save_model": True, "log_every": 30,
        "evaluate_before": False, "task": {"name": "text", "train": str(tmp_path / "train.txt"), "dev": str(tmp_path / "dev.txt"), "max_tokens": WINDOW}}))
    done = run_worker("train", "--spec", tmp_path / "spec.json", "--folder", tmp_path / "run")
    losses = [json.loads(line)["loss/dev"] for line in done.stdout.splitlines() if "loss/dev" in line]
    return losses[-1], [LETTERS.index(c) for c in texts["dev"]]


def token_loss(model, ids):
    """Mean over the tokens of all windows, each predicted from those before it in its window."""
    losses = []
    for at in range(0, len(ids) - 1, WINDOW):
        window, following = ids[at:at + WINDOW], ids[at + 1:at + WINDOW + 1]
        window = window[:len(following)]
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=torch.tensor([window])).logits[0].double(), -1)
        losses += [-log_probs[i, token].item() for i, token in enumerate(following)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name, scheme", CASES)
def test_peft_opens_an_adapter(name, scheme, tmp_path):
    base = write_model(name, tmp_path / "model")
    ours, ids = train(tmp_path, SCHEMES[scheme], {"name": "adamw", "lr": 0.02})
    untrained = token_loss(base, ids)
    theirs = token_loss(peft.PeftModel.from_pretrained(base, tmp_path / "run" / "result").eval(), ids)
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert untrained - ours > 0.1, "the adapter must matter for the comparison to mean something"


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_a_trained_model(name, tmp_path):
    base = write_model(name, tmp_path / "model")
    ours, ids = train(tmp_path, "full", {"name": "zo-sgd", "lr": 1e-3})
    opened = type(base).from_pretrained(tmp_path / "run" / "result").eval()
    assert token_loss(opened, ids) == pytest.approx(ours, rel=1e-5)
    assert any(not torch.equal(value, opened.state_dict()[key]) for key, value in base.state_dict().items())
    (tmp_path / "ids.json").write_text(json.dumps([ids[:WINDOW]]))
    run_worker("logits", "--model", tmp_path / "run" / "result", "--input", tmp_path / "ids.json", "--output", tmp_path / "out.safetensors")
    with torch.no_grad():
        wanted = opened(torch.tensor([ids[:WINDOW]])).logits[0]
    got = safetensors_torch.load_file(tmp_path / "out.safetensors")["logits.0"]
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
