#!/usr/bin/env python3
"""Inputs for the fuzz targets to start from: what the tests feed to the same parsers, and small whole files.

    tests/fuzz/seeds.py DIR        writes DIR/<target>/<number>; then: <target> -max_total_time=60 DIR/<target>
"""

import json
import pathlib
import re
import struct
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]


def raw_strings(*patterns):
    """The raw string literals of test sources."""
    return [text.encode() for pattern in patterns for path in sorted(TESTS.glob(pattern))
            for text in re.findall(r'R"\w*\((.*?)\)\w*"', path.read_text(), re.DOTALL)]


def varint(value):
    out = b""
    value &= (1 << 64) - 1
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    """One protobuf field: an integer, or bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def step_forms():
    """StepStreamBegin: seq 1, total_bytes 5, dtype 6, extra 7 (name 1, dtype 2, shape 3), absent 8."""
    f32, f16, bf16 = 1, 3, 4
    extra = field(7, field(1, b"hessian_z/w") + field(2, f32) + field(3, struct.pack("BB", 2, 3)))
    whole = field(1, 1) + field(5, 42)
    return [whole, whole + field(6, f16), whole + field(6, bf16) + extra, whole + field(8, b"\x00\x02"), whole + extra + extra.replace(b"/w", b"/h")]


def gguf_text(text):
    return struct.pack("<Q", len(text)) + text


def model_files():
    """The first byte says which file of a model folder the rest is."""
    header = json.dumps({"w": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}}).encode()
    safetensors = struct.pack("<Q", len(header)) + header + bytes(range(10))
    metadata = gguf_text(b"general.architecture") + struct.pack("<I", 8) + gguf_text(b"llama")
    tensors = gguf_text(b"w") + struct.pack("<IQIQ", 1, 32, 8, 0) + gguf_text(b"b") + struct.pack("<IQIQ", 1, 4, 0, 64)     # Q8_0, F32
    gguf = struct.pack("<IIQQ", 0x46554747, 3, 2, 1) + metadata + tensors
    gguf += bytes(-len(gguf) % 32) + bytes(range(34)) + bytes(30) + bytes(16)
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}).encode()
    tokenizer = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
                            "added_tokens": [{"id": 3, "content": "<s>", "special": True}]}).encode()
    pieces = b"".join(field(1, field(1, text) + b"\x15" + struct.pack("<f", -i) + field(3, kind))
                      for i, (text, kind) in enumerate([(b"<unk>", 2), (b"<s>", 3), ("\u2581a".encode(), 1), (b"b", 1), (b"<0x0A>", 6)]))
    llama2c = struct.pack("<I", 3) + b"".join(struct.pack("<fI", -i, len(text)) + text for i, text in enumerate([b"a", b"b", b"abc"]))
    return [bytes([i]) + data for i, data in enumerate([safetensors, gguf, config, tokenizer, pieces, llama2c])]


def order_studies():
    return [b"\x00optimizer=adam\nlr=0.1\nthreads=1\nsegment_bytes=1\nstorage=fp16", b"\x05\x00\x01\x07", b"\x06\x00\x10\x80\x01\x00\xff", b"\x07\x00\x02\x01"]


SEEDS = {
    "job_file_fuzz": raw_strings("unit/optim/train/files_test.cc", "unit/optim/order_job/spec_test.cc"),
    "llm_response_fuzz": raw_strings("unit/trace/llm_*_test.cc", "fault/llm_fault_test.cc"),
    "model_files_fuzz": model_files(),
    "optimize_file_fuzz": raw_strings("unit/clients/optimize_*_test.cc", "unit/trace/workflow/*_test.cc"),
    "order_study_fuzz": order_studies(),
    "step_form_fuzz": step_forms(),
    "trace_reply_fuzz": raw_strings("unit/trace/optimizers_*_test.cc", "unit/trace/proposer_test.cc"),
    "workflow_fuzz": raw_strings("unit/trace/workflow/*_test.cc"),
}

for target, inputs in SEEDS.items():
    folder = pathlib.Path(sys.argv[1]) / target
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (folder / f"{number:03}").write_bytes(data)
    print(f"{target}: {len(inputs)} inputs")
