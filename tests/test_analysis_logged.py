"""If one of these fails, figures of an analysis don't reach the run that they are about."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image

from spanet_lightning import ClassificationTask, SPANetV2, app, cli
from spanet_lightning.analysis import figures
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.analysis.spectrum import spectra
from spanet_lightning.errors import CheckpointError, ConfigError
from spanet_lightning.tracking import attach
from spanet_lightning.tracking.browse import Store
from spanet_lightning.tracking.logger import MLflowLogger
from spanet_lightning.tracking.options import TrackingOptions
from spanet_lightning.tracking.pictures import SpectrumPicture, name_of, picture_callbacks
from tests.helpers import DIGITS, refused
from tests.test_analysis_decisions import HEADER, ROWS
from tests.tracked import OPTIONS, Recorded, recorded  # noqa: F401 - a fixture

pytest.importorskip("matplotlib")

FEW = ("--size", "64", "--limit", "1")


def _artifacts(found: Recorded, folder: str) -> set[str]:
    entries = found.store.client.list_artifacts(found.run.id, folder)
    return {entry.path.removeprefix(f"{folder}/") for entry in entries}


def test_figures_join_the_run_of_their_checkpoint(recorded: Recorded, capsys):  # noqa: F811
    """From another folder than training ran in, and the run is left as it ended."""
    checkpoint = recorded.folder / "runs" / "digits-spanetv2" / "best.ckpt"
    app.main(["analyze", "spectrum", "--model", str(checkpoint), *FEW, "--log", "--output", "mine"])
    assert "logged analysis/mine to run digits-spanetv2" in capsys.readouterr().out
    four = {f"spectrum.{suffix}" for suffix in ("npz", "csv", "svg", "png")}
    assert four < _artifacts(recorded, "analysis/mine")
    assert recorded.store.find(recorded.run.id).status == recorded.run.status
    assert {path.name for path in Path.cwd().iterdir()} == {"mine"}  # no store of its own here


def test_figures_join_a_run_that_is_named(recorded: Recorded, capsys):  # noqa: F811
    """In the folders that they are in: `filters` writes one for each model."""
    Path("some.csv").write_text("\n".join([HEADER, *ROWS]))
    where = ("--run", recorded.run.id[:10], "--tracking-uri", recorded.uri)
    target = attach.of_name(recorded.run.id[:10], recorded.uri)
    app.main(["analyze", "shape-bias", "some.csv", "--output", "out", *where])
    assert "logged analysis/out" in capsys.readouterr().out
    inner = Path("more/1-model/x.csv")
    inner.parent.mkdir(parents=True)
    inner.write_text("1")
    folder = attach.attach(target, [inner], Path("more"), "..")
    assert ".." not in folder  # never above
    assert _artifacts(recorded, f"{folder}/1-model") == {"x.csv"}


def test_a_run_that_is_not_known_is_told_before_anything_is_measured(recorded, capsys):  # noqa: F811
    base = ["analyze", "spectrum", *FEW, "--model"]
    told = refused([*base, "test_spanet", "--log"], capsys, app.main)
    assert "none of the models is a run's .ckpt" in told
    torch.save({}, "best.ckpt")
    told = refused([*base, "best.ckpt", "--log"], capsys, app.main)
    assert "is in no run's folder" in told
    where = ["--tracking-uri", recorded.uri]
    told = refused([*base, "test_spanet", "--run", "digits-spanetv3", *where], capsys, app.main)
    assert "did you mean 'digits-spanetv2'" in told
    assert not Path("analysis").exists()


def test_a_run_that_was_never_sent_is_told(recorded: Recorded, tmp_path):  # noqa: F811
    log = recorded.folder / "runs" / "digits-spanetv2" / "metrics.jsonl"
    (tmp_path / "run").mkdir()
    shutil.copy(log, tmp_path / "run")
    with pytest.raises(CheckpointError, match="spanet track sync") as told:
        attach.of_checkpoint(tmp_path / "run" / "last.ckpt")
    assert "\n" not in str(told.value)


# The picture of spectra in training


def test_a_line_of_the_configuration_draws_spectra_by_step():
    args = ["fit", "-c", DIGITS, *OPTIONS, "--trainer.logger.tracking_uri=sqlite:///mlflow.db"]
    cli.main([*args, "--tracking.spectrum=4", "--tracking.log_images_every_n_epochs=1"])
    store = Store("sqlite:///mlflow.db")
    run = store.find("digits-spanetv2")
    files = [entry.path for entry in store.client.list_artifacts(run.id, "images")]
    steps = {int(f.split("+")[2]) for f in files if name_of(f) == "feature spectra"}
    assert steps == {2, 5}  # two epochs of three steps
    data = store.client.list_artifacts(run.id, "analysis/spectrum")
    assert [Path(entry.path).name for entry in data] == ["epoch-0001.npz", "epoch-0002.npz"]
    # What was recorded is enough to draw it again.
    copy = store.client.download_artifacts(run.id, data[1].path, ".")
    assert len(figures.draw(figures.load(copy)).axes) == 2  # a panel and the colour bar


class _Kept(MLflowLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[Image.Image] = []
        self.data: list[figures.Figure] = []

    def log_image(self, picture: Image.Image, file: str) -> None:
        self.pictures.append(picture)

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        self.data.append(figures.load(path))

    def set_tags(self, tags: object) -> None:
        pass


def test_a_picture_of_spectra_shows_the_first_images_and_changes_nothing():
    torch.manual_seed(0)
    net = SPANetV2("test", num_classes=4, img_size=32)
    task, images, logger = ClassificationTask(net).eval(), torch.randn(6, 3, 32, 32), _Kept()
    trainer = SimpleNamespace(
        sanity_checking=False,
        testing=False,
        state=SimpleNamespace(fn="fit"),
        max_epochs=9,
        current_epoch=2,
        global_step=7,
        is_global_zero=True,
        loggers=[logger],
        precision_plugin=Precision(),
        strategy=SingleDeviceStrategy("cpu"),
    )
    before = {key: value.clone() for key, value in task.state_dict().items()}
    rng = torch.get_rng_state()
    callback = SpectrumPicture(every=3, images=4)
    callback.setup(trainer, task, "fit")
    for index in range(2):
        callback.on_validation_batch_end(trainer, task, None, (images + index,), index)
    callback.on_validation_epoch_end(trainer, task)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert not any(module.training for module in task.modules())
    assert not any(module._forward_hooks for module in task.modules())
    one = LoadedModel("", net, (0.0,), (1.0,))
    expected = spectra(one, [images[:4]]).drawn()
    (data,) = logger.data
    ((panel,),) = data.panels
    assert panel.title == "epoch 3"
    assert len(panel.curves) == len(expected) > 3
    for curve, found in zip(panel.curves, expected, strict=True):
        np.testing.assert_allclose(curve.y, found.relative, atol=1e-12)
    assert min(logger.pictures[0].size) > 200
    trainer.current_epoch = 3  # none is due
    callback.on_validation_batch_end(trainer, task, None, (images,), 0)
    callback.on_validation_epoch_end(trainer, task)
    assert len(logger.data) == 1


def test_spectra_are_drawn_only_where_asked_for():
    kinds = [type(one) for one in picture_callbacks(TrackingOptions(), torch.nn.Module())]
    assert SpectrumPicture not in kinds
    found = picture_callbacks(
        TrackingOptions(log_images_every_n_epochs=3, spectrum=5), torch.nn.Module()
    )
    (one,) = (c for c in found if isinstance(c, SpectrumPicture))
    assert (one.every, one.images) == (3, 5)
    for arguments in ({"every": 0}, {"images": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            SpectrumPicture(**arguments)
    with pytest.raises(ConfigError, match=r"tracking.spectrum: got -1, expected at least 0"):
        TrackingOptions(spectrum=-1)
