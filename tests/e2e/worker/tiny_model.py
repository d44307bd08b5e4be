"""A LLaMA of a few thousand random weights, a vocabulary of letters and a task on it, written without any library."""
import array
import json
import pathlib
import random
import struct

CONFIG = {"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 32, "tie_word_embeddings": True}

REPEAT = 65537  # values that are drawn; a larger tensor repeats them


def tensors(config):
    h, i, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", [v, h]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", [h]
        yield p + "self_attn.q_proj.weight", [h, h]
        yield p + "self_attn.k_proj.weight", [kv, h]
        yield p + "self_attn.v_proj.weight", [kv, h]
        yield p + "self_attn.o_proj.weight", [h, h]
        yield p + "post_attention_layernorm.weight", [h]
        yield p + "mlp.gate_proj.weight", [i, h]
        yield p + "mlp.up_proj.weight", [i, h]
        yield p + "mlp.down_proj.weight", [h, i]
    yield "model.norm.weight", [h]


def write(folder, nan=False, **changes):
    """folder/m: the model; folder/t.tsv: 20 rows of three letters and a label.  changes: of CONFIG."""
    config = {**CONFIG, **changes}
    model = pathlib.Path(folder) / "m"
    model.mkdir(parents=True)
    rng = random.Random(0)
    header, parts, at = {}, [], 0
    for name, shape in tensors(config):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = array.array("f", [1.0] * count if len(shape) == 1 else (rng.gauss(0, 0.2) for _ in range(min(count, REPEAT))))
        values = (values * (count // len(values) + 1))[:count]
        if nan and name == "model.norm.weight":
            values[3] = float("nan")
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * count]}
        parts.append(values.tobytes())
        at += 4 * count
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    (model / "config.json").write_text(json.dumps(config))
    letters = "abcdefghijklmnopqrstuvwxyz"
    (model / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {c: n for n, c in enumerate(letters)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}))
    (pathlib.Path(folder) / "t.tsv").write_text("".join(f"{letters[n]}bc\t{n % 2}\n" for n in range(20)))
