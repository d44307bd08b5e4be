"""The studies' models against differences of their losses and, where it is installed, PyTorch; planning, keeping and judging of runs."""

import importlib.util
import json
import math
import types

import numpy as np
import pytest
from optod.studies import charts, runner
from optod.studies.models import Autoencoder, DigitsCnn, LanguageModel, Logistic

RNG = np.random.default_rng(0)


def language_model():
    model = LanguageModel(11, width=16, layers=2, heads=2, inner=12, length=8)
    for name in ("_cos", "_sin", "_mask"):
        setattr(model, name, getattr(model, name).astype(np.float64))
    return model, {k: 3 * v for k, v in model.start(RNG).items()}, (RNG.integers(0, 11, (3, 8)), RNG.integers(0, 11, (3, 8)))


CASES = {
    "language-model": language_model,
    "autoencoder": lambda: (Autoencoder((6, 5, 3, 6)), Autoencoder((6, 5, 3, 6)).start(RNG), RNG.random((7, 6))),
    "digits-cnn": lambda: (DigitsCnn(), DigitsCnn().start(RNG), (RNG.random((5, 8, 8)), RNG.integers(0, 10, 5))),
    "logistic": lambda: (Logistic(5), {"w": RNG.standard_normal(5)}, (RNG.standard_normal((9, 5)), RNG.integers(0, 2, 9).astype(float))),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_differences_of_the_loss(name):
    model, params, batch = CASES[name]()
    params = {k: v.astype(np.float64) for k, v in params.items()}
    loss, gradients = model.gradients(params, batch)
    assert abs(loss - model.loss(params, batch)) < 1e-12 and set(gradients) == set(params)
    for key, value in params.items():
        assert gradients[key].shape == value.shape
        z = RNG.standard_normal(value.shape)
        above, below = (model.loss({**params, key: value + e * z}, batch) for e in (1e-6, -1e-6))
        want = (above - below) / 2e-6
        assert abs(np.sum(gradients[key] * z) - want) <= 1e-6 * abs(want) + 1e-8, key


def test_logistic_hessian_is_the_difference_of_gradients():
    model, p, batch = CASES["logistic"]()
    z = RNG.standard_normal(5)
    above, below = (model.gradients({"w": p["w"] + e * z}, batch)[1]["w"] for e in (1e-6, -1e-6))
    np.testing.assert_allclose(model.hessian_times(p, batch, z), (above - below) / 2e-6, rtol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
def test_language_model_is_pytorchs():
    import torch
    model = LanguageModel(13, width=16, layers=1, heads=2, inner=12, length=8)
    params, x, y = model.start(RNG), RNG.integers(0, 13, (2, 8)), RNG.integers(0, 13, (2, 8))
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in params.items()}

    def norm(h, w):
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * w

    def turn(h):
        a, b = h.chunk(2, -1)
        return torch.cat([-b, a], -1)
    cos, sin = torch.tensor(model._cos), torch.tensor(model._sin)
    h = p["model.embed_tokens.weight"][torch.tensor(x)]
    at = "model.layers.0."
    n = norm(h, p[at + "input_layernorm.weight"])
    q, k, v = ((n @ p[f"{at}self_attn.{c}_proj.weight"].T).view(2, 8, 2, 8).transpose(1, 2) for c in "qkv")
    o = torch.nn.functional.scaled_dot_product_attention(q * cos + turn(q) * sin, k * cos + turn(k) * sin, v, is_causal=True)
    h = h + o.transpose(1, 2).reshape(2, 8, 16) @ p[at + "self_attn.o_proj.weight"].T
    n = norm(h, p[at + "post_attention_layernorm.weight"])
    gate = torch.nn.functional.silu(n @ p[at + "mlp.gate_proj.weight"].T)
    h = h + (gate * (n @ p[at + "mlp.up_proj.weight"].T)) @ p[at + "mlp.down_proj.weight"].T
    logits = norm(h, p["model.norm.weight"]) @ p["lm_head.weight"].T
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 13), torch.tensor(y).reshape(-1))
    loss.backward()
    ours, gradients = model.gradients(params, (x, y))
    assert abs(ours - loss.item()) < 1e-5
    for name, value in gradients.items():
        np.testing.assert_allclose(value, p[name].grad.numpy(), atol=1e-5)


class Study(types.SimpleNamespace):
    NAME = TITLE = "study"
    METRIC = "loss"


def fake_runner(tmp_path, calls, failing=()):
    made = runner.Runner(Study(), runner.Store(tmp_path), 1, lambda _: None)

    def make(todo):
        for key, config in todo.items():
            calls.append(config)
            if config["lr"] in failing:
                raise KeyboardInterrupt
            metric = np.inf if config["lr"] == 9 else abs(config["lr"] - 2) + config["seed"]
            made._store.add(key, config, {"metric": metric, "curve": [[1, 1.0]], "seconds": 1.0})
    made._make = make
    return made


def test_the_grid_is_run_once_and_the_best_rate_at_every_seed(tmp_path):
    calls = []
    settings = [runner.Setting("a", {"optimizer": "sgd"}, (1, 2, 9))]
    best = runner.best_of(fake_runner(tmp_path, calls), settings, {"quick": False}, (0, 1, 2), False)["a"]
    assert best.lr == 2 and [run["metric"] for run in best.runs] == [0, 1, 2] and best.metric == 1
    assert [(c["lr"], c["seed"]) for c in calls] == [(1, 0), (2, 0), (9, 0), (2, 1), (2, 2)]
    calls.clear()
    runner.best_of(fake_runner(tmp_path, calls), settings, {"quick": False}, (0, 1, 2), False)
    assert calls == [], "everything is kept"
    runner.best_of(fake_runner(tmp_path, calls), settings, {"quick": True}, (0,), False)
    assert len(calls) == 3, "quick runs are others"


def test_a_file_cut_short_costs_one_run(tmp_path):
    store = runner.Store(tmp_path)
    store.add("a", {}, {"metric": 1.0})
    store.add("b", {}, {"metric": 2.0})
    path = tmp_path / "runs.jsonl"
    path.write_text(path.read_text()[:-10])
    assert set(runner.Store(tmp_path).runs) == {"a"}


def test_curves_are_written(tmp_path):
    run = {"metric": 1.0, "curve": [[1, 3.0], [2, float("inf")], [3, 2.0]], "seconds": 1.0}
    best = {"a<b": runner.Best("a<b", 0.1, [run], {0.1: 1.0})}
    table, _ = charts.write(tmp_path, Study(), best)
    assert open(table).read().splitlines()[1] == "a<b,0.1,1.0,3.0"
    text = charts._svg(tmp_path, "study", "study", "loss", {"": {"a<b": [(1, 3.0), (3, 2.0)]}}, True).read_text()
    assert text.startswith("<svg") and "a&lt;b" in text and "nan" not in text


class Panels(Study):
    @staticmethod
    def panel(label):
        return f"{label.split('/')[0]}, {label.split('/')[2]}"


def test_a_panel_shows_what_its_title_does_not_say(tmp_path):
    curves = {f"{task}/{rule}/full": [(0, 2.0), (10, 1.0)] for task in ("t", "u") for rule in ("zo", "adam")}
    panels = charts._panels(Panels(), curves)
    assert {title: list(lines) for title, lines in panels.items()} == {"t, full": ["zo", "adam"], "u, full": ["zo", "adam"]}
    text = charts._svg(tmp_path, "panels", "panels", "loss", panels, True).read_text()
    assert text.count("<polyline") == 4 and text.count(">adam<") == 1, "one legend"


def test_missing_data_is_said(monkeypatch, capsys):
    from optod.studies import scale
    monkeypatch.delenv("OPTOD_DATA", raising=False)
    assert runner.main({"scale": scale}, ["scale"]) == 2
    assert "set OPTOD_DATA to a folder that holds tinyshakespeare/input.txt" in capsys.readouterr().err


def zo_run(first, test, **more):
    return {"metric": 1 - first, "first": first, "test": test, "seconds_per_step": 0.01, "peak_mib": 90.0, "curve": [], **more}


def test_zo_bench_prints_a_table_a_task_and_says_what_failed(monkeypatch):
    from optod.studies import zo_bench
    best = {"sst2/zo-sgd/full": runner.Best("", 1e-4, [zo_run(0.5, 0.5), zo_run(0.5, 0.6)], {}),
            "sst2/adamw/full": runner.Best("", 1e-3, [{"metric": math.inf, "failure": "out of memory", "curve": []}], {}),
            "text/zo-sgd/full": runner.Best("", 1e-4, [zo_run(-2.0, -1.5)], {}), "text/adamw/full": runner.Best("", 1e-3, [zo_run(-2.0, -1.25)], {})}
    text = zo_bench.report(zo_bench, best)
    assert "dev before training: 50.0" in text and "55.0 (7.1)" in text and "failed" in text and "1.250 (0.000)" in text
    told = {claim.text: claim for claim in zo_bench.claims(best, None, None, print)}
    assert told["every run ended"].met is False and told["every run ended"].figure == "3 of 4 settings"


def test_zo_bench_rates_and_job_files(monkeypatch, tmp_path):
    from optod.studies import zo_bench
    monkeypatch.setenv("OPTOD_DATA", "/data")
    args = types.SimpleNamespace(quick=False, all=False, out=str(tmp_path))
    planned = zo_bench.settings(args)
    assert len(planned) == 2 * 7 * 4 and len({s.label for s in planned}) == len(planned) and all(len(s.grid) == 3 for s in planned)
    config = {**planned[0].config, "quick": False, "lr": planned[0].grid[1], "seed": 0}
    spec = zo_bench.spec_of(config)
    assert spec["optimizer"] == {"name": "zo-sgd", "lr": 1e-4, "eps": 1e-3} and spec["steps"] == 200 and spec["threads"] == 1
    first = zo_bench.spec_of({**config, "optimizer": "adamw"})
    assert first["steps"] == 20 and "eps" not in first["optimizer"]
    assert zo_bench.rate_of("zo-sgd-mmt", "full") == zo_bench.rate_of("zo-sgd", "full") / 10
    monkeypatch.setenv("OPTOD_STUDY_SCHEMES", "lora")
    assert {s.label.split("/")[2] for s in zo_bench.settings(args)} == {"lora"}


def test_judgement_is_printed_as_it_is():
    text = runner.judged([runner.Claim("a", "1", "<= 2", True), runner.Claim("b", "3", "<= 2", False), runner.Claim("c", "3", "", None)])
    assert [line.split()[0] for line in text.splitlines()] == ["met", "NOT", "reported"]
