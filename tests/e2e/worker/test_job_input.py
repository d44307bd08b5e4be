"""What a user gets wrong about a job's inputs: each is a state of the job with a reason that names it; repaired, the same job goes on."""
import json
import shutil
import struct

import pytest
import tiny_model
from worker_binary import needs_worker

pytestmark = needs_worker


def config(**changes):
    """config.json with other values (None: without the key)."""
    def spoil(folder):
        values = {key: value for key, value in {**tiny_model.CONFIG, **changes}.items() if value is not None}
        (folder / "m" / "config.json").write_text(json.dumps(values))
    return spoil


def weights(change):
    """model.safetensors with a changed header: change(header) in place."""
    def spoil(folder):
        path = folder / "m" / "model.safetensors"
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
    return spoil


def file(name, edit):
    """Another file's bytes through edit; None removes it."""
    def spoil(folder):
        path = folder / name
        path.unlink() if edit is None else path.write_bytes(edit(path.read_bytes()))
    return spoil


NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"

MODELS = {
    "unknown_architecture": (config(model_type="t5"), 'config.json: model_type: "t5" is not one of'),
    "no_architecture": (config(model_type=None), "config.json: model_type: missing"),
    "config_is_no_json": (file("m/config.json", lambda b: b[:-5]), "config.json: not a JSON object"),
    "config_is_absent": (file("m/config.json", None), "config.json: missing"),
    "size_of_another_model": (config(hidden_size=32), "shape"),
    "size_is_no_number": (config(num_hidden_layers="two"), "num_hidden_layers"),
    "size_is_missing": (config(intermediate_size=None), "intermediate_size"),
    "size_is_absurd": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "heads_do_not_divide": (config(num_attention_heads=5), "num_attention_heads"),
    "weights_are_absent": (file("m/model.safetensors", None), "weights: neither model.safetensors nor"),
    "weights_are_truncated": (file("m/model.safetensors", lambda b: b[:-4]), "truncated"),
    "weights_have_more": (file("m/model.safetensors", lambda b: b + b"1234"), "4 bytes after the last tensor"),
    "weights_are_noise": (file("m/model.safetensors", lambda b: b"\xff" * 64), "header length"),
    "weights_are_empty": (file("m/model.safetensors", lambda b: b""), "too short for a header"),
    "header_is_no_json": (file("m/model.safetensors", lambda b: b[:8] + b"x" + b[9:]), "the header is not a JSON object"),
    "header_lies_about_a_shape": (weights(lambda h: h[NORM].update(shape=[17])), "do not fit F32 of this shape"),
    "header_lies_about_a_type": (weights(lambda h: h[NORM].update(dtype="F64")), "do not fit F64 of this shape"),
    "header_names_an_unknown_type": (weights(lambda h: h[NORM].update(dtype="Q9")), 'dtype "Q9" is not supported'),
    "header_overlaps": (weights(lambda h: h[NORM].update(data_offsets=h["model.layers.0.input_layernorm.weight"]["data_offsets"])), "safetensors:"),
    "header_overflows": (weights(lambda h: h[NORM].update(shape=[2**40, 2**40])), "too many elements"),
    "header_lacks_a_tensor": (weights(lambda h: h.update({"other": h.pop(NORM)})), f'tensor "{NORM}" is missing'),
    "weights_are_nan": (lambda folder: (shutil.rmtree(folder / "m"), tiny_model.write(folder, nan=True)), "is NaN"),
    "tokenizer_is_absent": (file("m/tokenizer.json", None), "tokenizer: none of"),
    "tokenizer_is_no_json": (file("m/tokenizer.json", lambda b: b[:-3]), "tokenizer.json"),
    "tokenizer_of_another_model": (file("m/tokenizer.json", lambda b: b.replace(b'"b": 1,', b'"b": 77,')), "vocabulary"),
    "label_is_not_in_the_verbaliser": (file("t.tsv", lambda b: b.replace(b"cbc\t0", b"cbc\t2")), 'task.train: line 3: label "2" is not one of 0, 1'),
    "row_lacks_a_column": (file("t.tsv", lambda b: b.replace(b"cbc\t0", b"cbc")), "task.train: line 3: 1 cells, not 2"),
    "task_file_is_absent": (file("t.tsv", None), "task.train: no such file"),
    "task_file_is_empty": (file("t.tsv", lambda b: b""), "task.train: no rows"),
    "row_has_no_known_token": (file("t.tsv", lambda b: b.replace(b"abc", b"\xff\xfe")), "task.train: line 1: the prompt is empty"),
}
TASKS = {
    "prompt_names_no_column": ({"task": {"prompt": "{y}"}}, 'column "y" is missing'),
    "prompt_has_an_unknown_filter": ({"task": {"prompt": "{x|shout}"}}, 'filter "shout" is unknown'),
    "option_is_over_the_limit": ({"task": {"max_tokens": 8, "options": {"0": "y", "1": "zzzzzzzzzzzz"}}}, "alone is over task.max_tokens 8"),
    "label_column_is_absent": ({"task": {"label": "class"}}, 'column "class" is missing'),
    "rank_is_over_the_projections": ({"scheme": {"name": "lora", "rank": 64}}, "rank: 64"),
}


@pytest.fixture
def spoilt(tmp_path):
    tiny_model.write(tmp_path / "bad")
    return tmp_path / "bad"


def fails(jobs, reason, **changes):
    job = jobs.wait(jobs.submit(**changes), "FAILED", "SUCCEEDED")
    assert job["state"] == "FAILED" and reason in job["reason"], job
    assert int(job["attempt"]) == 1, "what is wrong stays wrong: no second attempt"
    assert jobs.run("job", "show", job["name"], check=False).returncode == 5
    return job


@pytest.mark.parametrize("case", MODELS)
def test_bad_files(shared_jobs, spoilt, case):
    spoil, reason = MODELS[case]
    spoil(spoilt)
    fails(shared_jobs, reason, model=str(spoilt / "m"), task={"train": str(spoilt / "t.tsv"), "dev": str(spoilt / "t.tsv")})


@pytest.mark.parametrize("case", TASKS)
def test_bad_tasks(shared_jobs, case):
    changes, reason = TASKS[case]
    fails(shared_jobs, reason, **changes)


def test_a_prompt_over_the_limit_loses_its_beginning_and_trains(shared_jobs, tmp_path):
    (tmp_path / "long.tsv").write_text("".join(f"{'abcdefgh' * 20}\t{n % 2}\n" for n in range(8)))
    where = str(tmp_path / "long.tsv")
    assert shared_jobs.result(shared_jobs.submit(task={"train": where, "dev": where, "max_tokens": 16}))["steps"] == 20


def test_a_repaired_input_lets_the_same_job_go_on(shared_jobs, spoilt):
    good = (spoilt / "t.tsv").read_bytes()
    (spoilt / "t.tsv").write_bytes(good.replace(b"cbc\t0", b"cbc\t2"))
    job = fails(shared_jobs, "label", task={"train": str(spoilt / "t.tsv"), "dev": str(spoilt / "t.tsv")})
    (spoilt / "t.tsv").write_bytes(good)
    shared_jobs.run("job", "resume", job["name"])
    assert shared_jobs.result(job["name"])["steps"] == 20
