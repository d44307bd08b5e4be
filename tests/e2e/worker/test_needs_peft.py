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
FIRST, MASK = 5, 40  # of the masked model: its padding is token 1
SCHEMES = {"lora": {"name": "lora", "rank": 4, "alpha": 16}, "prefix": {"name": "prefix", "tokens": 5}, "prompt": {"name": "prompt", "tokens": 4}}
CASES = [(model, scheme) for model in MODELS for scheme in SCHEMES if (model, scheme) != ("gpt2", "lora")]  # refused: one matrix for q, k and v


def roberta():
    return transformers.RobertaForMaskedLM(transformers.RobertaConfig(intermediate_size=128, **SMALL))


def write_model(make, folder, first=0, **added):
    """first: token of the letter a.  added: special tokens by name."""
    torch.manual_seed(0)
    model = make().eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {c: first + n for n, c in enumerate(LETTERS)}, "merges": []},
        "added_tokens": [{"id": n, "content": token} for token, n in added.items()],
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
            logits = model(input_ids=torch.tensor([window])).logits[0, -len(window):]  # a prompt's virtual tokens have rows of their own
            log_probs = torch.log_softmax(logits.double(), -1)
        losses += [-log_probs[i, token].item() for i, token in enumerate(following)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name, scheme", CASES)
def test_peft_opens_an_adapter(name, scheme, tmp_path):
    base = write_model(MODELS[name], tmp_path / "model")
    ours, ids = train(tmp_path, SCHEMES[scheme], {"name": "adamw", "lr": 0.02})
    untrained = token_loss(base, ids)
    theirs = token_loss(peft.PeftModel.from_pretrained(base, tmp_path / "run" / "attempt-1" / "result").eval(), ids)
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert untrained - ours > 0.1, "the adapter must matter for the comparison to mean something"


def option_loss(logits, labels, options):
    """Mean cross-entropy of the right option's token at the mask, against the other's."""
    log_probs = torch.log_softmax(logits.double(), -1)[:, options]
    return torch.nn.functional.cross_entropy(log_probs, torch.tensor(labels)).item()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_peft_opens_an_adapter_of_a_masked_model(scheme, tmp_path):
    """The mask is the last token: a prompt stands in front of the input and has rows of its own."""
    base = write_model(roberta, tmp_path / "model", FIRST, **{"<mask>": MASK})
    rows = [("".join(random.Random(n).choices("abc" if n % 2 else "xyz", k=6)), n % 2) for n in range(40)]
    (tmp_path / "t.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    (tmp_path / "spec.json").write_text(json.dumps({
        "model": str(tmp_path / "model"), "scheme": SCHEMES[scheme], "optimizer": {"name": "adamw", "lr": 0.05}, "steps": 60, "batch": 8, "threads": 1,
        "save_model": True, "log_every": 60, "evaluate_before": False,  # the version after the last step is the best one, for want of others
        "task": {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "p", "1": "q"}, "train": str(tmp_path / "t.tsv"), "dev": str(tmp_path / "t.tsv")}}))
    lines = run_worker("train", "--spec", tmp_path / "spec.json", "--folder", tmp_path / "run").stdout.splitlines()
    ours, = (json.loads(line)["loss/dev"] for line in lines if "loss/dev" in line)
    ids = torch.tensor([[FIRST + LETTERS.index(c) for c in text] + [MASK] for text, _ in rows])
    labels, options = [label for _, label in rows], [FIRST + LETTERS.index(c) for c in "pq"]

    def loss(model):
        with torch.no_grad():
            return option_loss(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1], labels, options)
    untrained = loss(base)
    assert loss(peft.PeftModel.from_pretrained(base, tmp_path / "run" / "attempt-1" / "result").eval()) == pytest.approx(ours, rel=1e-5)
    assert untrained - ours > 0.05, "the adapter must matter for the comparison to mean something"


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_a_trained_model(name, tmp_path):
    base = write_model(MODELS[name], tmp_path / "model")
    ours, ids = train(tmp_path, "full", {"name": "zo-sgd", "lr": 1e-3})
    opened = type(base).from_pretrained(tmp_path / "run" / "attempt-1" / "result").eval()
    assert token_loss(opened, ids) == pytest.approx(ours, rel=1e-5)
    assert any(not torch.equal(value, opened.state_dict()[key]) for key, value in base.state_dict().items())
    (tmp_path / "ids.json").write_text(json.dumps([ids[:WINDOW]]))
    run_worker("logits", "--model", tmp_path / "run" / "attempt-1" / "result", "--input", tmp_path / "ids.json", "--output", tmp_path / "out.safetensors")
    with torch.no_grad():
        wanted = opened(torch.tensor([ids[:WINDOW]])).logits[0]
    got = safetensors_torch.load_file(tmp_path / "out.safetensors")["logits.0"]
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
