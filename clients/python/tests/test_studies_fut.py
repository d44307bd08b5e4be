"""What the study fut writes before it asks a server: the model's folder, pictures; and how orders become messages."""

import json

import numpy as np
import pytest
from optod import orders
from optod.studies import charts_orders
from optod.studies.fut_models import split_text, write_llama


def test_the_models_folder_holds_what_it_says(tmp_path):
    text = "Hello, wörld!\nsecond line\n"
    parameters = write_llama(tmp_path / "m", text, width=8, layers=1, heads=2, inner=12)
    raw = (tmp_path / "m" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + length])
    assert sum(int(np.prod(entry["shape"])) for entry in header.values()) == parameters
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    assert config["vocab_size"] == len(tokenizer["model"]["vocab"]) == len(set(text.encode()))
    assert {"\u0120", "\u010a"} <= set(tokenizer["model"]["vocab"]), "space and line end in GPT-2's letters"


def test_text_is_split_at_both_ends(tmp_path):
    train, dev = split_text(tmp_path, "abcdefghij", 4, 3)
    assert (open(train).read(), open(dev).read()) == ("abcd", "hij")


@pytest.mark.parametrize("values", [np.arange(12.0).reshape(3, 4), np.zeros((2, 2)), np.array([[1.0]])])
def test_a_heat_map_has_a_cell_a_number(tmp_path, values):
    path = charts_orders.heat_map(tmp_path / "map.svg", values, "a < b")
    text = open(path).read()
    assert text.count("<rect") == values.size + 1 and "a &lt; b" in text


def test_lines_leave_out_what_has_no_logarithm(tmp_path):
    path = charts_orders.lines(tmp_path / "l.svg", {"a": [(1, 1), (2, 4), (0, 3), (3, 0), (4, float("nan"))], "empty": []}, "t", "x", "y")
    text = open(path).read()
    assert text.count("<circle") == 2 and text.count("<polyline") == 2


@pytest.mark.parametrize("given, text", [({"lr": 0.05}, "0.05"), ({"lr": [0.1, 1]}, "0.1,1"), ({"nesterov": True}, "true"), ({"optimizer": "sgd"}, "sgd")])
def test_expected_options_as_the_study_writes_them(given, text):
    assert list(orders._expected(given).values()) == [text]


@pytest.mark.parametrize("kwargs, message", [({"moments": "old"}, "moments: 'old' is not one of replay, reference"),
                                             ({"loss": "both"}, "loss: 'both' is not one of forward, linear")])
def test_choices_are_checked_here(kwargs, message):
    with pytest.raises(ValueError, match=message):
        orders._options(None, **{"moments": "replay", "loss": "forward", **kwargs})
