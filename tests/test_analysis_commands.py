"""If one of these fails, `spanet analyze` crashes, misleads, or draws what it can't draw again."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spanet_lightning import app
from spanet_lightning.analysis.figures import FigureData, redraw, save, style
from spanet_lightning.analysis.figures.store import load
from spanet_lightning.errors import DataError
from tests.helpers import images, refused
from tests.test_analysis_shape_bias import DATA, HEADER, ROWS, needs_data

pytest.importorskip("matplotlib")

SHARED = DATA.parent
OURS = ("--model", "test_spanet", "--model", "test_spanetv2", "--size", "64")
OTHERS = ("--model", "test_convnext", "--model", "test_vit", "--size", "160")
REAL = ["spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid"]
REAL += ["convnext_tiny", "caformer_s18", "swin_tiny", "vit_small"]


def _analyze(*args: str) -> None:
    app.main(["analyze", *args])


def _files(folder: str) -> set[str]:
    return {path.name for path in Path(folder).rglob("*") if path.is_file()}


def _four(name: str) -> set[str]:
    return {f"{name}.{suffix}" for suffix in ("svg", "png", "npz", "csv")}


def test_response_of_random_mixers(capsys):
    _analyze("response", "--kernels", "3,5", "--side", "6", "--draws", "3", "--output", "out")
    assert _files("out") == _four("response") | _four("matrices") - {"matrices.csv"}
    told = capsys.readouterr().out
    assert "self-attention" in told
    with Path("out/response.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mixer"] for row in rows][-1] == "self-attention"
    assert float(rows[-1]["cut_off_half_power_median"]) == pytest.approx(1, abs=1e-8)


def test_claims_are_tabulated(monkeypatch, capsys):
    from spanet_lightning.analysis import random_mixers

    some = {"defaults": {}, "torus": {"boundary": "torus"}}
    monkeypatch.setattr(random_mixers, "ALTERNATIVES", some)
    choices = ("--claims", "--choose", "boundary=torus", "--choose", "self_loops=false")
    _analyze("response", "--kernels", "3,5", "--side", "6", "--draws", "2", *choices)
    assert "claims.csv" in _files("analysis/response")
    assert "torus" in capsys.readouterr().out


@pytest.mark.parametrize("models", [OURS, OTHERS], ids=["ours", "others"])
def test_response_and_spectrum_of_models(models, capsys):
    _analyze("response", *models, "--modes", "4", "--limit", "1", "--output", "out")
    assert _files("out") == _four("mixers")
    assert "random weights" in capsys.readouterr().out
    _analyze("spectrum", *models, "--output", "spectra", "--mixers", "--radial")
    assert _files("spectra") == _four("spectrum") | _four("maps") - {"maps.csv"}


def test_filters_of_both_generations(capsys):
    _analyze("filters", *OURS, "--limit", "1", "--fit", "aspect", "--output", "out")
    folders = sorted(path.name for path in Path("out").iterdir())
    assert folders == ["1-test_spanet", "2-test_spanetv2"]
    expected = _four("gates") | (_four("profiles") | _four("context"))
    assert _files("out") == expected - {"profiles.csv", "context.csv"}
    assert "λ=0.7" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["score", "grad"])
def test_cam_of_models(method):
    few = ("--channels", "3", "--limit", "1", "--method", method)
    _analyze("cam", "--model", "test_spanetv2", "--size", "64", *few, "--output", "out")
    assert _files("out") == _four("cam")


def test_robustness_by_labels_and_without(capsys):
    root = images(Path("set"), per_class=2)
    few = ("--model", "test_spanetv2", "--size", "64", "--radii", "2,8")
    _analyze("robustness", *few, "--images", str(root / "val"), "--output", "out")
    assert "the label" in capsys.readouterr().out
    assert _files("out") == _four("robustness")
    _analyze("robustness", *few, "--corruptions", "low", "--output", "own")
    assert "as without corruption" in capsys.readouterr().out.replace("\n", " ")


def test_shape_bias_from_a_file(capsys):
    Path("some.csv").write_text("\r\n".join([HEADER, *ROWS]))
    _analyze("shape-bias", "some.csv", "--output", "out")
    assert _files("out") == _four("shape_bias")
    assert "0.6667" in capsys.readouterr().out


def test_subjects_that_saw_other_images_are_told(capsys):
    more = [row.replace("net,", "other,") for row in ROWS[:2]]
    Path("some.csv").write_text("\n".join([HEADER, *ROWS, *more]))
    _analyze("shape-bias", "some.csv")
    assert "values over unlike sets of images compare only roughly" in capsys.readouterr().out


@needs_data
def test_shape_bias_of_a_model_on_stimuli(capsys):
    arguments = ("--stimuli", str(DATA / "stimuli" / "cue-conflict" / "boat"))
    arguments += ("--indices", str(DATA / "imagenet_to_16class_indices.json"), "--size", "64")
    _analyze("shape-bias", "--model", "test_spanetv2", *arguments, "--output", "out")
    assert _files("out") == {*_four("shape_bias"), "decisions.csv"}
    _analyze("shape-bias", "out/decisions.csv", "--output", "again")
    first, again = (Path(f, "shape_bias.csv").read_text() for f in ("out", "again"))
    assert first == again  # what the model decided is what its file says


def test_a_figure_is_drawn_again_from_its_data_alone():
    _analyze("response", "--kernels", "3", "--side", "5", "--draws", "2", "--output", "out")
    before = {p.name: p.read_bytes() for p in Path("out").iterdir()}
    for path in Path("out").iterdir():
        if path.suffix in (".svg", ".png", ".csv"):
            path.unlink()
    _analyze("redraw", "out")
    for path in Path("out").glob("*.svg"):
        assert path.read_bytes() == before[path.name]
    assert _files("out") == {name for name in before if not name.endswith(".csv")}


def test_data_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not the data of a figure"):
        redraw(tmp_path)
    (tmp_path / "x.npz").unlink()
    np.savez(tmp_path / "y.npz", a=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not the data of a figure"):
        load(tmp_path / "y.npz")
    with pytest.raises(DataError, match="which none draws"):
        save(tmp_path / "z", "z", FigureData("pie", {}, {}))


def test_lines_differ_in_print():
    """Neighbouring lines must differ without colour: by lightness, dash or marker."""
    greys = []
    for i in range(8):
        look = style.line(i)
        red, green, blue = (int(look["color"][k : k + 2], 16) for k in (1, 3, 5))
        grey = round((0.299 * red + 0.587 * green + 0.114 * blue) / 25)
        greys.append((grey, str(look["linestyle"]), look["marker"]))
    assert len({marks[1:] for marks in greys}) == 8
    assert all(a != b for a, b in itertools.pairwise(greys))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["response", "--kernels", "4"], "kernels: got 4, expected odd sizes"),
        (["response", "--kernels", "a"], "--kernels: got 'a', expected one number or more"),
        (["response", "--choose", "boundry=torus"], "did you mean 'boundary'"),
        (["response", "--choose", "boundary=taurus"], "did you mean 'torus'"),
        (["response", "--choose", "self_loops=no"], "expected true or false"),
        (["response", "--model", "test_vit", "--claims"], "are about random mixers"),
        (["spectrum", "--model", "spanet_ss"], "did you mean 'spanet_s'"),
        (["spectrum", "--model", "test_spanet", "--images", "none"], "does not exist"),
        (["spectrum", "--model", "test_spanet", "--size", "8"], "--size: got 8"),
        (["spectrum", "--model", "test_spanet", "--batch", "0"], "--batch: got 0"),
        (["spectrum", "--model", "test_spanet", "--limit", "0"], "--limit: got 0"),
        (["filters", "--model", "test_vit", "--size", "160"], "has no SRF gates"),
        (["filters", "--model", "test_spanet", "--fit", "squash"], "--fit: got 'squash'"),
        (["shape-bias"], "neither CSV files nor --model"),
        (["shape-bias", "--model", "test_vit"], "needs --stimuli FOLDER and --indices FILE"),
        (["shape-bias", "none.csv"], "none.csv: no such file or folder"),
        (["cam", "--model", "test_spanet", "--method", "layer"], "--method: got 'layer'"),
        (["cam", "--model", "test_spanet", "--target", "1000"], "a class from 0 to 999"),
        (["robustness", "--model", "test_spanet", "--radii", "8,2"], "--radii"),
        (["robustness", "--model", "test_spanet", "--corruptions", "x"], "--corruptions: got 'x'"),
        (["redraw", "none"], "none: no figure's data"),
        (["spectre"], "invalid choice: 'spectre'"),
    ],
)
def test_a_mistake_is_one_line(args, told, capsys):
    if args[0] in ("spectrum", "filters", "cam", "robustness") and "--size" not in args:
        args = [*args, "--size", "64"]
    assert told in refused(["analyze", *args], capsys, app.main)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs are not here")
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("analysis", ["response", "spectrum", "cam", "robustness", "filters"])
def test_the_models_of_the_papers_on_photographs(analysis, name, capsys):
    photographs = sorted((SHARED / "coco_person" / "val").rglob("*.jpg"))[:1]
    more = {
        "response": ["--modes", "6"],
        "cam": ["--channels", "8"],
        "robustness": ["--radii", "4,32"],
    }
    args = [analysis, "--model", name, "--images", *map(str, photographs)]
    args += [*more.get(analysis, []), "--output", "out"]
    if analysis == "filters" and not name.startswith("spanet"):
        error = refused(["analyze", *args], capsys, app.main)
        assert "expected a SPANet or SPANetV2" in error
        return
    _analyze(*args)
    for path in Path("out").glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture.convert("L").resize((64, 64))))) > 5
    assert torch.is_grad_enabled()
