"""If one of these fails, a figure in the documentation may not be what its command measures.

No test depends on how long something takes.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from spanet_lightning import app, tracking
from spanet_lightning.bench import heads, models, timing
from spanet_lightning.bench.memory import Memory, measure_memory
from spanet_lightning.bench.settings import Settings
from tests.helpers import refused

CPU = torch.device("cpu")
QUICK = ("--rounds=1", "--seconds=0", "--batch=2", "--device=cpu")
MB = 1 << 20


@pytest.fixture(autouse=True)
def ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the large products of the ceiling out of tests."""
    monkeypatch.setattr(timing, "_SIDES", {"cpu": (64,)})
    monkeypatch.setattr(timing, "_COPIED_BYTES", {"cpu": 1 << 16})


def run(*args: str) -> dict:
    app.main(["bench", *args, "--json", "found.json"])
    return json.loads(Path("found.json").read_text(encoding="utf-8"))


# -- timing and memory


def test_every_second_round_runs_backwards():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = timing.alternate(calls, 3, seconds=0)
    assert "".join(name for name, _ in itertools.groupby(order)) == "abcbabc"
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys("abc", 3)


def test_speedup_is_the_median_of_the_rounds_ratios():
    found = timing.ratio("ours", "theirs", "eval", [1.0, 2.0, 1.0, 1.0], [2.0, 2.0, 3.0, 4.0])
    rounds = {"rounds": [2.0, 1.0, 3.0, 4.0], "median": 2.5, "q1": 1.75, "q3": 3.25}
    assert found["speedup"] == {**rounds, "low": 1.0, "high": 4.0}
    assert set(vars(timing.spread([7.0])).values()) == {7.0}


def test_peak_memory_counts_what_lives_at_the_same_time():
    def sequential():
        torch.empty(8 * MB, dtype=torch.uint8)
        torch.empty(4 * MB, dtype=torch.uint8)

    def simultaneous():
        return torch.empty(8 * MB, dtype=torch.uint8), torch.empty(4 * MB, dtype=torch.uint8)

    standing = torch.zeros(MB, dtype=torch.uint8)
    views = [standing, standing[10:], torch.zeros(2 * MB, dtype=torch.uint8)]
    assert measure_memory(sequential, views, CPU) == Memory(3 * MB, 8 * MB, 11 * MB)
    assert measure_memory(simultaneous, views, CPU) == Memory(3 * MB, 12 * MB, 15 * MB)


def test_peak_memory_includes_temporaries_of_operators():
    x = torch.zeros(512, 512)  # 1 MB; its full complex spectrum takes 2 MB
    found = measure_memory(lambda: torch.fft.ifft2(torch.fft.fft2(x)).real, [x], CPU)
    assert found.transient >= 4 * MB


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_step_updates_float32_weights_and_leaves_no_gradients(dtype):
    settings = Settings(device="cpu", dtype=dtype, batch=1, size=32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    images = settings.images()
    logits = models.eval_call(model, images, settings)()
    assert logits.dtype == settings.matmul_dtype
    before = model[1].weight.clone()

    def loss():
        return 0.1 * model(images).float().mean()  # scaled gradients stay below overflow

    models.train_call(loss, models.adamw(model), settings)()
    assert not torch.equal(model[1].weight, before)
    assert model[1].weight.dtype == torch.float32
    assert model[1].weight.grad is None


def test_settings_last_as_long_as_the_measurement():
    threads, precise = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    with Settings(device="cpu", threads=threads + 1).applied():
        assert torch.get_num_threads() == threads + 1
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, precise)


# -- the commands


def test_models_writes_a_document_and_timms_columns(monkeypatch, capsys):
    # Another code base's model with our parameters: its logits are compared.
    Path("theirs.py").write_text(
        "import timm\ndef net(img_size):\n"
        "    return timm.create_model('test_spanet', img_size=img_size)\n"
    )
    monkeypatch.syspath_prepend(".")
    monkeypatch.setenv("COLUMNS", "80")
    against = "--against=python:theirs:net, timm:test_resnet"
    found = run("models", "test_spanet", against, "--size=32", "--csv=rows.csv", "--mlflow", *QUICK)
    rows = {(row["subject"], row["mode"]): row for row in found["results"]}
    names = ("test_spanet", "python:theirs:net", "test_resnet")
    assert set(rows) == set(itertools.product(names, ("eval", "train")))
    for (_, mode), row in rows.items():
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"][0])
        share = {"eval": 1, "train": 3}[mode] * row["macs"] * row["images_per_second"]
        assert row["ceiling_share"] == pytest.approx(share / found["ceiling"]["macs_per_second"])
        assert row["memory"]["peak"] > 4 * row["parameters"]
    assert len(found["ratios"]) == 4
    for pair in found["ratios"]:
        ours, theirs = (rows[pair[key], pair["mode"]] for key in ("subject", "against"))
        assert pair["speedup"]["median"] == pytest.approx(theirs["seconds"][0] / ours["seconds"][0])
        assert pair["memory"] == ours["memory"]["peak"] / theirs["memory"]["peak"]
        assert pair["difference"] == (0.0 if pair["against"] == "python:theirs:net" else None)
    assert found["command"].startswith("spanet bench models test_spanet --against 'python:")
    with Path("rows.csv").open(newline="", encoding="utf-8") as file:
        ours, *_ = csv.DictReader(file)
    assert ours["model"] == "test_spanet"
    rate = rows["test_spanet", "train"]["images_per_second"]
    assert float(ours["train_samples_per_sec"]) == pytest.approx(rate, abs=0.01)
    assert {"infer_step_time", "infer_gmacs", "train_img_size", "param_count"} <= set(ours)
    out = capsys.readouterr().out
    assert "Evaluation" in out
    assert "Training step" in out
    client = tracking.connect(tracking.DEFAULT_URI)
    experiment = client.get_experiment_by_name("spanet-bench")
    (recorded,) = client.search_runs([experiment.experiment_id])
    assert recorded.data.params["settings.batch"] == "2"
    seconds = recorded.data.metrics["eval/test_spanet/seconds"]
    assert seconds == pytest.approx(found["results"][0]["seconds"][0])


def test_ops_measures_each_stage_beside_its_floor():
    found = run("ops", "test_spanet", "--against=test_spanetv2", "--size=32", *QUICK)
    assert len(found["results"]) == 2 * 4 * 2  # models, stages, directions
    row = next(r for r in found["results"] if r["stage"] == 2 and "test_spanet," in r["subject"])
    assert row["shape"] == [2, 36, 4, 4]
    # three 1×1 convolutions and two depthwise ones of 7 taps
    assert row["macs"] == 2 * 16 * (3 * 36**2 + 2 * 7 * 36)
    moved = 1e3 * 2 * 2 * 36 * 16 * 4 / found["ceiling"]["bytes_per_second"]
    assert row["floor_ms"]["copy"] == pytest.approx(moved)
    assert len(found["ratios"]) == 4 * 2


def test_heads_are_measured_beside_their_backbone_alone():
    args = ("SemanticFPN", "RetinaNet", "--backbone=test_spanetv2", "--size=64x48", *QUICK)
    found = run("heads", *args)
    modes = [(row["subject"], row["mode"]) for row in found["results"]]
    names = (heads.BACKBONE, "SemanticFPN", "RetinaNet")
    assert modes == [(name, mode) for mode in ("eval", "train") for name in names]
    parameters = {row["subject"]: row["parameters"] for row in found["results"]}
    whole = heads.build_head("RetinaNet", "test_spanetv2")
    assert parameters["RetinaNet"] == sum(p.numel() for p in whole.parameters())
    assert all(row["memory"]["peak"] > row["memory"]["standing"] for row in found["results"])
    assert [row["against"] for row in found["ratios"]] == [heads.BACKBONE] * 4


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["models", "test_spanett"], "did you mean 'test_spanet'?"),
        (["models", "python:net"], "expected python:MODULE:FUNCTION"),
        (["models", "test_spanet", "--against", "test_spanett"], "--against: got"),
        (["models", "--dtype", "flaot32"], "did you mean 'float32'?"),
        (["models", "--dtype", "tf32", "--device", "cpu"], "only CUDA devices"),
        (["models", "--compile", "max"], "--compile: got 'max'"),
        (["models", "--freeze"], "requires --compile"),
        (["models", "--against-eager"], "requires --against and --compile"),
        (["models", "--device", "cuda:99"], "a device that torch finds"),
        (["models", "--rounds", "0"], "--rounds: got 0, expected at least 1"),
        (["models", "--size", "16"], "--size: got 16, expected at least 32"),
        (["models", "--mode", "evl"], "did you mean 'eval'?"),
        (["models", "--csv", "missing/found.csv"], "there is no folder missing"),
        (["ops", "timm:test_resnet"], "token mixers can't be found"),
        (["heads", "MaskRCN"], "did you mean 'MaskRCNN'"),
        (["heads", "--size=640"], "expected WIDTHxHEIGHT"),
        (["heads", "--backbone=resnet50"], "--backbone: got 'resnet50'"),
        ([], "required: BENCHMARK"),
    ],
)
def test_a_mistake_is_one_line(args, expected, capsys):
    assert expected in refused(["bench", *args], capsys, app.main)


@pytest.mark.slow
def test_compiled_models_are_the_same_function():
    args = ["models", "test_spanetv2", "--against=test_spanetv2", "--size=32", "--compile", *QUICK]
    found = run(*args, "--freeze")
    assert all(math.isfinite(row["ms_per_image"]) for row in found["results"])
