"""If one of these fails, `spanet analyze` crashes, misleads, or loses what a figure shows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spanet_lightning import app
from spanet_lightning.analysis import figures
from spanet_lightning.errors import DataError
from tests.helpers import images, refused
from tests.test_analysis_decisions import DATA, HEADER, ROWS, needs_data
from tests.test_analysis_features import write_checkpoint

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


def test_claims_are_tested_under_every_reading(capsys):
    options = ("--connectivity", "torus", "--operator", "signed", "--draws", "2")
    _analyze("response", "--kernels", "3,5", "--side", "6", "--claims", *options)
    assert _four("claims") < _files("analysis/response")
    told = capsys.readouterr().out
    assert "no self-loops" in told
    assert "holds interpolated" in Path("analysis/response/claims.csv").read_text()


@pytest.mark.parametrize("models", [OURS, OTHERS], ids=["ours", "others"])
def test_response_and_spectrum_of_models(models, capsys):
    _analyze("response", *models, "--modes", "4", "--limit", "1", "--output", "out")
    assert _files("out") == _four("mixers")
    assert "random weights" in capsys.readouterr().out
    _analyze("spectrum", *models, "--output", "spectra", "--mixers", "--radial")
    expected = _four("spectrum") | _four("variance") | _four("maps") - {"maps.csv"}
    assert _files("spectra") == expected


def test_spectra_of_layers_their_weights_and_their_difference(capsys):
    few = ("--size", "64", "--limit", "1", "--model", "test_spanetv2")
    chosen = ("--layer", "stages.*.local.0", "--layer", "stem")
    _analyze("spectrum", *few, *chosen, "--weights", "--output", "out")
    assert _four("weights") < _files("out")
    with Path("out/spectrum.csv").open() as file:
        names = {row["layer"] for row in csv.DictReader(file)}
    assert "stem" in names
    assert len(names) == 6
    _analyze("spectrum", *few, "--model", "test_spanetv2", "--difference", "--output", "same")
    with Path("same/spectrum.csv").open() as file:
        assert {float(row["delta"]) for row in csv.DictReader(file)} == {0}


def test_a_model_from_a_file_and_a_run_over_its_epochs(capsys):
    Path("mine.py").write_text("import timm\ndef build(): return timm.create_model('resnet10t')\n")
    few = ("--size", "64", "--limit", "1")
    layer = ("--layer", "layer3.0.conv2", "--weights")
    _analyze("spectrum", "--model", "python:mine:build", *layer, *few, "--output", "out")
    assert "random weights" not in capsys.readouterr().out
    for epoch in (0, 4):
        write_checkpoint(Path(f"epoch={epoch}.ckpt"), epoch=epoch)
    _analyze("spectrum", "--epochs", ".", *few, "--output", "over")
    assert _four("epochs") < _files("over")
    with Path("over/epochs.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"1", "5"}


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
    _analyze("cam", "--model", "test_spanetv2", "--size", "64", *few, "--road", "--output", "road")
    assert _files("road") == _four("cam") | _four("road")


def test_robustness_by_labels_and_without(capsys):
    root = images(Path("set"), per_class=2)
    few = ("--model", "test_spanetv2", "--size", "64", "--radii", "2,8")
    _analyze("robustness", *few, "--images", str(root / "val"), "--output", "out")
    assert "label" in capsys.readouterr().out
    assert _files("out") == _four("robustness")
    _analyze("robustness", *few, "--corruptions", "low", "--output", "own")
    assert "clean decision" in capsys.readouterr().out.replace("\n", " ")


def test_heat_map_and_hessian_of_small_models():
    root = images(Path("set"), per_class=1)
    few = ("--model", "test_spanetv2", "--size", "32", "--images", str(root / "val"))
    _analyze("heatmap", *few, "--side", "3", "--output", "out")
    _analyze("hessian", *few, "--top", "1", "--iterations", "2", "--output", "out")
    assert _files("out") == _four("heatmap") | _four("hessian")


def test_error_consistency_of_models_and_of_files():
    root = images(Path("set"), per_class=2)
    few = ("--model", "test_spanetv2", "--model", "test_spanet", "--size", "32")
    _analyze("consistency", *few, "--images", str(root / "val"), "--output", "out")
    assert _files("out") == _four("consistency")
    other = [row.replace("net,", "subject-01,").replace("cat,cat", "dog,cat") for row in ROWS]
    Path("some.csv").write_text("\n".join([HEADER, *ROWS, *other]))
    _analyze("consistency", "some.csv", "--output", "files")
    with Path("files/consistency.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["first"], row["second"], row["images"]) == ("net", "subject-01", "6")


def test_shape_bias_from_a_file(capsys):
    Path("some.csv").write_text("\r\n".join([HEADER, *ROWS]))
    _analyze("shape-bias", "some.csv", "--output", "out")
    assert _files("out") == _four("shape_bias")
    assert "0.6667" in capsys.readouterr().out


def test_subjects_that_saw_other_images_are_told(capsys):
    more = [row.replace("net,", "other,") for row in ROWS[:2]]
    Path("some.csv").write_text("\n".join([HEADER, *ROWS, *more]))
    _analyze("shape-bias", "some.csv")
    assert "compare values over different sets of images with care" in capsys.readouterr().out


@needs_data
def test_shape_bias_of_a_model_on_stimuli(capsys):
    arguments = ("--stimuli", str(DATA / "stimuli" / "cue-conflict" / "boat"))
    arguments += ("--indices", str(DATA / "imagenet_to_16class_indices.json"), "--size", "64")
    _analyze("shape-bias", "--model", "test_spanetv2", *arguments, "--output", "out")
    assert _files("out") == {*_four("shape_bias"), "decisions.csv"}
    _analyze("shape-bias", "out/decisions.csv", "--output", "again")
    first, again = (Path(f, "shape_bias.csv").read_text() for f in ("out", "again"))
    assert first == again  # what the model decided is what its file says


def test_a_figure_is_a_function_of_its_saved_data():
    _analyze("response", "--kernels", "3", "--side", "5", "--draws", "2", "--output", "out")
    for path in Path("out").glob("*.npz"):
        figures.save(Path("again"), path.stem, figures.load(path))
        for suffix in ("svg", "png"):
            again = Path("again") / f"{path.stem}.{suffix}"
            assert again.read_bytes() == path.with_suffix(f".{suffix}").read_bytes()
    drawn = figures.draw(figures.load("out/response.npz"))
    drawn.axes[0].set_xlim(0, 0.5)
    drawn.savefig("mine.pdf")


def test_other_files_are_not_data_of_figures(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "y.npz", figure=np.array([object()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", figure=np.array('{"kind": "os"}'))
    for name in "xyz":
        with pytest.raises(DataError, match="not the data of a figure"):
            figures.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["response", "--kernels", "4"], "kernels: got 4, expected odd sizes"),
        (["response", "--kernels", "a"], "--kernels: got 'a', expected one number or more"),
        (["response", "--connectivity", "taurus"], "did you mean 'torus'"),
        (["response", "--model", "test_vit", "--claims"], "is about random mixers"),
        (["spectrum", "--model", "spanet_ss"], "did you mean 'spanet_s'"),
        (["spectrum", "--model", "test_spanet", "--images", "none"], "does not exist"),
        (["spectrum", "--model", "test_spanet", "--size", "8"], "--size: got 8"),
        (["spectrum", "--model", "test_spanet", "--batch", "0"], "--batch: got 0"),
        (["spectrum", "--model", "test_spanet", "--limit", "0"], "--limit: got 0"),
        (["filters", "--model", "test_vit", "--size", "160"], "has no SRF gates"),
        (["filters", "--model", "test_spanet", "--fit", "squash"], "--fit: got 'squash'"),
        (["shape-bias"], "neither CSV files nor --model"),
        (["shape-bias", "--model", "test_vit"], "requires --stimuli FOLDER and --indices FILE"),
        (["shape-bias", "none.csv"], "none.csv: no such file or folder"),
        (["cam", "--model", "test_spanet", "--method", "layer"], "--method: got 'layer'"),
        (["cam", "--model", "test_spanet", "--target", "1000"], "a class from 0 to 999"),
        (["robustness", "--model", "test_spanet", "--radii", "8,2"], "--radii"),
        (["robustness", "--model", "test_spanet", "--corruptions", "x"], "--corruptions: got 'x'"),
        (["spectrum", "--model", "test_spanet", "--layer", "x.*"], "--layer: got 'x.*', which mat"),
        (["spectrum", "--model", "test_spanet", "--difference"], "--difference: got 1 models"),
        (["spectrum", "--epochs", "."], "--epochs: found checkpoints of 0 epochs"),
        (["spectrum", "--model", "python:none:f"], "No module named 'none'"),
        (["heatmap", "--model", "test_spanet", "--side", "4"], "--side: got 4"),
        (["hessian", "--model", "test_spanet", "--top", "0"], "--top: got 0"),
        (["consistency"], "neither CSV files nor --model"),
        (["spectre"], "invalid choice: 'spectre'"),
    ],
)
def test_a_mistake_is_one_line(args, told, capsys):
    if (
        args[0] in ("spectrum", "filters", "cam", "robustness", "heatmap", "hessian")
        and "--size" not in args
    ):
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
