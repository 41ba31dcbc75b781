"""If one of these fails, a picture of a run shows something else than it says, or is missing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.cli.overlays import Overlays
from spanet_lightning.tracking.options import TrackingOptions
from spanet_lightning.tracking.pictures import (
    canvas,
    confusion,
    filters,
    picture_callbacks,
    predictions,
    series,
)
from tests.tracked import Recorded, recorded  # noqa: F401 - a fixture


def test_a_run_has_its_pictures_by_step(recorded: Recorded):  # noqa: F811
    files = [item.path for item in recorded.store.client.list_artifacts(recorded.run.id, "images")]
    shown = sorted({(series.name_of(file), int(file.split("+")[2])) for file in files})
    last = 5  # of two epochs of three steps
    assert shown == [
        ("best test", last),
        ("best val", last),
        ("confusion test", last),
        ("confusion val", last),
        ("spectral filters", 0),
        ("spectral filters", last),
        ("worst test", last),
        ("worst val", last),
    ]
    # The small copies, without which the page shows no grid; MLflow takes its cue from the tag.
    assert sum(file.endswith("+compressed.webp") for file in files) == len(shown)
    assert recorded.run.tags["mlflow.loggedImages"] == "True"


def test_pictures_come_every_so_many_epochs_and_at_the_end():
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), max_epochs=10, current_epoch=0
    )
    due = []
    for trainer.current_epoch in range(10):
        if series.is_due(trainer, 4):
            due.append(trainer.current_epoch + 1)
    assert due == [4, 8, 10]
    trainer.sanity_checking = True
    assert not series.is_due(trainer, 1)
    assert picture_callbacks(TrackingOptions(log_images_every_n_epochs=0), torch.nn.Module()) == []


def test_overlays_are_predicted_only_when_they_are_due():
    trainer = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), max_epochs=9, current_epoch=0
    )
    asked = []
    task = SimpleNamespace(predict_step=lambda batch: asked.append(trainer.current_epoch) or [])
    trainer.loggers, trainer.global_step, trainer.datamodule = [], 0, None
    overlays = Overlays(1, record=None, every=4)
    for trainer.current_epoch in range(9):
        overlays.on_validation_batch_end(trainer, task, None, None, 0)
    assert asked == [3, 7, 8]


def test_the_colour_of_a_cell_is_its_share_of_the_row():
    counts = torch.tensor([[3, 1], [0, 4]])
    picture = confusion.draw(counts, ("cat", "dog"), "val")
    pixels = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}
    for share in (0.75, 0.25, 1.0):
        assert tuple(canvas.sequential(share).tolist()) in pixels
    assert confusion._pairs(counts.numpy(), ("cat", "dog")) == ["cat taken for dog: 1 of 4"]


@pytest.mark.parametrize("classes", [2, 10, 26, 1000])
def test_any_number_of_classes_fits(classes: int):
    counts = torch.eye(classes, dtype=torch.long)
    names = [f"a rather long name of class {i}" for i in range(classes)]
    picture = confusion.draw(counts, names, "val")
    assert 500 < picture.width < 1000
    assert 600 < picture.height < 1100


def outputs(losses: list[float]) -> dict[str, torch.Tensor]:
    return {"losses": torch.tensor(losses), "logits": torch.eye(3)[[0] * len(losses)]}


def test_the_worst_and_the_best_of_all_batches_are_kept():
    callback = predictions.PredictionPicture(every=1, count=3)
    trainer = SimpleNamespace(
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="validate"),
        datamodule=SimpleNamespace(mean=0.5, std=0.25),
    )
    callback.on_validation_epoch_start(trainer, None)
    losses = [0.1, 2.0, 0.5, 0.3, 3.0, 0.2, 1.0]
    for start in (0, 4):
        part = losses[start : start + 4]
        images = torch.full((len(part), 1, 4, 4), 2.0)
        batch = (images, torch.zeros(len(part), dtype=torch.long))
        callback.on_validation_batch_end(trainer, None, outputs(part), batch, 0)
    kept = callback._kept
    assert [round(one.loss, 3) for one in kept["worst"]] == [3.0, 2.0, 1.0]
    assert [round(one.loss, 3) for one in kept["best"]] == [0.1, 0.2, 0.3]
    assert float(kept["best"][0].image.max()) == 1.0  # 2 · 0.25 + 0.5
    right = torch.tensor([1.0, 0, 0]).softmax(0)[0]
    assert kept["best"][0].probability == pytest.approx(float(right))


def test_pictures_of_one_image_or_none_too_many():
    one = predictions.Shown(torch.rand(3, 40, 20), 0.1, 0, 1, 0.9)
    small = predictions.draw([one], None, "val")
    large = predictions.draw([one] * 13, ("cat", "dog"), "val")
    assert small.width >= 480  # its title fits
    assert large.height > 2 * small.height - 100


def test_every_filter_of_both_generations_is_drawn():
    v2 = filters._gains(SPANetV2("test", img_size=64), 64)
    assert {stage: len(row) for stage, row in v2.items()} == {
        "stage 1": 1,
        "stage 2": 1,
        "stage 3": 2,
        "stage 4": 1,
    }
    assert v2["stage 1"][0].values.shape == (16, 16)
    v1 = filters._masks(SPANet("test"), 224)
    assert [len(row) for row in v1.values()] == [3, 3, 3, 3]
    for row in v1.values():
        shares = [float(tile.text.split("\n")[1].split("%")[0]) for tile in row]
        assert sum(shares) == pytest.approx(100, abs=0.2)
    # λ inside, at zero frequency.
    assert float(v1["stage 1"][0].values[28, 28]) == pytest.approx(0.7)
    many = filters._gains(SPANetV2("test", depths=(1, 1, 12, 1), img_size=64), 64)
    assert [tile.text.split("\n")[0] for tile in many["stage 3"]][-1] == "block 12"
    assert len(many["stage 3"]) == 8


def test_networks_without_filters_have_no_picture():
    assert filters.draw(SPANetV2("test", srf=False, img_size=64), "now") is None
    assert filters.draw(SPANet("test", spf=False), "now") is None
    assert filters.draw(SPANet("test"), "now") is not None


def test_learning_shows(monkeypatch: pytest.MonkeyPatch):
    model = SPANetV2("test", img_size=64)
    before = filters.draw(model, "now")
    with torch.no_grad():
        for logits in model.stages[0].blocks[0].mixer.srf.logits:
            logits.fill_(2.0)
    after = filters.draw(model, "now")
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).max() > 50
