"""If one of these fails, a figure in the documentation may not be what its command measures.

No test depends on how long something takes.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from spanet_lightning import SPANet, SPANetV2, app, tracking
from spanet_lightning.bench import dense, growth, memory, photos, report, tables
from spanet_lightning.bench.coco_loaders import coco_loaders
from spanet_lightning.bench.growth import Point, fit, predicted_terms
from spanet_lightning.bench.loaders import LoaderSettings, seconds_per_image
from spanet_lightning.bench.models import eval_call, ratio, train_call
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.subjects import IMPLS, Subject, build_all, parse, parse_against
from spanet_lightning.bench.timing import alternate, speedups, spread, timed
from spanet_lightning.data import CocoDataModule
from spanet_lightning.heads import DenseModel, MaskRCNN
from tests.helpers import images, refused

CPU = torch.device("cpu")
SMALL = dense.DenseSettings(device="cpu", backbone="test_spanetv2", size=64, height=48)
QUICK = ("--rounds=1", "--seconds=0", "--batch=2", "--device=cpu")


def run(*args: str) -> dict:
    """Run a benchmark and return its JSON document."""
    app.main(["bench", *args, "--json", "found.json"])
    return json.loads(Path("found.json").read_text(encoding="utf-8"))


# Heads ----------------------------------------------------------------------------------------


def test_heads_are_measured_with_work_to_do_beside_their_backbone_alone():
    args = ("SemanticFPN", "UPerNet", "--backbone=test_spanetv2", "--size=64x48", *QUICK)
    found = run("heads", *args)
    modes = [(row["subject"], row["mode"]) for row in found["results"]]
    names = (dense.BACKBONE, "SemanticFPN", "UPerNet")
    assert modes == [(name, mode) for mode in ("eval", "train") for name in names]
    parameters = {row["subject"]: row["parameters"] for row in found["results"]}
    whole = dense.build("UPerNet", SMALL)
    assert parameters["UPerNet"] == sum(p.numel() for p in whole.parameters())
    assert all(row["memory"]["peak"] > row["memory"]["standing"] for row in found["results"])
    assert [row["against"] for row in found["ratios"]] == [dense.BACKBONE] * 4


def test_a_measured_detector_finds_as_much_as_it_may():
    # Random scores are below the threshold: the mask head would not have run.
    head = MaskRCNN(width=16, hidden=16, test_proposals=40, max_detections=20)
    model = DenseModel(SPANetV2(variant="test"), head, 5).eval()
    _, detect = dense._work(model, SMALL.images(), SMALL)
    with torch.inference_mode():
        assert [len(found["mask_probs"]) for found in detect()] == [20, 20]


@pytest.mark.parametrize("args", [("MaskRCN",), ("--size=640",), ("--backbone=resnet50",)])
def test_what_is_no_head_size_or_backbone_of_ours_is_named(args, capsys):
    assert args[0].split("=")[-1] in refused(["bench", "heads", *args, *QUICK], capsys, app.main)


# Timing ---------------------------------------------------------------------------------------


def test_every_round_measures_each_once_and_every_second_one_backwards():
    order = []
    turns = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    found = alternate(turns, 3)
    assert "".join(order) == "abccbaabc"
    assert found == {name: [1.0] * 3 for name in "abc"}


def test_ratios_within_rounds_cancel_a_machine_that_slows_down():
    clock = itertools.count(1)  # every measurement takes longer than the one before
    turns = {"fast": lambda: next(clock), "slow": lambda: 3 * next(clock)}
    found = alternate(turns, 10)
    assert found["fast"][-1] > 5 * found["fast"][0]
    rounds = speedups(found["fast"], found["slow"])
    # backwards and forwards alternate, so the drift within a round cancels as well
    assert math.prod(rounds) ** 0.1 == pytest.approx(3, rel=0.06)


def test_speedup_is_the_time_of_the_other_over_ours():
    found = ratio("ours", "theirs", "eval", [1.0, 2.0, 1.0, 1.0], [2.0, 2.0, 3.0, 4.0])
    assert found["speedup"] == {
        "rounds": [2.0, 1.0, 3.0, 4.0],
        "median": 2.5,
        "q1": 1.75,
        "q3": 3.25,
        "low": 1.0,
        "high": 4.0,
    }
    assert spread([7.0]).q1 == spread([7.0]).median == spread([7.0]).high == 7.0


def test_a_turn_warms_up_before_it_measures():
    calls = []
    assert timed(lambda: calls.append(1), seconds=0)() > 0
    assert len(calls) >= 2


# Memory ---------------------------------------------------------------------------------------

MB = 1 << 20


def test_peak_counts_what_lives_at_the_same_time():
    def one_after_the_other():
        torch.empty(8 * MB, dtype=torch.uint8)
        torch.empty(4 * MB, dtype=torch.uint8)

    def together():
        a = torch.empty(8 * MB, dtype=torch.uint8)
        b = torch.empty(4 * MB, dtype=torch.uint8)
        return a, b

    standing = torch.zeros(MB, dtype=torch.uint8)
    views = [standing, standing[10:], torch.zeros(2 * MB, dtype=torch.uint8)]
    assert memory.memory(one_after_the_other, views, CPU) == memory.Memory(3 * MB, 8 * MB, 11 * MB)
    assert memory.memory(together, views, CPU) == memory.Memory(3 * MB, 12 * MB, 15 * MB)


def test_peak_sees_what_an_operator_allocates_inside():
    x = torch.zeros(512, 512)  # 1 MB; its full complex spectrum has 2 MB
    found = memory.memory(lambda: torch.fft.ifft2(torch.fft.fft2(x)).real, [x], CPU)
    assert found.transient >= 4 * MB


def test_a_training_step_updates_weights_and_leaves_no_gradients():
    settings = Settings(device="cpu", batch=2, size=32)
    model = SPANet("test")
    before = model.head.weight.clone()
    optimizer = AdamW(model.parameters(), fused=True)
    step = train_call(model, settings.images(), torch.tensor([0, 1]), optimizer, settings)
    step()
    assert not torch.equal(model.head.weight, before)
    assert all(p.grad is None for p in model.parameters())
    parameters = sum(p.numel() for p in model.parameters()) * 4
    held = memory.distinct_bytes(memory.tensors_of(model, optimizer))
    assert held == pytest.approx(3 * parameters, rel=0.01)  # weights and both moments
    # gradients come on top, and activations
    assert memory.memory(step, [], CPU).transient > parameters


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_autocast(dtype):
    settings = Settings(device="cpu", dtype=dtype, batch=1, size=32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    assert eval_call(model, settings.images(), settings)().dtype == settings.product_dtype
    step = train_call(
        model, settings.images(), torch.tensor([1]), AdamW(model.parameters()), settings
    )
    step()
    assert model[1].weight.dtype == torch.float32


def test_settings_last_as_long_as_the_measurement():
    threads, precise = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    with Settings(device="cpu", threads=threads + 1).applied():
        assert torch.get_num_threads() == threads + 1
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, precise)


# Names ----------------------------------------------------------------------------------------


def test_names_become_models_that_share_their_weights():
    subjects = [parse("test_spanetv2"), parse("test_spanetv2:fft"), parse("timm:test_resnet")]
    assert subjects == [
        Subject("test_spanetv2"),
        Subject("test_spanetv2", "fft"),
        Subject("test_resnet"),
    ]
    models = build_all(subjects, 64, seed=0)
    ours, same, _ = models.values()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert ours.stages[0].blocks[0].mixer.srf.logits[0].shape[-2:] == (16, 9)  # 64 px


def test_what_is_compared_with_is_each_model_otherwise_or_another():
    a, b = Subject("test_spanet"), Subject("test_spanetv2", "fft")
    other = Subject("test_resnet")
    assert parse_against("fft, timm:test_resnet", [a, b]) == [
        (a, Subject("test_spanet", "fft")),  # and b not with itself
        (a, other),
        (b, other),
    ]


def test_a_function_of_the_users_gives_a_model(monkeypatch):
    Path("theirs.py").write_text(
        "import timm\ndef net():\n    return timm.create_model('test_resnet')"
    )
    monkeypatch.syspath_prepend(".")
    (model,) = build_all([parse("python:theirs:net")], 64, seed=0).values()
    assert type(model).__name__ == "ResNet"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["models", "test_spanett"], "did you mean 'test_spanet'?"),
        (["models", "test_spanet:ftf"], "did you mean 'fft'?"),
        (["models", "test_resnet:fft"], "only our models have a spectral_impl"),
        (["models", "python:net"], "expected python:MODULE:FUNCTION"),
        (["models", "test_spanet", "--against", "rftt"], "did you mean 'rfft'?"),
        (["models", "test_resnet", "--against", "fft"], "'test_resnet' has no spectral_impl"),
        (["models", "--dtype", "flaot32"], "did you mean 'float32'?"),
        (["models", "--dtype", "tf32", "--device", "cpu"], "CUDA devices alone"),
        (["models", "--layout", "nhwc"], "--layout: got 'nhwc'"),
        (["models", "--compile", "max"], "--compile: got 'max'"),
        (["models", "--freeze"], "needs --compile"),
        (["models", "--dynamic"], "needs --compile"),
        (["models", "--against-eager"], "needs --against and --compile"),
        (["models", "--device", "gpu"], "--device: got 'gpu'"),
        (["models", "--device", "cuda:99"], "a device that torch finds"),
        (["models", "--rounds", "0"], "--rounds: got 0, expected at least 1"),
        (["models", "--size", "16"], "--size: got 16, expected at least 32"),
        (["models", "--mode", "evl"], "did you mean 'eval'?"),
        (["models", "--json", "missing/found.json"], "there is no folder missing"),
        (["models", "--unknown"], "unrecognized arguments: --unknown"),
        (["ops", "timm:test_resnet"], "one of this project's models"),
        (["ops", "--impl", "ftf"], "did you mean 'fft'?"),
        (["data", "missing"], "root: found nothing at missing"),
        (["data", "--workers", "two"], "--workers: got 'two'"),
        (["data", "--images", "2"], "--images: got 2"),
        (["data", "--layout", "cocoo"], "did you mean 'coco'?"),
        (["data", "--masks"], "--masks: got True, expected COCO's layout"),
        (["data", "missing", "--layout", "coco"], "root: found no folder at missing"),
        (["resolution", "--sizes", "16"], "--sizes: got 16"),
        (["resolution", "--plot", "missing/plot"], "there is no folder missing"),
        ([], "required: BENCHMARK"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(args, expected, capsys):
    assert expected in refused(["bench", *args], capsys, app.main)


# Growth ---------------------------------------------------------------------------------------


def test_the_fit_finds_the_parts_that_times_were_made_of():
    true = {"n": 3e-8, "n log n": 0.0, "n²": 5e-14}
    made = growth.Fit(true, 0, None)
    points = [Point(s * s, made.seconds(s * s)) for s in range(96, 900, 96)]
    found = fit(points, tuple(true))
    assert found.terms == pytest.approx(true, rel=1e-6, abs=1e-15)
    assert found.largest_error < 1e-9
    assert abs(found.held_out_error) < 1e-9
    assert sum(found.shares(900**2).values()) == pytest.approx(1)
    # parts that do not grow fast enough show it
    assert fit(points, ("n",)).largest_error > 0.05
    assert fit(points, ("n",)).held_out_error < -0.05


def test_no_part_is_negative():
    points = [Point(n, s) for n, s in ((100, 1.0), (400, 2.0), (900, 3.0))]  # grows as √n
    assert all(value >= 0 for value in fit(points, ("n", "n^1.5", "n²")).terms.values())


@pytest.mark.parametrize(
    ("model", "impl", "expected"),
    [
        (SPANet("test"), None, ("n",)),
        (SPANet("test"), "fft", ("n", "n log n")),
        (SPANetV2("test"), "rfft", ("n", "n log n")),
        (SPANetV2("test"), "real", ("n", "n^1.5")),
        (
            SPANetV2("test", mixers=["spam", "spam", "mixed", "attention"]),
            "real",
            ("n", "n^1.5", "n²"),
        ),
    ],
)
def test_predicted_growth_follows_the_operators(model, impl, expected):
    assert predicted_terms(model, Subject("x", impl)) == expected


# Loading --------------------------------------------------------------------------------------


def test_the_clock_starts_after_the_first_batches():
    batches = [(torch.zeros(4, 1), None)] * 5
    ticks = iter([10.0, 16.0])
    assert seconds_per_image(batches, 2, clock=lambda: next(ticks)) == 6.0 / 12


def test_a_batch_that_was_read_ahead_is_not_counted():
    """The prefetcher of timm reads the next batch before it hands one out."""
    now = 0.0

    def read():
        nonlocal now
        for _ in range(6):
            now += 1.0
            yield (torch.zeros(4, 1), None)

    def prefetched():
        held = None
        for batch in read():
            if held is not None:
                yield held
            held = batch
        yield held

    plain = seconds_per_image(read(), 2, clock=lambda: now)
    assert seconds_per_image(prefetched(), 2, ahead=1, clock=lambda: now) == plain == 1 / 4


def test_made_up_photographs_weigh_what_imagenet_s_do():
    photos.make_photos(Path(), 8)
    files = sorted(Path("train").rglob("*.jpg"))
    assert len(files) == len(list(Path("val").rglob("*.jpg"))) == 8
    assert {file.parent.name for file in files} == {f"class_{i}" for i in range(4)}
    assert 60e3 < np.mean([file.stat().st_size for file in files]) < 180e3


def test_made_up_coco_is_without_fault_and_weighs_what_coco_does():
    photos.make_coco(Path(), 6)
    data = CocoDataModule(".", masks=True, num_workers=0)
    data.setup("fit")
    sizes = [file.stat().st_size for file in Path("train2017").iterdir()]
    assert 120e3 < np.mean(sizes) < 250e3
    batch = next(iter(data.val_dataloader()))
    target = batch.targets[0]
    assert batch.original_sizes == [(480, 640)]
    assert len(target["boxes"]) == 7
    filled = target["masks"].sum(dim=(1, 2))  # each an ellipse of its box
    torch.testing.assert_close(filled.float(), target["area"], rtol=0.1, atol=20)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_torchvisions_coco_loader_does_what_ours_does(mode):
    """A loader that does less would be faster."""
    photos.make_coco(Path(), 4)
    # 96 px of 480: sides come out whole, so that both round them alike
    settings = LoaderSettings(layout="coco", batch=4, size=96)
    both = coco_loaders(Path(), mode, 0, settings)
    torch.manual_seed(0)
    ours, theirs = (next(iter(both[name].batches())) for name in ("ours", "torchvision"))
    images, targets = theirs
    assert ours.images.shape == images.shape
    found = {target["image_id"]: i for i, target in enumerate(targets)}
    for i, target in enumerate(ours.targets):
        j = found[target["image_id"]]
        assert target["labels"].tolist() == targets[j]["labels"].tolist()
        # either may have flipped its image, the boxes with it: then neither changes sums
        a, b = ours.images[i].sum(), images[j].sum()
        torch.testing.assert_close(a, b, rtol=0, atol=60.0)
        if mode == "eval":
            torch.testing.assert_close(ours.images[i], images[j], rtol=0, atol=0.02)


# The command ----------------------------------------------------------------------------------


def test_models_writes_everything_that_its_table_shows(capsys):
    found = run("models", "test_spanet", "--against=fft,timm:test_resnet", "--size=32", *QUICK)
    assert found["schema"] == report.SCHEMA
    assert found["command"].startswith("spanet bench models test_spanet --against fft,timm:")
    assert found["settings"]["batch"] == 2
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert found["ceiling"]["macs_per_second"] > 0
    rows = {(row["subject"], row["mode"]): row for row in found["results"]}
    labels = ("test_spanet", "test_spanet:fft", "test_resnet")
    assert set(rows) == set(itertools.product(labels, ("eval", "train")))
    for (_, mode), row in rows.items():
        assert len(row["seconds"]) == 1
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"][0])
        passes = {"eval": 1, "train": 3}[mode]
        share = passes * row["macs"] * row["images_per_second"]
        assert row["ceiling_share"] == pytest.approx(share / found["ceiling"]["macs_per_second"])
        assert row["memory"]["peak"] > 4 * row["parameters"]
        assert row["compiled"] is None
    assert len(found["ratios"]) == 4
    for pair in found["ratios"]:
        ours, theirs = (rows[pair[key], pair["mode"]] for key in ("subject", "against"))
        assert pair["speedup"]["median"] == pytest.approx(theirs["seconds"][0] / ours["seconds"][0])
        assert pair["memory"] == ours["memory"]["peak"] / theirs["memory"]["peak"]
        same = pair["against"] == "test_spanet:fft"
        assert (pair["difference"] < 1e-5) if same else (pair["difference"] is None)
    out = capsys.readouterr().out
    assert "Evaluation" in out
    assert "Training step" in out
    tables.show(found)  # what a file holds can be shown again
    assert capsys.readouterr().out in out


def test_ops_measures_each_mixer_once_in_every_implementation():
    found = run("ops", "test_spanet", "test_spanetv2", "test_spanetv2", "--size=32", *QUICK)
    rows = {(row["subject"], row["impl"], row["mode"]): row for row in found["results"]}
    kinds = [f"SPAM {v}, stage {i}" for v in ("V1", "V2") for i in range(1, 5)]
    assert set(rows) == set(itertools.product(kinds, IMPLS, ("forward", "forward+backward")))
    row = rows["SPAM V1, stage 2", "fft", "forward"]
    assert row["shape"] == [2, 36, 4, 4]
    # three 1×1 convolutions and two depthwise ones of 7 values
    assert row["macs"] == 2 * 16 * (3 * 36**2 + 2 * 7 * 36)
    moved = 1e3 * 2 * 2 * 36 * 16 * 4 / found["ceiling"]["bytes_per_second"]
    assert row["floor_ms"]["copy"] == pytest.approx(moved)
    assert len(found["ratios"]) == len(kinds) * (len(IMPLS) - 1) * 2


# timm's data set leaves the files that it has read to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_data_measures_our_loader_beside_timms():
    root = images(Path("photos"))
    found = run("data", str(root), "--workers=0", "--batch=2", "--size=32", "--rounds=1")
    assert {(row["subject"], row["mode"]) for row in found["results"]} == set(
        itertools.product(
            ("ours", "timm", "timm with prefetcher"), ("train, 0 workers", "eval, 0 workers")
        )
    )
    assert all(row["images_per_second"] == 1 / row["seconds"][0] for row in found["results"])
    assert {row["subject"] for row in found["ratios"]} == {"ours"}


# pycocotools 2.0.11 on numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_data_measures_our_coco_loader_beside_torchvisions(capsys):
    args = ["--layout=coco", "--images=4", "--batch=1", "--size=64", "--workers=0", "--rounds=1"]
    found = run("data", *args, "--masks")
    assert {(row["subject"], row["mode"]) for row in found["results"]} == set(
        itertools.product(("ours", "torchvision"), ("train, 0 workers", "eval, 0 workers"))
    )
    assert found["settings"]["masks"]
    assert "--layout coco" in found["command"]
    assert "index" not in capsys.readouterr().out  # pycocotools' own words


def test_data_in_cocos_layout_is_recognized():
    photos.make_coco(Path(), 4)
    found = run("data", ".", "--size=64", "--batch=1", "--workers=0", "--rounds=1", "--mode=eval")
    assert found["settings"]["layout"] == "coco"


def test_resolution_writes_measurements_fit_and_plot():
    sizes = (32, 48, 64, 96, 128)
    found = run(
        *("resolution", "test_spanet", "--against=fft", "--plot=growth"),
        *(f"--sizes={','.join(map(str, sizes))}", *QUICK),
    )
    assert [row["pixels"] for row in found["results"][:5]] == [s * s for s in sizes]
    assert [row["batch"] for row in found["results"][:5]] == [98, 44, 24, 11, 6]
    assert [row["subject"] for row in found["fits"]] == ["test_spanet", "test_spanet:fft"]
    assert set(found["fits"][1]["terms"]) == {"n", "n log n"}
    with Path("growth.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found["results"])
    row = found["results"][0]
    assert float(lines[0]["ms_per_image"]) == pytest.approx(row["ms_per_image"], abs=1e-4)
    assert "Time of a megapixel" in Path("growth.svg").read_text(encoding="utf-8")
    assert Path("growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_recorded_in_mlflow(capsys):
    found = run(*("models", "test_spanet", "--mode=eval", "--size=32", "--mlflow"), *QUICK)
    client = tracking.connect(tracking.DEFAULT_URI)
    experiment = client.get_experiment_by_name("spanet-bench")
    (recorded,) = client.search_runs([experiment.experiment_id])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["settings.batch"] == "2"
    assert recorded.data.params["command"] == found["command"]
    seconds = recorded.data.metrics["eval/test_spanet/seconds"]
    assert seconds == pytest.approx(found["results"][0]["seconds"][0])
    assert "spanet ui" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_models_have_one_graph_and_no_breaks():
    args = ["models", "test_spanetv2", "--size=32", "--compile=default", "--freeze", *QUICK]
    command = [sys.executable, "-m", "spanet_lightning.app", "bench", *args, "--json=found.json"]
    subprocess.run(command, check=True)
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    for row in found["results"]:
        assert row["compiled"] == {"graphs": 1, "graph_breaks": 0}
